"""`skerry sim`: the arguments of a simulated fleet; what happens with it is in `cli.simulation`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from skerry.api.errors import UnsupportedError
from skerry.cli import options

_HUB_NEEDS = ("amqtt", "uvicorn", "sqlalchemy", "starlette", "httptools")


def sim(
    devices: Annotated[int, typer.Option(help="How many devices.")] = 100,
    profile: Annotated[
        str, typer.Option(help="Machines and faults: docs/simulator.md lists them, and so does a wrong name.")
    ] = "mixed",
    seed: Annotated[int, typer.Option(help="The same seed makes the same devices.")] = 7,
    hub: Annotated[str, typer.Option(help="URL of a hub; without it one is started, for a trial rollout.")] = "",
    token: Annotated[
        list[str] | None,
        typer.Option(help="A join token of that hub; several are taken in turn.", envvar="SKERRY_JOIN_TOKEN"),
    ] = None,
    prefix: Annotated[str, typer.Option(help="What the devices' names begin with.")] = "sim",
    spoil: Annotated[
        list[str] | None, typer.Option(help="A model version that answers wrongly on every device.")
    ] = None,
    state_dir: options.StateDir = None,
    report: Annotated[Path | None, typer.Option(help="A file for the census, as JSON, once a second.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="After the trial, go on until Ctrl-C.")] = False,
) -> None:
    """Simulate a fleet: the agent's sessions and state machines over real connections, without the machines."""
    missing = [] if hub else [name for name in _HUB_NEEDS if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"a hub of its own needs {', '.join(missing)}", hint="pip install 'skerry[hub]', or name a hub with --hub"
        )
    from skerry.cli import simulation  # noqa: PLC0415 - it loads what only this verb needs

    succeeded = simulation.simulate(
        simulation.Wish(
            devices=devices,
            profile=profile,
            seed=seed,
            hub=hub,
            tokens=tuple(token or ()),
            prefix=prefix,
            spoiled=frozenset(spoil or ()),
            state_dir=state_dir,
            report=report,
            keep=keep,
        )
    )
    if not succeeded:
        raise typer.Exit(1)
