"""Events of a real hub, as kubectl and skerry show them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.api.kubectl import KUBECTL
from tests.integration.hub.conftest import API, HubProcess, RawDevice

EVENTS = "/api/v1/namespaces/default/events"
MERGE = {"Content-Type": "application/merge-patch+json"}
WAIT = 20.0


def events(hub: HubProcess, selector: str = "", path: str = EVENTS) -> list[dict[str, Any]]:
    status, found = hub.call(hub.admin, "GET", f"{path}?fieldSelector={selector}")
    assert status == 200, found
    items: list[dict[str, Any]] = found["items"]
    return items


def until(hub: HubProcess, *reasons: str) -> list[dict[str, Any]]:
    """Wait until something was told for all these reasons."""
    deadline = time.monotonic() + WAIT
    while not set(reasons) <= {item["reason"] for item in events(hub)}:
        assert time.monotonic() < deadline, events(hub)
        time.sleep(0.02)
    return events(hub)


def patch(hub: HubProcess, path: str, change: dict[str, Any]) -> None:
    connection = hub.connect(hub.admin)
    try:
        connection.request("PATCH", f"{API}/{path}", json.dumps(change), MERGE)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
    finally:
        connection.close()


@pytest.fixture
def device(hub: HubProcess, tmp_path: Path) -> str:
    """Enrol a device that then fails its workload and goes away; returns its uid."""
    raw = RawDevice(tmp_path, hub.record["apiPort"])
    token = hub.create_token()
    raw.pin(token)
    status, _ = raw.ask(token)
    assert status == 201
    workload = {"name": "digits", "rollout": "digits-1", "revision": 1, "variant": "onnx-int8", "phase": "Failed"}
    patch(hub, "devices/till/status", {"status": {"phase": "Online"}})
    patch(hub, "devices/till/status", {"status": {"workloads": [{**workload, "message": "no memory"}]}})
    patch(hub, "devices/till", {"spec": {"cordoned": True}})
    until(hub, "Enrolled", "Approved", "Online", "WorkloadFailed", "Cordoned")
    uid: str = hub.items("devices")[0]["metadata"]["uid"]
    return uid


def test_events_are_selected_as_kubernetes_clients_do(hub: HubProcess, device: str) -> None:
    of_device = f"involvedObject.kind=Device,involvedObject.name=till,involvedObject.uid={device}"
    assert {"Enrolled", "Online", "WorkloadFailed", "Cordoned"} <= {item["reason"] for item in events(hub, of_device)}
    assert [item["type"] for item in events(hub, "reason=WorkloadFailed,type=Warning")] == ["Warning"]
    assert events(hub, "source=skerry-hub")
    assert not events(hub, "source=somebody")
    assert not events(hub, "involvedObject.kind=Device,involvedObject.name=other")
    # A node's events are its device's, by the uid of either kind of picture; a pod's are those of its workload.
    node = f"involvedObject.kind=Node,involvedObject.name=till.default,involvedObject.uid={device}"
    node += ",involvedObject.namespace="
    assert {item["reason"] for item in events(hub, node, "/api/v1/events")} >= {"Enrolled", "WorkloadFailed"}
    assert not events(hub, node.replace(f"uid={device}", "uid=till.default"), "/api/v1/events")
    pod = f"involvedObject.name=digits.till,involvedObject.namespace=default,involvedObject.uid={device}-digits"
    assert [item["reason"] for item in events(hub, pod)] == ["WorkloadFailed"]
    assert [item["reason"] for item in events(hub, "involvedObject.kind=Pod,involvedObject.name=digits.till")] == [
        "WorkloadFailed"
    ]
    status, refused = hub.call(hub.admin, "GET", f"{EVENTS}?fieldSelector=message=x")
    assert (status, refused["reason"]) == (400, "BadRequest")


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl")
def test_kubectl_and_skerry_show_them(hub: HubProcess, device: str, tmp_path: Path) -> None:
    assert device
    kubeconfig = str(hub.state_dir / "kubeconfig")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": kubeconfig}

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done.stdout

    assert KUBECTL is not None
    listed = run(KUBECTL, "get", "events").splitlines()
    assert listed[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    assert any("device/till" in line and "Cordoned" in line for line in listed)
    for shown in (
        run(KUBECTL, "describe", "device", "till"),
        run(KUBECTL, "describe", "node", "till.default"),
        run(KUBECTL, "describe", "pod", "digits.till"),
        run(KUBECTL, "events", "--for", "device/till"),
        run(KUBECTL, "events", "--types=Warning"),
    ):
        assert shown.count("no memory") >= 1
    assert run(KUBECTL, "describe", "node", "till.default").count("joined the fleet") == 1
    environment |= {"SKERRY_KUBECONFIG": kubeconfig, "PYTHONPATH": ":".join(sys.path)}
    described = run(sys.executable, "-m", "skerry.cli", "describe", "device/till")
    assert "Events:" in described
    assert "digits: digits-1/onnx-int8: no memory" in described


def test_events_are_kept_for_as_long_as_asked(start_hub: Callable[..., HubProcess]) -> None:
    hub = start_hub("--event-minutes", "1").wait_ready()
    old = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "old", "namespace": "default"},
        "involvedObject": {"kind": "Device", "name": "till", "namespace": "default"},
        "reason": "Test",
        "message": "m",
        "type": "Normal",
        "lastTimestamp": "2020-01-01T00:00:00Z",
    }
    status, answer = hub.call(hub.admin, "POST", EVENTS, old)
    assert status == 201, answer
    assert events(hub, "reason=Test")  # what it says of itself does not count while somebody looks
    hub.terminate()
    hub = start_hub("--event-minutes", "1", state_dir=hub.state_dir).wait_ready()
    deadline = time.monotonic() + WAIT
    while events(hub, "reason=Test"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert start_hub("--event-minutes", "0").process.wait(WAIT) == 2
