"""`skerry logs`: a workload's log, fetched from the device; its end, or as it grows."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from skerry.api import duration
from skerry.api.errors import InvalidError
from skerry.cli import options, output


def logs(
    device: Annotated[str, typer.Argument(help="device/NAME")],
    deployment: Annotated[str, typer.Argument(help="deployment/NAME")],
    tail: Annotated[int, typer.Option(min=0, max=10_000, help="Lines from the end.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows; end with Ctrl-C.")] = False,
    since: Annotated[str, typer.Option(help="Nothing older than this, as in 10m.")] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin every line with its time.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Of the server before the one that runs now.")
    ] = False,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Print what a deployment's inference server logged on a device."""
    where = options.reference(device, expected="device")
    workload = options.reference(deployment, expected="deployment")
    if follow and previous:
        raise InvalidError("a server that has ended logs nothing more", element="--previous", hint="leave out -f")
    seconds = round(duration.to_seconds(since)) if since else 0
    with options.connect(kubeconfig, namespace) as client:
        if not follow:
            text = client.log(
                where.name,
                workload.name,
                tail_lines=tail,
                since_seconds=seconds,
                timestamps=timestamps,
                previous=previous,
            )
            _write(text if text.endswith("\n") or not text else text + "\n")
            return
        for part in client.follow_log(
            where.name, workload.name, tail_lines=tail, since_seconds=seconds, timestamps=timestamps
        ):
            _write(part)


def _write(text: str) -> None:
    sys.stdout.write(output.plain(text) if sys.stdout.isatty() else text)  # a pipe gets the bytes as they are
    sys.stdout.flush()
