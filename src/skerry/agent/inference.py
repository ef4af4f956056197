"""Inference requests to a server of this device, and what its answers hold: one sample a request, tensors as binary.

Lives here: the wire form. Must not live here: where samples come from and what answers are worth (`probes`).
Source: Open Inference Protocol v2; binary tensor data extension (KServe, Triton).
"""

from __future__ import annotations

import array
import contextlib
import struct
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from skerry.agent.npz import Array
from skerry.api.errors import InvalidError, UnavailableError
from skerry.kit.loopback import Answer, LoopbackClient

MAX_ANSWER_BYTES = 64 * 1024 * 1024
LENGTH_HEADER = "Inference-Header-Content-Length"
_CODES = {
    "BOOL": "B",
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "UINT64": "Q",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_SIZES = {"FP16": 2, **{name: struct.calcsize(f"<{code}") for name, code in _CODES.items()}}


class Output(msgspec.Struct):
    """One output as the answer describes it."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[Output]


def encode(inputs: Sequence[tuple[Array, str, bytes]], outputs: Sequence[Array]) -> tuple[bytes, int]:
    """Return one request's body, and how much of it is JSON."""
    header = msgspec.json.encode(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": one.datatype,
                    "shape": [1, *one.shape],
                    "parameters": {"binary_data_size": len(raw)},
                }
                for one, name, raw in inputs
            ],
            "outputs": [
                {"name": one.name.removeprefix("output."), "parameters": {"binary_data": True}} for one in outputs
            ],
        }
    )
    return header + b"".join(raw for _, _, raw in inputs), len(header)


async def infer(client: LoopbackClient, model: str, request: tuple[bytes, int]) -> Answer:
    """Ask the model. Raises UnavailableError for an error, and like the client."""
    body, header_length = request
    answer = await client.request(
        "POST",
        f"/v2/models/{model}/infer",
        body=body,
        headers={"Content-Type": "application/octet-stream", LENGTH_HEADER: str(header_length)},
    )
    if answer.status != 200:
        raise UnavailableError(f"answered {answer.status}: {read_error(answer.body)}", element=f"model {model}")
    return answer


def read_error(body: bytes) -> str:
    """Return the sentence of an error response, bounded; what is there when it is none."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError):
        said = msgspec.json.decode(body).get("error")
        if isinstance(said, str):
            return said[:500]
    return body[:200].decode(errors="replace")


def decode(answer: Answer) -> dict[str, tuple[Output, Sequence[float]]]:
    """Return each output with its numbers. Raises InvalidError for what is no answer."""
    text = answer.headers.get(LENGTH_HEADER.lower(), str(len(answer.body)))
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > len(answer.body):
        raise InvalidError(f"{LENGTH_HEADER} is wrong", element="answer")
    position, found = int(text), {}
    try:
        response = msgspec.json.decode(answer.body[:position], type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is no inference response: {str(error)[:200]}", element="answer") from None
    for output in response.outputs:
        size = output.parameters.get("binary_data_size")
        if isinstance(size, int) and size >= 0:
            raw = answer.body[position : position + size]
            position += size
            if len(raw) != size:
                raise InvalidError("ends in the middle of a tensor", element="answer")
            found[output.name] = (output, numbers_of(output.datatype, raw))
        else:
            found[output.name] = (output, _flat(output.data or []))
    return found


def numbers_of(datatype: str, raw: bytes) -> Sequence[float]:
    """Return a tensor\'s numbers from its little-endian bytes. Raises InvalidError."""
    if datatype not in _SIZES or len(raw) % _SIZES[datatype]:
        raise InvalidError(f"{len(raw)} bytes are no {datatype[:20]} tensor", element="tensor")
    if datatype == "FP16":
        return struct.unpack(f"<{len(raw) // 2}e", raw)
    numbers = array.array(_CODES[datatype], raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _flat(data: Sequence[Any]) -> list[float]:
    flat: list[float] = []
    for item in data:
        if isinstance(item, list):
            flat.extend(_flat(item))
        elif isinstance(item, int | float):
            flat.append(item)
        else:
            raise InvalidError("holds something that is no number", element="answer")
    return flat
