"""TensorFlow Lite files: names and order as the signature has them, weights aligned, nothing taken on trust."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, TooLargeError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.optimize import graph
from skerry.optimize.passes import lower, tflite_file


def made() -> bytes:
    builder = Builder((12,))
    builder.gemm(12, 5)
    builder.add("Relu")
    raw = builder.raw((5,))
    return lower.to_tflite(raw, graph.signature(graph.parse(raw)))


CONTENT = made()


def signature(*, datatype: str = "FP32", shape: tuple[int, ...] = (-1, 5), name: str = "scores") -> ModelSignature:
    return ModelSignature(
        inputs=[TensorSpec(name="features", datatype="FP32", shape=[-1, 12])],
        outputs=[TensorSpec(name=name, datatype=datatype, shape=list(shape))],
    )


def test_tensors_get_the_signatures_names() -> None:
    renamed = tflite_file.renamed(CONTENT, signature())
    assert tflite_file.signature(tflite_file.read(renamed)) == signature()
    assert tflite_file.renamed(renamed, signature()) == renamed


def test_inner_tensors_do_not_share_a_name_with_the_models_ends() -> None:
    model = tflite_file.read(CONTENT)
    inner = next(
        tensor
        for index, tensor in enumerate(model.subgraphs[0].tensors)
        if index not in [*model.subgraphs[0].inputs, *model.subgraphs[0].outputs]
    )
    inner.name = b"scores"
    renamed = tflite_file.read(tflite_file.renamed(tflite_file.write(model), signature()))
    names = [tensor.name for tensor in renamed.subgraphs[0].tensors]
    assert names.count(b"scores") == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (signature(datatype="INT64"), "output scores: is FP32 [-1, 5] in the file, INT64 [-1, 5] in the model"),
        (signature(shape=(-1, 6)), "output scores: is FP32 [-1, 5] in the file, FP32 [-1, 6] in the model"),
        (
            ModelSignature(inputs=signature().inputs * 2, outputs=signature().outputs),
            "model: has 1 inputs, the signature has 2",
        ),
    ],
)
def test_what_does_not_agree_is_named(wanted: ModelSignature, said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        tflite_file.renamed(CONTENT, wanted)
    assert caught.value.sentence == said


def test_names_tell_tensors_apart_where_the_order_differs() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=[1])
    model = tflite_file.read(CONTENT)
    ends = [(TensorSpec(name=name, datatype="FP32", shape=[1]), index) for name, index in (("b", 0), ("a", 1))]
    model.subgraphs[0].inputs = [1, 0]
    model.signatureDefs = [tflite_file.signature_of(ends, [(spec, 2)])]
    assert [found.name for found in tflite_file.signature(model).inputs] == ["b", "a"]


def test_outputs_are_in_the_order_of_the_numbers_in_their_names() -> None:
    model = tflite_file.read(CONTENT)
    outputs = [(TensorSpec(name=f"output_{number}", datatype="FP32", shape=[1]), 0) for number in (10, 2, 0)]
    model.subgraphs[0].outputs = [0, 0, 0]
    model.signatureDefs = [tflite_file.signature_of([(outputs[0][0], 0)], outputs)]
    assert [found.name for found in tflite_file.signature(model).outputs] == ["output_0", "output_2", "output_10"]


def test_weights_are_aligned() -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(CONTENT, 0)
    filled = [model.Buffers(i) for i in range(model.BuffersLength()) if model.Buffers(i).DataLength()]
    assert len(filled) >= 2
    whole = np.frombuffer(CONTENT, np.uint8)
    for buffer in filled:
        start = buffer.DataAsNumpy().__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        assert start % 16 == 0


def test_weights_behind_the_flatbuffer_are_brought_in() -> None:
    model = tflite_file.read(CONTENT)
    largest = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    data, largest.data = bytes(largest.data), None
    shell = tflite_file.write(model)
    largest.offset, largest.size = 4096, len(data)
    assert len(tflite_file.write(model)) < 4096
    outside = tflite_file.write(model).ljust(4096, b"\0") + data
    again = tflite_file.read(outside)
    assert any(buffer.data is not None and bytes(buffer.data) == data for buffer in again.buffers)
    assert len(shell) < len(CONTENT)
    with pytest.raises(InvalidError, match="damaged"):
        tflite_file.read(outside[:-1])


@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 255))
def test_a_damaged_file_is_a_sentence_or_a_file(position: int, value: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[position] = value
    with contextlib.suppress(InvalidError, TooLargeError):
        tflite_file.read(tflite_file.renamed(bytes(damaged), signature()))


@given(st.binary(max_size=200))
def test_what_is_no_such_file_is_a_sentence(content: bytes) -> None:
    with pytest.raises(InvalidError):
        tflite_file.read(content)
    with pytest.raises(InvalidError):
        tflite_file.read(content[:4].ljust(4, b"\0") + tflite_file.IDENTIFIER + content[4:])
