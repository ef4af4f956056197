"""What an audit log says: `audit.k8s.io/v1` Event, as Kubernetes' tools for audit logs read it.

Lives here: the types. Must not live here: what is recorded (`core.audit`), how it is kept (`hub.audit`). It is no kind
of the store: nobody creates, changes or deletes one.
Source: Kubernetes API reference, audit.k8s.io/v1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from skerry.api.meta import Struct

API_VERSION = "audit.k8s.io/v1"
PREFIX = "audit.skerry.dev/"
SEQUENCE = f"{PREFIX}sequence"
"""Annotation: the number of the entry, from 1 on."""
PREVIOUS = f"{PREFIX}previous"
"""Annotation: SHA-256, in hex, of the line before this one as it is written, without its line break."""
DIGEST = f"{PREFIX}request-sha256"
"""Annotation: SHA-256, in hex, of the request's body."""
FIELDS = f"{PREFIX}fields"
"""Annotation: the paths that a patch names, without their values."""
CLAIMED = f"{PREFIX}impersonation-refused"
"""Annotation: as whom the caller wanted to act, and was not let."""
UNRECORDED = f"{PREFIX}refusals-not-recorded"
"""Annotation: so many refusals before this entry were counted and not written one by one."""
REQUEST = f"{PREFIX}request"
"""Annotation: the hub's own name for a request that has several entries; the Audit-Id may be the client's choice."""
READS_UNRECORDED = f"{PREFIX}reads-not-recorded"
"""Annotation: how many reads before this entry were counted and not written one by one, by user, as a JSON object."""
EXPIRED = f"{PREFIX}expired"
"""Annotation: `<sequence>:<digest>` of the last entry that was removed by age or size."""
TORN = f"{PREFIX}torn-bytes"
"""Annotation: so many bytes of an unfinished line, as a power cut leaves it, were taken off the end of the log."""
UNANSWERED = f"{PREFIX}unanswered"
"""Annotation: the hub ended before it had answered; whether it was carried out is not known."""

Level = Literal["Metadata", "Request"]
Stage = Literal["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"]


class User(Struct, frozen=True, kw_only=True):
    """Who asked."""

    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class ObjectReference(Struct, frozen=True, kw_only=True):
    """What was asked about."""

    resource: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_group: str = ""
    api_version: str = ""
    resource_version: str = ""
    subresource: str = ""


class ResponseStatus(Struct, frozen=True, kw_only=True):
    """What came of it."""

    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0


class AuditEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of one request. Times have microseconds."""

    kind: str = msgspec.field(default_factory=lambda: "Event")  # a factory, for a constant default would be left out
    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    level: Level = msgspec.field(default_factory=lambda: "Metadata")
    audit_id: str = msgspec.field(name="auditID")
    stage: Stage
    request_uri: str = msgspec.field(name="requestURI", default="")
    verb: str = ""
    user: User = User()
    impersonated_user: User | None = None
    source_ips: list[str] = msgspec.field(name="sourceIPs", default_factory=list)
    user_agent: str = ""
    object_ref: ObjectReference | None = None
    response_status: ResponseStatus | None = None
    request_object: Any = None
    request_received_timestamp: datetime
    stage_timestamp: datetime
    annotations: dict[str, str] = {}


class AuditEventList(Struct, frozen=True, kw_only=True):
    """One page of the log, oldest first; with `form=log` each item is the very line that is in the log."""

    kind: str = msgspec.field(default_factory=lambda: "EventList")
    api_version: str = msgspec.field(default_factory=lambda: API_VERSION)
    metadata: dict[str, str]
    """`continue`: where the next page begins; missing at the end of the log."""
    items: list[msgspec.Raw]
