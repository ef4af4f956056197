"""ONNX Runtime behind the engines' port, with real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from skerry.api.errors import InvalidError, NotFoundError, UnavailableError, UnsupportedError
from skerry.api.kinds.tensors import Datatype, ModelSignature, TensorSpec
from skerry.serve import engines, tensors
from skerry.serve.dataplane import DataPlane, ModelSettings


def plane(file: Path, signature: ModelSignature, *, engine: str = "onnxruntime", threads: int = 1) -> DataPlane:
    return DataPlane(
        ModelSettings(name="m", version="v1", file=file, signature=signature, engine=engine, threads=threads)
    )


def test_the_model_computes_what_onnx_runtime_computes(digits: tuple[Path, ModelSignature]) -> None:
    served = plane(*digits)
    assert not served.ready
    served.load()
    assert served.ready
    assert served.load_seconds > 0
    image = np.random.default_rng(5).random((3, 1, 8, 8), dtype=np.float32)
    [(name, scores)] = served.infer({"image": image}, ["scores"]).outputs
    assert name == "scores"
    expected = onnxruntime.InferenceSession(digits[0]).run(["scores"], {"image": image})[0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    served.unload()
    with pytest.raises(UnavailableError, match="not ready"):
        served.infer({"image": image}, ["scores"])


@pytest.mark.parametrize(
    "datatype",
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"],
)
def test_every_datatype_goes_in_and_comes_out(
    identity: Callable[[Datatype], tuple[Path, ModelSignature]], datatype: Datatype
) -> None:
    served = plane(*identity(datatype))
    served.load()
    array = np.array([["a", "ä"]], dtype=object) if datatype == "BYTES" else tensors.zeros(datatype, [1, 2]) + 1
    if datatype == "BOOL":
        array = np.array([[True, False]])
    data = memoryview(tensors.to_binary(array))
    given = tensors.from_binary(data, datatype, [1, 2], element="a")
    [(_, result)] = served.infer({"a": given}, ["b"]).outputs
    assert tensors.datatype_of(result) == datatype
    assert result.tolist() == array.tolist()


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x09" * 1000])
def test_a_file_that_is_no_model_is_said(tmp_path: Path, digits: tuple[Path, ModelSignature], content: bytes) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    served = plane(file, digits[1])
    with pytest.raises(InvalidError, match=r"broken\.onnx: is not a model that ONNX Runtime can load") as caught:
        served.load()
    assert "\n" not in caught.value.sentence
    assert "ONNXRuntimeError" not in caught.value.sentence
    assert not served.ready


def test_a_model_cut_short_is_said(tmp_path: Path, digits: tuple[Path, ModelSignature]) -> None:
    file = tmp_path / "short.onnx"
    file.write_bytes(digits[0].read_bytes()[:-100])
    with pytest.raises(InvalidError, match="is not a model"):
        plane(file, digits[1]).load()


def test_a_file_that_is_not_there_is_said(tmp_path: Path, digits: tuple[Path, ModelSignature]) -> None:
    for file in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(NotFoundError, match="no such file"):
            plane(file, digits[1]).load()


def changed(signature: ModelSignature, side: str, **fields: object) -> ModelSignature:
    tensor: TensorSpec = msgspec.structs.replace(getattr(signature, side)[0], **fields)
    return msgspec.structs.replace(signature, **{side: [tensor]})


@pytest.mark.parametrize(
    ("side", "fields", "words"),
    [
        ("inputs", {"name": "picture"}, r'has no input "picture", but \[\'image\'\]'),
        ("outputs", {"name": "labels"}, 'has no output "labels"'),
        ("inputs", {"datatype": "UINT8"}, 'input "image" is FP32, the signature says UINT8'),
        ("inputs", {"shape": [-1, 3, 8, 8]}, r"has shape \[-1, 1, 8, 8\], the signature says \[-1, 3, 8, 8\]"),
        ("outputs", {"shape": [10]}, 'output "scores" has shape'),
    ],
)
def test_a_model_that_is_not_as_its_signature_says_is_refused(
    digits: tuple[Path, ModelSignature], side: str, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidError, match=words):
        plane(digits[0], changed(digits[1], side, **fields)).load()


def test_an_input_the_model_fails_on_is_a_clear_error(digits: tuple[Path, ModelSignature]) -> None:
    served = plane(*digits)
    served.load()
    with pytest.raises(InvalidError, match="the model failed on this input"):
        served.infer({"image": np.zeros((1, 2, 8, 8), dtype=np.float32)}, ["scores"])


def test_an_engine_that_is_not_there_is_said(digits: tuple[Path, ModelSignature]) -> None:
    with pytest.raises(
        UnsupportedError, match="tensorrt: is not an engine; known are: executorch, litert, onnxruntime, torchscript"
    ):
        plane(*digits, engine="tensorrt").load()
    assert engines.names() == ["executorch", "litert", "onnxruntime", "torchscript"]


def test_names_and_versions_are_held_against_the_model(digits: tuple[Path, ModelSignature]) -> None:
    served = plane(*digits)
    served.require("m")
    served.require("m", "v1")
    with pytest.raises(NotFoundError, match='model "x": is not served here; this is m'):
        served.require("x")
    with pytest.raises(NotFoundError, match='version "v2" of m: is not served here; this is v1'):
        served.require("m", "v2")
