"""A model's directory goes to the hub and on to a device, though nothing is known of its accuracy."""

import json
from pathlib import Path

import pytest
from tests.e2e.site import PATIENCE, Site
from tests.models import directories

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.cli.demo.programs import wait_until

pytestmark = pytest.mark.e2e

DEPLOYMENT = """\
apiVersion: skerry.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  modelVersion: tiny-v1
  deviceSelector: {{matchLabels: {{site: lab}}}}
  constraints: {constraints}
  strategy:
    waves: [{{percent: 100}}]
    bakeTime: 0s
    gates: {gates}
"""


def apply(site: Site, name: str, *, gates: str = "{}", constraints: str = "{}") -> None:
    path = site.directory / f"{name}.yaml"
    path.write_text(DEPLOYMENT.format(name=name, gates=gates, constraints=constraints))
    site.skerry("apply", "-f", str(path))


def said(site: Site, name: str) -> str:
    with site.client() as client:
        return json.dumps([one.message for one in client.get(ModelDeployment, name).status.conditions])


def test_a_pushed_directory_is_placed_measured_and_refused_where_accuracy_is_asked(site: Site, tmp_path: Path) -> None:
    model = directories.hugging_face(tmp_path / "tiny")
    site.start_hub()
    site.add_devices("till")
    pushed = json.loads(site.skerry("model", "push", str(model), "-o", "json"))
    assert set(pushed["variants"]) == {"onnx-fp32", "onnx-int8-dynamic"}
    with site.client() as client:
        wait_until(
            lambda: client.get(ModelVersion, "tiny-v1").status.phase == "Ready", "the version Ready", seconds=PATIENCE
        )
        assert client.get(ModelVersion, "tiny-v1").spec.evaluation is None
    assert "tiny-v1" in site.skerry("get", "models", "-o", "wide")
    assert "NOT EVALUATED" in site.skerry("model", "inspect", "tiny:v1")

    apply(site, "strict", constraints="{minAccuracy: 0.5}")
    wait_until(lambda: "was never evaluated" in said(site, "strict"), "a refusal in words", seconds=PATIENCE)
    site.skerry("delete", "modeldeployment/strict")

    apply(site, "tiny", gates="{agreement: {min: 0.9}}")
    site.skerry("rollout", "status", "deployment/tiny", "--watch", "--timeout", "60s")
    with site.client() as client:
        (workload,) = client.get(Device, "till").status.workloads
    assert workload.measurement is not None
    assert (workload.measurement.accuracy, workload.measurement.agreement) == (None, 1.0)
