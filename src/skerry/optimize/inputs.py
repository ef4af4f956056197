"""The files that a run elsewhere needs: what the recipe names, and what lies beside that and belongs to it.

Beside a Python file go the Python files of its directory, which it may import; beside an ONNX graph the files with its
external data. Lives here: which files, and what they are called there. Must not live here: sending them (`cluster`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from skerry.api.errors import InvalidError, NotFoundError, UnsupportedError
from skerry.optimize import cache
from skerry.optimize.recipe import Optimization


def localised(wanted: Optimization) -> Mapping[str, Any]:
    """Return the recipe as it is written for a directory that holds all of its files."""
    plain: dict[str, Any] = msgspec.to_builtins(wanted)
    plain["out"] = "package"
    plain.get("resources", {}).pop("memory", None)  # there it is what the container may take
    for holder, field in _named(plain):
        if os.path.isabs(value := holder.get(field, "")):
            file, function = _split(value)
            holder[field] = f"{Path(file).name}:{function}" if function else Path(file).name
    return plain


def files(wanted: Optimization) -> dict[str, Path]:
    """Return name there -> file or directory here.

    Raises NotFoundError, InvalidError when two different files would have one name or an ONNX graph cannot be read.
    """
    found: dict[str, Path] = {}
    for holder, field in _named(msgspec.to_builtins(wanted)):
        if not os.path.isabs(value := holder.get(field, "")):
            continue
        path = Path(_split(value)[0])
        if not path.exists():
            raise NotFoundError("no such file", element=str(path))
        for name, each in _with_neighbours(path):
            if name in found and cache.digest(found[name]) != cache.digest(each):
                cause = "two files have this name, and Jobs get all in one directory"
                raise InvalidError(cause, element=name, hint="give them different names")
            found.setdefault(name, each)
    return found


def digest(wanted: Optimization) -> str:
    """Return the digest of all of these files and their names; of one that is not there, its name alone."""
    try:
        return cache.key({name: cache.digest(path) for name, path in files(wanted).items()})
    except NotFoundError as error:
        return error.sentence


def _named(plain: MutableMapping[str, Any]) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    """Walk the fields that name files."""
    source = plain["source"]
    yield from ((source, "path"), (source, "weights"), (source, "code"), (plain["data"], "path"), (plain, "metric"))
    for variant in plain["variants"]:
        if "pruning" in variant:
            yield variant["pruning"], "fineTune"


def _split(value: str) -> tuple[str, str]:
    file, _, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    return file, function


def _with_neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    if path.suffix == ".py":
        yield from ((each.name, each) for each in sorted(path.parent.glob("*.py")))
        return
    yield path.name, path
    if path.suffix == ".onnx" and path.is_file():
        for location in _external(path):
            yield location, path.parent / location


def _external(path: Path) -> list[str]:
    """Return the files with a graph's external data, relative to its directory."""
    try:
        import onnx  # noqa: PLC0415 - heavy, and only for such a source
    except ModuleNotFoundError as error:
        hint = "pip install 'skerry[factory]'"
        raise UnsupportedError("onnx is not installed", element=path.name, hint=hint) from error
    from skerry.optimize import graph  # noqa: PLC0415 - heavy

    try:
        tensors = list(graph.tensors(onnx.load_model(path, load_external_data=False)))
    except Exception as error:  # protobuf's exceptions have no public root
        raise InvalidError("is no ONNX file", element=path.name, hint="name an .onnx file") from error
    locations = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        inside = PurePosixPath(location)
        if inside.is_absolute() or ".." in inside.parts:
            cause = f'keeps weights in "{location[:80]}", outside of its directory'
            raise InvalidError(cause, element=path.name, hint="keep external data beside the model")
        if not (path.parent / location).is_file():
            raise NotFoundError("no such file", element=location, hint=f"{path.name} keeps weights there")
    return sorted(locations)
