"""The demo's chapter about an update: a model that was tuned further, and what of it had to go over the wire.

Lives here: the update, and the check of what each device says that it fetched and saved. Must not live here: how deltas
are made and taken (docs/transfer.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_version import ModelVersion
from skerry.cli.demo import report as reports
from skerry.cli.demo.programs import wait_until
from skerry.cli.demo.stage import DEPLOYMENT, PATIENCE, Stage, apply, check, newest_rollout, running, workload


def update(stage: Stage, fleet: Mapping[str, str]) -> None:
    """Push and apply v1.1; every device must have fetched a delta, and serve what it made from it.

    `fleet` names each device's class.
    """
    stage.skerry("model", "push", str(stage.directory / "packages" / "v1.1"))
    with stage.client() as client:
        wait_until(
            lambda: client.get(ModelVersion, "digits-v1.1").status.phase == "Ready", "v1.1 ready", seconds=PATIENCE
        )
        version = client.get(ModelVersion, "digits-v1.1")
        sizes = {variant.name: variant.blob.size for variant in version.status.variants}
        check(bool(version.status.deltas), "the hub made deltas from v1 to v1.1")
        applied = apply(stage, "v1.1")
        stage.skerry("rollout", "status", f"deployment/{DEPLOYMENT}", "--watch")
        seconds = time.monotonic() - applied
        rollout = newest_rollout(client)
        check(rollout.status.phase == "Succeeded", f"the rollout of v1.1 succeeded ({rollout.status.message})")
        devices = {one.metadata.name: one for one in client.list(Device)}
    check(all(running(one) == "digits-v1.1" for one in devices.values()), "every device runs digits-v1.1")
    for name, kind in fleet.items():
        status = workload(devices[name])
        check(status.saved_bytes > 0, f"{name} took a delta")
        stage.report.updates.append(
            reports.Update(
                name=name,
                hardware_class=kind,
                variant=status.variant,
                full_bytes=sizes[status.variant],
                fetched_bytes=status.fetched_bytes,
                saved_bytes=status.saved_bytes,
                seconds=seconds,
            )
        )
    reports.print_updates(stage.report)
