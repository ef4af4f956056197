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


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What was heard since the status was written; None is nothing new."""

    report: Reported | None = None
    online: bool | None = None
    why: str = ""
    """Why it is offline, in words for a condition."""
    last_seen: datetime | None = None


def observe(status: DeviceStatus, news: News, *, now: datetime, resolution: timedelta) -> DeviceStatus:
    """Return the status with the news in it; the very same when there is nothing in them.

    `lastSeen` alone changes only once it lags by `resolution`; with anything else it is brought up to date.
    """
    changed = status
    if news.report is not None:
        changed = _reported(changed, news.report, now)
    if news.online is not None:
        changed = _present(changed, news.online, news.why, now)
    seen = news.last_seen
    if seen is None or (status.last_seen is not None and seen <= status.last_seen):
        return changed
    lags = status.last_seen is None or seen - status.last_seen >= resolution
    return msgspec.structs.replace(changed, last_seen=seen) if lags or changed != status else status


def _reported(status: DeviceStatus, report: Reported, now: datetime) -> DeviceStatus:
    changed = msgspec.structs.replace(
        status,
        observed_manifest_version=report.observed_manifest_version,
        workloads=report.workloads,
        **(_facts(report.facts, report.boot_id) if report.facts is not None else {}),
    )
    if report.refused:
        return _with_condition(changed, _condition(DESIRED_ACCEPTED, "False", "Refused", report.refused, now))
    if report.observed_manifest_version:
        message = f"version {report.observed_manifest_version} was accepted"
        return _with_condition(changed, _condition(DESIRED_ACCEPTED, "True", "Accepted", message, now))
    return changed


def _facts(facts: DeviceFacts, boot_id: str) -> dict[str, Any]:
    return {
        "hardware": facts.hardware,
        "os": facts.os,
        "engines": facts.engines,
        "runtimes": facts.runtimes,
        "network": facts.network,
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
