"""`skerry wait`: return when an object has come to a phase."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from skerry.api import duration
from skerry.api.errors import NotFoundError, TimedOutError
from skerry.cli import options, output


def wait(
    what: Annotated[str, typer.Argument(help="kind/NAME")],
    phase: Annotated[str, typer.Option("--for", help="The status.phase to wait for, as in Online, Ready, Succeeded.")],
    timeout: Annotated[str, typer.Option(help="Give up after this long.")] = "60s",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Wait until an object exists and its status has that phase."""
    target = options.reference(what)
    deadline = time.monotonic() + duration.to_seconds(timeout)
    current = "not there"
    with options.connect(kubeconfig, namespace) as client:
        while time.monotonic() < deadline:
            try:
                client.get(target.info.type, target.name)
            except NotFoundError:
                time.sleep(0.2)  # until it exists there is nothing to watch
                continue
            for item in client.watch(target.info.type, target.name, deadline=deadline):
                current = str(getattr(getattr(item, "status", None), "phase", "without a phase"))
                if current == phase:
                    output.say(f"{target.info.singular}/{target.name} is {phase}")
                    return
    raise TimedOutError(f"is {current}, not {phase}, after {timeout}", element=f"{target.info.singular}/{target.name}")
