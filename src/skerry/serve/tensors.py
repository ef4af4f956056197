"""Tensors between the wire and NumPy: the protocol's datatypes, as JSON and as binary data.

Lives here: one tensor at a time, its size checked before memory is spent on it. Must not live here: names, requests, or
what the model accepts (`signature`).

Source: Open Inference Protocol v2, "Tensor Data"; its binary tensor data extension. Binary data is little-endian, row
major, without padding; BOOL is one byte, 0 or 1; BYTES elements are a 4-byte length and the bytes. FP16 has
no JSON form.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from skerry.api.errors import BadRequestError, SkerryError

Array = npt.NDArray[Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_JSON_TYPES: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float, "O": str}
_OPENING = re.compile(rb"[\s\[]*")
_LENGTH = struct.Struct("<I")
_BINARY_HINT = "send it as binary data (binary_data_size)"
_BINARY_OUTPUT_HINT = 'ask for it as binary data ("binary_data": true)'


def zeros(datatype: str, shape: Sequence[int]) -> Array:
    """Return a tensor of zeros, or of empty strings."""
    return np.full(shape, "", dtype=object) if datatype == "BYTES" else np.zeros(shape, dtype=_DTYPES[datatype])


def datatype_of(array: Array) -> str:
    """Return the protocol's name for an array's type. Raises SkerryError when there is none."""
    try:
        return _NAMES[array.dtype]
    except KeyError:
        raise SkerryError(f"the protocol has no datatype for {array.dtype}") from None


def is_datatype(name: str) -> bool:
    """Return whether the protocol has a datatype of this name, and NumPy one for it."""
    return name in _DTYPES


def from_json(data: bytes, datatype: str, shape: Sequence[int], *, element: str) -> Array:
    """Parse a JSON array, flat or nested as the shape says. Raises BadRequestError.

    The number of values is compared with the shape's before anything is parsed.
    """
    dtype = _DTYPES[datatype]
    if datatype == "FP16":
        raise BadRequestError("FP16 has no JSON form", element=element, hint=_BINARY_HINT)
    opening = _OPENING.match(data)
    depth = opening.group().count(b"[") if opening else 0
    if depth != 1 and depth != len(shape):
        raise BadRequestError(f"data must be one flat array, or nested {len(shape)} deep as its shape", element=element)
    size = _size(shape)
    if datatype != "BYTES" and data.count(b",") + 1 != size:
        raise BadRequestError(f"has {data.count(b',') + 1} values, its shape asks for {size}", element=element)
    try:
        values = msgspec.json.decode(data, type=_nested(_JSON_TYPES[dtype.kind], depth))
        with np.errstate(over="raise", invalid="raise"):
            array = np.array(values, dtype=dtype)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"data is not an array of {datatype} values: {error}", element=element) from None
    except (OverflowError, FloatingPointError):
        raise BadRequestError(f"data has a value beyond the range of {datatype}", element=element) from None
    except ValueError:
        raise BadRequestError("data is nested unevenly", element=element) from None
    if array.size != size or (depth > 1 and array.shape != tuple(shape)):
        raise BadRequestError(f"has data of shape {list(array.shape)}, not {list(shape)}", element=element)
    return array.reshape(shape)


def from_binary(data: memoryview, datatype: str, shape: Sequence[int], *, element: str) -> Array:
    """Read binary data, without a copy where its alignment allows. Raises BadRequestError."""
    size, dtype = _size(shape), _DTYPES[datatype]
    if datatype == "BYTES":
        return np.array(_split(data, size, element), dtype=object).reshape(shape)
    if len(data) != size * dtype.itemsize:
        raise BadRequestError(
            f"has {len(data)} bytes of binary data, its shape and datatype ask for {size * dtype.itemsize}",
            element=element,
        )
    if datatype == "BOOL" and size and np.frombuffer(data, dtype=np.uint8).max() > 1:
        raise BadRequestError("BOOL values must be 0 or 1", element=element)
    array: Array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def to_json(array: Array, *, element: str) -> list[Any]:
    """Return the values, flattened; NaN and infinities become null in JSON. Raises BadRequestError."""
    if array.dtype == np.float16:
        raise BadRequestError("FP16 has no JSON form", element=element, hint=_BINARY_OUTPUT_HINT)
    values: list[Any] = array.ravel().tolist()
    if array.dtype == object:
        try:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        except UnicodeDecodeError:
            raise BadRequestError("holds bytes that are no text", element=element, hint=_BINARY_OUTPUT_HINT) from None
    return values


def to_binary(array: Array) -> bytes | memoryview:
    """Return the values as binary data, without a copy where they lie in order."""
    if array.dtype == object:
        encoded = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
        return b"".join(piece for value in encoded for piece in (_LENGTH.pack(len(value)), value))
    if array.size == 0:
        return b""
    return np.ascontiguousarray(array).data.cast("B")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _nested(kind: type, depth: int) -> Any:
    nested: Any = kind
    for _ in range(depth):
        nested = list[nested]
    return nested


def _split(data: memoryview, count: int, element: str) -> list[str]:
    """Split BYTES elements; they must be UTF-8, as the engines' strings are."""
    values: list[str] = []
    position = 0
    while position < len(data):
        if len(values) == count:
            raise BadRequestError(f"has more than the {count} elements its shape asks for", element=element)
        end = position + _LENGTH.size
        if end <= len(data):
            (length,) = _LENGTH.unpack_from(data, position)
            position, end = end, end + length
        if end > len(data):
            raise BadRequestError("BYTES data ends in the middle of an element", element=element)
        try:
            values.append(str(data[position:end], "utf-8"))
        except UnicodeDecodeError:
            raise BadRequestError("BYTES elements must be UTF-8 text", element=element) from None
        position = end
    if len(values) != count:
        raise BadRequestError(f"has {len(values)} elements, its shape asks for {count}", element=element)
    return values
