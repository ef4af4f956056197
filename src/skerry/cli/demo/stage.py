"""What the demo's chapters share: the stage, how a claim is checked, and what a user would look up.

Lives here: what more than one chapter needs. Must not live here: the chapters (`story`, `update`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from skerry.api.errors import IntegrityError
from skerry.api.kinds.device import Device, WorkloadStatus
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout
from skerry.cli import options, output
from skerry.cli.demo import report as reports
from skerry.cli.demo.programs import Programs, run
from skerry.cli.demo.proxy import Uplink
from skerry.core import card as cards
from skerry.drivers.client.api import HubClient

DEPLOYMENT = "digits"
PATIENCE = 90.0  # seconds; an order of magnitude above what any step takes on two cores


@dataclass
class Stage:
    """What the steps share."""

    directory: Path
    programs: Programs
    exits: ExitStack
    report: reports.Report = field(default_factory=reports.Report)
    uplinks: dict[str, Uplink] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What `skerry` needs to find this demo's hub."""
        return {"SKERRY_KUBECONFIG": str(self.directory / "hub" / "kubeconfig")}

    def client(self) -> HubClient:
        """Return a client of this demo's hub."""
        return options.connect(self.directory / "hub" / "kubeconfig")

    def skerry(self, *arguments: str, show: bool = True) -> str:
        """Run a command as a user would, against this demo's hub."""
        return run(arguments, self.environment, show=show)


@contextmanager
def chapter(title: str) -> Iterator[None]:
    """Print a heading and, at the end, how long it took."""
    output.out.print(f"\n[bold]{title}[/]")
    began = time.monotonic()
    yield
    output.out.print(f"[dim]({time.monotonic() - began:.1f} s)[/]")


def check(holds: bool, claim: str) -> None:
    """Raise IntegrityError unless a claim of the demo really holds."""
    if not holds:
        raise IntegrityError(
            "did not hold", element=claim, hint="this is a defect; please report it with the demo's logs"
        )


def read_card(stage: Stage, version: str) -> cards.EvaluationCard:
    """Return a package's evaluation card."""
    return cards.decode((stage.directory / "packages" / version / cards.CARD_FILE).read_bytes())


def apply(stage: Stage, version: str) -> float:
    """Point the deployment at a version, as a user would; returns when that was (monotonic)."""
    path = stage.directory / "digits" / "deployment.yaml"
    path.write_text(re.sub(r"modelVersion: digits-\S+", f"modelVersion: digits-{version}", path.read_text()))
    applied = time.monotonic()
    stage.skerry("apply", "-f", str(path))
    return applied


def workload(device: Device) -> WorkloadStatus:
    """Return the demo's workload on a device. Raises IntegrityError when there is none."""
    found = next((w for w in device.status.workloads if w.name == DEPLOYMENT), None)
    check(found is not None, f"{device.metadata.name} has the deployment {DEPLOYMENT}")
    assert found is not None
    return found


def running_model(status: WorkloadStatus) -> str:
    """Return the model version that really serves."""
    return status.running.model_version if status.running else ""


def running(device: Device) -> str:
    """Return the model version that a device serves, or nothing."""
    return next((running_model(w) for w in device.status.workloads if w.name == DEPLOYMENT), "")


def newest_rollout(client: HubClient) -> Rollout:
    """Return the deployment's newest rollout."""
    return client.get(Rollout, client.get(ModelDeployment, DEPLOYMENT).status.rollout)
