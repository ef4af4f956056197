"""`skerry model import`: a directory in Hugging Face's or MLflow's layout becomes a package.

Lives here: what is asked of the process that does it (`python -m skerry.optimize --adopt`). Must not live here: what
such a directory is (`foreign`), an import of the factory.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from skerry.api.errors import InvalidError, NotFoundError
from skerry.cli import factory, foreign, package
from skerry.core import card as cards

VERSION = "v1"
_NAME = re.compile(r"[a-z0-9]+((\.|-+)[a-z0-9]+)*")
_MOST = 63


def import_model(
    directory: Annotated[Path, typer.Argument(help="In Hugging Face's or MLflow's layout, with ONNX or TFLite files.")],
    into: Annotated[Path, typer.Option("--into", help="Directory for the package.")],
    name: Annotated[str, typer.Option(help="The model's name; without it the directory's.")] = "",
    version: Annotated[str, typer.Option("--version", help="The model's version.")] = VERSION,
    data: Annotated[Path | None, typer.Option(help="Test and golden samples to judge it by; docs/factory.md.")] = None,
    metric: Annotated[str, typer.Option(help="With --data: accuracy, top-5, f1-macro, iou, mae, mse.")] = "accuracy",
    allowed_drop: Annotated[float, typer.Option(help="With --data: what a file may lose against the best.")] = 0.01,
    golden: Annotated[int, typer.Option(help="Golden samples to ship, at most.")] = 64,
    runs: Annotated[int, typer.Option(help="Timed runs per variant.")] = 200,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Make a package of a model's directory, its graphs as they are; without --data nothing is known of accuracy."""
    if not directory.is_dir():
        raise NotFoundError("no such directory", element=str(directory))
    found = foreign.recognise(directory)
    if found is None:
        raise InvalidError(
            "is in neither layout: it has no config.json and no MLmodel",
            element=str(directory),
            hint="skerry model optimize --source FILE makes a package of a file",
        )
    if data is not None and not data.exists():
        raise NotFoundError("no such file", element=str(data))
    given = {"metric": metric, "allowedDrop": allowed_drop, "golden": golden, "runs": runs, "seed": seed}
    given["data"] = os.path.abspath(data) if data is not None else ""
    package.print_card(adopt(found, into, name=name, version=version, given=given))


@contextmanager
def packaged(source: Path) -> Iterator[Path]:
    """The package itself; of a directory in one of the known layouts, a package made of it for the while."""
    found = None if (source / cards.CARD_FILE).is_file() or not source.is_dir() else foreign.recognise(source)
    if found is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="skerry-import-") as scratch:
        made = Path(scratch) / "package"
        adopt(found, made)
        yield made


def adopt(
    found: foreign.Found, into: Path, *, name: str = "", version: str = VERSION, given: dict[str, object] | None = None
) -> cards.EvaluationCard:
    """Make a package of what was found, in a process of its own; return its card. Raises SkerryError."""
    wish = {
        "name": _checked(name or found.directory.resolve().name.lower().replace("_", "-"), given=bool(name)),
        "version": _fitting(version, "--version"),
        "directory": os.path.abspath(found.directory),
        "graphs": [os.path.abspath(path) for path in found.graphs],
        "skipped": [os.path.abspath(path) for path in found.skipped],
        "out": os.path.abspath(into),
        "about": found.about,
        **(given or {}),
    }
    with tempfile.TemporaryDirectory(prefix="skerry-wish-") as scratch:
        file = Path(scratch) / "wish.json"
        file.write_bytes(msgspec.json.encode(wish))
        _, made = factory.run(["--adopt", str(file)])
    return package.read_card(made)


def _checked(name: str, *, given: bool) -> str:
    if not given and not _NAME.fullmatch(name):
        raise InvalidError(
            f'"{name[:80]}" cannot be a model\'s name', element="the directory's name", hint="say it with --name"
        )
    return _fitting(name, "--name")


def _fitting(text: str, option: str) -> str:
    if len(text) > _MOST or not _NAME.fullmatch(text):
        raise InvalidError(
            f'"{text[:80]}" is not a name', element=option, hint="a-z and 0-9, with single dots or dashes inside"
        )
    return text
