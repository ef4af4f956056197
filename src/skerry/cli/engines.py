"""`skerry engines`: which inference engines are installed here, and what to install for the others.

Lives here: the table, and trying an engine in a process of its own. Must not live here: finding them (`agent.engines`).
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated

import msgspec
import typer

from skerry.agent.engines import EngineReport, survey
from skerry.api.errors import InvalidError
from skerry.cli import output

_FORMS = ("", "json")
_TRY_SECONDS = 120.0
"""For the import of a big engine from a slow disk."""
_TRY = (
    "import sys\n"
    "from skerry.api.errors import SkerryError\n"
    "from skerry.serve import engines\n"
    "try: engines.open_engine(sys.argv[1])\n"
    "except SkerryError as error: sys.exit(error.cause)\n"
)


class _Trial(msgspec.Struct, kw_only=True, rename="camel"):
    """Whether an engine can really be imported."""

    works: bool
    seconds: float
    """To start a process and import it."""
    problem: str = ""


def engines(
    form: Annotated[str, typer.Option("--output", "-o", help="json; a table by default.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Import each one that is installed, to see it work.")] = False,
    python: Annotated[str, typer.Option(help="Look into another interpreter's environment.")] = "",
) -> None:
    """Show which inference engines are here, what they execute, and what to install for the others."""
    if form not in _FORMS:
        raise InvalidError(f'"{form}" is not an output form', element="--output", hint="json, or none")
    found = survey(python)
    trials = {one.name: _try(one, python) for one in found if check and one.installed}
    if form == "json":
        lines = [{**msgspec.to_builtins(one), **msgspec.to_builtins(trials.get(one.name, {}))} for one in found]
        output.out.print(msgspec.json.format(msgspec.json.encode(lines)).decode(), markup=False)
        return
    rows = [
        (one.name, _status(one, trials), one.version, one.title, ", ".join(one.files), _note(one, trials))
        for one in found
    ]
    output.print_table(("ENGINE", "STATUS", "VERSION", "NAME", "FILES", "NOTE"), rows)


def _status(engine: EngineReport, trials: dict[str, _Trial]) -> str:
    if not engine.installed:
        return "missing"
    trial = trials.get(engine.name)
    if trial is None:
        return "installed"
    return "works" if trial.works else "Broken"


def _note(engine: EngineReport, trials: dict[str, _Trial]) -> str:
    if not engine.installed:
        return f"needs {', '.join(engine.missing)}: {engine.install}"
    trial = trials.get(engine.name)
    if trial is None:
        return engine.note
    return f"imported in {trial.seconds:.1f} s" if trial.works else trial.problem


def _try(engine: EngineReport, python: str) -> _Trial:
    """Import it as the inference server would: an engine may be installed and not run on this processor."""
    began = time.monotonic()
    argv = [python or sys.executable, "-c", _TRY, engine.name]
    problem = ""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_TRY_SECONDS, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            problem = said[-1][:500] if said else f"its process ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"not imported within {_TRY_SECONDS:.0f} s"
    except OSError as error:
        problem = f"{argv[0]}: {error.strerror}"
    return _Trial(works=not problem, seconds=round(time.monotonic() - began, 3), problem=problem)
