"""`skerry example`: copy an example out, to read and change."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from skerry.api.errors import AlreadyExistsError, NotFoundError
from skerry.cli import examples, output


def example(
    name: Annotated[str, typer.Argument(help="digits")],
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is not there.")],
) -> None:
    """Copy an example's files into a directory."""
    written = copy_out(name, directory)
    output.say(f"{directory}: {' '.join(written)}")


def copy_out(name: str, directory: Path) -> list[str]:
    """Copy an example's files and return their names. Raises NotFoundError, AlreadyExistsError (nothing is copied)."""
    source = resources.files(examples) / name
    there = sorted(
        entry.name for entry in resources.files(examples).iterdir() if entry.is_dir() and entry.name[0] != "_"
    )
    if name not in there:
        raise NotFoundError(f'there is no example "{name}"', hint=f"one of: {', '.join(there)}")
    files = [entry for entry in source.iterdir() if entry.is_file() and not entry.name.startswith("__")]
    for entry in files:
        if (directory / entry.name).exists():
            raise AlreadyExistsError(element=str(directory / entry.name), hint="choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    for entry in files:
        (directory / entry.name).write_bytes(entry.read_bytes())
    return sorted(entry.name for entry in files)
