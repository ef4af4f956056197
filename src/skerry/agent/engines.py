"""Which inference engines are installed, and what is missing for the others; without importing any.

Lives here: asking package metadata, in this interpreter or in the one that runs the servers. Must not live here: the
table of engines (`core.engines`), or starting one: that an engine is installed does not prove that it runs.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from skerry.api.kinds.device import EngineFacts
from skerry.core.engines import ENGINES, SERVER_DISTRIBUTIONS, EngineDescription

log = logging.getLogger(__name__)

_ASK_SECONDS = 30.0
"""For an interpreter on a slow card to start and read its metadata."""
_QUESTION = (
    "import importlib.metadata as m, json, sys\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = m.version(name) or ''\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(found))\n"
)


class EngineReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One engine, here or not."""

    name: str
    title: str
    format: str
    """What it executes."""
    files: Sequence[str]
    """How such files' names end."""
    installed: bool
    version: str = ""
    missing: Sequence[str] = ()
    """Distributions to install; of several that would do, the first."""
    install: str
    """The command that brings what is missing."""
    note: str = ""


def find(python: str = "") -> list[EngineFacts]:
    """Return the engines that are installed with all they need, for an interpreter; empty: this one."""
    return [EngineFacts(name=one.name, version=one.version) for one in survey(python) if one.installed]


def survey(python: str = "") -> list[EngineReport]:
    """Return a report on every engine there is a driver for, for an interpreter; empty: this one."""
    wanted = [*SERVER_DISTRIBUTIONS]
    for one in ENGINES.values():
        wanted += [*one.distributions, *one.requires]
    versions = _elsewhere(python, wanted) if python else _here(wanted)
    return [_report(one, versions) for one in ENGINES.values()]


def _report(engine: EngineDescription, versions: Mapping[str, str]) -> EngineReport:
    present = next((name for name in engine.distributions if name in versions), "")
    missing = [] if present else [engine.distributions[0]]
    missing += [name for name in (*engine.requires, *SERVER_DISTRIBUTIONS) if name not in versions]
    return EngineReport(
        name=engine.name,
        title=engine.title,
        format=engine.format,
        files=engine.suffixes,
        installed=not missing,
        version=versions.get(present, "")[:256],
        missing=missing,
        install=f"pip install 'skerry[{engine.extra}]'",
        note=engine.note,
    )


def _here(wanted: Iterable[str]) -> Mapping[str, str]:
    found = {}
    for name in wanted:
        try:
            found[name] = importlib.metadata.version(name) or ""  # None where its metadata is damaged
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _elsewhere(python: str, wanted: Sequence[str]) -> Mapping[str, str]:
    """Ask another interpreter; one that cannot be asked has nothing, and the log says why."""
    argv = [python, "-P", "-c", _QUESTION, *wanted]
    environment = {
        name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    }
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=_ASK_SECONDS, stdin=subprocess.DEVNULL, env=environment, check=True
        )
        return msgspec.json.decode(done.stdout, type=dict[str, str])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("engines.not_asked python=%s error=%s", python, error)
        return {}
