"""`skerry rollout approve` and `abort` against a real API, and what any other client does in their place."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.integration.api.conftest import BASE, Hub

from skerry.api.errors import ConflictError, NotFoundError
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus
from skerry.api.kinds.rollout import Rollout, RolloutSpec, RolloutStatus, WaveStatus
from skerry.api.meta import Condition, LabelSelector, ObjectMeta
from skerry.cli import rollout as verbs
from skerry.core import promotion

NAME = "pictures"


def begun(hub: Hub, phase: str, reason: str) -> Path:
    """A deployment whose rollout's first wave has passed."""
    now = hub.context.clock.now()
    condition = Condition(
        type="Progressing",
        status="Unknown",
        reason=reason,
        message="m",
        last_transition_time=now,
        observed_generation=1,
    )
    spec = ModelDeploymentSpec(model_version="v1", device_selector=LabelSelector())
    item = hub.call(hub.objects.create(ModelDeployment(metadata=ObjectMeta(name=NAME, namespace="default"), spec=spec)))
    frozen = RolloutSpec(deployment=NAME, deployment_uid=item.metadata.uid, revision=1, template=spec)
    hub.call(hub.objects.create(Rollout(metadata=ObjectMeta(name=f"{NAME}-1", namespace="default"), spec=frozen)))
    rows = [WaveStatus(name="canary", phase="Passed", target=1), WaveStatus(name="all", target=2)]
    raw = {"phase": phase, "currentWave": 1, "waves": rows, "placed": 2, "conditions": [condition]}
    status = msgspec.convert(msgspec.to_builtins(raw), RolloutStatus)
    hub.call(
        hub.objects.update_status(
            Rollout, "default", f"{NAME}-1", lambda one: msgspec.structs.replace(one, status=status)
        )
    )
    shown = ModelDeploymentStatus(observed_generation=1, rollout=f"{NAME}-1", conditions=[condition])
    hub.call(
        hub.objects.update_status(
            ModelDeployment, "default", NAME, lambda one: msgspec.structs.replace(one, status=shown)
        )
    )
    return hub.kubeconfig


def said(hub: Hub) -> dict[str, str]:
    return hub.call(hub.objects.get(Rollout, "default", f"{NAME}-1")).metadata.annotations


@pytest.fixture(autouse=True)
def clean(hub: Hub) -> None:
    for kind, name in ((ModelDeployment, NAME), (Rollout, f"{NAME}-1")):
        if hub.call(hub.objects.find(kind, "default", name)) is not None:  # type: ignore[type-var]
            hub.call(hub.objects.delete(kind, "default", name))  # type: ignore[type-var]


def test_approve_names_the_wave_that_waits(hub: Hub) -> None:
    path = begun(hub, "Paused", "AwaitingApproval")
    verbs.approve(f"deployment/{NAME}", wave="", namespace="", kubeconfig=path)
    assert said(hub) == {promotion.APPROVED: "canary"}


def test_approve_ahead_of_time_needs_a_wave_that_there_is(hub: Hub) -> None:
    path = begun(hub, "Progressing", "RollingOut")
    with pytest.raises(ConflictError, match="waits for no approval"):
        verbs.approve(NAME, wave="", namespace="", kubeconfig=path)
    with pytest.raises(NotFoundError, match='has no wave "al"; its waves are: canary, all'):
        verbs.approve(NAME, wave="al", namespace="", kubeconfig=path)
    assert said(hub) == {}
    verbs.approve(NAME, wave="all", namespace="", kubeconfig=path)
    assert said(hub) == {promotion.APPROVED: "all"}


def test_abort_says_why_and_comes_too_late_after_the_end(hub: Hub) -> None:
    path = begun(hub, "Progressing", "RollingOut")
    verbs.abort(NAME, reason="customers complain", namespace="", kubeconfig=path)
    assert said(hub) == {promotion.ABORT: "customers complain"}
    hub.call(
        hub.objects.update_status(
            Rollout,
            "default",
            f"{NAME}-1",
            lambda one: msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, phase="Succeeded")),
        )
    )
    with pytest.raises(ConflictError, match=f"skerry rollout undo deployment/{NAME}"):
        verbs.abort(NAME, reason="", namespace="", kubeconfig=path)


def test_any_client_says_the_same_with_an_annotation(hub: Hub) -> None:
    begun(hub, "Paused", "AwaitingApproval")
    with hub.client() as client:
        answer = client.http.patch(
            f"{BASE}/default/rollouts/{NAME}-1",
            content=msgspec.json.encode({"metadata": {"annotations": {promotion.APPROVED: "canary"}}}),
            headers={"Content-Type": "application/merge-patch+json"},
        )
    assert answer.status_code == 200
    assert said(hub) == {promotion.APPROVED: "canary"}
