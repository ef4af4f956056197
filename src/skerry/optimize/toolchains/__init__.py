"""Toolchains: converters that cannot live beside the factory's libraries, each in an environment of its own.

Lives here: where a toolchain is found, how it is installed, running one of its programs on files. Must not live here:
what these programs do (`*_program.py`, which import nothing of ours), or which recipe needs one.

A toolchain is found in this order: importable here; the interpreter that `SKERRY_TOOLCHAIN_<NAME>` names; where
`skerry model toolchain install` puts it. torch and what it stands on are not in a toolchain: its programs take them
from this environment, so that the same torch exports and converts.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.api.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    SkerryError,
    TimedOutError,
    UnsupportedError,
)
from skerry.kit import processes

CONVERSION_SECONDS = 1800.0
INSTALL_SECONDS = 3600.0
_PINS = ".txt"
_READY = "ready"
_ENVIRONMENT = "pyvenv.cfg"
_LAST_WORDS = 400
"""Characters of what a program said at the end that are quoted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """One converter's environment."""

    name: str
    version: str
    module: str
    """What its programs import."""
    program: str
    """The file beside this one that runs in it."""
    size_mb: int
    """On disk, measured on x86-64."""
    minutes: float
    """To install, on a fast line."""


TOOLCHAINS: Mapping[str, Toolchain] = {
    "litert-torch": Toolchain(
        name="litert-torch",
        version="0.10.0",
        module="litert_torch",
        program="litert_torch_program.py",
        size_mb=790,
        minutes=0.5,
    )
}


def find(name: str) -> Path:
    """Return the interpreter of a toolchain. Raises NotFoundError, or UnsupportedError that says how to install it."""
    toolchain = _known(name)
    if importlib.util.find_spec(toolchain.module) is not None:
        return Path(sys.executable)
    setting = variable(name)
    named = os.environ.get(setting, "")
    if named:
        if not os.access(named, os.X_OK):
            raise NotFoundError("is no program", element=f"{setting}={named}", hint="name the toolchain's interpreter")
        return Path(named)
    place = default_place(toolchain)
    if (place / _READY).is_file():
        return _interpreter(place)
    raise UnsupportedError(
        "is not installed", element=f"toolchain {name}", hint=f"run skerry model toolchain install {name}"
    )


def variable(name: str) -> str:
    """Return the name of the environment variable that names a toolchain's interpreter."""
    return f"SKERRY_TOOLCHAIN_{name.upper().replace('-', '_')}"


def default_place(toolchain: Toolchain) -> Path:
    """Return where a toolchain is installed: the user's data directory, one place for each Python version."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return Path(data) / "skerry" / "toolchains" / f"{toolchain.name}-{toolchain.version}-{tag}"


def install(name: str, tell: Callable[[str], None], *, place: Path | None = None) -> Path:
    """Make the environment with the pinned versions; return its interpreter. Blocks for a minute or more.

    Nothing is left behind when it fails. A directory that holds anything but an unfinished environment is left alone.
    Raises AlreadyExistsError, InvalidError with the installer's last line, TimedOutError.
    """
    toolchain = _known(name)
    place = place or default_place(toolchain)
    if (place / _READY).is_file():
        tell(f"{name} {toolchain.version} is already in {place}")
        return _interpreter(place)
    if place.is_dir() and any(place.iterdir()) and not (place / _ENVIRONMENT).is_file():
        hint = "name a directory that is empty or not there"
        raise AlreadyExistsError("holds something else", element=str(place), hint=hint)
    tell(
        f"installing {name} {toolchain.version} into {place}: about {toolchain.size_mb} MB on disk, "
        f"about {toolchain.minutes:g} min"
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)], INSTALL_SECONDS, name)
        pins = Path(__file__).with_name(f"{toolchain.module}{_PINS}")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(_interpreter(place))]
        _run([*pip, "install", "--quiet", "--no-deps", "--requirement", str(pins)], INSTALL_SECONDS, name)
        (place / _READY).touch()
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return _interpreter(place)


def torch_to_tflite(program: Any) -> bytes:
    """Convert a `torch.export.ExportedProgram` in the litert-torch toolchain; return the float32 file.

    Raises UnsupportedError that names the operator it cannot convert, or says how to install the toolchain.
    """
    import torch  # noqa: PLC0415 - heavy

    interpreter = find("litert-torch")
    with tempfile.TemporaryDirectory(prefix="skerry-toolchain-") as scratch:
        given, made = Path(scratch) / "program.pt2", Path(scratch) / "model.tflite"
        torch.export.save(program, given)
        run("litert-torch", interpreter, [str(given), str(made)])
        return made.read_bytes()


def run(name: str, interpreter: Path, arguments: Sequence[str], *, seconds: float = CONVERSION_SECONDS) -> None:
    """Run a toolchain's program on files. Raises UnsupportedError with its sentence, TimedOutError."""
    program = Path(__file__).with_name(_known(name).program)
    # -I: neither our modules nor the directory this runs in are searched; what is borrowed is appended by the program
    _run([str(interpreter), "-I", str(program), *_borrowed(), "--", *arguments], seconds, name)


def _borrowed() -> list[str]:
    """Return the directories with this environment's libraries; there may be several, where it stands on another."""
    return [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]


def _run(argv: Sequence[str], seconds: float, name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run(
            processes.python(argv[1:], interpreter=argv[0]),
            capture_output=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"was not done within {seconds:.0f} s", element=f"toolchain {name}") from None
    except OSError as error:
        raise InvalidError(f"cannot be started ({error.strerror})", element=f"toolchain {name}") from error
    if done.returncode != 0:
        raise _failure(done.stderr.decode(errors="replace"), done.returncode, name)


def _failure(said: str, code: int, name: str) -> SkerryError:
    """Return what a program said as an error: `operator: cause` from ours, the last line from others."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][-_LAST_WORDS:] if lines else f"ended with code {code}"
    marked = [line.removeprefix("skerry-error: ") for line in lines if line.startswith("skerry-error: ")]
    if marked:
        element, _, cause = marked[-1].partition(": ")
        return UnsupportedError(cause, element=element, hint="replace it in forward(), or take another format")
    if code < 0:
        return InvalidError(f"was killed by signal {-code}; too little memory?", element=f"toolchain {name}")
    return InvalidError(last, element=f"toolchain {name}")


def _interpreter(place: Path) -> Path:
    return place / "bin" / "python"


def _known(name: str) -> Toolchain:
    if name not in TOOLCHAINS:
        raise NotFoundError("there is no such toolchain", element=name[:80], hint=f"there is {', '.join(TOOLCHAINS)}")
    return TOOLCHAINS[name]
