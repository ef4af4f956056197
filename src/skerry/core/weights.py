"""Where the weights lie in a model file: ONNX and TFLite, read just as far as that takes. Pure.

Whole models need not be in memory: `content` may be a file's map. What cannot be read is no error of the model, only a
reason to treat it as plain bytes. Must not live here: what weights are for, their values.

Source: onnx.proto3 (ModelProto, GraphProto, TensorProto), protocol buffers' encoding; TensorFlow Lite's schema.fbs
(version 3), flatbuffers' internals.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from skerry.api.errors import InvalidError

Content = bytes | mmap.mmap
MAX_TENSORS = 100_000

_ONNX_TYPES = {1: (4, False), 3: (1, True), 4: (2, False), 5: (2, False), 6: (4, False), 7: (8, False), 10: (2, False)}
_ONNX_TYPES |= {11: (8, False), 12: (4, False), 13: (8, False), 16: (2, False)}
_TFLITE_TYPES = {
    0: (4, False),
    1: (2, False),
    2: (4, False),
    4: (8, False),
    7: (2, False),
    9: (1, True),
    10: (8, False),
}
_PLAIN = (1, False)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A run of numbers in a file."""

    name: str
    offset: int
    length: int
    """Bytes; a multiple of `width`."""
    width: int
    """Bytes of one number."""
    signed: bool
    """Of one byte, in two's complement."""


def read_layout(content: Content, format: str) -> list[Tensor]:  # noqa: A002 - what variants call it
    """Return the tensors of a model file in the order of their place, none within another; none for other formats.

    Raises InvalidError where the file is not of that format.
    """
    readers = {"onnx": _onnx, "tflite": _tflite}
    if format not in readers:
        return []
    found: list[Tensor] = []
    try:
        for tensor in readers[format](content):
            found.append(tensor)
            if len(found) > MAX_TENSORS:
                raise InvalidError(f"has more than {MAX_TENSORS} tensors", element="model")
    except (struct.error, IndexError) as error:
        raise InvalidError(f"is not {format}: {error}", element="model") from None
    apart: list[Tensor] = []
    for tensor in sorted(found, key=lambda tensor: (tensor.offset, -tensor.length)):
        if not apart or tensor.offset >= apart[-1].offset + apart[-1].length:
            apart.append(tensor)
    return apart


def _tensor(name: str, offset: int, length: int, type_: tuple[int, bool]) -> Tensor:
    width, signed = type_ if length % type_[0] == 0 else _PLAIN
    return Tensor(name, offset, length, width, signed)


# --- ONNX ---------------------------------------------------------------------------------------------------------


def _onnx(content: Content) -> Iterator[Tensor]:
    for number, start, end in _fields(content, 0, len(content)):
        if number == 7:  # ModelProto.graph
            for inner, first, last in _fields(content, start, end):
                if inner == 5:  # GraphProto.initializer
                    yield from _onnx_tensor(content, first, last)


def _onnx_tensor(content: Content, start: int, end: int) -> Iterator[Tensor]:
    type_, name, runs = 0, "", []
    for number, first, last in _fields(content, start, end):
        if number == 2:  # data_type
            type_ = _varint(content, first, last)[0]
        elif number == 8:  # name
            name = content[first:last].decode("utf-8", "replace")
        elif number in (4, 9, 10):  # float_data, raw_data, double_data
            runs.append((first, last - first))
    for index, (offset, length) in enumerate(runs):
        if length:
            yield _tensor(f"{name}/{index}" if index else name, offset, length, _ONNX_TYPES.get(type_, _PLAIN))


def _fields(content: Content, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give number, start and end of every field's value in a message."""
    while at < end:
        key, at = _varint(content, at, end)
        kind, start = key & 7, at
        if kind == 0:
            _, at = _varint(content, at, end)
        elif kind == 2:
            size, start = _varint(content, at, end)
            at = start + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise InvalidError(f"has a field of kind {kind}", element="model")
        if at > end:
            raise InvalidError("has a field that is longer than what it is in", element="model")
        yield key >> 3, start, at


def _varint(content: Content, at: int, end: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = content[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise InvalidError("has a number that does not end", element="model")


# --- TFLite -------------------------------------------------------------------------------------------------------


def _tflite(content: Content) -> Iterator[Tensor]:
    if content[4:8] != b"TFL3":
        raise InvalidError("is not TFLite", element="model")
    model = _u32(content, 0)
    types: dict[int, tuple[int, str]] = {}
    seen = 0
    for graph in _tables(content, _field(content, model, 2)):
        for tensor in _tables(content, _field(content, graph, 0)):
            kind, buffer, name = (_field(content, tensor, index) for index in (1, 2, 3))
            number = _u32(content, buffer) if buffer else 0
            types.setdefault(number, (content[kind] if kind else 0, _text(content, name)))
            seen += 1
            if seen > MAX_TENSORS:
                raise InvalidError(f"has more than {MAX_TENSORS} tensors", element="model")
    for number, table in enumerate(_tables(content, _field(content, model, 4))):
        data = _field(content, table, 0)
        if data and number in types:
            start = data + _u32(content, data)
            length = _u32(content, start)
            if start + 4 + length > len(content):
                raise InvalidError("has a buffer that is longer than the file", element="model")
            type_, name_ = types[number]
            if length:
                yield _tensor(name_, start + 4, length, _TFLITE_TYPES.get(type_, _PLAIN))


def _tables(content: Content, field: int) -> Iterator[int]:
    """Give the places of the tables in a vector of them."""
    if field:
        start = field + _u32(content, field)
        count = _u32(content, start)
        if count > MAX_TENSORS:
            raise InvalidError(f"has a list of {count} things", element="model")
        for index in range(count):
            at = start + 4 + 4 * index
            yield at + _u32(content, at)


def _field(content: Content, table: int, index: int) -> int:
    """Return where a table's field lies; 0 when it has none."""
    vtable = table - struct.unpack("<i", content[table : table + 4])[0]
    if vtable < 0:
        raise InvalidError("has a table without a description", element="model")
    size = struct.unpack("<H", content[vtable : vtable + 2])[0]
    at = 4 + 2 * index
    if at + 2 > size:
        return 0
    offset: int = struct.unpack("<H", content[vtable + at : vtable + at + 2])[0]
    return table + offset if offset else 0


def _text(content: Content, field: int) -> str:
    if not field:
        return ""
    start = field + _u32(content, field)
    return content[start + 4 : start + 4 + min(_u32(content, start), 4096)].decode("utf-8", "replace")


def _u32(content: Content, at: int) -> int:
    if at < 0:
        raise InvalidError("points before its beginning", element="model")
    number: int = struct.unpack("<I", content[at : at + 4])[0]
    return number
