"""Objects of Kubernetes' own groups in the form that its newer clients send them in: protocol buffers.

    b"k8s\\0" + Unknown{typeMeta{apiVersion, kind}, raw}, raw being the object

kubectl sends whatever it has a type for this way, and reads JSON in return. Lives here: reading that form into the
plain object that JSON would have given. Must not live here: checks of what the object says (`codec`), our own kinds, of
which nobody has a message. Fields that are not known are left out, as protocol buffers have it.
Source: Kubernetes API concepts, "Protobuf encoding"; the numbers are those of the groups' `generated.proto`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from skerry.api.errors import BadRequestError, UnsupportedError

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"
_ELEMENT = "the body"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST = 2**63
MAX_FIELDS = 100_000
"""In one body, also of those that are left out: each takes two bytes at least, and a hundred times as long to read."""

_TEXT: Mapping[str, str] = {
    "Unknown": "1 typeMeta TypeMeta; 2 raw raw; 3 contentEncoding; 4 contentType",
    "TypeMeta": "1 apiVersion; 2 kind",
    "ObjectMeta": """1 name; 2 generateName; 3 namespace; 4 selfLink; 5 uid; 6 resourceVersion; 7 generation int;
        8 creationTimestamp time; 9 deletionTimestamp time; 10 deletionGracePeriodSeconds int?; 11 labels map;
        12 annotations map; 13 ownerReferences []OwnerReference; 14 finalizers []; 17 managedFields []ManagedFields""",
    "OwnerReference": "1 kind; 3 name; 4 uid; 5 apiVersion; 6 controller bool?; 7 blockOwnerDeletion bool?",
    "ManagedFields": """1 manager; 2 operation; 3 apiVersion; 4 time time; 6 fieldsType; 7 fieldsV1 fields;
        8 subresource""",
    "LabelSelector": "1 matchLabels map; 2 matchExpressions []Requirement",
    "Requirement": "1 key; 2 operator; 3 values []",
    "DeleteOptions": """1 gracePeriodSeconds int?; 2 preconditions Preconditions; 3 orphanDependents bool?;
        4 propagationPolicy; 5 dryRun []""",
    "Preconditions": "1 uid; 2 resourceVersion",
    "Role": "1 metadata ObjectMeta; 2 rules []PolicyRule",
    "ClusterRole": "1 metadata ObjectMeta; 2 rules []PolicyRule; 3 aggregationRule AggregationRule",
    "PolicyRule": "1 verbs []; 2 apiGroups []; 3 resources []; 4 resourceNames []; 5 nonResourceURLs []",
    "AggregationRule": "1 clusterRoleSelectors []LabelSelector",
    "RoleBinding": "1 metadata ObjectMeta; 2 subjects []Subject; 3 roleRef RoleRef",
    "ClusterRoleBinding": "1 metadata ObjectMeta; 2 subjects []Subject; 3 roleRef RoleRef",
    "Subject": "1 kind; 2 apiGroup; 3 name; 4 namespace",
    "RoleRef": "1 apiGroup; 2 kind; 3 name",
    "ServiceAccount": """1 metadata ObjectMeta; 2 secrets []ObjectReference; 3 imagePullSecrets []LocalObjectReference;
        4 automountServiceAccountToken bool?""",
    "ObjectReference": "1 kind; 2 namespace; 3 name; 4 uid; 5 apiVersion; 6 resourceVersion; 7 fieldPath",
    "LocalObjectReference": "1 name",
    "Namespace": "1 metadata ObjectMeta; 2 spec NamespaceSpec; 3 status NamespaceStatus",
    "NamespaceSpec": "1 finalizers []",
    "NamespaceStatus": "1 phase; 2 conditions []NamespaceCondition",
    "NamespaceCondition": "1 type; 2 status; 4 lastTransitionTime time; 5 reason; 6 message",
    "Event": """1 metadata ObjectMeta; 2 involvedObject ObjectReference; 3 reason; 4 message; 5 source EventSource;
        6 firstTimestamp time; 7 lastTimestamp time; 8 count int; 9 type; 10 eventTime time; 11 series EventSeries;
        12 action; 13 related ObjectReference; 14 reportingComponent; 15 reportingInstance""",
    "EventSource": "1 component; 2 host",
    "EventSeries": "1 count int; 2 lastObservedTime time",
    "CertificateSigningRequest": "1 metadata ObjectMeta; 2 spec RequestSpec; 3 status RequestStatus",
    "RequestSpec": """1 request bytes; 2 username; 3 uid; 4 groups []; 5 usages []; 6 extra lists; 7 signerName;
        8 expirationSeconds int?""",
    "RequestStatus": "1 conditions []RequestCondition; 2 certificate bytes",
    "RequestCondition": "1 type; 2 reason; 3 message; 4 lastUpdateTime time; 5 lastTransitionTime time; 6 status",
    "SelfSubjectAccessReview": "1 metadata ObjectMeta; 2 spec AccessSpec",
    "SubjectAccessReview": "1 metadata ObjectMeta; 2 spec AccessSpec",
    "LocalSubjectAccessReview": "1 metadata ObjectMeta; 2 spec AccessSpec",
    "AccessSpec": """1 resourceAttributes ResourceAttributes; 2 nonResourceAttributes NonResourceAttributes; 3 user;
        4 groups []; 5 extra lists; 6 uid""",
    "ResourceAttributes": """1 namespace; 2 verb; 3 group; 4 version; 5 resource; 6 subresource; 7 name;
        8 fieldSelector SelectorAttributes; 9 labelSelector SelectorAttributes""",
    "SelectorAttributes": "1 rawSelector; 2 requirements []Requirement",
    "NonResourceAttributes": "1 path; 2 verb",
    "SelfSubjectRulesReview": "1 metadata ObjectMeta; 2 spec RulesSpec",
    "RulesSpec": "1 namespace",
    "TokenRequest": "1 metadata ObjectMeta; 2 spec TokenRequestSpec",
    "TokenRequestSpec": "1 audiences []; 3 boundObjectRef BoundObjectReference; 4 expirationSeconds int?",
    "BoundObjectReference": "1 kind; 2 apiVersion; 3 name; 4 uid",
    "TokenReview": "1 metadata ObjectMeta; 2 spec TokenReviewSpec",
    "TokenReviewSpec": "1 token; 2 audiences []",
    "SelfSubjectReview": "1 metadata ObjectMeta",
}
"""Each message's fields: number, name, and what it is, text unless said; `?` keeps a zero, `[]` has several."""

_KINDS: Mapping[str, tuple[str, ...]] = {
    "v1": ("ServiceAccount", "Namespace", "Event", "DeleteOptions"),
    "meta.k8s.io/v1": ("DeleteOptions",),
    "rbac.authorization.k8s.io/v1": ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "DeleteOptions"),
    "certificates.k8s.io/v1": ("CertificateSigningRequest", "DeleteOptions"),
    "authorization.k8s.io/v1": (
        "SelfSubjectAccessReview",
        "SubjectAccessReview",
        "LocalSubjectAccessReview",
        "SelfSubjectRulesReview",
    ),
    "authentication.k8s.io/v1": ("TokenRequest", "TokenReview", "SelfSubjectReview"),
}
"""The messages that a body may be, by apiVersion."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: str
    repeated: bool
    kept: bool
    """Whether a zero says something."""


def _parsed(text: str) -> dict[int, _Field]:
    fields: dict[int, _Field] = {}
    for part in text.split(";"):
        number, name, *kind = part.split()
        said = kind[0] if kind else "text"
        fields[int(number)] = _Field(
            name=name, kind=said.strip("[]?") or "text", repeated=said.startswith("[]"), kept=said.endswith("?")
        )
    return fields


_MESSAGES = {name: _parsed(text) for name, text in _TEXT.items()}


class _Fields:
    """Reads the fields of one body's messages, and counts them."""

    def __init__(self) -> None:
        self._count = 0

    def of(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield (field number, value) of a message on the wire. Raises BadRequestError for what is none."""
        for pair in _values(data):
            self._count += 1
            if self._count > MAX_FIELDS:
                raise BadRequestError(f"has more than {MAX_FIELDS} fields", element=_ELEMENT)
            yield pair


def decode(data: bytes) -> dict[str, Any]:
    """Return the object in a body of this form. Raises BadRequestError, UnsupportedError for kinds not known here."""
    if not data.startswith(MAGIC):
        raise BadRequestError("does not begin as protocol buffers of Kubernetes do", element=_ELEMENT)
    fields = _Fields()
    outer = _message("Unknown", memoryview(data)[len(MAGIC) :], fields)
    said = outer.get("typeMeta", {})
    version, kind = said.get("apiVersion", ""), said.get("kind", "")
    if kind not in _KINDS.get(version, ()) or outer.get("contentEncoding"):
        raise UnsupportedError(
            f"{version[:80]} {kind[:80]} is not known in this form", element=_ELEMENT, hint="send application/json"
        )
    return {"apiVersion": version, "kind": kind, **_message(kind, outer.get("raw", memoryview(b"")), fields)}


def _message(kind: str, data: memoryview, fields: _Fields) -> dict[str, Any]:
    """Return a message's fields, without those that say nothing."""
    known = _MESSAGES[kind]
    found: dict[str, Any] = {}
    for number, value in fields.of(data):
        field = known.get(number)
        if field is None:
            continue
        read = _read(field, value, fields)
        if field.repeated:
            found.setdefault(field.name, []).append(read)
        elif field.kind in ("map", "lists"):
            found.setdefault(field.name, {}).update(read)
        elif field.kept or read:
            found[field.name] = read
        else:
            found.pop(field.name, None)
    return found


def _read(field: _Field, value: int | memoryview, fields: _Fields) -> Any:
    number = field.kind in ("int", "bool")
    if number is not isinstance(value, int):
        raise _damaged(field.name)
    if isinstance(value, int):
        return bool(value) if field.kind == "bool" else _signed(value)
    reader = _READERS.get(field.kind)
    return _message(field.kind, value, fields) if reader is None else reader(value, field, fields)


def _entry(data: memoryview, field: _Field, fields: _Fields) -> dict[str, Any]:
    """Return one entry of a map: of texts, or of lists of texts, which are messages of their own."""
    key, found = "", memoryview(b"")
    for number, value in fields.of(data):
        if isinstance(value, int):
            raise _damaged(field.name)
        if number == 1:
            key = _text(value, field, fields)
        elif number == 2:
            found = value
    if field.kind == "map":
        return {key: _text(found, field, fields)}
    return {
        key: [
            _text(item, field, fields) for number, item in fields.of(found) if number == 1 and not isinstance(item, int)
        ]
    }


def _managed(data: memoryview, _: _Field, fields: _Fields) -> Any:
    """Return `fieldsV1`, which is JSON inside."""
    raw = next((bytes(value) for number, value in fields.of(data) if number == 1 and not isinstance(value, int)), b"{}")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _damaged("fieldsV1") from None


def _time(data: memoryview, field: _Field, fields: _Fields) -> str | None:
    parts = {number: value for number, value in fields.of(data) if isinstance(value, int)}
    seconds, nanos = _signed(parts.get(1, 0)), parts.get(2, 0)
    if not seconds and not nanos:
        return None
    try:
        when = _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError:
        raise _damaged(field.name) from None
    text = when.isoformat(timespec="microseconds" if nanos else "seconds")
    return text.replace("+00:00", "Z")


def _text(value: memoryview, field: _Field, _: _Fields) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise BadRequestError("is not UTF-8", element=field.name) from None


_READERS: Mapping[str, Callable[[memoryview, _Field, _Fields], Any]] = {
    "text": _text,
    "raw": lambda value, *_: value,
    "bytes": lambda value, *_: base64.b64encode(value).decode(),
    "time": _time,
    "map": _entry,
    "lists": _entry,
    "fields": _managed,
}
"""How each kind of field is read; the others are messages."""


def _signed(value: int) -> int:
    return value - 2 * _MOST if value >= _MOST else value


def _values(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message on the wire. Raises BadRequestError for what is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        match wire:
            case 0:
                value, at = _varint(data, at)
            case 1 | 5:
                size = 8 if wire == 1 else 4
                value = int.from_bytes(_slice(data, at, size), "little")
                at += size
            case 2:
                size, at = _varint(data, at)
                value = _slice(data, at, size)
                at += size
            case _:
                raise _damaged(f"field {number}")
        yield number, value


def _slice(data: memoryview, at: int, size: int) -> memoryview:
    if size > len(data) - at:
        raise BadRequestError("ends within a field", element=_ELEMENT)
    return data[at : at + size]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BadRequestError("ends within a number", element=_ELEMENT)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2 * _MOST - 1), at
    raise BadRequestError("has a number of more than 64 bits", element=_ELEMENT)


def _damaged(name: str) -> BadRequestError:
    return BadRequestError(f"has no sense at {name[:80]}", element=_ELEMENT)
