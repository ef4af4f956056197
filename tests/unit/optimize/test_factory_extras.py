"""What a hint tells people to install is an extra that there is, and that holds what was missing."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.core.engines import ENGINES
from skerry.optimize import importers, passes
from skerry.optimize.passes import Recipe

ROOT = Path(__file__).resolve().parents[3]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
RECIPES = {
    f"{form}-{precision}-{recipe.name}": recipe
    for (form, precision), recipes in passes.RECIPES.items()
    for recipe in recipes
}


def contents(extra: str) -> Iterator[str]:
    """The distributions that an extra installs, those of extras in it too."""
    for wanted in EXTRAS[extra]:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", wanted).groups()  # type: ignore[union-attr]
        if name == "skerry":
            for each in inner.split(","):
                yield from contents(each)
        else:
            yield name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_names_the_extra_that_has_all_it_needs(recipe: Recipe) -> None:
    assert recipe.extra in EXTRAS
    assert set(recipe.requires) <= set(contents(recipe.extra))


@pytest.mark.parametrize("recipe", [one for one in RECIPES.values() if one.form == "onnx"], ids=lambda one: one.name)
def test_a_recipe_from_a_graph_needs_no_framework_but_its_formats_own(recipe: Recipe) -> None:
    needless = {"torch", "onnxscript", "tensorflow-cpu", "keras"} - set(recipe.requires)
    assert not needless & set(contents(recipe.extra)), "a smaller extra is enough"


def test_a_source_names_an_extra_with_its_framework() -> None:
    frameworks = {"torch": "torch", "tensorflow": "tensorflow-cpu", "sklearn": "scikit-learn", "factory": "onnx"}
    for kind in importers.KINDS.values():
        assert frameworks[kind.extra] in set(contents(kind.extra))


def test_an_engine_names_an_extra() -> None:
    assert {facts.extra for facts in ENGINES.values()} <= set(EXTRAS)


def test_every_hint_in_the_code_names_an_extra_there_is() -> None:
    named: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for extra in re.findall(r"skerry\[([a-z,]+)\]", file.read_text(encoding="utf-8")):
            for each in extra.split(","):
                named.setdefault(each, []).append(file.name)
    assert named, "no hint was found"
    assert set(named) <= set(EXTRAS), {name: files for name, files in named.items() if name not in EXTRAS}
