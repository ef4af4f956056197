"""Protocol buffers against an independent writer of them, and against anything that may come instead."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import codec, protobuf
from skerry.api.errors import BadRequestError, UnsupportedError
from skerry.api.kinds import KINDS

SCALARS = {"text": 9, "int": 3, "bool": 8, "bytes": 12}  # as descriptor.proto numbers them
OPTIONAL, REPEATED, MESSAGE = 1, 3, 11


def _pool() -> descriptor_pool.DescriptorPool:
    """The same messages for the library that others use, with its own ideas of the wire."""
    file = descriptor_pb2.FileDescriptorProto(name="k.proto", package="k", syntax="proto2")
    for name in ("Time", "Strings", "Fields", "Pair", "Lists"):
        file.message_type.add(name=name)
    _add(file.message_type[0], 1, "seconds", 3)
    _add(file.message_type[0], 2, "nanos", 5)
    _add(file.message_type[1], 1, "items", 9, repeated=True)
    _add(file.message_type[2], 1, "Raw", 12)
    for place, value in ((3, ""), (4, ".k.Strings")):
        _add(file.message_type[place], 1, "key", 9)
        _add(file.message_type[place], 2, "value", MESSAGE if value else 9, of=value)
    known = {"time": ".k.Time", "map": ".k.Pair", "lists": ".k.Lists", "fields": ".k.Fields"}
    for name, fields in protobuf._MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in fields.items():
            kind = 12 if field.kind == "raw" else SCALARS.get(field.kind, MESSAGE)
            repeated = field.repeated or field.kind in ("map", "lists")
            of = known.get(field.kind, f".k.{field.kind}") if kind == MESSAGE else ""
            _add(message, number, field.name, kind, of=of, repeated=repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add(message: Any, number: int, name: str, kind: int, *, of: str = "", repeated: bool = False) -> None:
    label = REPEATED if repeated else OPTIONAL
    message.field.add(number=number, name=name, type=kind, label=label, type_name=of or None)


POOL = _pool()


def _new(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"k.{name}"))()


def _body(version: str, kind: str, message: Any) -> bytes:
    outer = _new("Unknown")
    outer.typeMeta.apiVersion, outer.typeMeta.kind = version, kind
    outer.raw = message.SerializeToString()
    return protobuf.MAGIC + bytes(outer.SerializeToString())


words = st.text(min_size=1, max_size=8)


@given(
    st.lists(st.lists(words, min_size=1, max_size=3), max_size=3),
    st.dictionaries(words, words, max_size=3),
    st.integers(0, 2**62),
    words,
)
def test_what_another_library_writes_is_read(
    rules: list[list[str]], labels: dict[str, str], generation: int, name: str
) -> None:
    role = _new("Role")
    role.metadata.name, role.metadata.namespace, role.metadata.generation = name, "", generation
    for key, value in labels.items():
        role.metadata.labels.add(key=key, value=value)
    for verbs in rules:
        role.rules.add(verbs=verbs, apiGroups=[""])
    found = protobuf.decode(_body("rbac.authorization.k8s.io/v1", "Role", role))
    wanted: dict[str, Any] = {"name": name}
    wanted |= ({"labels": labels} if labels else {}) | ({"generation": generation} if generation else {})
    shown = [{"verbs": verbs, "apiGroups": [""]} for verbs in rules]
    assert found == {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": wanted,
        **({"rules": shown} if shown else {}),
    }


def test_every_kind_of_field() -> None:
    wanted = _new("CertificateSigningRequest")
    wanted.metadata.name = "alice"
    wanted.metadata.creationTimestamp.seconds = 1_700_000_000
    wanted.metadata.deletionTimestamp.SetInParent()
    wanted.metadata.managedFields.add(manager="kubectl").fieldsV1.Raw = b'{"f:spec":{}}'
    wanted.metadata.ownerReferences.add(kind="Device", controller=False)
    wanted.spec.request, wanted.spec.signerName, wanted.spec.expirationSeconds = b"\x00PEM", "s", -1
    extra = wanted.spec.extra.add(key="scopes")
    extra.value.items.extend(["a", "b"])
    condition = wanted.status.conditions.add(type="Approved", status="True")
    condition.lastUpdateTime.seconds, condition.lastUpdateTime.nanos = 1_700_000_000, 123_456_789
    found = protobuf.decode(_body("certificates.k8s.io/v1", "CertificateSigningRequest", wanted))
    assert found["metadata"] == {
        "name": "alice",
        "creationTimestamp": "2023-11-14T22:13:20Z",
        "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        "ownerReferences": [{"kind": "Device", "controller": False}],
    }
    request = base64.b64encode(b"\x00PEM").decode()
    extra_shown = {"scopes": ["a", "b"]}
    assert found["spec"] == {"request": request, "signerName": "s", "expirationSeconds": -1, "extra": extra_shown}
    when = "2023-11-14T22:13:20.123456Z"
    assert found["status"]["conditions"] == [{"type": "Approved", "status": "True", "lastUpdateTime": when}]


@pytest.mark.parametrize("version", protobuf._KINDS)
def test_every_message_is_one_of_a_kind_s_fields(version: str) -> None:
    """What is read is what the kind's own type takes: no name is misspelt."""
    for kind in protobuf._KINDS[version]:
        info = next((info for info in KINDS if (info.api_version, info.kind) == (version, kind)), None)
        if info is not None:
            names = {field.name for field in protobuf._MESSAGES[kind].values()}
            assert names | {"apiVersion", "kind", "status"} >= set(info.type.__struct_encode_fields__), kind


def test_an_object_is_checked_as_any_other() -> None:
    account = _new("ServiceAccount")
    account.metadata.name = "ci"
    account.automountServiceAccountToken = False
    item = codec.validate(protobuf.decode(_body("v1", "ServiceAccount", account)))
    assert codec.present(item)["automountServiceAccountToken"] is False


@given(st.binary(max_size=64))
def test_anything_else_is_refused_in_words(data: bytes) -> None:
    for body in (data, protobuf.MAGIC + data, _body("v1", "Event", _new("Event")) + data):
        with contextlib.suppress(BadRequestError, UnsupportedError):
            assert protobuf.decode(body)["kind"]


@given(st.binary(max_size=64))
def test_a_damaged_object_is_refused_in_words(data: bytes) -> None:
    outer = _new("Unknown")
    outer.typeMeta.apiVersion, outer.typeMeta.kind, outer.raw = "v1", "Event", data
    try:
        found = protobuf.decode(protobuf.MAGIC + outer.SerializeToString())
    except BadRequestError:
        return
    assert found["kind"] == "Event"


def _flood(count: int) -> bytes:
    """A body of that many fields: the message's own three, and the rest in its object, of a number that nobody has."""
    outer = _new("Unknown")
    outer.typeMeta.apiVersion, outer.typeMeta.kind = "v1", "DeleteOptions"
    outer.raw = b"\x78\x00" * (count - 4)
    return protobuf.MAGIC + bytes(outer.SerializeToString())


def test_fields_are_counted_also_those_that_are_left_out() -> None:
    assert protobuf.decode(_flood(protobuf.MAX_FIELDS)) == {"apiVersion": "v1", "kind": "DeleteOptions"}
    with pytest.raises(BadRequestError, match="more than 100000 fields"):
        protobuf.decode(_flood(protobuf.MAX_FIELDS + 1))


def test_fields_of_all_messages_count_together() -> None:
    role = _new("Role")
    for number in range(11):
        role.rules.add().verbs.extend(["get"] * 10_000)
        if number == 8:
            assert protobuf.decode(_body("rbac.authorization.k8s.io/v1", "Role", role))["rules"]
    with pytest.raises(BadRequestError, match="fields"):
        protobuf.decode(_body("rbac.authorization.k8s.io/v1", "Role", role))
