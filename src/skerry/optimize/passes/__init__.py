"""Model to variant: for each format and precision the recipes that can make it, best first.

When one costs too much accuracy, the factory tries the next. Each format has a module with its table (`onnx`), each
pass one of its own; `material` says what a recipe is given. Importing this package loads no machine-learning library.
Must not live here: judging the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.api.kinds.variants import Format, Precision
from skerry.optimize.passes import onnx
from skerry.optimize.passes.material import Form, Inputs, Material, Recipe

RECIPES: Mapping[tuple[Format, Precision], Sequence[Recipe]] = {
    **{("onnx", precision): recipes for precision, recipes in onnx.TABLE.items()},
}

__all__ = ["RECIPES", "Form", "Inputs", "Material", "Recipe"]
