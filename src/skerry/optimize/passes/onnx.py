"""ONNX: for each precision the recipes that make it, best first.

Lives here: the table, and for each recipe the way from `Material` to a file. Must not live here: the passes themselves,
which are imported when they run, so that the table can be read where their libraries are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.variants import Precision
from skerry.optimize import runtimes
from skerry.optimize.passes.material import Material, Recipe, first

if TYPE_CHECKING:
    import onnx

    from skerry.optimize.passes.ranges import Method, Range

REQUIRES = ("onnx", "onnxruntime", "onnxconverter-common", "onnxslim")
EXTRA = "factory"
LOADS = ("skerry.optimize.graph", "skerry.optimize.passes.quantize", "skerry.optimize.passes.ranges")
MATRICES = ("Gemm", "LSTM", "MatMul")
"""Operators that gain from dynamic quantisation; convolutions become several times slower (ConvInteger)."""
SEARCH = "static-qdq-sensitivity"


def _recipe(name: str, build: Callable[[Material], None], **more: Any) -> Recipe:
    return Recipe(name=name, form="onnx", build=build, requires=REQUIRES, extra=EXTRA, loads=LOADS, **more)


def _graph(material: Material) -> bytes:
    """Return the graph that all recipes start from, in the opset of the oldest engine."""
    from skerry.optimize import graph  # noqa: PLC0415 - heavy
    from skerry.optimize.passes import opset  # noqa: PLC0415 - heavy

    raw: bytes = material.load()
    if not material.options.oldest_onnxruntime:
        return raw
    return graph.serialise(opset.lower(graph.parse(raw), material.options.oldest_onnxruntime))


def _plain(material: Material) -> None:
    material.out.write_bytes(_graph(material))


def _half(*, keep_sensitive: bool) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import half  # noqa: PLC0415 - heavy

        keep = material.options.keep_layers
        material.out.write_bytes(half.convert(_graph(material), keep_sensitive=keep_sensitive, keep_layers=keep))

    return build


def _dynamic(operators: Sequence[str]) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import layers, quantize  # noqa: PLC0415 - heavy

        model = quantize.prepare(_graph(material))
        exclude = layers.matching(model, material.options.keep_layers)
        material.out.write_bytes(quantize.dynamic(model, operators=operators, exclude=exclude))

    return build


def _int4(material: Material) -> None:
    from skerry.optimize.passes import int4, layers, quantize  # noqa: PLC0415 - heavy

    oldest = material.options.oldest_onnxruntime
    if oldest and runtimes.newest(oldest) < runtimes.newest(int4.LEAST_ONNXRUNTIME):
        cause = f"ONNX Runtime {oldest} has no kernel for 4-bit weights"
        hint = f"leave int4 out, or raise it to {int4.LEAST_ONNXRUNTIME}"
        raise UnsupportedError(cause, element="oldestOnnxruntime", hint=hint)
    model = quantize.prepare(_graph(material))
    exclude = layers.matching(model, material.options.keep_layers)
    material.out.write_bytes(int4.convert(model, block_size=material.options.block_size, exclude=exclude))


def _static(*, per_channel: bool, method: Method = "min-max", float_ends: bool = False) -> Callable[[Material], None]:
    def build(material: Material) -> None:
        from skerry.optimize.passes import layers, quantize  # noqa: PLC0415 - heavy

        options = material.options
        model, bounds = _calibrated(material, method)
        exclude = layers.matching(model, options.keep_layers) + (layers.ends(model) if float_ends else [])
        channels = per_channel if options.per_channel is None else options.per_channel
        material.out.write_bytes(quantize.static(model, bounds, per_channel=channels, exclude=exclude))

    return build


def _search(material: Material) -> None:
    from skerry.optimize.passes import sensitivity  # noqa: PLC0415 - heavy

    wanted, judge = material.options.sensitivity, material.drop
    if wanted is None or judge is None:
        raise UnsupportedError("was not asked for", element=SEARCH, hint="add sensitivity to the variant's options")
    model, bounds = _calibrated(material, "min-max")

    def drop(content: bytes) -> float:
        material.out.write_bytes(content)
        return judge(material.out)

    found = sensitivity.search(
        model,
        bounds,
        first(material.calibration, wanted.samples),
        drop=drop,
        allowed=material.allowed_drop,
        most=wanted.most_layers,
    )
    material.out.write_bytes(found.content)
    material.detail.update(
        {
            "float layers": ", ".join(found.kept),
            "layers measured": str(found.measured),
            "files judged": str(found.evaluations),
            "drop": f"{found.drop:.4f}",
            "bytes": f"{len(found.content)} instead of {found.size_without} with all layers in int8",
        }
    )


def _calibrated(material: Material, method: Method) -> tuple[onnx.ModelProto, Mapping[str, Range]]:
    from skerry.optimize.passes import layers, quantize, ranges  # noqa: PLC0415 - heavy

    options = material.options
    model = quantize.prepare(_graph(material))
    if not layers.heavy(model):
        raise InvalidError("has no layer whose weights can be int8", hint="leave int8 out of --variants")
    samples = first(material.calibration, options.calibration_samples)
    method = options.calibration or method
    return model, ranges.measure(model, samples, method=method, percentile=options.percentile)


TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": (_recipe("exported", _plain),),
    "fp16": (
        _recipe("float16", _half(keep_sensitive=False)),
        _recipe("float16-sensitive-float32", _half(keep_sensitive=True)),
    ),
    "int8": (
        _recipe("static-qdq-per-channel", _static(per_channel=True)),
        _recipe("static-qdq-per-tensor", _static(per_channel=False)),
        _recipe("static-qdq-percentile", _static(per_channel=True, method="percentile")),
        _recipe("static-qdq-entropy", _static(per_channel=True, method="entropy")),
        _recipe("static-qdq-float-ends", _static(per_channel=True, float_ends=True)),
        _recipe(SEARCH, _search, asked=lambda options: options.sensitivity is not None),
    ),
    "int8-dynamic": (
        _recipe("dynamic-matrices", _dynamic(MATRICES)),
        _recipe("dynamic-all", _dynamic((*MATRICES, "Conv"))),
    ),
    "int4": (_recipe("weights-int4", _int4),),
}
