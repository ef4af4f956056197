"""`skerry device hold|release|cordon|uncordon`: keep a device as it is for a while, or from new placements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from skerry.api import duration
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import MAX_HOLD, Device, UpdateHold
from skerry.cli import options, output

Target = Annotated[str, typer.Argument(help="device/NAME")]


def hold(
    device: Target,
    lasting: Annotated[str, typer.Option("--for", help="How long, as in 2h; at most 720h.")],
    reason: Annotated[str, typer.Option(help="Shown wherever something waits for it.")] = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Let nothing new start and nothing that serves stop on a device for a while; downloads go on. Ends by itself."""
    length = duration.parse(lasting)
    if not timedelta(0) < length <= MAX_HOLD:
        raise InvalidError(f"{lasting} is not between 0s and 720h", element="--for", hint="a hold ends by itself")
    name = options.reference(device, expected="device").name
    until = (datetime.now(UTC) + length).replace(microsecond=0)
    with options.connect(kubeconfig, namespace) as client:
        client.merge_spec(Device, name, {"hold": UpdateHold(until=until, reason=reason)})
    output.out.print(f"device/{name} held until {until.isoformat()}", markup=False)


def release(device: Target, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """End the operator's hold on a device; a hold taken on the device itself is that application's to end."""
    name = options.reference(device, expected="device").name
    with options.connect(kubeconfig, namespace) as client:
        written = client.merge_spec(Device, name, {"hold": None})
    others = [one for one in written.status.holds if one.holder != "operator"]
    output.out.print(f"device/{name} released", markup=False)
    for one in others:
        output.out.print(f"  still held by {one.holder} until {one.until.isoformat()}", markup=False)


def cordon(device: Target, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """Place nothing new on a device; what runs stays."""
    _set_cordoned(device, cordoned=True, namespace=namespace, kubeconfig=kubeconfig)


def uncordon(device: Target, namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """Let a device be placed on again."""
    _set_cordoned(device, cordoned=False, namespace=namespace, kubeconfig=kubeconfig)


def _set_cordoned(device: str, *, cordoned: bool, namespace: str, kubeconfig: options.Kubeconfig) -> None:
    name = options.reference(device, expected="device").name
    with options.connect(kubeconfig, namespace) as client:
        client.merge_spec(Device, name, {"cordoned": cordoned})
    output.out.print(f"device/{name} {'cordoned' if cordoned else 'uncordoned'}", markup=False)
