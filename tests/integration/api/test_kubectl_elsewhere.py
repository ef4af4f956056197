"""What users of kubectl know from elsewhere and is not here: they are told so, and what there is instead."""

from __future__ import annotations

import json

import pytest
from tests.integration.api.kubectl import KUBECTL, Run
from tests.integration.api.paths import Make

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@pytest.fixture
def digits(kubectl: Run, deployment: Make) -> str:
    kubectl("apply", "-f", "-", text=json.dumps(deployment()))
    return "modeldeployment/digits"


@pytest.mark.parametrize("asked", [("scale", "--replicas=3"), ("get", "--subresource=scale")], ids=["scale", "get"])
def test_nothing_has_replicas(kubectl: Run, digits: str, asked: tuple[str, str]) -> None:
    verb, option = asked
    said = kubectl(verb, digits, option, fails=True).stderr
    assert "Error from server (NotFound)" in said
    assert "nothing here has a number of replicas" in said
    assert "spec.strategy.waves" in said


@pytest.mark.parametrize("verb", ["status", "history", "undo", "pause", "resume", "restart"])
def test_rollouts_are_another_programs(kubectl: Run, digits: str, verb: str) -> None:
    """Which is kubectl's own decision: it asks nobody."""
    assert 'no kind "ModelDeployment" is registered' in kubectl("rollout", verb, digits, fails=True).stderr


def test_pods_are_not_made(kubectl: Run) -> None:
    said = kubectl("run", "x", "--image=y", fails=True).stderr
    assert "pods are a picture of devices; change those" in said


def test_who_somebody_is(kubectl: Run) -> None:
    asked = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    answered = json.loads(kubectl("create", "-f", "-", "-o", "json", text=asked).stdout)
    assert answered["status"]["userInfo"]["username"] == "admin"
    assert "admin" in kubectl("auth", "whoami").stdout
