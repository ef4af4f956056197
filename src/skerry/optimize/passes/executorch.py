"""ExecuTorch (`.pte`, XNNPACK): for each precision the recipes that make it, best first. What succeeded PyTorch Mobile.

| recipe | what it does |
|---|---|
| `xnnpack` | float32 |
| `xnnpack-per-channel` | int8: weights per output channel, activations by observed ranges |
| `xnnpack-per-tensor` | int8: one range per weight |
| `graph-...` | the same, from the ONNX graph as a module (`torch_graph`): for what is no PyTorch module |

A program holds no tensor names: they are the model signature's, by position. Its batch is fixed when it is made: 1.
Must not live here: making the files (`pte`), whose libraries are imported when a recipe runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from skerry.api.kinds.variants import Precision
from skerry.optimize.passes.material import Material, Recipe


def _plain(material: Material) -> None:
    from skerry.optimize.passes import pte  # noqa: PLC0415 - heavy

    pte.plain(material)


def _quantised(*, per_channel: bool) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import pte  # noqa: PLC0415 - heavy

        pte.quantised(material, per_channel=per_channel)

    return build


def _every(name: str, build: Callable[[Material], None]) -> tuple[Recipe, Recipe]:
    def of_graph(material: Material) -> None:
        from skerry.optimize.passes import torch_graph  # noqa: PLC0415 - heavy

        build(torch_graph.as_torch(material))

    requires, extra = ("torch", "executorch", "torchao"), "executorch"
    return (
        Recipe(name=name, form="torch", build=build, requires=requires, extra=extra),
        Recipe(name=f"graph-{name}", form="onnx", build=of_graph, requires=requires, extra=extra),
    )


TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": _every("xnnpack", _plain),
    "int8": (
        *_every("xnnpack-per-channel", _quantised(per_channel=True)),
        *_every("xnnpack-per-tensor", _quantised(per_channel=False)),
    ),
}
