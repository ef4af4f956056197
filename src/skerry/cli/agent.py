"""`skerry agent ...`: hands over to the agent's own program, so that what runs on a device stays small."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from skerry.cli.options import StateDir

_ANCHOR_HELP = (
    "A file made by `skerry trust init`, the sha256:... that `skerry trust show` prints of it, or first-use: whatever "
    "the hub offers first. With one, the device takes only models that a policy signed by it covers."
)

app = typer.Typer(help="The program on the device: enrol it, run it.", no_args_is_help=True)


@app.command()
def enroll(
    hub: Annotated[str, typer.Option(help="The hub's URL, as in https://hub.example:7443.")],
    token: Annotated[
        str, typer.Option(help="A join token from `skerry hub token create`.", envvar="SKERRY_JOIN_TOKEN")
    ],
    name: Annotated[str, typer.Option(help="The device's name; its present one, else the hostname.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Enrol a device that is enrolled already, as after the hub deleted it.")
    ] = False,
    trust: Annotated[str, typer.Option(metavar="ANCHOR", help=_ANCHOR_HELP)] = "",
    state_dir: StateDir = None,
) -> None:
    """Make a key on this device, have the hub certify it, and remember the hub."""
    arguments = ["enroll", "--hub", hub, "--token", token]
    if name:
        arguments += ["--name", name]
    if again:
        arguments += ["--again"]
    if trust:
        arguments += ["--trust", trust]
    _become_agent(arguments, state_dir)


@app.command()
def trust(
    anchor: Annotated[str, typer.Argument(metavar="ANCHOR", help=_ANCHOR_HELP)], state_dir: StateDir = None
) -> None:
    """Set this device's trust anchor, in place of the one it has; the agent must not be running."""
    _become_agent(["trust", anchor], state_dir)


@app.command()
def run(state_dir: StateDir = None) -> None:
    """Run the agent in the foreground, until it is told to stop."""
    _become_agent(["run"], state_dir)


@app.command()
def renew(state_dir: StateDir = None) -> None:
    """Have the hub certify a new key now, instead of at two thirds of the certificate's life."""
    _become_agent(["renew"], state_dir)


@app.command()
def stop(state_dir: StateDir = None) -> None:
    """Stop the inference servers that a stopped agent left serving."""
    _become_agent(["stop"], state_dir)


@app.command()
def hold(
    lasting: Annotated[str, typer.Option("--for", help="How long, as in 30m.")],
    holder: Annotated[str, typer.Option(help="Who holds; the same holder renews its hold.")] = "application",
    reason: Annotated[str, typer.Option(help="Shown wherever something waits for it.")] = "",
    socket: Annotated[Path | None, typer.Option(help="Where the agent listens, if not in its state directory.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Keep the agent that runs on this device from updating for a while; it ends by itself."""
    _become_agent(["hold", "--for", lasting, "--holder", holder, "--reason", reason, *_at(socket)], state_dir)


@app.command()
def release(
    holder: Annotated[str, typer.Option(help="Who held.")] = "application",
    socket: Annotated[Path | None, typer.Option(help="Where the agent listens, if not in its state directory.")] = None,
    state_dir: StateDir = None,
) -> None:
    """End a hold that was taken on this device."""
    _become_agent(["release", "--holder", holder, *_at(socket)], state_dir)


@app.command()
def holds(
    socket: Annotated[Path | None, typer.Option(help="Where the agent listens, if not in its state directory.")] = None,
    state_dir: StateDir = None,
) -> None:
    """List the update holds in force on this device."""
    _become_agent(["holds", *_at(socket)], state_dir)


def _at(socket: Path | None) -> list[str]:
    return [] if socket is None else ["--socket", str(socket)]


def _become_agent(arguments: list[str], state_dir: StateDir) -> None:
    if state_dir is not None:
        arguments += ["--state-dir", str(state_dir)]
    # Replacing the process leaves typer and rich behind: the agent's resident memory is a promise.
    os.execv(sys.executable, [sys.executable, "-m", "skerry.agent", *arguments])  # noqa: S606
