"""What printed columns show that no path can say: pure functions from an object to a text, a number or a time."""

from __future__ import annotations

from datetime import datetime

from skerry.api.kinds.certificate_signing_request import CertificateSigningRequest
from skerry.api.kinds.event import Event
from skerry.api.kinds.rbac import ClusterRoleBinding, RoleBinding

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def role(item: RoleBinding | ClusterRoleBinding) -> str:
    """Return the role of a binding: `ClusterRole/view`."""
    return f"{item.role_ref.kind}/{item.role_ref.name}"


def accounts(item: RoleBinding | ClusterRoleBinding) -> str:
    """Return the service accounts among a binding's subjects: `default/ci`."""
    return ",".join(f"{one.namespace}/{one.name}" for one in item.subjects if one.kind == "ServiceAccount")


def last_seen(event: Event) -> datetime | None:
    """Return when it happened last."""
    times = (event.series and event.series.last_observed_time, event.last_timestamp, first_seen(event))
    return next((when for when in times if when), None)


def first_seen(event: Event) -> datetime | None:
    """Return when it happened first."""
    return event.first_timestamp or event.event_time or event.metadata.creation_timestamp


def involved(event: Event) -> str:
    """Return the object as its column shows it, `device/till-7`."""
    return f"{event.involved_object.kind.lower()}/{event.involved_object.name}"


def source(event: Event) -> str:
    """Return who says so as its column shows it."""
    who, host = event.source.component or event.reporting_component, event.source.host or event.reporting_instance
    return f"{who}, {host}" if who and host else who or host


def times_seen(event: Event) -> int:
    """Return how often it happened."""
    return event.series.count if event.series is not None else event.count or 1


def decision(item: CertificateSigningRequest) -> str:
    """Return what became of the request as its column shows it: `Pending`, `Approved,Issued`."""
    found = {one.type for one in item.status.conditions}
    words: list[str] = [word for word in ("Approved", "Denied", "Failed") if word in found]
    return ",".join([*(words or ["Pending"]), *(["Issued"] if item.status.certificate else [])])


def wanted_life(item: CertificateSigningRequest) -> str | None:
    """Return the life that was asked for as its column shows it: `24h`, `30m`, `90s`."""
    seconds = item.spec.expiration_seconds
    if seconds is None:
        return None
    unit, word = next((unit, word) for unit, word in _UNITS if not seconds % unit)
    return f"{seconds // unit}{word}"
