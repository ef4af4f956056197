"""`skerry logs`: the end of a workload's log, fetched from the device."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skerry.cli import options, output


def logs(
    device: Annotated[str, typer.Argument(help="device/NAME")],
    deployment: Annotated[str, typer.Argument(help="deployment/NAME")],
    tail: Annotated[int, typer.Option(min=0, max=10_000, help="Lines from the end.")] = 200,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Print the last lines a deployment's inference server logged on a device."""
    where = options.reference(device, expected="device")
    workload = options.reference(deployment, expected="deployment")
    with options.connect(kubeconfig, namespace) as client:
        text = client.log(where.name, workload.name, tail_lines=tail)
    if sys.stdout.isatty():
        text = output.plain(text)  # a pipe gets the bytes as they are
    sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
