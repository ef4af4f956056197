"""`skerry`: puts the verbs together and turns errors into sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from skerry import __version__
from skerry.api.errors import SkerryError
from skerry.cli import (
    agent,
    apply,
    audit,
    demo_verb,
    describe,
    device,
    engines,
    example,
    explain,
    get,
    hub,
    kubeconfig,
    logs,
    model,
    output,
    predict,
    registry,
    rollout,
    sim,
    trust,
    wait,
)

app = typer.Typer(
    help="Takes trained models to fleets of Linux edge devices, gated on how well they really work there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group, name in (
    (hub.app, "hub"),
    (agent.app, "agent"),
    (model.app, "model"),
    (registry.app, "registry"),
    (rollout.app, "rollout"),
    (device.app, "device"),
    (trust.app, "trust"),
    (audit.app, "audit"),
):
    app.add_typer(group, name=name)
for verb in (
    apply.apply,
    get.get,
    describe.describe,
    apply.delete,
    explain.explain,
    logs.logs,
    predict.predict,
    engines.engines,
    wait.wait,
    example.example,
    demo_verb.demo,
    sim.sim,
    kubeconfig.kubeconfig,
):
    app.command()(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.out.print(f"skerry {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Takes trained models to fleets of Linux edge devices, gated on how well they really work there."""
    del version


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run(None, program=None)


def run(arguments: Sequence[str] | None, *, program: str | None) -> NoReturn:
    """Run the command line with these arguments, and under this name in its help; None: those it was started with."""
    try:
        app(args=arguments, prog_name=program)
    except SkerryError as error:
        output.print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)
