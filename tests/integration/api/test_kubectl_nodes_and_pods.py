"""Devices as nodes and their workloads as pods, through the real kubectl."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api.kinds.device import (
    Device,
    DeviceSpec,
    Network,
    OperatingSystem,
    RunningRevision,
    WorkloadStatus,
)
from skerry.core.messages import Command, CommandResult

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

RUNNING = RunningRevision(
    rollout="digits-1",
    revision=1,
    model_version="digits-v1",
    variant="onnx-int8",
    port=8080,
    since=datetime(2026, 1, 1, tzinfo=UTC),
)


def change(hub: Hub, namespace: str, name: str, *workloads: WorkloadStatus, **status: object) -> None:
    def changed(device: Device) -> Device:
        made = msgspec.structs.replace(device.status, workloads=list(workloads), **status)
        return msgspec.structs.replace(device, status=made)

    hub.call(hub.objects.update_status(Device, namespace, name, changed))


def workload(name: str, **fields: object) -> WorkloadStatus:
    base = WorkloadStatus(name=name, rollout=f"{name}-1", revision=1, variant="onnx-int8", phase="Running")
    return msgspec.structs.replace(base, **fields)  # type: ignore[no-any-return]


@pytest.fixture
def till(hub: Hub, namespace: str) -> str:
    """A device with two workloads, one of which is on its way."""
    hub.add_device(namespace, "till-7", site="lab")
    change(
        hub,
        namespace,
        "till-7",
        workload("digits", running=RUNNING, restarts=2),
        workload("faces", phase="Fetching", message="12 of 40 MiB"),
        network=Network(kind="ethernet", address="192.0.2.7"),
        os=OperatingSystem(family="debian", version="13", kernel="6.12.0"),
        agent_version="0.3.0",
    )
    return "till-7"


def test_nodes(hub: Hub, namespace: str, kubectl: Run, till: str) -> None:
    header, *rows = kubectl("get", "nodes", "-l", f"skerry.dev/namespace={namespace}", "-o", "wide").stdout.splitlines()
    assert header.split()[:5] == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
    (row,) = rows
    name = f"{till}.{namespace}"
    assert row.split()[:3] == [name, "Ready", "edge"]
    assert {"skerry-0.3.0", "192.0.2.7", "debian", "6.12.0"} <= set(row.split())
    node = json.loads(kubectl("get", "node", name, "-o", "json").stdout)
    assert node["metadata"]["labels"]["site"] == "lab"
    assert node["status"]["capacity"]["cpu"] == "4"
    hub.call(hub.objects.replace(cordoned(hub, namespace, till)))
    assert "Ready,SchedulingDisabled" in kubectl("get", "node", name).stdout
    described = kubectl("describe", "node", name).stdout
    assert "Unschedulable:      true" in described
    assert "digits.till-7" in described, "the pods on it"
    assert "NotFound" in kubectl("get", "node", "nobody", fails=True).stderr
    assert "condition met" in kubectl("wait", f"node/{name}", "--for=condition=Ready").stdout


def cordoned(hub: Hub, namespace: str, name: str) -> Device:
    return msgspec.structs.replace(hub.call(hub.objects.get(Device, namespace, name)), spec=DeviceSpec(cordoned=True))


def test_pods(hub: Hub, namespace: str, kubectl: Run, till: str) -> None:
    header, *rows = kubectl("get", "pods", "-o", "wide").stdout.splitlines()
    assert header.split()[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert [row.split()[:4] for row in rows] == [
        ["digits.till-7", "1/1", "Running", "2"],
        ["faces.till-7", "0/1", "Fetching", "0"],
    ]
    assert f"{till}.{namespace}" in rows[0]
    chosen = kubectl("get", "pods", "-l", "skerry.dev/deployment=faces", "-o", "name").stdout
    assert chosen == "pod/faces.till-7\n"
    one_by_one = kubectl("get", "pods", "--chunk-size=1", "-o", "name").stdout.splitlines()
    assert one_by_one == ["pod/digits.till-7", "pod/faces.till-7"], "a device's pods on two pages"
    described = kubectl("describe", "pod", "digits.till-7").stdout
    assert "digits-v1/onnx-int8" in described
    assert "Restart Count:  2" in described
    change(hub, namespace, till, workload("digits", running=RUNNING), phase="Offline")
    assert kubectl("get", "pods").stdout.splitlines()[1].split()[:3] == ["digits.till-7", "0/1", "NodeLost"]
    said = kubectl("delete", "pod", "digits.till-7", fails=True).stderr
    assert "are a picture of devices" in said


def test_a_pod_s_log_is_the_device_s(hub: Hub, namespace: str, kubectl: Run, till: str) -> None:
    device = hub.call(hub.objects.get(Device, namespace, till))

    def answer(command: Command) -> CommandResult:
        return CommandResult(uid=command.uid, id=command.id, text=f"{command.workload} {command.tail_lines}\n")

    context = hub.answering(device.metadata.uid, answer)
    hub.call(context.__aenter__())
    try:
        assert kubectl("logs", "faces.till-7", "--tail=5").stdout == "faces 5\n"
        assert kubectl("logs", "faces.till-7").stdout == "faces 10000\n", "all that a device sends at once"
        assert "not valid" in kubectl("logs", "faces.till-7", "-c", "digits", fails=True).stderr
    finally:
        hub.call(context.__aexit__(None, None, None))


def test_a_watch_tells_what_happens_to_each_pod(
    hub: Hub, namespace: str, environment: dict[str, str], till: str
) -> None:
    assert KUBECTL is not None
    command = [KUBECTL, "-n", namespace, "get", "pods", "-w", "--output-watch-events"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            lines = iter(watching.stdout.readline, "")
            assert next(lines).split()[0] == "EVENT"
            assert [next(lines).split()[:2] for _ in range(2)] == [
                ["ADDED", "digits.till-7"],
                ["ADDED", "faces.till-7"],
            ]
            change(hub, namespace, till, workload("digits", running=RUNNING), workload("faces", running=RUNNING))
            first = next(lines).split()
            assert first[:2] == ["MODIFIED", "digits.till-7"], "its restarts"
            assert next(lines).split()[:4] == ["MODIFIED", "faces.till-7", "1/1", "Running"]
            change(hub, namespace, till, workload("digits", running=RUNNING))
            assert next(lines).split()[:2] == ["DELETED", "faces.till-7"], "and nothing of the one that stayed"
        finally:
            watching.kill()


def test_names_are_taken_apart_at_the_last_dot(hub: Hub, namespace: str, kubectl: Run) -> None:
    hub.add_device(namespace, "b")
    change(hub, namespace, "b", workload("v1.a"), workload("a"))
    for name in ("v1.a.b", "a.b"):
        assert json.loads(kubectl("get", "pod", name, "-o", "json").stdout)["metadata"]["name"] == name
    for name in ("b", "c.b", "a.c", "a.", ".b"):
        assert "NotFound" in kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{name}", fails=True).stderr


def test_api_resources_name_them(kubectl: Run) -> None:
    lines = [line.split() for line in kubectl("api-resources").stdout.splitlines()[1:]]
    assert ["nodes", "no", "v1", "false", "Node"] in lines
    assert ["pods", "po", "v1", "true", "Pod"] in lines
    assert ["nodes", "metrics.k8s.io/v1beta1", "false", "NodeMetrics"] in lines
