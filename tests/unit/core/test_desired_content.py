"""What a device may fetch follows what it is told, one step behind and no further; against a plain model."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Delta, Requirements
from skerry.core.desired import Assignment, DesiredRecord, assign, may_fetch, withdraw
from skerry.core.messages import WorkloadDesired

NAMES, MODELS = ("a", "b"), ("0", "1", "2", "3")


def digest(character: str, kind: str) -> str:
    return f"sha256:{kind * 32}{character * 32}"


def workload(name: str, model: str) -> WorkloadDesired:
    return WorkloadDesired(
        name=name,
        rollout="r",
        revision=1,
        model="m",
        model_version=f"m-{model}",
        version=model,
        variant="v",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository=f"default/{name}",
        blob=Blob(digest=digest(model, "a"), size=1),
        golden=Blob(digest=digest(model, "b"), size=1),
        deltas=[
            Delta(
                base=digest("f", "a"),
                target=digest(model, "a"),
                blob=Blob(digest=digest(model, "c"), size=1),
                encoding="x",
            )
        ],
        signatures=[Blob(digest=digest(model, "d"), size=1)],
        card=Blob(digest=digest(model, "e"), size=1),
    )


STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from((*MODELS, ""))), max_size=12)


@given(steps=STEPS)
def test_a_device_may_fetch_what_each_workload_is_and_what_it_was_before(steps: list[tuple[str, str]]) -> None:
    record = DesiredRecord(uid="u", namespace="default", device="d")
    model: dict[str, list[str]] = {}
    for name, wanted in steps:
        if wanted:
            assignment = Assignment(
                workload=workload(name, wanted),
                deployment_uid="1",
                wave=0,
                reason="",
                assigned_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
            record = assign(record, assignment)
            if model.get(name, [""])[-1] != wanted:
                model[name] = [*model.get(name, []), wanted][-2:]
        else:
            record = withdraw(record, name)
            model.pop(name, None)
        for where in NAMES:
            for one in MODELS:
                allowed = {kind: may_fetch(record, f"default/{where}", digest(one, kind)) for kind in "abcde"}
                assert set(allowed.values()) == {one in model.get(where, [])}, (where, one, allowed)
        assert not may_fetch(record, "default/a", digest("f", "a"))
        assert len(record.former) <= len(NAMES)
