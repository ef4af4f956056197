"""Every request on its way into the audit log: who, what, when, and what came of it.

Three wrappers: `recorded` is around everything, refusals included; `known` is where it is known who asks; `begun` is
inside authorization and writes down what is about to be changed before it is. No answer to a write leaves before its
entry is on the disk, and nothing is changed that cannot be recorded. Must not live here: which requests those are
(`core.audit_policy`), the log (`hub.audit`).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, cast

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry.api.audit import (
    CLAIMED,
    DIGEST,
    FIELDS,
    READS_UNRECORDED,
    REQUEST,
    UNRECORDED,
    AuditEvent,
    Level,
    ObjectReference,
    ResponseStatus,
    Stage,
    User,
)
from skerry.api.errors import SkerryError
from skerry.core import audit_policy as policy
from skerry.core import redaction
from skerry.core.access import ANONYMOUS, Identity
from skerry.core.allowance import Bucket, Buckets, Rate
from skerry.core.ports import Clock
from skerry.hub.audit.log import AuditLog
from skerry.hub.audit.ranked import RankedLog
from skerry.hub.authentication.forwarded import VIA
from skerry.hub.authorization import Attributes
from skerry.hub.identity import IDENTITY
from skerry.hub.server import status

log = logging.getLogger(__name__)

RECORD = "skerry.audit"
"""Scope key of a request's `Record`."""
HEADER = "Audit-Id"
TOKENS = "skerry:registrytokens"
"""The group of those who show the registry a token."""
EACH = Rate(burst=50, seconds=1.0)
"""Refusals of one caller at one address that are written one by one; more are counted."""
ALL = Rate(burst=500, seconds=0.05)
"""The same for all callers together."""
_MOST_CALLERS = 10_000
_MAX_ANSWER = 1024 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_FOLLOWS = re.compile(rb"(^|&)follow=(1|t|true)(&|$)", re.IGNORECASE)
_TELLING = frozenset({"create", "update", "patch", "post"})
"""Verbs whose answers say which object it was."""
_LASTING = frozenset({"attach", "exec", "portforward", "proxy"})
_UNDONE = frozenset({"infer", "log", "attach", "exec", "portforward", "proxy"})
"""Subresources that change nothing the hub keeps: their answer's entry comes before anything is said."""


class _Meta(msgspec.Struct):
    name: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 - as it travels


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Answer(msgspec.Struct):
    """What answers say: an object, a Status, or a registry's errors."""

    kind: str = ""
    reason: Any = ""
    message: Any = ""
    metadata: _Meta = msgspec.field(default_factory=_Meta)
    errors: list[_Problem] = []


_ANSWERS = msgspec.json.Decoder(_Answer)


class Refusals:
    """Which refusals are written one by one: nobody can fill the log with them, and none goes uncounted."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._each: Buckets[tuple[str, str]] = Buckets(EACH, most=_MOST_CALLERS)
        self._all = Bucket(ALL, clock.monotonic())
        self._unrecorded = 0

    def take(self, caller: str, about: str, *, shared: bool) -> bool:
        """Return whether one more is written, of all callers' share too where it is `shared`; it is counted if not."""
        now = self._clock.monotonic()
        if self._each.take((caller, about), now) and (not shared or self._all.take(now)):
            return True
        self.count()
        return False

    def count(self) -> None:
        """Note one that is not written."""
        self._unrecorded += 1

    def unrecorded(self) -> int:
        """Return how many were only counted since this was asked last."""
        count, self._unrecorded = self._unrecorded, 0
        return count


def recorded(
    app: ASGIApp, *, audit: RankedLog | None, clock: Clock, attributes_of: Callable[[Scope], Attributes]
) -> ASGIApp:
    """Wrap an application so that what is asked of it is recorded; without a log requests only get their ids."""
    refusals = Refusals(clock)

    async def record(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get(HEADER, "")
        found = asked if _ID.fullmatch(asked) and redaction.text(asked) == asked else str(uuid.uuid4())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", [])).append(HEADER, found)
            await send(message)

        if audit is None:
            await app(scope, receive, named)
            return
        try:
            wanted = attributes_of(scope)
        except SkerryError:  # a path that is none; it is refused further on
            wanted = Attributes(verb=scope["method"].lower(), path=scope["path"])
        made = Record(scope=scope, audit=audit, clock=clock, refusals=refusals, audit_id=found, attributes=wanted)
        scope[RECORD] = made
        await made.run(app, receive, named)

    return record


def known(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that it is recorded who asks, once that is known: inside every way to log in."""

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        record = scope.get(RECORD)
        if isinstance(record, Record):
            record.identity = cast(Identity, scope.get(IDENTITY, ANONYMOUS))
        await app(scope, receive, send)

    return note


def act_as(scope: Scope, identity: Identity) -> None:
    """Note as whom the caller acts, who may: whatever comes of the request."""
    record = scope.get(RECORD)
    if isinstance(record, Record):
        record.acts_as = identity


def call_by_token(scope: Scope, subject: str) -> None:
    """Note whose registry token a request shows, where it shows one: the registry has logins of its own."""
    record = scope.get(RECORD)
    if isinstance(record, Record) and subject:
        record.token = subject


async def begin_in_registry(scope: Scope) -> None:
    """Write down that the registry is about to be changed, by whom is known by now. Raises as `Record.begin`."""
    record = scope.get(RECORD)
    if isinstance(record, Record):
        await record.begin_in_registry()


def begun(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that nothing is changed before it is written down that it is about to be."""

    async def begin(scope: Scope, receive: Receive, send: Send) -> None:
        record = scope.get(RECORD)
        if isinstance(record, Record):
            await record.begin()
        await app(scope, receive, send)

    return begin


@dataclass(kw_only=True, eq=False)
class Record:
    """One request and what is known of it so far."""

    scope: Scope
    audit: RankedLog
    clock: Clock
    refusals: Refusals
    audit_id: str
    attributes: Attributes
    identity: Identity = field(init=False)
    """Who asked, as was proven; not as whom."""
    token: str = field(default="", init=False)
    """The registry token that was shown; empty for everybody who is known otherwise."""
    received: datetime = field(init=False)
    acts_as: Identity | None = field(default=None, init=False)
    """Whom the caller was let act as, if anybody."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    """What its entries have in common: the audit id may be the client's choice."""
    _part: AuditLog | None = field(default=None, init=False)
    """Where its entries go, once one is written."""
    _digest: Any = field(default_factory=sha256, init=False)
    _body: bytearray = field(default_factory=bytearray, init=False)
    _held: Message | None = field(default=None, init=False)
    _code: int = field(default=0, init=False)
    _lasting: bool = field(default=False, init=False)
    """Its answer has begun and is recorded; its end will be."""
    _given_up: bool = field(default=False, init=False)
    _is_begun: bool = field(default=False, init=False)
    """Its beginning is recorded, so what comes of it is."""
    _is_answered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Note when it came, and from whom."""
        self.received = self.clock.now()
        self.identity = cast(Identity, self.scope.get(IDENTITY, ANONYMOUS))

    # --- on the way in ----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Write down what is about to be changed, and by whom. Raises StorageFullError, UnavailableError."""
        if not self._is_write:
            return
        self.audit.check()
        if self._is_registry or self._is_joining or self.attributes.subresource in _UNDONE:
            return  # whether they may is found out later on; what comes of it is recorded before it is answered
        await self._begin()

    async def begin_in_registry(self) -> None:
        """The same for the registry, once it is known who asks it and that they may."""
        if policy.is_registry_write(self._method, self.scope["path"], self._query):
            await self._begin()

    async def _begin(self) -> None:
        self._is_begun = True  # also for whoever is cancelled meanwhile: it is written nevertheless
        event = self._event("RequestReceived")
        self._part = self.audit.part_for(event, entries=2)
        try:
            await self._part.append(event)
        except SkerryError:
            self._is_begun = False
            raise

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Have the request answered, and record that."""

        async def reading() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                self._read(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            await self._send(message, send)

        try:
            await app(self.scope, reading if self._keeps_body else receive, sending)
            if self._held is not None:
                await self._send({"type": "http.response.body", "body": b""}, send)
        except BaseException:
            if self._part is not None and (self._lasting or (self._is_begun and not self._is_answered)):
                self._part.note(self._event("ResponseComplete" if self._lasting else "Panic", code=self._code))
            raise
        if self._given_up:
            return
        if self._lasting:
            await self._end("ResponseComplete")
        elif self._is_begun and not self._is_answered:
            await self._end("Panic")  # whoever asked has gone before there was an answer

    def _read(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        room = policy.MAX_BODY_BYTES + 1 - len(self._body)
        if room > 0:
            self._body += chunk[:room]

    # --- on the way out ---------------------------------------------------------------------------------------------

    async def _send(self, message: Message, send: Send) -> None:
        """Send what the application answers, once it is recorded: the head waits for the first of the body."""
        if self._given_up:
            return
        if message["type"] == "http.response.start":
            self._code = message["status"]
            if not self._is_recorded and not self._is_begun:
                await send(message)
            elif self._lasts(message):
                self._lasting = True
                await self._note("ResponseStarted", send, message)
            else:
                self._held = message
            return
        head, self._held = self._held, None
        if head is None:
            await send(message)
            return
        tells = self._code >= 400 or self.attributes.verb in _TELLING
        body = message.get("body", b"") if tells and not message.get("more_body") else b""
        await self._note("ResponseComplete", send, head, answer=body)
        if not self._given_up:
            await send(message)

    async def _note(self, stage: Stage, send: Send, head: Message, *, answer: bytes = b"") -> None:
        """Record what is about to be answered and send its head; what cannot be recorded is answered otherwise."""
        event = None if self._is_passed_over() else self._event(stage, code=self._code, answer=answer)
        if event is not None and self._part is None and not self._is_repeated(event):
            self._part = self._choose(event)
        if event is None or self._part is None:  # it is counted
            self._lasting = False
            await send(head)
            return
        try:
            await self._part.append(self._counted(event))
        except SkerryError as error:
            self._given_up = True
            told = status.respond_status(status.status_of(error))
            await send({"type": "http.response.start", "status": told.status_code, "headers": told.raw_headers})
            await send({"type": "http.response.body", "body": told.body})
            if self._lasting:
                raise ClientDisconnect from None  # to whoever is about to talk: there is nobody to talk to
            return
        self._is_answered = True
        await send(head)

    def _choose(self, event: AuditEvent) -> AuditLog | None:
        """Return the part of the log that an entry goes to; None: its user has used up what reads and refusals have."""
        if self._is_refusal:
            part = self.audit.part_for_refusal(event)
            if part is None:
                self.refusals.count()
            return part
        entries = 2 if self._lasting else 1
        if policy.is_bulk(
            method=self._method, resource=self.attributes.resource, subresource=self.attributes.subresource
        ):
            return self.audit.part_for_read(event, entries=entries)
        return self.audit.part_for(event, entries=entries)

    def _is_passed_over(self) -> bool:
        """Take a refusal from its caller's allowance; whether it has none left, and no entry is even made of it."""
        if self._is_begun or not self._is_refusal:
            return False
        return not self.refusals.take(*self._caller, shared=self._code >= 400)

    def _is_repeated(self, event: AuditEvent) -> bool:
        """Whether somebody asks for a device's certificate again and again, which gives the same one.

        Keys that are new cost uses of a token, and each has an allowance of its own: many devices may join at the same
        time, and each is written down.
        """
        if self._is_begun or self._is_refusal or not self._is_joining:
            return False
        made = event.object_ref.name if event.object_ref else ""
        return not self.refusals.take(self.identity.username, made, shared=self._code >= 400)

    async def _end(self, stage: Stage) -> None:
        if self._part is None:
            return
        try:
            await self._part.append(self._event(stage, code=self._code))
        except SkerryError as error:
            log.error("audit.end_not_recorded audit_id=%s cause=%s", self.audit_id, error)

    def _counted(self, event: AuditEvent) -> AuditEvent:
        refusals, reads = self.refusals.unrecorded(), self.audit.unrecorded_reads()
        said = {UNRECORDED: str(refusals)} if refusals else {}
        if reads:
            said[READS_UNRECORDED] = msgspec.json.encode(reads).decode()
        return msgspec.structs.replace(event, annotations={**event.annotations, **said}) if said else event

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def _method(self) -> str:
        return cast(str, self.scope["method"])

    @property
    def _query(self) -> str:
        return cast(bytes, self.scope.get("query_string", b"")).decode("latin-1")

    @property
    def _is_write(self) -> bool:
        return policy.is_write(self._method, self.attributes.resource)

    @property
    def _is_registry(self) -> bool:
        return policy.is_registry(self.attributes.path)

    @property
    def _is_refusal(self) -> bool:
        """Whether somebody was refused; a stranger whose request fails is."""
        stranger = self.identity.role == "anonymous" and not self.token
        return self._code in (401, 403) or (stranger and self._code >= 400)

    @property
    def _is_joining(self) -> bool:
        """Whether it can only be a device, or what wants to become one: nobody else gets here without a user."""
        return not self.token and not self._is_registry and self.identity.role in ("anonymous", "device")

    @property
    def _keeps_body(self) -> bool:
        return not self._is_registry and self._method not in ("GET", "HEAD")

    @property
    def _is_recorded(self) -> bool:
        return policy.is_recorded(
            method=self._method,
            path=self.scope["path"],
            resource=self.attributes.resource,
            subresource=self.attributes.subresource,
            code=self._code,
            reads=self.audit.settings.reads,
            query=self._query,
        )

    @property
    def _caller(self) -> tuple[str, str]:
        client = self.scope.get("client")
        username = f"skerry:registrytoken:{self.token}" if self.token else self.identity.username
        return username, client[0] if client else ""

    def _lasts(self, head: MutableMapping[str, Any]) -> bool:
        if self._code >= 400:
            return False
        follows = self.attributes.subresource == "log" and _FOLLOWS.search(self.scope.get("query_string", b""))
        lasting = self.attributes.verb == "watch" or self.attributes.subresource in _LASTING or follows
        return bool(lasting) or head["status"] == 101

    def _event(self, stage: Stage, *, code: int = 0, answer: bytes = b"") -> AuditEvent:
        said = _read_answer(answer)
        level: Level = "Metadata"
        annotations: dict[str, str] = {}
        shown: Any = None
        headers = Headers(scope=self.scope)
        claimed = headers.get("impersonate-user", "")
        if claimed and self.acts_as is None:  # it was refused, so it is no more than what was asked for
            annotations[CLAIMED] = policy.agent(claimed)
        if self._keeps_body and self._body:
            raw = bytes(self._body)
            annotations[DIGEST] = self._digest.hexdigest()
            fields = policy.patched_fields(raw) if self.attributes.verb == "patch" else ""
            annotations |= {FIELDS: fields} if fields else {}
            if self.audit.settings.reads == "request":
                level = "Request"
                if policy.shows_body(self.attributes.resource, self.attributes.subresource):
                    shown = policy.read_body(raw)
        if self._is_begun or self._lasting:
            annotations[REQUEST] = self.key
        username, address = self._caller
        return AuditEvent(
            level=level,
            audit_id=self.audit_id,
            stage=stage,
            request_uri=policy.uri(self.scope["path"], self._query),
            verb=self.attributes.verb,
            user=User(username=username, groups=[TOKENS]) if self.token else _user(self.identity),
            impersonated_user=None if self.acts_as is None else _user(self.acts_as),
            source_ips=[one for one in (address, self.scope.get(VIA, "")) if one],
            user_agent=policy.agent(headers.get("user-agent", "")),
            object_ref=self._object(said),
            response_status=_status(code, said) if code else None,
            request_object=shown,
            request_received_timestamp=self.received,
            stage_timestamp=self.clock.now(),
            annotations=annotations,
        )

    def _object(self, said: _Answer) -> ObjectReference | None:
        asked = self.attributes
        if not asked.is_resource:
            return None
        meta = said.metadata if said.kind != "Status" else _Meta()
        path: str = self.scope["path"]
        shown = redaction.credentials(path)
        steps = shown.split("/")

        def of(part: str) -> str:  # a credential may have slashes, so that a part of it stands for something else
            return part if shown == path or not part or part in steps else redaction.REDACTED

        return ObjectReference(
            resource=of(asked.resource),
            namespace=of(asked.namespace),
            name=of(asked.name) or meta.name,
            uid=meta.uid,
            api_group=of(asked.group),
            api_version=of(asked.version),
            resource_version=meta.resourceVersion if asked.name or meta.name else "",
            subresource=of(asked.subresource),
        )


def _user(identity: Identity) -> User:
    shown = redaction.credentials  # whoever may act as others may act as anything
    return User(
        username=shown(identity.username),
        uid=shown(identity.uid),
        groups=[shown(group) for group in identity.groups],
        extra={shown(key): [shown(value) for value in values] for key, values in identity.extra.items()},
    )


def _status(code: int, said: _Answer) -> ResponseStatus:
    if code < 400:
        return ResponseStatus(code=code)
    reason, message = said.reason, said.message
    if said.errors:
        reason, message = said.errors[0].code, said.errors[0].message
    return ResponseStatus(
        status="Failure",
        code=code,
        reason=str(reason)[:128],
        message=redaction.text(str(message)[:1000]),
    )


def _read_answer(raw: bytes) -> _Answer:
    if not raw or len(raw) > _MAX_ANSWER or not raw.startswith(b"{"):
        return _Answer()
    try:
        return _ANSWERS.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _Answer()
