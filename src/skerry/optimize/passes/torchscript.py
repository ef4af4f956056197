"""TorchScript: for each precision the recipes that make it, best first. PyTorch Mobile's format; deprecated, still run.

| recipe | what it does |
|---|---|
| `traced` | records one run; refused when other batch sizes than the recorded one come out differently |
| `scripted` | compiles the Python code of forward(), control flow included |
| `lite-interpreter` | as `traced`, with the bytecode that PyTorch Mobile's interpreter reads beside `torch.jit.load` |
| `dynamic-linear` | 8-bit weights of linear and recurrent layers, ranges of activations found at each run |

The lite interpreter's file is made only where a variant's options name that recipe. Must not live here: making the
files (`trace`), whose library is imported when a recipe runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.api.kinds.variants import Precision
from skerry.optimize.passes.material import Material, Recipe


def _traced(material: Material) -> None:
    from skerry.optimize.passes import trace  # noqa: PLC0415 - heavy

    trace.traced(material)


def _scripted(material: Material) -> None:
    from skerry.optimize.passes import trace  # noqa: PLC0415 - heavy

    trace.scripted(material)


def _lite(material: Material) -> None:
    from skerry.optimize.passes import trace  # noqa: PLC0415 - heavy

    trace.lite(material)


def _dynamic(material: Material) -> None:
    from skerry.optimize.passes import trace  # noqa: PLC0415 - heavy

    trace.dynamic(material)


TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": (
        Recipe(name="traced", form="torch", build=_traced, requires=("torch",), extra="torch"),
        Recipe(name="scripted", form="torch", build=_scripted, requires=("torch",), extra="torch"),
        Recipe(
            name="lite-interpreter",
            form="torch",
            build=_lite,
            requires=("torch",),
            extra="torch",
            asked=lambda options: options.recipe == "lite-interpreter",
        ),
    ),
    "int8-dynamic": (Recipe(name="dynamic-linear", form="torch", build=_dynamic, requires=("torch",), extra="torch"),),
}
