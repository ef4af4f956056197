"""Model to variant: for each format and precision the recipes that can make it, best first.

When one costs too much accuracy, the factory tries the next. Each format has a module with its table (`onnx`), each
pass one of its own; `material` says what a recipe is given. Importing this package loads no machine-learning library.
Must not live here: judging the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.variants import Format, Precision
from skerry.optimize.passes import executorch, litert, onnx, torchscript
from skerry.optimize.passes.material import Form, Inputs, Material, Recipe
from skerry.optimize.recipe import VariantOptions

RECIPES: Mapping[tuple[Format, Precision], Sequence[Recipe]] = {
    **{("onnx", precision): recipes for precision, recipes in onnx.TABLE.items()},
    **{("tflite", precision): recipes for precision, recipes in litert.TABLE.items()},
    **{("executorch", precision): recipes for precision, recipes in executorch.TABLE.items()},
    **{("torchscript", precision): recipes for precision, recipes in torchscript.TABLE.items()},
}


def recipes(form: Format, precision: Precision, options: VariantOptions) -> Sequence[Recipe]:
    """Return the recipes for a variant, best first: the one its options name, or all that fit them.

    Raises UnsupportedError when the format has no such precision, InvalidError for a recipe that it does not have.
    """
    table = RECIPES.get((form, precision))
    if table is None:
        known = ", ".join(other for kind, other in RECIPES if kind == form) or "none"
        raise UnsupportedError(f"{form} has no {precision}", element=f"{form}-{precision}", hint=f"it has {known}")
    if not options.recipe:
        return [recipe for recipe in table if recipe.asked(options)]
    named = [recipe for recipe in table if recipe.name == options.recipe]
    if not named:
        hint = f"recipes are {', '.join(recipe.name for recipe in table)}"
        raise InvalidError("there is no such recipe", element=f"recipe {options.recipe[:80]}", hint=hint)
    return named


__all__ = ["RECIPES", "Form", "Inputs", "Material", "Recipe", "recipes"]
