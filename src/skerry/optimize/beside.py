"""What a step reads besides the files that its recipe names: modules that the user's code imports, weights of a graph.

A file beside one of the recipe's is called `<role>/<path>`, relative to the directory of the recipe's file in that
role, so that a copy of a directory is judged by its own files. A module from elsewhere, of an editable package or of
PYTHONPATH, goes by its absolute path; one that is installed goes by its distribution's version.

Lives here: those names, what they stand for, what was imported. Must not live
here: comparing digests (`cache`).
"""

from __future__ import annotations

import importlib.metadata
import os
import site
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType

from skerry.optimize import cache
from skerry.optimize.recipe import Optimization, VariantSpec

SOURCE = "source"
ELSEWHERE = ""
"""The role of absolute paths: `/lib/net.py` is `lib/net.py` in the root directory."""
_STARTED = time.time()
_VERSIONED = ("", ".version", "._version")
"""The modules of a package that tell its version, where no distribution has the package's name."""
_seen: dict[str, str] = {}
"""File -> sha256 as it was when this process ran it."""
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep


def places(wanted: Optimization, spec: VariantSpec | None = None) -> dict[str, Path]:
    """Return role -> directory: of the source, and of each file with the user's code."""
    return {ELSEWHERE: Path("/"), SOURCE: _directory(wanted.source.path), **_code(wanted, spec)}


def watch() -> None:
    """Note from now on what each module's file is when it is run: at the end of a step it may be another. For good."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event != "exec" or not isinstance(arguments[0], CodeType):
        return
    file = arguments[0].co_filename
    if file.endswith(".py") and file not in _seen and not file.startswith((_OWN, *_INSTALLED)):
        with suppress(OSError):
            _seen[file] = cache.digest(Path(file))


def _digest(path: Path) -> str:
    return _seen.get(str(path)) or cache.digest(path)


def imported(wanted: Optimization, spec: VariantSpec | None = None) -> dict[str, str]:
    """Return name -> sha256 of every module that this process imported from beside the user's own code."""
    # the innermost directory first: the one that is copied along with the file
    roots = sorted(_code(wanted, spec).items(), key=lambda item: -len(item[1].parts))
    found = {}
    for _, path in _files():
        if path.suffix != ".py" or str(path).startswith(_INSTALLED):
            continue
        for role, root in roots:
            inner = _below(path, root)
            if inner is not None:
                found[f"{role}/{inner}"] = _digest(path)
                break
    return dict(sorted(found.items()))


def elsewhere(wanted: Optimization, spec: VariantSpec | None = None) -> dict[str, str]:
    """Return name -> sha256, or version, of all other modules that this process imported, but Python's and our own."""
    roots = list(_code(wanted, spec).values())
    found, packages = {}, set()
    for name, path in _files():
        package = name.partition(".")[0]
        if any(_below(path, root) is not None for root in roots):
            continue
        if not str(path).startswith(_INSTALLED):
            if not _is_generated(path):
                found[path.as_posix()] = _digest(path)
        elif str(path).startswith(_SITES):
            packages.add(package)
    for package in packages:
        found |= _version(package)
    return dict(sorted(found.items()))


def _files() -> Iterator[tuple[str, Path]]:
    """Yield name and file of every module that has one, but our own."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith((".py", ".so")) and not file.startswith(_OWN):
            path = Path(file)
            if path.is_absolute() and path.is_file():  # some libraries give modules a name that is no path
                yield name, path


def _version(package: str) -> dict[str, str]:
    """Return the version of the distribution that has a package's name, else what the package says of it itself."""
    try:
        return {f"{cache.DISTRIBUTION}/{package}": importlib.metadata.version(package)}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        files = [getattr(sys.modules.get(package + name), "__file__", None) or "" for name in _VERSIONED]
        return {file: cache.digest(Path(file)) for file in files if os.path.isabs(file) and os.path.isfile(file)}


def _is_generated(path: Path) -> bool:
    """Tell whether a library wrote the module in this process, as some do; another process finds no such file."""
    return path.is_relative_to(tempfile.gettempdir()) and path.stat().st_ctime >= _STARTED


def _sites() -> tuple[str, ...]:
    named = {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    return _with_real({*named, *site.getsitepackages(), site.getusersitepackages()})


def _with_real(directories: set[str]) -> tuple[str, ...]:
    return tuple(sorted({form + os.sep for each in directories for form in (each, os.path.realpath(each))}))


_SITES = _sites()
_INSTALLED = (*_SITES, *_with_real({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}))


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
