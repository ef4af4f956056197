"""Deployments: when a rollout starts, which rollouts are kept, and what the status says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from skerry.api.kinds.device import RunningRevision, WorkloadStatus
from skerry.api.kinds.model_deployment import (
    Constraints,
    ModelDeployment,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ResourceList,
    Resources,
    Serving,
    Strategy,
)
from skerry.api.kinds.rollout import Rollout, RolloutSpec, RolloutStatus
from skerry.api.meta import Condition, LabelSelector, ObjectMeta, find_condition
from skerry.core import deployment
from skerry.core.steps import Hold
from skerry.core.waves import Member

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SPEC = ModelDeploymentSpec(model_version="v1", device_selector=LabelSelector())


def make_rollout(revision: int, phase: Any = "Succeeded", previous: str = "") -> Rollout:
    condition = Condition(
        type="Progressing", status="True", reason=phase, message=f"it is {phase}", last_transition_time=NOW
    )
    return Rollout(
        metadata=ObjectMeta(name=f"digits-{revision}", namespace="default"),
        spec=RolloutSpec(deployment="digits", deployment_uid="u", revision=revision, template=SPEC, previous=previous),
        status=RolloutStatus(phase=phase, conditions=[condition]),
    )


def member(name: str, rollout: str = "", *, variant: str = "onnx-fp32", selected: bool = True) -> Member:
    running = None
    if rollout:
        running = RunningRevision(rollout=rollout, revision=1, model_version="v1", variant=variant, port=1, since=NOW)
    report = WorkloadStatus(
        name="digits", rollout=rollout, revision=1, variant=variant, phase="Running", running=running
    )
    return Member(uid=name, name=name, selected=selected, report=report)


def make_deployment(generation: int = 2) -> ModelDeployment:
    return ModelDeployment(
        metadata=ObjectMeta(name="digits", namespace="default", uid="u", generation=generation),
        spec=SPEC,
        status=ModelDeploymentStatus(observed_generation=1),
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"model_version": "v2"}, False),
        ({"constraints": Constraints(min_accuracy=0.9)}, False),
        ({"resources": Resources(limits=ResourceList(memory="64Mi"))}, False),
        ({"runtime": "process"}, False),
        ({"serving": Serving(threads=4)}, False),
        ({"device_selector": LabelSelector(match_labels={"site": "lab"})}, True),
        ({"strategy": Strategy(bake_time="1m")}, True),
        ({"paused": True}, True),
    ],
)
def test_which_fields_start_a_rollout(change: dict[str, Any], same: bool) -> None:
    assert deployment.same_template(SPEC, msgspec.structs.replace(SPEC, **change)) is same
    assert {*change} <= {*ModelDeploymentSpec.__struct_fields__}


@pytest.mark.parametrize(
    ("phases", "wanted"),
    [
        (["Succeeded", "Progressing"], 2),
        (["Succeeded", "Paused"], 2),
        (["Succeeded", "RollingBack"], 1),
        (["Succeeded", "RolledBack", "RolledBack"], 1),
        (["Succeeded", "Superseded", "Pending"], 3),
        (["RolledBack"], None),
        ([], None),
    ],
)
def test_which_rollout_devices_are_meant_to_be_on(phases: list[str], wanted: int | None) -> None:
    found = deployment.wanted_of([make_rollout(number + 1, phase) for number, phase in enumerate(phases)])
    assert (found.spec.revision if found else None) == wanted


def test_only_old_rollouts_that_nobody_needs_are_superfluous() -> None:
    many = [make_rollout(1), *(make_rollout(number, "RolledBack", "digits-1") for number in range(2, 20))]
    dropped = [item.spec.revision for item in deployment.superfluous(many)]
    assert dropped == [8, 7, 6, 5, 4, 3, 2], "the newest and the stable one stay, and ten more"
    running = [make_rollout(number, "Progressing") for number in range(1, 30)]
    assert deployment.superfluous(running) == []


def test_the_status_counts_what_devices_report() -> None:
    members = [
        member("a", "digits-2"),
        member("b", "digits-1", variant="onnx-int8"),
        member("c"),
        member("gone", "digits-2", selected=False),
    ]
    status = deployment.summarize(
        make_deployment(), [make_rollout(1), make_rollout(2, "Progressing", "digits-1")], members, NOW
    )
    assert (status.observed_generation, status.revision) == (2, 2)
    assert (status.rollout, status.stable_rollout) == ("digits-2", "digits-1")
    assert (status.selected, status.updated, status.ready) == (3, 1, 2)
    assert status.variants == {"onnx-fp32": 1, "onnx-int8": 1}
    progressing = find_condition(status.conditions, "Progressing")
    assert progressing is not None
    assert (progressing.reason, progressing.message) == ("Progressing", "it is Progressing")
    available = find_condition(status.conditions, "Available")
    assert available is not None
    assert (available.status, available.message) == ("False", "2 of 3 devices serving; not c")


def test_available_needs_devices_and_all_of_them() -> None:
    def available(*members: Member) -> tuple[str, str]:
        status = deployment.summarize(make_deployment(), [make_rollout(1)], members, NOW)
        found = find_condition(status.conditions, "Available")
        assert found is not None
        return found.status, found.reason

    assert available() == ("False", "NoDevices")
    assert available(member("a")) == ("False", "DevicesNotServing")
    assert available(member("a", "digits-1")) == ("True", "AllDevicesServing")


def test_a_hold_is_shown_and_a_generation_is_observed_once_its_model_version_is_known() -> None:
    missing = Hold(reason="ModelVersionMissing", message="it does not exist")
    status = deployment.summarize(make_deployment(), [make_rollout(1)], [], NOW, hold=missing)
    assert status.observed_generation == 2
    found = find_condition(status.conditions, "Progressing")
    assert found is not None
    assert (found.status, found.reason, found.message) == ("False", "ModelVersionMissing", "it does not exist")
    pending = Hold(reason=deployment.PENDING, message="it is being checked")
    status = deployment.summarize(make_deployment(), [make_rollout(1)], [], NOW, hold=pending)
    assert status.observed_generation == 1


def test_what_devices_call_their_variants_is_bounded() -> None:
    members = [member(f"d{i}", "digits-1", variant=f"{i}" + "x" * 10_000) for i in range(200)]
    status = deployment.summarize(make_deployment(), [make_rollout(1)], members, NOW)
    assert len(msgspec.json.encode(status)) < 8000


def test_the_time_of_a_condition_is_that_of_its_last_change_of_status() -> None:
    first = deployment.summarize(make_deployment(), [make_rollout(1)], [member("a")], NOW)
    later = datetime(2026, 11, 24, tzinfo=UTC)
    kept = msgspec.structs.replace(make_deployment(), status=first)
    second = deployment.summarize(kept, [make_rollout(1)], [member("a", "digits-1")], later)
    times = {condition.type: condition.last_transition_time for condition in second.conditions}
    assert times == {"Progressing": NOW, "Available": later}
    failing = deployment.failing(kept, "Invalid", "cannot be read", later)
    found = find_condition(failing.conditions, "Progressing")
    assert found is not None
    assert (found.status, found.reason, found.last_transition_time) == ("False", "Invalid", later)
