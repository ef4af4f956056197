"""What the hub has heard of a device, as its status says it. Pure: status and news in, status out.

Lives here: which part of a report becomes which field and condition. Must not live here: reading, writing, time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from skerry.api.kinds.device import DeviceFacts, DeviceStatus
from skerry.api.meta import Condition, find_condition, set_condition
from skerry.core.messages import Reported

CONNECTED = "Connected"
DESIRED_ACCEPTED = "DesiredAccepted"
AWAITING_RECONCILIATION = "AwaitingReconciliation"


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What was heard since the status was written; None is nothing new."""

    report: Reported | None = None
    online: bool | None = None
    why: str = ""
    """Why it is offline, in words for a condition."""
    last_seen: datetime | None = None
    desired_version: int = 0
    """The version that this hub desires of the device, as far as is known; 0 when it desires nothing."""


def is_behind(report: Reported, desired_version: int) -> bool:
    """Return whether the device has accepted what this hub does not know: only an operator can say who is right.

    It accepted a higher version than the hub's, or refuses the very one that the hub desires. A refused version that
    is lower than the hub's was a stale message, which means nothing.
    """
    return report.observed_manifest_version > desired_version or 0 < desired_version == report.refused_manifest_version


def observe(status: DeviceStatus, news: News, *, now: datetime, resolution: timedelta) -> DeviceStatus:
    """Return the status with the news in it; the very same when there is nothing in them.

    `lastSeen` alone changes only once it lags by `resolution`; with anything else it is brought up to date.
    """
    changed = status
    if news.report is not None:
        changed = _reported(changed, news.report, news.desired_version, now)
    if news.online is not None:
        changed = _present(changed, news.online, news.why, now)
    seen = news.last_seen
    if seen is None or (status.last_seen is not None and seen <= status.last_seen):
        return changed
    lags = status.last_seen is None or seen - status.last_seen >= resolution
    return msgspec.structs.replace(changed, last_seen=seen) if lags or changed != status else status


def _reported(status: DeviceStatus, report: Reported, desired_version: int, now: datetime) -> DeviceStatus:
    changed = msgspec.structs.replace(
        status,
        observed_manifest_version=report.observed_manifest_version,
        workloads=report.workloads,
        benchmarks=report.benchmarks,
        holds=report.holds,
        **(_facts(report.facts, report.boot_id) if report.facts is not None else {}),
    )
    changed = _reconciled(changed, report, desired_version, now)
    if report.refused and not 0 < report.refused_manifest_version < desired_version:
        return _with_condition(changed, _condition(DESIRED_ACCEPTED, "False", "Refused", report.refused, now))
    if report.observed_manifest_version:
        message = f"version {report.observed_manifest_version} was accepted"
        return _with_condition(changed, _condition(DESIRED_ACCEPTED, "True", "Accepted", message, now))
    return changed


def _reconciled(status: DeviceStatus, report: Reported, desired_version: int, now: datetime) -> DeviceStatus:
    accepted = report.observed_manifest_version
    if is_behind(report, desired_version):
        message = (
            f"the device has accepted version {accepted}, this hub desires version {desired_version}: it knows less "
            "than the device, as after a restoration from a backup; run `skerry device reconcile`"
        )
        new = _condition(AWAITING_RECONCILIATION, "True", "HubIsBehind", message, now)
    elif find_condition(status.conditions, AWAITING_RECONCILIATION) is not None:
        message = f"the device has accepted version {accepted}, this hub desires version {desired_version}"
        new = _condition(AWAITING_RECONCILIATION, "False", "Reconciled", message, now)
    else:
        return status
    return _with_condition(status, new)


def _facts(facts: DeviceFacts, boot_id: str) -> dict[str, Any]:
    return {
        "hardware": facts.hardware,
        "os": facts.os,
        "engines": facts.engines,
        "runtimes": facts.runtimes,
        "protection": facts.protection,
        "network": facts.network,
        "limits": facts.limits,
        "trust": facts.trust,
        "agent_version": facts.agent_version,
        "boot_id": facts.boot_id or boot_id,
    }


def _present(status: DeviceStatus, online: bool, why: str, now: datetime) -> DeviceStatus:
    if online:
        changed = msgspec.structs.replace(status, phase="Online")
        return _with_condition(changed, _condition(CONNECTED, "True", "Online", "the device is connected", now))
    if status.phase == "Pending":
        return status  # it never was online
    changed = msgspec.structs.replace(status, phase="Offline")
    return _with_condition(changed, _condition(CONNECTED, "False", "Offline", why, now))


def _condition(kind: str, value: Literal["True", "False"], reason: str, message: str, now: datetime) -> Condition:
    return Condition(type=kind, status=value, reason=reason, message=message, last_transition_time=now)


def _with_condition(status: DeviceStatus, new: Condition) -> DeviceStatus:
    old = find_condition(status.conditions, new.type)
    if old is not None and (old.status, old.reason, old.message) == (new.status, new.reason, new.message):
        return status  # setting it again would move it to the end of the list, which is a change
    return msgspec.structs.replace(status, conditions=set_condition(status.conditions, new))
