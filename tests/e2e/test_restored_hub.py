"""A hub restored from a backup knows less than its devices: they refuse it, say so, and one command resolves it."""

import shutil
from pathlib import Path

import pytest
from tests.e2e.site import PATIENCE, Site

from skerry.api.kinds.device import Device
from skerry.api.meta import find_condition
from skerry.cli.demo.programs import wait_until

pytestmark = pytest.mark.e2e


def test_devices_refuse_a_restored_hub_until_the_operator_reconciles(
    site: Site, package: Path, deployment: Path
) -> None:
    site.start_hub()
    site.add_devices("till")
    site.skerry("model", "push", str(package))
    roll_out(site, deployment)
    assert status(site).observed_manifest_version == 1
    hub, backup = site.directory / "hub", site.directory / "backup"
    site.programs.stop("hub")
    shutil.copytree(hub, backup, symlinks=True)

    site.start_hub()
    deployment.write_text(deployment.read_text() + "  serving: {threads: 2}\n")
    roll_out(site, deployment)
    assert status(site).observed_manifest_version == 2
    site.programs.stop("hub")
    shutil.rmtree(hub)
    backup.rename(hub)

    site.start_hub()
    until(site, lambda: awaits(site) == "True", "the device awaits reconciliation")
    found = status(site)
    condition = find_condition(found.conditions, "AwaitingReconciliation")
    assert condition is not None
    assert "accepted version 2, this hub desires version 1" in condition.message
    assert [(w.phase, w.running and w.running.rollout) for w in found.workloads] == [("Running", "digits-2")]
    with site.client() as client:
        assert client.log("till", "digits") is not None, "it still answers its hub"

    said = site.skerry("device", "reconcile", "--all")
    assert said.splitlines() == ["device/till is desired to run digits, by version 3"]
    until(site, lambda: awaits(site) == "False", "the device takes the hub's word")
    until(
        site,
        lambda: (
            [(w.phase, w.running and w.running.rollout) for w in status(site).workloads] == [("Running", "digits-1")]
        ),
        "what the hub knows runs",
    )
    assert status(site).observed_manifest_version == 3
    assert site.skerry("device", "reconcile", "--all").strip() == "no device awaits reconciliation"
    again = site.skerry("device", "reconcile", "device/till")
    assert again.strip() == "device/till has accepted nothing that this hub does not know"
    assert site.try_skerry("device", "reconcile").returncode == 1


def roll_out(site: Site, deployment: Path) -> None:
    site.skerry("apply", "-f", str(deployment))
    site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")


def status(site: Site):
    with site.client() as client:
        return client.get(Device, "till").status


def awaits(site: Site) -> str:
    found = find_condition(status(site).conditions, "AwaitingReconciliation")
    return "" if found is None else found.status


def until(site: Site, condition, what: str) -> None:
    wait_until(condition, what, seconds=PATIENCE)
