"""Directories that are no packages, but hold a model all the same: what they are, and what they say of themselves.

Hugging Face's layout (`config.json`, `README.md` with front matter) and MLflow's (`MLmodel`). Only names and small
descriptions are read, within bounds; nothing in such a directory is run, and links that lead out are refused. Must not
live here: how packages are made (`importing` starts the process that does).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.api import codec, documents
from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.core.card import About

MAX_BYTES = 1024 * 1024
MAX_FILES = 10_000
MAX_GRAPHS = 16
_IMPORTED = {".onnx", ".tflite"}
_GRAPHS = {*_IMPORTED, ".keras"}
_PICKLES = {".pkl", ".pickle", ".joblib", ".bin", ".pt", ".pth", ".ckpt"}
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$\r?\n?(.*)", re.DOTALL | re.MULTILINE)
_SHORT, _LONG, _MOST_TAGS = 200, 2000, 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A directory with a model in it."""

    kind: str
    """As in "an MLflow model"."""
    directory: Path
    graphs: Sequence[Path]
    """Files that a variant can be made of as they are: `.onnx`, `.tflite`; never empty."""
    skipped: Sequence[Path]
    """Programs that are left out: `.pte` says nothing of its tensors."""
    about: About


def recognise(directory: Path) -> Found | None:
    """Return what an importable directory holds; None where it is in neither layout.

    Raises UnsupportedError for weights without a graph, pickles and code of the model's own, InvalidError for links
    that lead out and for descriptions that cannot be read, are too large or no JSON or YAML.
    """
    try:
        if (directory / "MLmodel").is_file():
            return _mlflow(directory)
        if (directory / "config.json").is_file():
            return _hugging_face(directory)
    except OSError as error:
        raise InvalidError(error.strerror or str(error), element=str(error.filename or directory)) from None
    return None


def explain(directory: Path) -> SkerryError | None:
    """Return what is to be said of such a directory where a package is wanted; None where it is none of these."""
    try:
        found = recognise(directory)
    except SkerryError as error:
        return error
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    return InvalidError(
        f"is {found.kind}, not a package; {found.graphs[0].relative_to(directory)} can be made into one",
        element=str(directory),
        hint=f"skerry model import {directory} --into PACKAGE, with --data to judge it by; see docs/artifacts.md",
    )


def _mlflow(directory: Path) -> Found:
    files = _files(directory)
    said = documents.read_yaml(_read(directory / "MLmodel"), source=str(directory / "MLmodel"))
    top = _table(said[0]) if said else {}
    names = ", ".join(sorted(map(str, _table(top.get("flavors")))))
    metadata = _table(top.get("metadata"))
    about = About(
        license=_text(metadata.get("license"), _SHORT),
        task=_text(metadata.get("task"), _SHORT),
        tags=_tags(metadata.get("tags")),
        description=_text(metadata.get("description"), _LONG),
    )
    return _found(directory, "an MLflow model", files, about, f"its flavors are {names[:_SHORT] or 'none'}")


def _hugging_face(directory: Path) -> Found:
    files = _files(directory)
    config = codec.decode_json(_read(directory / "config.json"))
    if "auto_map" in config and not _graphs(files):
        raise UnsupportedError(
            "needs code of its own (auto_map), which is not run",
            element=str(directory),
            hint="export it to ONNX where that code is trusted, and import that",
        )
    front, words = _readme(directory / "README.md")
    about = About(
        license=_text(front.get("license_name") or front.get("license") or config.get("license"), _SHORT),
        task=_text(front.get("pipeline_tag") or config.get("task"), _SHORT),
        tags=_tags(front.get("tags")),
        description=_text(front.get("model_description") or words, _LONG),
    )
    return _found(directory, "a Hugging Face model", files, about, "config.json describes it, and holds no graph")


def _readme(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return a model card's front matter and its first paragraph in words."""
    if not path.is_file():
        return {}, ""
    text = _read(path).decode("utf-8", "replace")
    matched = _FRONT.match(text)
    front = documents.read_yaml(matched[1].encode(), source=str(path)) if matched else []
    lines = (matched[2] if matched else text).split("\n\n")
    words = next((part for part in lines if part.strip() and not part.lstrip().startswith(("#", "<", "!", "["))), "")
    return (_table(front[0]) if front else {}), words


def _found(directory: Path, kind: str, files: Sequence[Path], about: About, said: str) -> Found:
    graphs = _graphs(files)
    whole = [file for file in graphs if file.suffix in _IMPORTED]
    if len(whole) > MAX_GRAPHS:
        raise InvalidError(f"holds {len(whole)} graphs, at most {MAX_GRAPHS} are imported", element=str(directory))
    if whole:
        skipped = [file for file in files if file.suffix == ".pte"]
        return Found(kind=kind, directory=directory, graphs=whole, skipped=skipped, about=about)
    if graphs:
        raise InvalidError(
            f"is {kind}, not a package; {graphs[0].relative_to(directory)} can be made into one",
            element=str(directory),
            hint=f"skerry model optimize --source {graphs[0]}, with --data to judge it by; see docs/factory.md",
        )
    if any(file.suffix == ".pte" for file in files):
        cause = f"is {kind} with an ExecuTorch program alone, which does not name its tensors"
    elif any(file.suffix == ".safetensors" for file in files):
        cause = f"is {kind} with weights only: without a graph nothing can run them"
    elif any(file.suffix in _PICKLES for file in files):
        cause = f"is {kind} of pickles, which run code when they are read, and are not read here"
    else:
        cause = f"is {kind} without a file that can be made into variants ({said})"
    raise UnsupportedError(cause, element=str(directory), hint="export it to ONNX, or optimise the module with --torch")


def _graphs(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix in _GRAPHS]


def _files(directory: Path) -> list[Path]:
    """Return plain files under a directory, two levels deep, by name. Raises InvalidError for links that lead out."""
    found: list[Path] = []
    root = Path(os.path.realpath(directory))
    for pattern in ("*", "*/*"):
        for path in directory.glob(pattern):
            if not Path(os.path.realpath(path)).is_relative_to(root):
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


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any, most: int) -> str:
    """Return text as one line of what can be printed, or several names by commas; of anything else nothing."""
    words = ", ".join(part for part in value if isinstance(part, str)) if isinstance(value, list) else value
    if not isinstance(words, str):
        return ""
    return "".join(c for c in " ".join(words[: 4 * most].split()) if c.isprintable())[:most]


def _tags(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else []
    return [said for one in listed[:_MOST_TAGS] if isinstance(one, str) and (said := _text(one, _SHORT))]
