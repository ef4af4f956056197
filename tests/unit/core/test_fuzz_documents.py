"""Bytes from outside as documents and messages: read, or refused by the error that is promised, whatever they are.

Two kinds of bytes: any at all, and a valid document with other JSON somewhere in it, which comes further in. What is
read is written and read again.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.test_placement import variant
from tests.unit.core.test_trial import wish

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.device import DeviceFacts, EngineFacts, WorkloadStatus
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Delta, Evaluation, Golden
from skerry.core import card, messages
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance
from skerry.core.messages import (
    Command,
    CommandResult,
    DesiredState,
    Envelope,
    Online,
    Reported,
    Sample,
    Signature,
    Telemetry,
    WorkloadSample,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLOB = Blob(digest="sha256:" + "a" * 64, size=7)
TENSOR = TensorSpec(name="x", datatype="FP32", shape=[-1, 4])

AWKWARD = [
    b"",
    b"\xff",
    b'"\xff\xfe"',
    b'"\\ud800"',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 5000,
    b"1e999999",
    b"-0",
    b"NaN",
    b'{"v":1,"v":2}',
    b"\xef\xbb\xbf{}",
    b"null",
    b'{"type":"Reported","v":1}',
]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**40, -1, 0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        [
            "",
            ".",
            "..",
            "a/b",
            "a\0b",
            "sha256:",
            "x" * 5000,
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "0001-01-01T00:00:00+14:00",
            "9" * 400,
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in pairs for found in places(one, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, original: bytes) -> bytes:
    """Return the document with other JSON in up to three places, or without them."""
    document = copy.deepcopy(msgspec.json.decode(original))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)))
        if not path:
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and draw(st.booleans()) and draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(VALUES)
    return msgspec.json.encode(document)


def cut(original: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(original) - 1).map(lambda end: original[:end])


CARD = card.encode(
    EvaluationCard(
        model="digits",
        version="v1",
        signature=ModelSignature(inputs=[TENSOR], outputs=[TENSOR]),
        evaluation=Evaluation(metric="accuracy", baseline=0.9, samples=10, allowed_drop=0.01),
        golden=Golden(blob=BLOB, samples=3),
        variants=[PackagedVariant(variant=variant("onnx-fp32"), file="model.onnx")],
        provenance=Provenance(source_kind="onnx", source_digests={"m.onnx": "a" * 64}),
    )
)

DELTA = Delta(base=BLOB.digest, target=BLOB.digest, blob=BLOB, encoding="e")
MESSAGES: dict[type[Any], Any] = {
    DesiredState: DesiredState(
        uid="d1", manifest_version=3, issued_at=NOW, workloads=[wish("v1", deltas=[DELTA], protection="encrypted")]
    ),
    Command: Command(uid="d1", id="c", expires_at=NOW, verb="infer", workload="digits", request={"inputs": [1]}),
    Reported: Reported(
        uid="d1",
        boot_id="b",
        seq=1,
        sent_at=NOW,
        observed_manifest_version=3,
        facts=DeviceFacts(hostname="h", engines=[EngineFacts(name="onnxruntime")], protection="identity"),
        workloads=[WorkloadStatus(name="digits", rollout="r", revision=1, variant="v", phase="Running")],
    ),
    CommandResult: CommandResult(uid="d1", id="c", text="said", response={"a": [1, {}]}),
    Online: Online(uid="d1", online=True, boot_id="b"),
    Telemetry: Telemetry(
        uid="d1",
        boot_id="b",
        samples=[
            Sample(at=NOW, cpu=0.5, memory_bytes=1, workloads=[WorkloadSample(name="digits", latency_p95_ms=1.5)])
        ],
    ),
    Envelope: Envelope(payload_type="t", payload=b"payload", signatures=[Signature(keyid="k", sig=b"sig")]),
}
RAW = {kind: messages.encode(message) for kind, message in MESSAGES.items()}


def test_the_originals_are_good() -> None:
    assert [one.file for one in card.decode(CARD).variants] == ["model.onnx"]
    for kind, raw in RAW.items():
        assert messages.decode(raw, kind) == MESSAGES[kind]


def read_card(raw: bytes) -> None:
    try:
        found = card.decode(raw)
    except InvalidError:
        return
    assert card.decode(card.encode(found)) == found
    for one in found.variants:  # they become paths, in the package's directory and nowhere else
        assert "/" not in one.file
        assert "\0" not in one.file
        assert one.file not in ("", ".", "..")


def read_message(raw: bytes, kind: type[Any]) -> None:
    try:
        found = messages.decode(raw, kind)
    except (InvalidError, UnsupportedError):
        return
    assert messages.decode(messages.encode(found), kind) == found


@pytest.mark.parametrize("raw", AWKWARD, ids=lambda raw: repr(raw[:20]))
def test_awkward_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidError):
        card.decode(raw)
    for kind in RAW:
        with pytest.raises((InvalidError, UnsupportedError)):
            messages.decode(raw, kind)


@settings(max_examples=250, deadline=None)
@given(changed(CARD) | cut(CARD) | st.binary(max_size=200))
def test_a_card_is_read_or_refused(raw: bytes) -> None:
    read_card(raw)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(list(RAW)))
def test_a_message_is_read_or_refused(data: st.DataObject, kind: type[Any]) -> None:
    read_message(data.draw(changed(RAW[kind]) | cut(RAW[kind]) | st.binary(max_size=200)), kind)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_message_is_never_taken_for_another(data: st.DataObject) -> None:
    sent, taken = data.draw(st.permutations([kind for kind in RAW if kind is not Envelope]))[:2]
    with pytest.raises(InvalidError):
        messages.decode(RAW[sent], taken)
