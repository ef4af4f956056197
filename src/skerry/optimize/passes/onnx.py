"""ONNX: for each precision the recipes that make it, best first.

Lives here: the table, and for each recipe the way from `Material` to a file. Must not live here: the passes themselves,
which are imported when they run, so that the table can be read where their libraries are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from skerry.api.kinds.variants import Precision
from skerry.optimize.dataset import Array
from skerry.optimize.passes.material import Inputs, Material, Recipe

REQUIRES = ("onnx", "onnxruntime", "onnxconverter-common", "onnxslim")
EXTRA = "torch"


def _recipe(name: str, build: Callable[[Material], None]) -> Recipe:
    return Recipe(name=name, form="onnx", build=build, requires=REQUIRES, extra=EXTRA)


def _plain(material: Material) -> None:
    material.out.write_bytes(material.load())


def _half(*, keep_sensitive: bool) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import half  # noqa: PLC0415 - heavy

        material.out.write_bytes(half.convert(material.load(), keep_sensitive=keep_sensitive))

    return build


def _static(
    *, per_channel: bool, percentile: float | None = None, float_ends: bool = False
) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import quantize  # noqa: PLC0415 - heavy

        quantise = quantize.build(per_channel=per_channel, percentile=percentile, float_ends=float_ends)
        material.out.write_bytes(quantise(material.load(), _only(material.calibration)))

    return build


def _only(inputs: Inputs) -> Array:
    (samples,) = inputs.values()
    return samples


TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": (_recipe("exported", _plain),),
    "fp16": (
        _recipe("float16", _half(keep_sensitive=False)),
        _recipe("float16-sensitive-float32", _half(keep_sensitive=True)),
    ),
    "int8": (
        _recipe("static-qdq-per-channel", _static(per_channel=True)),
        _recipe("static-qdq-per-tensor", _static(per_channel=False)),
        _recipe("static-qdq-percentile", _static(per_channel=True, percentile=99.99)),
        _recipe("static-qdq-float-ends", _static(per_channel=True, float_ends=True)),
    ),
}
