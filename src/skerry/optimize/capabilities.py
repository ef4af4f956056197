"""What the factory can do here: sources it can read, variants it can make, engines it can judge them with.

Lives here: looking at what is installed, and saying what to install for the rest. Must not live here: importing any of
it, which would take seconds.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence

import msgspec

from skerry.api.errors import SkerryError
from skerry.core.engines import ENGINES
from skerry.optimize import importers, jobs, keys, passes, toolchains
from skerry.optimize.passes import Recipe

_READERS = {
    "torch": ("torch", "onnx", "onnxscript"),
    "tensorflow": ("tensorflow|tensorflow-cpu", "keras", "tf2onnx", "onnx"),
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("ai-edge-litert",),
    "sklearn": ("scikit-learn", "skl2onnx", "onnx"),
}
"""Extra -> distributions that its sources are read with; of those with a bar between them one is enough."""


class SourceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of source."""

    kind: str
    files: str
    missing: list[str]
    install: str


class VariantLine(msgspec.Struct, frozen=True, kw_only=True):
    """One format and precision."""

    variant: str
    """Without a word of the user's own."""
    engine: str
    sources: list[str]
    """Forms that it can be made from."""
    recipes: list[str]
    """Those that work here, best first."""
    missing: list[str]
    """What the others, or the engine, need; nothing can be made when there are no recipes."""
    install: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    sources: list[SourceLine]
    variants: list[VariantLine]
    tools: dict[str, str]


def report() -> Report:
    """Look at what is installed."""
    return Report(
        sources=[_source(kind, known) for kind, known in importers.KINDS.items()],
        variants=[_variant(f"{form}-{precision}", table) for (form, precision), table in passes.RECIPES.items()],
        tools=dict(keys.tools()),
    )


def _source(kind: str, known: importers.Kind) -> SourceLine:
    missing = _missing(_READERS.get(known.extra, ()))
    files = ", ".join(known.suffixes) or {"pytorch": "FILE.py:FUNCTION", "savedmodel": "a directory"}.get(kind, "")
    return SourceLine(kind=kind, files=files, missing=missing, install=_install({known.extra}) if missing else "")


def _variant(name: str, table: Sequence[Recipe]) -> VariantLine:
    engine = ENGINES[jobs.ENGINES[jobs.parse_name(name)[0]]]
    without_engine = _missing(("|".join(engine.distributions), *engine.requires))
    lacking = {recipe.name: [*recipe.missing(), *_toolchain(recipe)] for recipe in table}
    missing = sorted({*without_engine, *(each for found in lacking.values() for each in found)})
    extras = {recipe.extra for recipe in table if recipe.missing()} | ({engine.extra} if without_engine else set())
    return VariantLine(
        variant=name,
        engine=engine.name,
        sources=sorted({recipe.form for recipe in table}),
        recipes=[] if without_engine else [recipe.name for recipe in table if not lacking[recipe.name]],
        missing=missing,
        install=_install(extras, [r.toolchain for r in table if _toolchain(r)]) if missing else "",
    )


def _toolchain(recipe: Recipe) -> list[str]:
    if not recipe.toolchain:
        return []
    try:
        toolchains.find(recipe.toolchain)
    except SkerryError:
        return [f"toolchain {recipe.toolchain}"]
    return []


def _missing(distributions: Iterable[str]) -> list[str]:
    return [each.replace("|", " or ") for each in distributions if not any(map(_installed, each.split("|")))]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _install(extras: Iterable[str], names: Sequence[str] = ()) -> str:
    ways = [f"pip install 'skerry[{','.join(sorted(extras))}]'"] if extras else []
    ways += [f"skerry model toolchain install {name}" for name in dict.fromkeys(names)]
    return "; ".join(ways)
