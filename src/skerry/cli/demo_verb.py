"""`skerry demo`: the arguments of the demo; its story is in `cli.demo`."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.cli import output

MARKER = ".skerry-demo"
_NEEDS = (
    *("torch", "sklearn", "onnx", "onnxruntime"),
    *("ai_edge_litert", "ai_edge_quantizer"),
    *("amqtt", "uvicorn", "sqlalchemy"),
)


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Made anew by every run.")] = Path("demo-state"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the fleet running at the end, until Ctrl-C.")] = False,
) -> None:
    """Show the whole way of a model on this machine: train, optimise, roll out in gated waves, roll back, recover."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"the demo needs {', '.join(missing)}", hint="install it all with: pip install 'skerry[demo]'"
        )
    from skerry.cli.demo import story  # noqa: PLC0415 - only with the extra

    directory = directory.absolute()
    if directory.exists():
        if not (directory / MARKER).exists():
            raise InvalidError(
                "exists and was not made by the demo", element=str(directory), hint="name another with --dir"
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARKER).touch()
    story.tell(directory, keep=keep)
    output.say(
        f"\nEverything is in {directory}: report.json, logs/, devices/, packages/.\n"
        "To look around in a running fleet: skerry demo --keep"
    )
