"""Which entries of the audit log are asked for. Pure.

Lives here: the question, read from a request's parameters, and its answer for one entry. Must not live here: reading
the log (`hub.audit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

import msgspec

from skerry.api.audit import AuditEvent
from skerry.api.errors import BadRequestError

Outcome = Literal["", "allowed", "denied", "failed"]
Part = Literal["", "main", "bulk"]
COLUMNS = ("Time", "User", "Verb", "Object", "Namespace", "Code", "From")
MAX_LENGTH = 253
ANSWERED = frozenset({"ResponseStarted", "ResponseComplete", "Panic"})
PARAMETERS = (
    "user",
    "verb",
    "resource",
    "namespace",
    "name",
    "since",
    "until",
    "outcome",
    "auditID",
    "stage",
    "part",
    "form",
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for; what is empty matches everything."""

    user: str = ""
    """Who asked, or as whom."""
    verb: str = ""
    resource: str = ""
    """`devices`, `devices/exec`, `devices.skerry.dev`, or a path like `/v2/default/digits/manifests/v1`."""
    namespace: str = ""
    name: str = ""
    since: datetime | None = None
    until: datetime | None = None
    outcome: Outcome = ""
    audit_id: str = ""
    part: Part = ""
    """Which of the log's two chains; both of them, by time, unless one is named."""
    stages: frozenset[str] = ANSWERED
    """What was received and is not answered yet is not asked for, usually."""

    def takes(self, event: AuditEvent) -> bool:
        """Return whether an entry is asked for."""
        if event.stage not in self.stages or not self._takes_time(event.stage_timestamp):
            return False
        return (
            self.audit_id in ("", event.audit_id)
            and self.verb in ("", event.verb)
            and self._takes_user(event)
            and self._takes_object(event)
            and self.outcome in ("", outcome_of(event))
        )

    def _takes_time(self, when: datetime) -> bool:
        return (self.since is None or when >= self.since) and (self.until is None or when <= self.until)

    def _takes_user(self, event: AuditEvent) -> bool:
        acted_as = event.impersonated_user.username if event.impersonated_user else ""
        return not self.user or self.user in (event.user.username, acted_as)

    def _takes_object(self, event: AuditEvent) -> bool:
        ref = event.object_ref
        if ref is None:
            asked = self.resource.startswith("/") and event.request_uri.startswith(self.resource)
            return not (self.namespace or self.name) and (not self.resource or asked)
        if self.namespace not in ("", ref.namespace) or self.name not in ("", ref.name):
            return False
        if self.resource.startswith("/"):
            return event.request_uri.startswith(self.resource)
        resource, slash, subresource = self.resource.partition("/")
        plural, dot, group = resource.partition(".")
        return (
            (not plural or plural == ref.resource)
            and (not dot or group == ref.api_group)
            and (not slash or subresource == ref.subresource)
        )


def cells_of(event: AuditEvent) -> tuple[str, ...]:
    """Return what a list shows of an entry, in the order of COLUMNS; the code is `?` while nothing came of it."""
    ref, code = event.object_ref, event.response_status.code if event.response_status else 0
    user = event.user.username
    if event.impersonated_user is not None:
        user = f"{user} as {event.impersonated_user.username}"
    what = event.request_uri.partition("?")[0]
    if ref is not None:
        what = f"{ref.resource}/{ref.name}" if ref.name else ref.resource
        what += f" ({ref.subresource})" if ref.subresource else ""
    when = event.stage_timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    namespace = ref.namespace if ref else ""
    return when, user, event.verb, what, namespace, str(code) if code else "?", ",".join(event.source_ips)


def outcome_of(event: AuditEvent) -> Outcome:
    """Return what came of a request, in one word; empty while that is not known."""
    if event.response_status is None or not event.response_status.code:
        return ""
    code = event.response_status.code
    return "denied" if code in (401, 403) else "failed" if code >= 400 else "allowed"


def read_question(given: Mapping[str, str]) -> Question:
    """Return the question that a request's parameters ask. Raises BadRequestError."""
    for name in PARAMETERS:
        if len(given.get(name, "")) > MAX_LENGTH:
            raise BadRequestError(f"is longer than {MAX_LENGTH} characters", element=name)
    outcome, stage = given.get("outcome", ""), given.get("stage", "")
    if outcome not in ("", "allowed", "denied", "failed"):
        raise BadRequestError(f'"{outcome}" is not known', element="outcome", hint="allowed, denied or failed")
    if stage not in ("", "all"):
        raise BadRequestError(f'"{stage}" is not known', element="stage", hint="leave it out, or write all")
    part = given.get("part", "")
    if part not in ("", "main", "bulk"):
        raise BadRequestError(f'"{part}" is not known', element="part", hint="main or bulk; both without it")
    return Question(
        user=given.get("user", ""),
        verb=given.get("verb", ""),
        resource=given.get("resource", ""),
        namespace=given.get("namespace", ""),
        name=given.get("name", ""),
        since=_time(given, "since"),
        until=_time(given, "until"),
        outcome=cast(Outcome, outcome),
        audit_id=given.get("auditID", ""),
        part=cast(Part, part),
        stages=ANSWERED | {"RequestReceived"} if stage == "all" else ANSWERED,
    )


def _time(given: Mapping[str, str], name: str) -> datetime | None:
    text = given.get(name, "")
    if not text:
        return None
    try:
        when = msgspec.convert(text, datetime)
    except (msgspec.ValidationError, ValueError):
        when = None
    if when is None or when.tzinfo is None:
        raise BadRequestError(
            f'"{text[:40]}" is not a time', element=name, hint="write it as 2026-11-23T10:00:00Z, with its zone"
        )
    return when.astimezone(UTC)
