"""Where weights lie: in files that real writers made, and in bytes that nobody did."""

from __future__ import annotations

import flatbuffers
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from skerry.api.errors import InvalidError
from skerry.core import weights


def onnx_model(**tensors: np.ndarray) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph).SerializeToString()


def tflite_model(**tensors: np.ndarray) -> bytes:
    """Write as much of a .tflite file as says where the weights are."""
    types = {"float32": 0, "int8": 9, "int32": 2}
    builder = flatbuffers.Builder(1024)

    def table(*fields: tuple[str, int]) -> int:
        builder.StartObject(8)
        for slot, (kind, value) in enumerate(fields):
            if kind == "offset" and value:
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
            elif kind == "i8":
                builder.PrependInt8Slot(slot, value, 0)
            elif kind == "u32":
                builder.PrependUint32Slot(slot, value, 0)
        return builder.EndObject()

    def vector(items: list[int]) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    contents = [0, *(builder.CreateByteVector(array.tobytes()) for array in tensors.values())]
    buffers = vector([table(("offset", content)) for content in contents])
    names = [builder.CreateString(name) for name in tensors]
    described = [
        table(("none", 0), ("i8", types[str(array.dtype)]), ("u32", index + 1), ("offset", name))
        for index, (array, name) in enumerate(zip(tensors.values(), names, strict=True))
    ]
    graphs = vector([table(("offset", vector(described)))])
    builder.Finish(
        table(("u32", 3), ("none", 0), ("offset", graphs), ("none", 0), ("offset", buffers)), file_identifier=b"TFL3"
    )
    return bytes(builder.Output())


ARRAYS: dict[str, np.ndarray] = {
    "conv.weight": np.arange(300, dtype=np.float32),
    "fc.weight": np.arange(-60, 60, dtype=np.int8),
    "fc.bias": np.arange(10, dtype=np.int32),
}


@pytest.mark.parametrize(("format_", "write"), [("onnx", onnx_model), ("tflite", tflite_model)])
def test_every_tensor_is_found_where_its_bytes_are(format_, write):
    content = write(**ARRAYS)
    found = {one.name: one for one in weights.read_layout(content, format_)}
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        one = found[name]
        assert content[one.offset : one.offset + one.length] == array.tobytes()
        assert (one.width, one.signed) == (array.itemsize, array.dtype == np.int8)


def test_a_real_tflite_writer_is_not_needed_to_refuse_what_is_none():
    with pytest.raises(InvalidError):
        weights.read_layout(b"\x10\0\0\0TFL4" + bytes(100), "tflite")


def test_other_formats_have_no_layout():
    assert weights.read_layout(b"PK\x03\x04", "torchscript") == []


@given(raw=st.binary(max_size=300), format_=st.sampled_from(["onnx", "tflite"]))
def test_no_bytes_break_the_readers(raw, format_):
    check(raw if format_ == "onnx" else raw[:4] + b"TFL3" + raw[4:], format_)


@given(data=st.data(), format_=st.sampled_from(["onnx", "tflite"]))
def test_no_damage_breaks_the_readers(data, format_):
    raw = bytearray((onnx_model if format_ == "onnx" else tflite_model)(a=ARRAYS["fc.weight"], b=ARRAYS["fc.bias"]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(raw), format_)


def check(raw: bytes, format_: str) -> None:
    """Whatever is found lies within the file, in order, and nothing within another."""
    try:
        found = weights.read_layout(raw, format_)
    except InvalidError:
        return
    at = 0
    for one in found:
        assert at <= one.offset
        at = one.offset + one.length
        assert one.length > 0
        assert one.length % one.width == 0
    assert at <= len(raw)


def test_onnx_itself_agrees():
    assert onnx.load_model_from_string(onnx_model(**ARRAYS)).graph.initializer[0].name == "conv.weight"
