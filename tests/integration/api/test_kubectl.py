"""The real kubectl against the hub, over TLS with the hub's own kubeconfig."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api import codec
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import promotion

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

Make = Callable[..., dict[str, Any]]


def test_discovery(kubectl: Run) -> None:
    lines = {line.split()[0]: line.split() for line in kubectl("api-resources").stdout.splitlines()[1:]}
    assert lines["devices"] == ["devices", "dev", "skerry.dev/v1alpha1", "true", "Device"]
    assert {"modeldeployments", "modelversions", "rollouts", "enrollments", "jointokens", "namespaces"} <= set(lines)
    assert "skerry.dev/v1alpha1" in kubectl("api-versions").stdout.splitlines()
    assert "v1.32" in kubectl("version").stdout
    assert kubectl("get", "--raw", "/readyz").stdout == "ok"


def test_get_in_all_forms(hub: Hub, namespace: str, kubectl: Run) -> None:
    hub.add_device(namespace, "till-7", site="lab")
    hub.add_device(namespace, "till-8", site="shop")
    header, *rows = kubectl("get", "devices").stdout.splitlines()
    assert header.split()[:4] == ["NAME", "STATUS", "ARCH", "MEMORY"]
    assert [row.split()[:3] for row in rows] == [["till-7", "Online", "arm64"], ["till-8", "Online", "arm64"]]
    assert "UID" in kubectl("get", "dev", "-o", "wide").stdout.splitlines()[0]
    assert kubectl("get", "device", "-l", "site=lab", "-o", "name").stdout == "device.skerry.dev/till-7\n"
    listed = json.loads(kubectl("get", "devices", "-o", "json").stdout)
    assert [item["status"]["phase"] for item in listed["items"]] == ["Online", "Online"]
    assert "phase: Online" in kubectl("get", "device", "till-7", "-o", "yaml").stdout
    named = kubectl("get", "devices", "--field-selector", "metadata.name=till-8", "-o", "name").stdout
    assert named == "device.skerry.dev/till-8\n"
    assert namespace in kubectl("get", "devices", "-A").stdout
    assert namespace in kubectl("get", "namespaces").stdout
    path = "jsonpath={.items[*].status.hardware.arch}"
    assert kubectl("get", "devices", "-o", path).stdout == "arm64 arm64"
    assert kubectl("get", "devices", "--sort-by", ".metadata.name", "-o", "name").stdout.count("till") == 2
    chunked = kubectl("get", "devices", "--chunk-size", "1").stdout.splitlines()[1:]
    assert [row.split()[0] for row in chunked] == ["till-7", "till-8"]


def test_apply_again_and_again(kubectl: Run, deployment: Make) -> None:
    text = codec.to_yaml(deployment(paused=False))
    assert "created" in kubectl("apply", "-f", "-", text=text).stdout
    assert "unchanged" in kubectl("apply", "-f", "-", text=text).stdout
    changed = codec.to_yaml(deployment(paused=True, serving={"threads": 2}))
    assert "paused: true" in kubectl("diff", "-f", "-", text=changed, fails=True).stdout
    assert "configured" in kubectl("apply", "-f", "-", text=changed).stdout
    assert "configured" in kubectl("apply", "-f", "-", text=codec.to_yaml(deployment(paused=True))).stdout
    spec = json.loads(kubectl("get", "modeldeployment", "digits", "-o", "json").stdout)["spec"]
    assert (spec["paused"], spec["serving"]["threads"]) == (True, 1)
    dry = kubectl("apply", "--dry-run=server", "-f", "-", text=codec.to_yaml(deployment("other")))
    assert "created (server dry run)" in dry.stdout
    assert "NotFound" in kubectl("get", "md", "other", fails=True).stderr


def test_kubectl_and_skerry_apply_go_on_where_the_other_was(
    hub: Hub, namespace: str, kubectl: Run, deployment: Make
) -> None:
    with hub.client(namespace) as client:
        kubectl("apply", "-f", "-", text=codec.to_yaml(deployment(serving={"threads": 2})))
        assert client.apply(deployment(serving={"threads": 2})) == "unchanged"
        assert client.apply(deployment()) == "configured"
        assert "unchanged" in kubectl("apply", "-f", "-", text=codec.to_yaml(deployment())).stdout


def test_mistakes_are_told_all_at_once(kubectl: Run, deployment: Make) -> None:
    wrong = deployment(pausd=True, resources={"limits": {"memory": "12Q"}})
    said = kubectl("apply", "-f", "-", text=codec.to_yaml(wrong), fails=True).stderr
    assert 'spec.pausd: is not a field; did you mean "paused"?' in said
    assert 'spec.resources.limits.memory: "12Q" is not a quantity' in said
    assert "NotFound" in kubectl("get", "md", "digits", fails=True).stderr
    kubectl("apply", "-f", "-", text=codec.to_yaml(deployment()))
    assert "is invalid" in kubectl("apply", "-f", "-", text=codec.to_yaml(wrong), fails=True).stderr
    warned = kubectl("apply", "--validate=warn", "-f", "-", text=codec.to_yaml(deployment(pausd=True)))
    assert "Warning: spec.pausd" in warned.stderr


def test_describe_explain_label_annotate_patch_edit(hub: Hub, namespace: str, kubectl: Run, deployment: Make) -> None:
    hub.add_device(namespace, "till-7", site="lab")
    assert "Phase:" in kubectl("describe", "device", "till-7").stdout
    assert "labeled" in kubectl("label", "device", "till-7", "tier=edge").stdout
    assert "annotated" in kubectl("annotate", "device", "till-7", "note=by the window").stdout
    shown = json.loads(kubectl("get", "device", "till-7", "-o", "json").stdout)["metadata"]
    assert shown["labels"] == {"site": "lab", "tier": "edge"}
    assert shown["annotations"]["note"] == "by the window"
    kubectl("patch", "device", "till-7", "--type=merge", "-p", '{"spec":{"cordoned":true}}')
    kubectl("patch", "device", "till-7", "--type=json", "-p", '[{"op":"remove","path":"/metadata/labels/tier"}]')
    shown = json.loads(kubectl("get", "device", "till-7", "-o", "json").stdout)
    assert (shown["spec"]["cordoned"], shown["metadata"]["labels"]) == (True, {"site": "lab"})
    explained = kubectl("explain", "modeldeployment.spec.strategy").stdout
    assert "How a new generation spreads." in explained
    assert "How long a wave must stay healthy" in explained
    whole = kubectl("explain", "modeldeployment.spec", "--recursive").stdout
    assert "minSamples" in whole


def test_wait_and_delete(hub: Hub, namespace: str, kubectl: Run, deployment: Make) -> None:
    hub.add_device(namespace, "till-7")
    assert "condition met" in kubectl("wait", "device/till-7", "--for=jsonpath={.status.phase}=Online").stdout
    kubectl("apply", "-f", "-", text=codec.to_yaml(deployment("a")))
    assert "replaced" in kubectl("replace", "-f", "-", text=codec.to_yaml(deployment("a", paused=True))).stdout
    assert "deleted" in kubectl("delete", "-f", "-", text=codec.to_yaml(deployment("a"))).stdout
    assert "deleted" in kubectl("delete", "devices", "--all").stdout
    assert kubectl("get", "devices,md").stdout == ""
    assert "NotFound" in kubectl("delete", "device", "till-7", fails=True).stderr


def test_get_w_prints_changes_as_they_come(hub: Hub, namespace: str, environment: dict[str, str], kubectl: Run) -> None:
    assert KUBECTL is not None
    hub.add_device(namespace, "till-7")
    command = [KUBECTL, "-n", namespace, "get", "devices", "-w"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            lines = iter(watching.stdout.readline, "")
            assert next(lines).split()[:2] == ["NAME", "STATUS"]
            assert next(lines).split()[0] == "till-7"
            hub.add_device(namespace, "till-8")
            assert next(lines).split()[:2] == ["till-8", "Online"]
        finally:
            watching.kill()


def test_pacing_as_people_write_it_and_words_to_a_rollout(
    hub: Hub, namespace: str, kubectl: Run, deployment: Make
) -> None:
    raw = deployment("paced")
    raw["spec"]["strategy"] = {
        "promotion": "manual",
        "rate": {"base": 10, "maxPerMinute": 100},
        "disruption": {"groupBy": "site", "maxUnavailable": 1},
        "failureThreshold": 2,
        "windows": {"switchOver": [{"schedule": "0 2 * * 1-5", "timeZone": "Europe/Berlin", "duration": "3h"}]},
    }
    kubectl("apply", "-f", "-", text=json.dumps(raw))
    kubectl("apply", "-f", "-", text=json.dumps(raw))
    stored = json.loads(kubectl("get", "modeldeployment", "paced", "-o", "json").stdout)
    strategy = stored["spec"]["strategy"]
    assert (strategy["disruption"]["maxUnavailable"], strategy["failureThreshold"]) == ("1", "2")
    assert stored["metadata"]["generation"] == 1, "a number and its text are the same wish"
    spec = ModelDeploymentSpec(model_version="v1", device_selector=LabelSelector())
    frozen = RolloutSpec(deployment="paced", deployment_uid="u", revision=1, template=spec)
    hub.call(hub.objects.create(Rollout(metadata=ObjectMeta(name="paced-1", namespace=namespace), spec=frozen)))
    kubectl("annotate", "rollout", "paced-1", f"{promotion.APPROVED}=canary")
    kubectl("annotate", "rollout", "paced-1", f"{promotion.ABORT}=not today")
    item = hub.call(hub.objects.get(Rollout, namespace, "paced-1"))
    assert item.metadata.annotations == {promotion.APPROVED: "canary", promotion.ABORT: "not today"}
