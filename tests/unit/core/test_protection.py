"""Encrypted models in decisions: who may have them, what starts a rollout, what happens to the version before."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from tests.unit.core.test_placement import MODEL, make_rollout, variant
from tests.unit.core.test_trial import wish

from skerry.api.kinds.device import DeviceFacts, DeviceStatus
from skerry.api.kinds.model_deployment import Constraints, ModelDeploymentSpec
from skerry.api.meta import LabelSelector
from skerry.core import deployment, placement, slots, workload
from skerry.core.journal import Moment, State, Switched, Wanted
from skerry.core.messages import Reported, WorkloadDesired
from skerry.core.placement import Engine, Machine
from skerry.hub.device_status import News, observe

MACHINE = Machine(
    arch="amd64",
    memory_bytes=2**30,
    engines=(Engine(name="onnxruntime", version="1.26.0", precisions=()),),
    runtimes=("process",),
)
NOW = Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=1.0, boot="b")
ENCRYPTED = ModelDeploymentSpec(
    model_version="digits-v1", device_selector=LabelSelector(), constraints=Constraints(), protection="encrypted"
)
VARIANT = variant("onnx-fp32")


def test_a_device_without_a_key_is_not_chosen_and_says_why() -> None:
    found = placement.place(MACHINE, [VARIANT], ENCRYPTED)
    assert found.variant is None
    assert "cannot keep models encrypted: it has no key for them, or an older agent" in found.reason
    assert placement.place(replace_machine("identity"), [VARIANT], ENCRYPTED).variant == VARIANT
    assert placement.place(MACHINE, [VARIANT], replace(ENCRYPTED, protection="none")).variant == VARIANT


def replace_machine(protection: str) -> Machine:
    return dataclasses.replace(MACHINE, protection=protection)


def test_a_change_of_it_starts_a_rollout() -> None:
    assert not deployment.same_template(ENCRYPTED, replace(ENCRYPTED, protection="none"))


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("none", "encrypted", "encrypted"),
        ("encrypted", "encrypted", "encrypted"),
        ("encrypted", "none", "encrypted"),
        ("none", "none", "none"),
    ],
)
def test_the_version_before_is_kept_no_worse_than_the_present_one(before: str, after: str, kept: str) -> None:
    old = serving(State(name="digits"), wish("v1", protection=before))
    new = serving(old, wish("v2", protection=after))
    assert new.current is not None
    assert new.previous is not None
    assert new.current.desired.protection == after
    assert new.previous.desired.protection == kept
    assert replace(new.previous.desired, protection=before) == wish("v1", protection=before)


def serving(state: State, desired: WorkloadDesired) -> State:
    begun, _ = slots.begin(replace(state, desired=desired), desired)
    assert begun is not None
    assert begun.candidate is not None
    ready = replace(begun, phase="Probing")
    after, _ = workload.step(ready, Switched(serial=begun.candidate.serial, endpoint=1), NOW)
    assert after is not None
    return after


def test_the_same_content_protected_otherwise_is_installed_anew() -> None:
    state = serving(State(name="digits"), wish("v1"))
    after, _ = workload.step(state, Wanted(wish("v1", protection="encrypted")), NOW)
    assert after is not None
    assert after.candidate is not None
    assert after.candidate.desired.protection == "encrypted"
    assert after.current == state.current


@pytest.mark.parametrize("protection", ["none", "encrypted"])
def test_the_device_is_told_what_the_rollout_was_begun_with(protection: str) -> None:
    template = replace(ENCRYPTED, protection=protection)
    workload_ = placement.build_workload(make_rollout("digits", template), MODEL, VARIANT)
    assert workload_.protection == protection


def test_what_a_device_can_do_comes_with_its_facts() -> None:
    facts = DeviceFacts(protection="file")
    report = Reported(uid="u", boot_id="b", seq=1, sent_at=NOW.wall, observed_manifest_version=0, facts=facts)
    status = observe(DeviceStatus(), News(report=report), now=NOW.wall, resolution=timedelta(0))
    assert status.protection == "file"
    assert placement.machine_of(status).protection == "file"
    assert placement.machine_of(DeviceFacts()).protection == ""
