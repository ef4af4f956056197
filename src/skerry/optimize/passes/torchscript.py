"""TorchScript: for each precision the recipes that make it, best first. PyTorch Mobile's format; deprecated, still run.

| recipe | what it does |
|---|---|
| `traced` | records one run; refused when other batch sizes than the recorded one come out differently |
| `scripted` | compiles the Python code of forward(), control flow included |
| `lite-interpreter` | as `traced`, with the bytecode that PyTorch Mobile's interpreter reads beside `torch.jit.load` |
| `dynamic-linear` | 8-bit weights of linear and recurrent layers, ranges of activations found at each run |
| `graph-...` | the same, from the ONNX graph as a module (`torch_graph`): for what is no PyTorch module |

The lite interpreter's file is made only where a variant's options name its recipe. Must not live here: making the
files (`trace`), whose library is imported when a recipe runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from skerry.api.kinds.variants import Precision
from skerry.optimize.passes.material import Form, Material, Recipe


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


def _every(name: str, build: Callable[[Material], None], *, by_name: bool = False) -> tuple[Recipe, Recipe]:
    def of_graph(material: Material) -> None:
        from skerry.optimize.passes import torch_graph  # noqa: PLC0415 - heavy

        build(torch_graph.as_torch(material))

    return (
        _recipe(name, "torch", build, by_name=by_name),
        _recipe(f"graph-{name}", "onnx", of_graph, by_name=by_name),
    )


def _recipe(name: str, form: Form, build: Callable[[Material], None], *, by_name: bool = False) -> Recipe:
    return Recipe(
        name=name,
        form=form,
        build=build,
        requires=("torch",),
        extra="torch" if form == "torch" else "torchscript",  # a graph needs no exporter
        asked=lambda options: not by_name or options.recipe == name,
    )


_TRACED, _GRAPH_TRACED = _every("traced", _traced)
TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": (
        _TRACED,
        _recipe("scripted", "torch", _scripted),
        _GRAPH_TRACED,
        *_every("lite-interpreter", _lite, by_name=True),
    ),
    "int8-dynamic": _every("dynamic-linear", _dynamic),
}
