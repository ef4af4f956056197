"""Update holds, from the command line to the device and back: the rollout waits, says why, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.site import PATIENCE, Site

from skerry.api.kinds.device import Device
from skerry.api.kinds.rollout import Rollout
from skerry.cli.demo.programs import wait_until

pytestmark = pytest.mark.e2e


def test_a_held_device_is_waited_for_and_the_rollout_says_why(site: Site, package: Path, deployment: Path) -> None:
    site.start_hub()
    site.add_devices("till")
    limits = device(site).status.limits
    assert limits.way
    assert limits.reason
    site.skerry("model", "push", str(package))
    site.skerry("device", "hold", "device/till", "--for", "2h", "--reason", "open day")
    until(site, lambda: [one.holder for one in device(site).status.holds] == ["operator"], "the hold is in force")
    site.skerry("apply", "-f", str(deployment))
    until(site, lambda: [w.waiting_for for w in device(site).status.workloads] == ["Hold"], "the workload waits")
    [workload] = device(site).status.workloads
    assert (workload.phase, workload.fetched_bytes > 0) == ("Installed", True), "fetched, not started"
    until(site, lambda: "open day" in shown(site), "the rollout says why")

    state = str(site.directory / "till")
    told = site.skerry("device", "release", "device/till")
    assert told.startswith("device/till released")
    until(site, lambda: device(site).status.holds == [], "the hold is gone")
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")

    agent = ["agent", "hold", "--for", "30m", "--holder", "till-software", "--reason", "customers"]
    assert "held by till-software until " in site.skerry(*agent, "--state-dir", state)
    until(site, lambda: [one.reason for one in device(site).status.holds] == ["customers"], "the hub knows")
    assert "still held by till-software until " in site.skerry("device", "release", "device/till")
    assert "no update hold is in force" in site.skerry(
        "agent", "release", "--holder", "till-software", "--state-dir", state
    )
    site.skerry("device", "cordon", "device/till")
    assert device(site).spec.cordoned
    site.skerry("device", "uncordon", "device/till")
    assert not device(site).spec.cordoned
    assert site.try_skerry("device", "hold", "device/till", "--for", "721h").returncode == 1


def device(site: Site) -> Device:
    with site.client() as client:
        return client.get(Device, "till")


def shown(site: Site) -> str:
    with site.client() as client:
        return " ".join(d.message for r in client.list(Rollout) for w in r.status.waves for d in w.devices)


def until(site: Site, condition: object, what: str) -> None:
    wait_until(condition, what, seconds=PATIENCE)  # type: ignore[arg-type]
