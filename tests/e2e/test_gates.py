"""All gates at once on real devices: real requests in the shadow, the bake time watched, verdicts with numbers."""

import json
import threading
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.site import PATIENCE, Site

from skerry.api.kinds.device import Device
from skerry.api.kinds.rollout import Rollout
from skerry.cli.demo.programs import wait_until

pytestmark = pytest.mark.e2e

STRATEGY = """\
  serving: {threads: 2}
  strategy:
    waves: [{count: 1}, {percent: 100}]
    bakeTime: 1s
    shadow: {share: 1.0, duration: 500ms, minRequests: 5}
    gates:
      successRatio: {min: 1}
      health: {min: 1}
      accuracy: {min: 0.9}
      agreement: {min: 1, maxDifference: 0.001}
      latencyP95: {maxRatio: 1000}
      peakMemory: {max: 2Gi}
      errorRate: {max: 0, minSamples: 3}
      shadowAgreement: {min: 1, missing: wait}
"""


def test_a_version_is_tried_in_the_shadow_and_watched_before_the_next_wave(
    site: Site, package: Path, deployment: Path
) -> None:
    site.start_hub()
    site.add_devices("a", "b")
    site.skerry("model", "push", str(package))
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    with site.client() as client:
        ports = [port for device in client.list(Device) for port in ports_of(device)]
    done = threading.Event()
    callers = [threading.Thread(target=call, args=(port, done)) for port in ports]
    for caller in callers:
        caller.start()
    try:
        head, _ = deployment.read_text().split("  strategy:\n")
        deployment.write_text(head + STRATEGY)
        site.skerry("apply", "-f", str(deployment))
        with site.client() as client:
            ended = ("Succeeded", "RolledBack")
            wait_until(
                lambda: client.get(Rollout, "digits-2").status.phase in ended, "the rollout's end", seconds=PATIENCE
            )
            rollout = client.get(Rollout, "digits-2")
            assert rollout.status.phase == "Succeeded", rollout.status.message
            found = rollout.status.waves[1]
            reports = [device.status.workloads[0] for device in client.list(Device)]
    finally:
        done.set()
        for caller in callers:
            caller.join(30)
    rows = {gate.gate: gate for gate in found.gates}
    assert {gate.verdict for gate in found.gates} == {"Passed"}
    assert rows["shadowAgreement"].measured == rows["agreement"].measured == rows["health"].measured == 1.0
    assert rows["shadowAgreement"].samples >= 10, "five requests on each of two devices"
    assert rows["errorRate"].samples >= 3
    assert {gate.devices for gate in found.gates} == {2}
    for report in reports:
        assert report.shadow is not None
        assert report.shadow.beside == "digits-v1"
        assert report.observation is not None
        assert report.observation.seconds >= 1


def ports_of(device: Device) -> list[int]:
    return [one.running.port for one in device.status.workloads if one.running is not None]


def call(port: int, done: threading.Event) -> None:
    """Ask as an application does, ever the same port."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}
    body = json.dumps({"inputs": [tensor]}).encode()
    while not done.wait(0.02):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/digits/infer", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
