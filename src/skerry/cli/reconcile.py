"""`skerry device reconcile`: after a hub's restoration from a backup, make its word count again."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry.api.errors import InvalidError, SkerryError, UnavailableError
from skerry.api.kinds.device import Device
from skerry.api.meta import find_condition
from skerry.cli import options, output


def reconcile(
    device: Annotated[str, typer.Argument(help="device/NAME")] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every device of the namespace that awaits reconciliation now.")
    ] = False,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Make a device accept what this hub desires, though it has accepted something newer.

    That happens when the hub was restored from a backup. What the hub does not know of is removed from the device.
    """
    if bool(device) == everything:
        raise InvalidError("name one device, or all", hint="as in `skerry device reconcile device/till-7`, or --all")
    with options.connect(kubeconfig, namespace) as client:
        if everything:
            names = [found.metadata.name for found in client.list(Device) if _awaits(found)]
        else:
            names = [options.reference(device, expected="device").name]
        failed: list[SkerryError] = []
        for name in names:
            try:
                done = client.reconcile(name)
            except SkerryError as error:  # one device that cannot be helped must not keep the others waiting
                failed.append(error)
                output.print_error(error)
                continue
            runs = ", ".join(done["workloads"]) or "nothing"
            said = (
                f"is desired to run {runs}, by version {done['manifestVersion']}"
                if done["changed"]
                else "has accepted nothing that this hub does not know"
            )
            output.out.print(f"device/{name} {said}", markup=False)
    if failed:
        raise UnavailableError(
            f"{len(failed)} of {len(names)} could not be reconciled", hint="see above, and try again"
        )
    if not names:
        output.out.print("no device awaits reconciliation", markup=False)


def _awaits(device: Device) -> bool:
    found = find_condition(device.status.conditions, "AwaitingReconciliation")
    return found is not None and found.status == "True"
