"""Directories that are no packages, but hold a model all the same: what they are, and what leads on from there.

Only names and two small descriptions are read, within bounds; nothing in such a directory is run or followed. Must not
live here: how packages are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skerry.api import codec, documents
from skerry.api.errors import InvalidError, SkerryError, UnsupportedError

MAX_BYTES = 1024 * 1024
MAX_FILES = 10_000
_GRAPHS = {".onnx": "onnx", ".tflite": "tflite", ".keras": "keras"}
_PICKLES = {".pkl", ".pickle", ".joblib", ".bin", ".pt", ".pth", ".ckpt"}


def explain(directory: Path) -> SkerryError | None:
    """Return what is to be said of a directory in Hugging Face's or MLflow's layout; None where it is none of these."""
    try:
        if (directory / "MLmodel").is_file():
            return _mlflow(directory)
        if (directory / "config.json").is_file():
            return _hugging_face(directory)
    except (OSError, ValueError):
        return None
    return None


def _mlflow(directory: Path) -> SkerryError:
    said: list[Any] = documents.read_yaml(_read(directory / "MLmodel"), source=str(directory / "MLmodel"))
    flavors = said[0].get("flavors") if said and isinstance(said[0], dict) else None
    names = sorted(map(str, flavors)) if isinstance(flavors, dict) else []
    return _say(directory, "an MLflow model", _files(directory), f"its flavors are {', '.join(names)[:200] or 'none'}")


def _hugging_face(directory: Path) -> SkerryError:
    config = codec.decode_json(_read(directory / "config.json"))
    files = _files(directory)
    if "auto_map" in config and not _graphs(files):
        return UnsupportedError(
            "needs code of its own (auto_map), which is not run",
            element=str(directory),
            hint="export it to ONNX where that code is trusted, and optimise that",
        )
    return _say(directory, "a Hugging Face model", files, "config.json describes it, and holds no graph")


def _say(directory: Path, kind: str, files: Sequence[Path], about: str) -> SkerryError:
    graphs = _graphs(files)
    if graphs:
        return InvalidError(
            f"is {kind}, not a package; {graphs[0].relative_to(directory)} can be made into one",
            element=str(directory),
            hint=f"skerry model optimize --source {graphs[0]}, with --data to judge it by; see docs/factory.md",
        )
    if any(file.suffix == ".safetensors" for file in files):
        cause = f"is {kind} with weights only: without a graph nothing can run them"
    elif any(file.suffix in _PICKLES for file in files):
        cause = f"is {kind} of pickles, which run code when they are read, and are not read here"
    else:
        cause = f"is {kind} without a file that can be made into variants ({about})"
    return UnsupportedError(
        cause, element=str(directory), hint="export it to ONNX, or optimise the module with --torch"
    )


def _graphs(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix in _GRAPHS]


def _files(directory: Path) -> list[Path]:
    """Return plain files under a directory, two levels deep, by name. Raises InvalidError for links that lead out."""
    found: list[Path] = []
    for pattern in ("*", "*/*"):
        for path in directory.glob(pattern):
            if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
                raise InvalidError("is a symbolic link that leads out of the directory", element=str(path))
            if path.is_file():
                found.append(path)
            if len(found) > MAX_FILES:
                raise InvalidError(f"holds more than {MAX_FILES} files", element=str(directory))
    return sorted(found)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise InvalidError(f"is larger than {MAX_BYTES} bytes", element=str(path))
    return raw
