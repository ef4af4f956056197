"""Golden samples through the local inference server: does the model really work here, and how fast.

Each sample is one request in the Open Inference Protocol's binary tensor form; its outputs are compared with those of
the source model. Lives here: the run and the comparison. Must not live here: what is good enough (the hub's gates).
Source: Open Inference Protocol v2; binary tensor data extension (KServe, Triton).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skerry.agent import inference, npz
from skerry.agent.npz import Array
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import Measurement
from skerry.api.kinds.tensors import ModelSignature
from skerry.kit.loopback import LoopbackClient

TOLERANCE = 1e-2
"""A value agrees when it is off by at most this share of the expected one, or by this much where that is below 1."""
_BIGGEST = sys.float_info.max


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
        inputs, outputs, labels = match(arrays, signature)
        samples = min(max_samples, inputs[0].samples)
        tally = _Tally()
        began = time.perf_counter()
        for number in range(samples):
            if number and time.perf_counter() - began > max_seconds:
                break
            request = inference.encode([(one, one.name.removeprefix("input."), one.read()) for one in inputs], outputs)
            expected = [(one, one.read()) for one in outputs]
            label = None if labels is None else int(inference.numbers_of(labels.datatype, labels.read())[0])
            if number == 0:
                await inference.infer(client, model, request)  # the first request of an engine is never like the others
            before = time.perf_counter()
            answer = await inference.infer(client, model, request)
            tally.latencies_ms.append((time.perf_counter() - before) * 1000)
            _compare(inference.decode(answer), expected, label, tally, number)
        return _summarise(tally, has_labels=labels is not None)


def match(arrays: dict[str, Array], signature: ModelSignature) -> tuple[list[Array], list[Array], Array | None]:
    """Return the golden inputs, outputs and labels that the signature asks for. Raises InvalidError."""
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


def _compare(
    found: dict[str, tuple[inference.Output, Sequence[float]]],
    expected: Sequence[tuple[Array, bytes]],
    label: int | None,
    tally: _Tally,
    number: int,
) -> None:
    agrees = True
    for position, (wanted, raw) in enumerate(expected):
        name, truth = wanted.name.removeprefix("output."), inference.numbers_of(wanted.datatype, raw)
        if name not in found:
            raise InvalidError(f'lacks the output "{name}"', element=f"answer to golden sample {number}")
        output, values = found[name]
        if output.shape != [1, *wanted.shape] or output.datatype != wanted.datatype or len(values) != len(truth):
            raise InvalidError(
                f'"{name}" is {output.datatype[:20]} {output.shape[:16]} with {len(values)} values, '
                f"the signature says {wanted.datatype} {[1, *wanted.shape]}",
                element=f"answer to golden sample {number}",
            )
        tally.max_abs_error = max(tally.max_abs_error, max_error(values, truth))
        agrees = agrees and agree(values, truth, wanted.datatype)
        if position == 0 and label is not None:
            tally.right += _predicted(values, wanted.datatype) == label
    tally.agreeing += agrees


def agree(values: Sequence[float], truth: Sequence[float], datatype: str) -> bool:
    """Return whether they agree: scores when they choose the same; all else value by value."""
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


def max_error(values: Sequence[float], truth: Sequence[float]) -> float:
    """Return the largest difference; the largest double where one is no number."""
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
        latency_p50_ms=round(percentile(ordered, 0.50), 3),
        latency_p95_ms=round(percentile(ordered, 0.95), 3),
        peak_memory_bytes=0,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value at a share of the ordered ones, by nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
