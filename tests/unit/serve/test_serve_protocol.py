"""Whole requests and responses: the protocol's JSON, the binary extension, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import BadRequestError, InvalidError, SkerryError, TooLargeError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve import protocol
from skerry.serve.dataplane import Inference
from skerry.serve.signature import SignatureCheck

SIGNATURE = ModelSignature(
    inputs=[
        TensorSpec(name="a", datatype="FP32", shape=[-1, 2]),
        TensorSpec(name="b", datatype="INT64", shape=[2]),
    ],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1]), TensorSpec(name="h", datatype="FP16", shape=[1])],
)
CHECK = SignatureCheck(SIGNATURE)
A = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]}
B = {"name": "b", "datatype": "INT64", "shape": [2], "data": [3, 4]}


def decode(body: bytes, header: int | None = None, limit: int = 100_000) -> protocol.InferRequest:
    return protocol.decode(body, header, CHECK, max_json_bytes=limit)


def body(**fields: Any) -> bytes:
    return json.dumps({"inputs": [A, B], **fields}).encode()


def test_a_request_as_json() -> None:
    request = decode(body(id="42", outputs=[{"name": "y"}], model_name="ignored", parameters={"x": 1}))
    assert request.id == "42"
    assert request.outputs == ["y"]
    assert request.binary == frozenset()
    np.testing.assert_array_equal(request.inputs["a"], np.array([[1.5, 2]], dtype=np.float32))
    np.testing.assert_array_equal(request.inputs["b"], np.array([3, 4]))


def test_without_outputs_all_are_meant() -> None:
    assert decode(body()).outputs == ["y", "h"]
    assert decode(body(outputs=[])).outputs == ["y", "h"]


def test_binary_and_json_inputs_may_be_mixed_in_any_order() -> None:
    b = {**B, "parameters": {"binary_data_size": 16}}
    del b["data"]
    head = json.dumps({"inputs": [b, A]}).encode()
    request = decode(head + np.array([7, 8]).tobytes(), len(head))
    assert request.inputs["b"].tolist() == [7, 8]
    assert request.inputs["a"].tolist() == [[1.5, 2]]


@pytest.mark.parametrize(
    ("parameters", "output", "expected"),
    [
        ({}, {}, set()),
        ({"binary_data_output": True}, {}, {"y"}),
        ({"binary_data_output": True}, {"binary_data": False}, set()),
        ({}, {"binary_data": True}, {"y"}),
    ],
)
def test_which_outputs_are_binary(parameters: dict[str, bool], output: dict[str, bool], expected: set[str]) -> None:
    request = decode(body(parameters=parameters, outputs=[{"name": "y", "parameters": output}]))
    assert request.binary == expected


def test_the_response_in_json_and_in_binary() -> None:
    request = decode(body(id="42", parameters={"binary_data_output": True}, outputs=[{"name": "h"}, {"name": "y"}]))
    half, single = np.array([0.5], dtype=np.float16), np.array([1, 2], dtype=np.float32)
    inference = Inference(outputs=[("h", half), ("y", single)], engine_seconds=0)
    encoded = protocol.encode(request, inference, model="m", version="v1")
    assert json.loads(encoded.json) == {
        "model_name": "m",
        "model_version": "v1",
        "id": "42",
        "outputs": [
            {"name": "h", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
            {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
        ],
    }
    assert b"".join(encoded.binary) == half.tobytes() + single.tobytes()


def test_a_response_without_an_id_has_none_and_no_number_is_null() -> None:
    request = decode(body(outputs=[{"name": "y"}]))
    array = np.array([np.nan, np.inf, 0.5], dtype=np.float32)
    encoded = protocol.encode(request, Inference(outputs=[("y", array)], engine_seconds=0), model="m", version="v1")
    assert json.loads(encoded.json) == {
        "model_name": "m",
        "model_version": "v1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [None, None, 0.5]}],
    }


@pytest.mark.parametrize("field", ["id", "parameters", "outputs"])
def test_an_optional_field_that_is_null_is_one_that_is_absent(field: str) -> None:
    decoded = decode(body(**{field: None}))
    assert (decoded.id, decoded.outputs, decoded.binary) == ("", ["y", "h"], frozenset())


def test_parameters_of_tensors_may_be_null_too() -> None:
    decoded = decode(body(inputs=[{**A, "parameters": None}, B], outputs=[{"name": "y", "parameters": None}]))
    assert (decoded.outputs, decoded.binary) == (["y"], frozenset())


def binary(size: object, **fields: object) -> dict[str, object]:
    return {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}, **fields}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": []}', 'inputs: the model also needs "a", "b"'),
        (body(inputs=[A]), 'the model also needs "b"'),
        (body(inputs=[A, B, A]), "the same input is given twice"),
        (body(inputs=[A, B, {**A, "name": "c"}]), 'input "c": the model has no such input, but "a", "b"'),
        (body(inputs=[{**A, "datatype": "FP64"}, B]), 'input "a": has datatype FP64, the model takes FP32'),
        (body(inputs=[{**A, "datatype": "BF16"}, B]), "has datatype BF16"),
        (body(inputs=[{**A, "shape": [2]}, B]), r"has shape \[2\], the model takes \[-1, 2\]; -1 stands for"),
        (body(inputs=[{**A, "shape": [0, 2]}, B]), "has shape"),
        (body(inputs=[{**A, "shape": [-1, 2]}, B]), "has shape"),
        (body(inputs=[{**A, "shape": [2**62, 2]}, B]), "has shape"),
        (body(inputs=[{**A, "shape": [1.5, 2]}, B]), "Expected `int`"),
        (body(inputs=[{**A, "shape": [1] * 9}, B]), "length <= 8"),
        (body(inputs=[{"name": "a", "datatype": "FP32", "shape": [1, 2]}, B]), "neither data nor binary_data_size"),
        (body(inputs=[binary(8, data=[1, 2]), B]), "both data and binary_data_size"),
        (body(inputs=[binary(8), B]), "not within the 0 bytes of binary data that are left; is the header"),
        (body(inputs=[binary(-1), B]), "binary_data_size -1"),
        (body(inputs=[binary(True), B]), "binary_data_size True"),
        (body(inputs=[binary("8"), B]), "binary_data_size 8"),
        (body(outputs=[{"name": "z"}]), 'output "z": the model has no such output, but "y", "h"'),
        (body(outputs=[{"name": "y"}, {"name": "y"}]), "the same output is asked for twice"),
        (body(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data: must be true or false"),
        (body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification extension is not"),
        (body(parameters={"binary_data_output": "yes"}), "binary_data_output: must be true or false"),
        (body(parameters={"x": {"y": 1}}), "Expected"),
        (body(parameters={str(i): i for i in range(65)}), "length <= 64"),
        (body(id=7), "Expected `str | null`, got `int`"),
        (body(inputs=None), "Expected `array`, got `null`"),
        (body(inputs=[{**A, "name": None}, B]), "Expected `str`, got `null`"),
        (body(inputs=[{**A, "datatype": None}, B]), "Expected `str`, got `null`"),
        (body(inputs=[{**A, "shape": None}, B]), "Expected `array`, got `null`"),
        (body(inputs=[{**A, "data": None}, B]), 'input "a": data must be one flat array'),
        (body(outputs=[None]), "Expected `object`, got `null`"),
        (body(outputs=[{"name": None}]), "Expected `str`, got `null`"),
        (body(id="x" * 1025), "length <= 1024"),
        (body(inputs=[A] * 65), "length <= 64"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "Expected `object`, got `array`"),
        (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep"),
        (b'{"inputs": [{"name": "a", "data": ' + b"[" * 4000 + b"]" * 4000 + b"}]}", "nested too deep"),
        (b'{"inputs": "\xff"}', "Expected `array`, got `str`"),
        (b'{"inputs": [], "id": "\xff"}', "utf-8"),
    ],
)
def test_a_request_that_does_not_fit_is_said(raw: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as caught:
        decode(raw)
    assert len(caught.value.sentence) < 600


def test_lengths_that_lie_are_said() -> None:
    with pytest.raises(BadRequestError, match="Inference-Header-Content-Length: is larger than the body"):
        decode(body(), 10_000)
    with pytest.raises(BadRequestError, match="3 bytes of binary data belong to no input"):
        decode(body() + b"abc", len(body()))
    with pytest.raises(TooLargeError, match="the JSON part: is larger than 20 bytes; send large tensors as binary"):
        decode(body(), limit=20)


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_any_bytes_are_a_request_or_refused(raw: bytes, header: int | None) -> None:
    with pytest.raises((BadRequestError, TooLargeError)):
        decode(raw, header)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b", "c"]) | _JSON,
        "datatype": st.sampled_from(["FP32", "INT64"]) | _JSON,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | _JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 20)}) | _JSON,
        "data": st.lists(st.integers() | st.floats(), max_size=6) | _JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(_TENSOR, max_size=3) | _JSON}, optional={"outputs": _JSON, "parameters": _JSON, "id": _JSON}
    ),
    st.binary(max_size=24),
)
def test_any_json_is_a_request_or_refused(request: object, rest: bytes) -> None:
    head = json.dumps(request).encode()
    try:
        decoded = decode(head + rest, len(head))
    except (BadRequestError, TooLargeError):
        return
    assert set(decoded.inputs) == {"a", "b"}


@pytest.mark.parametrize(
    "signature",
    [
        ModelSignature(inputs=[], outputs=SIGNATURE.outputs),
        ModelSignature(inputs=SIGNATURE.inputs, outputs=[]),
        ModelSignature(inputs=SIGNATURE.inputs * 2, outputs=SIGNATURE.outputs),
        ModelSignature(inputs=[TensorSpec(name="a", datatype="FP32", shape=[0])], outputs=SIGNATURE.outputs),
        ModelSignature(inputs=[TensorSpec(name="a", datatype="FP32", shape=[1] * 9)], outputs=SIGNATURE.outputs),
    ],
)
def test_a_signature_that_is_none_is_refused(signature: ModelSignature) -> None:
    with pytest.raises(InvalidError):
        SignatureCheck(signature)


def test_the_errors_have_no_path_of_this_program() -> None:
    with pytest.raises(SkerryError) as caught:
        decode(b"{")
    assert str(Path(protocol.__file__).parent) not in caught.value.sentence
