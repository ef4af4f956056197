"""What every step of a run depends on: the keys of the cache, and the versions of the tools.

Two runs share a step when all of this is equal: files by content, options by value, tools by version, our own code by
content. Lives here: what goes into a key. Must not live here: where entries are (`cache`).
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from skerry.api.errors import InvalidError, SkerryError
from skerry.optimize import cache, jobs, passes, profile, toolchains
from skerry.optimize.jobs import Facts
from skerry.optimize.recipe import Optimization, VariantSpec

TOOLS = (
    *("skerry", "numpy", "onnx", "onnxruntime", "onnxscript", "onnxslim", "onnxconverter-common", "torch", "torchao"),
    *("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "ai-edge-litert", "ai-edge-quantizer", "litert-torch"),
    *("executorch", "scikit-learn", "skl2onnx"),
)
"""Distributions whose version can change what comes out."""


@functools.cache
def tools() -> Mapping[str, str]:
    """Return tool -> version of all that are installed, Python included."""
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def of_import(wanted: Optimization) -> str:
    """Return the key of an import."""
    return _of_import(wanted, _contents(wanted))


def _contents(wanted: Optimization) -> dict[str, list[str]]:
    source = wanted.source
    paths = {"source": source.path, "weights": source.weights, "code": source.code}
    paths |= {"data": wanted.data.path, "metric": wanted.metric}
    return {role: _content(path) for role, path in paths.items()}


def _of_import(wanted: Optimization, contents: Mapping[str, list[str]]) -> str:
    source = wanted.source
    return cache.key(
        {
            **contents,
            "step": "import",
            "program": _program(),
            "tools": tools(),
            "machine": platform.machine(),
            "kind": source.kind,
            "allowCode": source.allow_code,
            "golden": wanted.golden,
            "seed": wanted.seed,
            "opset": wanted.opset,
        }
    )


def check_unchanged(wanted: Optimization, key: str, read: Mapping[str, str]) -> None:
    """Refuse when the files that an import's key was made of are others by now, or when others were read meanwhile.

    `read` is file name -> sha256 as the import found it; of directories each reader has digests of its own. Raises
    InvalidError.
    """
    contents = _contents(wanted)
    for name, digest in read.items():
        here = [content[1] for role, content in contents.items() if content[:1] == [name] and _is_file(wanted, role)]
        if here and digest not in here:
            raise changed(name)
    if _of_import(wanted, contents) != key:
        raise changed(Path(wanted.source.path).name)


def _is_file(wanted: Optimization, role: str) -> bool:
    path = {"source": wanted.source.path, "weights": wanted.source.weights, "data": wanted.data.path}.get(role, "")
    return ".py:" in path or Path(path).is_file()


def changed(element: str) -> InvalidError:
    """Return what is said of a file that is another one at the end of a step than at its beginning."""
    return InvalidError("changed while it was read", element=element, hint="run again when nothing writes there")


def of_variant(wanted: Optimization, spec: VariantSpec, facts: Facts, *, imported: str) -> str:
    """Return the key of a variant of a finished import, on this machine: engines choose their kernels by the CPU.

    `imported` is the import's key as the run began: what the files are by now is another question.
    """
    return cache.key(
        {
            "step": "variant",
            "import": imported,
            "digests": facts.digests,
            "read": facts.read,
            "machine": profile.machine(),
            "converters": _converters(spec),
            "variant": of_options(wanted, spec),
            "format": jobs.parse_name(spec.name),
        }
    )


def of_options(wanted: Optimization, spec: VariantSpec) -> str:
    """Return the key of how a variant is to be made, whatever it is made from."""
    allowed = wanted.allowed_drop if spec.allowed_drop is None else spec.allowed_drop
    return cache.key({**msgspec.to_builtins(spec), "allowedDrop": allowed, "pruning": _pruning(spec)})


def _pruning(spec: VariantSpec) -> Any:
    """Return what is pruned, with the user's function by content: where its file lies does not matter."""
    if spec.pruning is None:
        return None
    return {**msgspec.to_builtins(spec.pruning), "fineTune": _content(spec.pruning.fine_tune or "")}


def of_profile(variant: str, model: Path, *, runs: int, machine: str) -> str:
    """Return the key of the measurements of a variant, as it was made, on one kind of machine."""
    file = cache.digest(model)
    return cache.key({"step": "profile", "variant": variant, "model": file, "runs": runs, "machine": machine})


def _converters(spec: VariantSpec) -> dict[str, list[str]]:
    """Return what the variant's recipes need, and what of it is here: a verdict for want of one ends when it comes."""
    found: dict[str, list[str]] = {}
    for recipe in passes.RECIPES.get(jobs.parse_name(spec.name), ()):
        found |= {f"python {name}": _version(name) for name in recipe.requires}
        if recipe.toolchain:
            found[f"toolchain {recipe.toolchain}"] = _toolchain(recipe.toolchain)
    return found


def _version(distribution: str) -> list[str]:
    try:
        return [importlib.metadata.version(distribution)]
    except importlib.metadata.PackageNotFoundError:
        return []


def _toolchain(name: str) -> list[str]:
    """Return a toolchain's interpreter and version, and the version that its environment says; nothing without it."""
    try:
        interpreter = toolchains.find(name)
    except SkerryError:
        return []
    toolchain = toolchains.TOOLCHAINS[name]
    installed = interpreter.parent.parent.glob(f"lib/python*/site-packages/{toolchain.module}-*.dist-info")
    return [str(interpreter), toolchain.version, *sorted(path.name for path in installed)]


def _content(path: str) -> list[str]:
    """Return a path's last name, digest and function; what is not there is told when it is opened."""
    file, _, function = path.rpartition(":") if ".py:" in path else (path, "", "")
    if not file:
        return []
    try:
        return [Path(file).name, cache.digest(Path(file)), function]
    except OSError:
        return [path]


@functools.cache
def _program() -> str:
    """Return the digest of our own code that has a part in what comes out."""
    package = Path(__file__).resolve().parents[1]
    return cache.key({name: cache.digest_tree(package / name, "*.py") for name in ("api", "optimize", "serve")})
