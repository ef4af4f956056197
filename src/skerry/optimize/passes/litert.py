"""TensorFlow Lite (LiteRT, `.tflite`): for each precision the recipes that make it, best first.

A float32 file comes from the source by one of four ways; the first that fits the source is taken:

| way | from | how |
|---|---|---|
| `keras` | a Keras model | TensorFlow's converter, which also lowers the precision |
| `graph` | any source that has an ONNX graph | operator by operator (`lower`); no further library, any batch size |
| `litert-torch` | a PyTorch module | Google's converter, in a toolchain of its own; batch 1 |
| `given` | a `.tflite` file | as it is |

All but `keras` lower the precision with ai-edge-quantizer. Inputs and outputs stay as the source has them. Activations
in 16 bits (`...-static-int16-activations`) are slow and not always right: made only where they are named. Must not
live here: making the files, whose libraries are imported when a recipe runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skerry.api.errors import InvalidError
from skerry.api.kinds.variants import Precision
from skerry.optimize.passes.material import Form, Material, Recipe

_LITERT = ("ai-edge-litert",)
TOOLCHAIN = "litert-torch"
_Lowering = Callable[[bytes, Material], bytes]


def _float_from_graph(material: Material) -> bytes:
    from skerry.optimize.passes import lower  # noqa: PLC0415 - heavy
    from skerry.optimize.passes.lower import agreement  # noqa: PLC0415 - heavy

    graph = material.load()
    content = lower.to_tflite(graph, material.signature)
    agreement.check(content, graph, material.inputs_sample)
    return content


def _float_from_torch(material: Material) -> bytes:
    from skerry.optimize import toolchains  # noqa: PLC0415 - heavy
    from skerry.optimize.passes import module  # noqa: PLC0415 - heavy

    return toolchains.torch_to_tflite(module.program(material.load(), material.inputs_sample))


def _given(material: Material) -> bytes:
    content: bytes = material.load()
    return content


def _quantised(content: bytes, _material: Material) -> bytes:
    """Return a given file that is in int8 already. Raises InvalidError."""
    from skerry.optimize.passes import tflite_file  # noqa: PLC0415 - heavy

    if not tflite_file.has_int8_weights(content):
        raise InvalidError("has no int8 weights as it is", element="model")
    return content


def _lowered(way: str, **how: Any) -> _Lowering:
    def lower(content: bytes, material: Material) -> bytes:
        from skerry.optimize.passes import tflite_quantise  # noqa: PLC0415 - heavy

        change: Callable[..., bytes] = getattr(tflite_quantise, way)
        return change(content, material, **how)

    return lower


def _recipe(name: str, form: Form, lowering: _Lowering | None = None, *, by_name: bool = False) -> Recipe:
    """Return a recipe that makes the float32 file, names its tensors, then lowers the precision.

    One that is `by_name` is taken only where a variant's options name it.
    """
    make, requires = _WAYS[form]

    def build(material: Material) -> None:
        from skerry.optimize.passes import tflite_file  # noqa: PLC0415 - heavy

        content = tflite_file.renamed(make(material), material.signature)
        if lowering is not None:
            content = tflite_file.renamed(lowering(content, material), material.signature)
        material.out.write_bytes(content)

    return Recipe(
        name=name,
        form=form,
        build=build,
        requires=requires if lowering in {None, _quantised} else (*requires, "ai-edge-quantizer"),
        extra="torch" if form == "torch" else "factory",
        toolchain=TOOLCHAIN if form == "torch" else "",
        asked=lambda options: not by_name or options.recipe == name,
    )


def _keras(name: str, way: str) -> Recipe:
    def build(material: Material) -> None:
        from skerry.optimize.passes import tflite_file, tflite_keras  # noqa: PLC0415 - heavy

        convert: Callable[[Any, Material], bytes] = getattr(tflite_keras, way)
        material.out.write_bytes(tflite_file.renamed(convert(material.load(), material), material.signature))

    return Recipe(name=name, form="keras", build=build, requires=("keras", *_LITERT), extra="tensorflow")


_WAYS: Mapping[Form, tuple[Callable[[Material], bytes], tuple[str, ...]]] = {
    "onnx": (_float_from_graph, ("onnx", "onnxruntime", *_LITERT)),
    "torch": (_float_from_torch, ("torch", *_LITERT)),
    "tflite": (_given, _LITERT),
}
_WORDS: Mapping[Form, str] = {"onnx": "graph", "torch": "litert-torch", "tflite": "given"}


def _every(word: str, lowering: _Lowering | None, *, by_name: bool = False) -> tuple[Recipe, ...]:
    return tuple(_recipe(f"{source}{word}", form, lowering, by_name=by_name) for form, source in _WORDS.items())


TABLE: Mapping[Precision, Sequence[Recipe]] = {
    "fp32": (_keras("keras", "plain"), *_every("", None)),
    "fp16": (_keras("keras-float16", "half"), *_every("-float16", _lowered("half"))),
    "int8-dynamic": (_keras("keras-dynamic-range", "dynamic"), *_every("-dynamic-range", _lowered("dynamic"))),
    "int8": (
        _keras("keras-static", "static"),
        _recipe("given-int8", "tflite", _quantised),
        *_every("-static-per-channel", _lowered("static")),
        *_every("-static-averaged-ranges", _lowered("static", averaged=True)),
        *_every("-static-per-tensor", _lowered("static", per_channel=False)),
        *_every("-static-int16-activations", _lowered("static", activation_bits=16), by_name=True),
    ),
    "int4": (
        *_every("-weights-int4", _lowered("four_bits")),
        *_every("-weights-int4-per-channel", _lowered("four_bits", in_blocks=False)),
    ),
}
