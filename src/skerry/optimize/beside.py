"""What a step reads besides the files that its recipe names: modules beside the user's code, weights beside a graph.

Such a file is called `<role>/<path>`, relative to the directory of the recipe's file in that role, so that a copy of a
directory is judged by its own files. Lives here: those names, what they stand for, what was imported. Must not live
here: comparing digests (`cache`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from skerry.optimize import cache
from skerry.optimize.recipe import Optimization, VariantSpec

SOURCE = "source"
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep


def places(wanted: Optimization, spec: VariantSpec | None = None) -> dict[str, Path]:
    """Return role -> directory: of the source, and of each file with the user's code."""
    return {SOURCE: _directory(wanted.source.path), **_code(wanted, spec)}


def imported(wanted: Optimization, spec: VariantSpec | None = None) -> dict[str, str]:
    """Return name -> sha256 of every module that this process imported from beside the user's own code."""
    # the innermost directory first: the one that is copied along with the file
    roots = sorted(_code(wanted, spec).items(), key=lambda item: -len(item[1].parts))
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or file.startswith((sys.prefix + os.sep, _OWN)):
            continue
        path = Path(file)
        if not path.is_absolute() or not path.is_file():  # some libraries give modules a name that is no path
            continue
        for role, root in roots:
            inner = _below(path, root)
            if inner is not None:
                found[f"{role}/{inner}"] = cache.digest(path)
                break
    return dict(sorted(found.items()))


def external(wanted: Optimization, digests: Mapping[str, str]) -> dict[str, str]:
    """Return name -> sha256 of the files beside an ONNX graph that hold its weights, of the source's digests."""
    own = Path(wanted.source.path).name
    return {f"{SOURCE}/{name}": digest for name, digest in digests.items() if name != own}


def _code(wanted: Optimization, spec: VariantSpec | None) -> dict[str, Path]:
    tune = spec.pruning.fine_tune if spec is not None and spec.pruning is not None else None
    named = {SOURCE: wanted.source.path, "metric": wanted.metric, "fineTune": tune or ""}
    files = {role: path for role, path in named.items() if ".py:" in path} | {"code": wanted.source.code}
    return {role: _directory(path) for role, path in files.items() if path}


def _directory(path: str) -> Path:
    """Return where the files beside one are: of a link to code where the code is, of a link to a model here."""
    file = path.rpartition(":")[0] if ".py:" in path else path
    absolute = Path(os.path.abspath(file))
    return absolute.resolve().parent if absolute.suffix == ".py" else absolute.parent.resolve()


def _below(path: Path, root: Path) -> str | None:
    """Return a file's path in a directory, by either of its names; None when it is not in it."""
    for name in (path, path.resolve()):
        if name.is_relative_to(root):
            return name.relative_to(root).as_posix()
    return None
