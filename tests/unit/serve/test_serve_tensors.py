"""Datatypes on the wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skerry.api.errors import BadRequestError, SkerryError
from skerry.serve import tensors

NUMERIC = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
SHAPES = npst.array_shapes(max_dims=4, max_side=4)


@st.composite
def numeric(draw: st.DrawFn, *, json_form: bool = False) -> tuple[str, tensors.Array]:
    datatype = draw(st.sampled_from([name for name in NUMERIC if not (json_form and name == "FP16")]))
    elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if json_form else {}
    dtype = np.dtype(NUMERIC[datatype])
    array = draw(npst.arrays(dtype, SHAPES, elements=elements if dtype.kind == "f" else None))
    return datatype, array


@given(numeric(json_form=True), st.booleans())
def test_json_brings_every_value_back(case: tuple[str, tensors.Array], nested: bool) -> None:
    datatype, array = case
    data = json.dumps(array.tolist() if nested else array.ravel().tolist()).encode()
    back = tensors.from_json(data, datatype, array.shape, element="x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert tensors.datatype_of(back) == datatype


@given(numeric())
def test_binary_brings_every_value_back_whatever_its_alignment(case: tuple[str, tensors.Array]) -> None:
    datatype, array = case
    data = bytes(tensors.to_binary(array))
    for offset in (0, 1):
        back = tensors.from_binary(memoryview(b"\0" * offset + data)[offset:], datatype, array.shape, element="x")
        assert back.flags.aligned
        assert back.tobytes() == array.tobytes()
        assert back.shape == array.shape


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_bytes_elements_come_back(texts: list[str]) -> None:
    array = np.array(texts, dtype=object)
    data = tensors.to_binary(array)
    back = tensors.from_binary(memoryview(data), "BYTES", [len(texts)], element="x")
    assert back.tolist() == texts
    as_json = json.dumps(tensors.to_json(array, element="x")).encode()
    assert tensors.from_json(as_json, "BYTES", [len(texts)], element="x").tolist() == texts


@given(st.binary(max_size=64), st.integers(0, 4))
def test_any_bytes_are_a_tensor_or_a_bad_request(data: bytes, count: int) -> None:
    for datatype in [*NUMERIC, "BYTES"]:
        for parse in (tensors.from_binary, tensors.from_json):
            try:
                array = parse(
                    memoryview(data) if parse is tensors.from_binary else data, datatype, [count], element="x"
                )  # type: ignore[operator]
            except BadRequestError:
                continue
            assert array.shape == (count,)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "words"),
    [
        ("[1, 2]", "FP32", [3], "has 2 values, its shape asks for 3"),
        ("[1, 2, 3, 4]", "FP32", [3], "has 4 values"),
        ("[[1, 2], [3]]", "FP32", [2, 2], "has 3 values"),
        ("[[1, 2, 3], [4]]", "FP32", [2, 2], "nested unevenly"),
        ("[[1], [2], [3], [4]]", "FP32", [2, 2], r"has data of shape \[4, 1\], not \[2, 2\]"),
        ("[[[1, 2]]]", "FP32", [1, 2], "nested 2 deep"),
        ('["1"]', "FP32", [1], "is not an array of FP32 values: Expected `float`, got `str`"),
        ("[null]", "FP32", [1], "Expected `float`, got `null`"),
        ("[1.5]", "INT32", [1], "Expected `int`, got `float`"),
        ("[1]", "BOOL", [1], "Expected `bool`, got `int`"),
        ("[300]", "UINT8", [1], "beyond the range of UINT8"),
        ("[-1]", "UINT64", [1], "beyond the range of UINT64"),
        ("[1e39]", "FP32", [1], "beyond the range of FP32"),
        ("[1e999]", "FP64", [1], "not an array of FP64"),
        ("[1]", "FP16", [1], "FP16 has no JSON form; send it as binary data"),
        ("5", "FP32", [1], "one flat array"),
        ("[]", "FP32", [2], "has 1 values"),
        ("[[[[[[[[[[1]]]]]]]]]]", "FP32", [1], "one flat array"),
    ],
)
def test_json_that_does_not_fit_is_said(data: str, datatype: str, shape: list[int], words: str) -> None:
    with pytest.raises(BadRequestError, match=f"^x: .*{words}"):
        tensors.from_json(data.encode(), datatype, shape, element="x")


@pytest.mark.parametrize(
    ("data", "datatype", "words"),
    [
        (b"\0" * 7, "FP32", "has 7 bytes of binary data, its shape and datatype ask for 8"),
        (b"\0\2", "BOOL", "BOOL values must be 0 or 1"),
        (b"\1\0\0\0a", "BYTES", "has 1 elements, its shape asks for 2"),
        (b"\1\0\0\0a\1\0\0\0b\0\0\0\0", "BYTES", "more than the 2 elements"),
        (b"\xff\xff\xff\xffa", "BYTES", "in the middle of an element"),
        (b"\1\0", "BYTES", "in the middle of an element"),
        (b"\1\0\0\0\xff\1\0\0\0b", "BYTES", "must be UTF-8"),
    ],
)
def test_binary_data_that_does_not_fit_is_said(data: bytes, datatype: str, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        tensors.from_binary(memoryview(data), datatype, [2], element="x")


def test_what_json_cannot_say_of_an_output() -> None:
    values = tensors.to_json(np.array([math.nan, math.inf, 1.0], dtype=np.float32), element="y")
    assert values[2] == 1.0  # the others become null in the encoder: see test_serve_protocol
    with pytest.raises(BadRequestError, match="FP16 has no JSON form; ask for it as binary data"):
        tensors.to_json(np.zeros(1, dtype=np.float16), element="y")
    with pytest.raises(BadRequestError, match="no text"):
        tensors.to_json(np.array([b"\xff"], dtype=object), element="y")
    with pytest.raises(SkerryError, match="no datatype for complex"):
        tensors.datatype_of(np.zeros(1, dtype=np.complex64))


def test_outputs_that_do_not_lie_in_order_are_put_in_order() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    assert bytes(tensors.to_binary(array)) == np.ascontiguousarray(array).tobytes()
    assert tensors.to_json(array, element="y") == [0, 3, 1, 4, 2, 5]
