"""Golden samples through the local inference server: does the model really work here, and how fast.

Each sample is one request in the Open Inference Protocol's binary tensor form; its outputs are compared with those of
the source model. Lives here: the run and the comparison. Must not live here: what is good enough (the hub's gates).
Source: Open Inference Protocol v2; binary tensor data extension (KServe, Triton).
"""

from __future__ import annotations

import array
import contextlib
import math
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from skerry.agent import npz
from skerry.agent.loopback import Answer, LoopbackClient
from skerry.agent.npz import Array
from skerry.api.errors import InvalidError, UnavailableError
from skerry.api.kinds.device import Measurement
from skerry.api.kinds.tensors import ModelSignature

MAX_ANSWER_BYTES = 64 * 1024 * 1024
TOLERANCE = 1e-2
"""A value agrees when it is off by at most this share of the expected one, or by this much where that is below 1."""
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
_BIGGEST = sys.float_info.max


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[_Output]


@dataclass
class _Tally:
    """What was seen so far."""

    latencies_ms: list[float] = field(default_factory=list)
    agreeing: int = 0
    right: int = 0
    max_abs_error: float = 0.0


async def run(
    client: LoopbackClient, golden: Path, *, model: str, signature: ModelSignature, max_samples: int, max_seconds: float
) -> Measurement:
    """Send up to so many golden samples, one a request, and return what came of it (peak memory still 0).

    When the time is up it is left at those that were sent, at least one.
    Raises InvalidError when the samples or an answer do not fit the signature, UnavailableError and its like when the
    server does not answer.
    """
    with npz.open_npz(golden) as arrays:
        inputs, outputs, labels = _match(arrays, signature)
        samples = min(max_samples, inputs[0].samples)
        tally = _Tally()
        began = time.perf_counter()
        for number in range(samples):
            if number and time.perf_counter() - began > max_seconds:
                break
            request = _encode([(one, one.name.removeprefix("input."), one.read()) for one in inputs], outputs)
            expected = [(one, one.read()) for one in outputs]
            label = None if labels is None else int(_numbers(labels.datatype, labels.read())[0])
            if number == 0:
                await _infer(client, model, request)  # the first request of an engine is never like the others
            before = time.perf_counter()
            answer = await _infer(client, model, request)
            tally.latencies_ms.append((time.perf_counter() - before) * 1000)
            _compare(_decode(answer), expected, label, tally, number)
        return _summarise(tally, has_labels=labels is not None)


def _match(arrays: dict[str, Array], signature: ModelSignature) -> tuple[list[Array], list[Array], Array | None]:
    inputs = [_find(arrays, f"input.{spec.name}", spec.datatype, spec.shape) for spec in signature.inputs]
    outputs = [_find(arrays, f"output.{spec.name}", spec.datatype, spec.shape) for spec in signature.outputs]
    labels = arrays.get("labels")
    everything = [*inputs, *outputs, *([] if labels is None else [labels])]
    if not inputs or not outputs:
        raise InvalidError("name no inputs or no outputs", element="golden samples")
    if len({one.samples for one in everything}) != 1 or inputs[0].samples == 0:
        raise InvalidError("have no samples, or not the same number of each array", element="golden samples")
    if labels is not None and (labels.datatype not in ("INT64", "INT32") or labels.shape):
        raise InvalidError("are not integers, one a sample", element="golden samples, labels")
    return inputs, outputs, labels


def _find(arrays: dict[str, Array], name: str, datatype: str, shape: Sequence[int]) -> Array:
    found = arrays.get(name)
    if found is None:
        raise InvalidError(f'lack the array "{name}" of the signature', element="golden samples")
    fits = len(found.shape) == len(shape) - 1 and all(
        w in (-1, h) for w, h in zip(shape[1:], found.shape, strict=False)
    )
    if found.datatype != datatype or not fits:
        raise InvalidError(
            f'"{name}" is {found.datatype} {list(found.shape)}, the signature says {datatype} {list(shape[1:])}',
            element="golden samples",
        )
    return found


def _encode(inputs: Sequence[tuple[Array, str, bytes]], outputs: Sequence[Array]) -> tuple[bytes, int]:
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


async def _infer(client: LoopbackClient, model: str, request: tuple[bytes, int]) -> Answer:
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


def _decode(answer: Answer) -> dict[str, tuple[_Output, Sequence[float]]]:
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
            found[output.name] = (output, _numbers(output.datatype, raw))
        else:
            found[output.name] = (output, _flat(output.data or []))
    return found


def _numbers(datatype: str, raw: bytes) -> Sequence[float]:
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


def _compare(
    found: dict[str, tuple[_Output, Sequence[float]]],
    expected: Sequence[tuple[Array, bytes]],
    label: int | None,
    tally: _Tally,
    number: int,
) -> None:
    agrees = True
    for position, (wanted, raw) in enumerate(expected):
        name, truth = wanted.name.removeprefix("output."), _numbers(wanted.datatype, raw)
        if name not in found:
            raise InvalidError(f'lacks the output "{name}"', element=f"answer to golden sample {number}")
        output, values = found[name]
        if output.shape != [1, *wanted.shape] or output.datatype != wanted.datatype or len(values) != len(truth):
            raise InvalidError(
                f'"{name}" is {output.datatype[:20]} {output.shape[:16]} with {len(values)} values, '
                f"the signature says {wanted.datatype} {[1, *wanted.shape]}",
                element=f"answer to golden sample {number}",
            )
        tally.max_abs_error = max(tally.max_abs_error, _max_error(values, truth))
        agrees = agrees and _agree(values, truth, wanted.datatype)
        if position == 0 and label is not None:
            tally.right += _predicted(values, wanted.datatype) == label
    tally.agreeing += agrees


def _agree(values: Sequence[float], truth: Sequence[float], datatype: str) -> bool:
    """Scores agree when they choose the same; all else value by value."""
    if datatype.startswith("FP") and len(truth) > 1:
        return _argmax(values) == _argmax(truth)
    return all(abs(v - t) <= TOLERANCE * max(1.0, abs(t)) for v, t in zip(values, truth, strict=True))


def _predicted(values: Sequence[float], datatype: str) -> int:
    """The class that an output names: its arg-max, or the number itself where the model gives just that."""
    if len(values) == 1 and not datatype.startswith("FP"):
        return int(values[0])
    return _argmax(values)


def _argmax(values: Sequence[float]) -> int:
    best, place = -math.inf, -1
    for position, value in enumerate(values):
        if value > best:
            best, place = value, position
    return place


def _max_error(values: Sequence[float], truth: Sequence[float]) -> float:
    worst = 0.0
    for value, wanted in zip(values, truth, strict=True):
        error = 0.0 if value == wanted else abs(value - wanted)
        worst = max(worst, error if math.isfinite(error) else _BIGGEST)
    return worst


def _summarise(tally: _Tally, *, has_labels: bool) -> Measurement:
    ordered = sorted(tally.latencies_ms)
    count = len(ordered)
    return Measurement(
        samples=count,
        accuracy=tally.right / count if has_labels else None,
        agreement=tally.agreeing / count,
        max_abs_error=tally.max_abs_error,
        latency_p50_ms=round(_percentile(ordered, 0.50), 3),
        latency_p95_ms=round(_percentile(ordered, 0.95), 3),
        peak_memory_bytes=0,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
