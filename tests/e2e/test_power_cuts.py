"""SIGKILL of the hub and of agents at inconvenient moments: nothing acknowledged is lost, everything converges."""

import threading
from pathlib import Path

import pytest
from tests.e2e.site import PATIENCE, Site

from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.rollout import Rollout
from skerry.cli.demo.programs import wait_until

pytestmark = pytest.mark.e2e


def test_a_killed_hub_loses_no_acknowledged_write_and_resumes_its_rollout(
    site: Site, package: Path, deployment: Path
) -> None:
    site.start_hub()
    names = ("a", "b", "c", "d")
    site.add_devices(*names)
    site.skerry("model", "push", str(package))
    acknowledged: list[str] = []
    writing = threading.Thread(target=write_until_it_breaks, args=(site, acknowledged))
    writing.start()
    site.skerry("apply", "-f", str(deployment))
    with site.client() as client:
        wait_until(
            lambda: any(r.status.current_wave >= 1 for r in client.list(Rollout)),
            "second wave",
            seconds=PATIENCE,
            every=0.01,
        )
    site.programs.kill("hub")
    writing.join(30)
    assert not writing.is_alive()
    assert len(acknowledged) > 3

    site.start_hub()
    with site.client() as client:
        before = client.list(Rollout)
        assert [r.metadata.name for r in before] == ["digits-1"]
        stored = {token.metadata.name for token in client.list(JoinToken)}
        assert set(acknowledged) <= stored
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    with site.client() as client:
        rollout = client.get(Rollout, "digits-1")
        devices = client.list(Device)
    assert rollout.status.phase == "Succeeded"
    assert [wave.running for wave in rollout.status.waves] == [1, 1, 1, 1]
    assert [len(device.status.workloads) for device in devices] == [1] * 4
    # Nobody was told twice: each device's desired state was written exactly once.
    assert {device.status.observed_manifest_version for device in devices} == {1}


def write_until_it_breaks(site: Site, acknowledged: list[str]) -> None:
    with site.client() as client:
        while True:
            raw = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
            try:
                acknowledged.append(client.create(raw, JoinToken).metadata.name)
            except SkerryError:
                return


def test_a_killed_agent_leaves_its_server_serving_and_takes_it_up_again(
    site: Site, package: Path, deployment: Path
) -> None:
    site.start_hub()
    site.add_devices("till")
    site.skerry("model", "push", str(package))
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    site.programs.kill("till")
    with site.client() as client:
        wait_until(lambda: client.get(Device, "till").status.phase == "Offline", "till offline", seconds=PATIENCE)
        before = client.get(Device, "till").status.workloads[0]
        site.start_agent("till")
        wait_until(lambda: client.get(Device, "till").status.phase == "Online", "till online", seconds=PATIENCE)
        wait_until(
            lambda: client.get(Device, "till").status.workloads[0].running is not None, "till running", seconds=PATIENCE
        )
        after = client.get(Device, "till").status.workloads[0]
        assert before.running is not None
        assert after.running is not None
        assert (after.running.port, after.running.since) == (before.running.port, before.running.since)
        assert after.restarts == before.restarts == 0


def test_a_device_serves_without_its_hub_and_after_its_own_restart(site: Site, package: Path, deployment: Path) -> None:
    import httpx

    site.start_hub()
    site.add_devices("till")
    site.skerry("model", "push", str(package))
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    with site.client() as client:
        running = client.get(Device, "till").status.workloads[0].running
        assert running is not None
    site.programs.stop("till")  # with stop_on_exit, its server ends too
    site.programs.kill("hub")
    site.start_agent("till")

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{running.port}/v2/models/digits/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(ready, "the model serves without a hub", seconds=PATIENCE)
