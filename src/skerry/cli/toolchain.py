"""`skerry model toolchain ...`: environments for converters that cannot live beside the factory's libraries.

Lives here: the verbs. The work is done by `python -m skerry.optimize.toolchains`, a process, as all of the factory is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Converters in environments of their own.", no_args_is_help=True)


@app.command()
def install(
    name: Annotated[str, typer.Argument(help="The toolchain, as in litert-torch.")],
    into: Annotated[Path | None, typer.Option(help="Where; your data directory by default.")] = None,
) -> None:
    """Install a toolchain; says first how large it is and how long it takes."""
    _run(["install", name, *([f"--into={into}"] if into else [])])


@app.command("list")
def list_() -> None:
    """Say which toolchains are here, and how to get the others."""
    _run(["list"])


def _run(arguments: list[str]) -> None:
    argv = [sys.executable, "-m", "skerry.optimize.toolchains", *arguments]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)
