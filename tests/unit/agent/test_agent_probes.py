"""Comparing a server's answers with the source model's: every way to be right, wrong, or not an answer."""

from __future__ import annotations

import asyncio
import contextlib
import math
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.agent import inference, probes
from skerry.api.errors import InvalidError, UnavailableError
from skerry.api.kinds.device import Measurement
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.kit.loopback import Answer, LoopbackClient

SIGNATURE = ModelSignature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 3])],
)
INPUTS = np.arange(8, dtype="<f4").reshape(4, 2)
OUTPUTS = np.array([[3, 2, 1], [1, 3, 2], [2, 1, 3], [3, 1, 2]], dtype="<f4")
LABELS = np.array([0, 1, 2, 1])


@asynccontextmanager
async def server(*answers: Answer) -> AsyncIterator[tuple[int, list[tuple[dict[str, Any], bytes]]]]:
    """An HTTP server that gives these answers, the last one again and again; yields its port and what it was asked."""
    asked: list[tuple[dict[str, Any], bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                assert lines[0] == "POST /v2/models/m/infer HTTP/1.1"
                headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers["Content-Length"]))
                length = int(headers[inference.LENGTH_HEADER])
                asked.append((msgspec.json.decode(body[:length]), body[length:]))
                answer = answers[min(len(asked), len(answers)) - 1]
                told = {"Content-Length": str(len(answer.body)), **answer.headers}
                head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                writer.write(f"HTTP/1.1 {answer.status} X\r\n{head}\r\n".encode() + answer.body)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1], asked
    finally:
        listening.close()


def binary(values: Any, *, name: str = "y", datatype: str = "FP32", shape: Any = None, dtype: str = "<f4") -> Answer:
    raw = np.asarray(values, dtype=dtype).tobytes()
    output = {
        "name": name,
        "datatype": datatype,
        "shape": [1, len(values)] if shape is None else shape,
        "parameters": {"binary_data_size": len(raw)},
    }
    header = msgspec.json.encode({"model_name": "m", "outputs": [output]})
    return Answer(200, {"inference-header-content-length": str(len(header))}, header + raw)


def as_json(values: Any) -> Answer:
    output = {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": values}
    return Answer(200, {}, msgspec.json.encode({"outputs": [output]}))


async def run(
    tmp_path: Path, *answers: Answer, signature: ModelSignature = SIGNATURE, max_seconds: float = 60.0, **arrays: Any
) -> Measurement:
    content = {"input.x": INPUTS, "output.y": OUTPUTS, "labels": LABELS, **arrays}
    path = tmp_path / "golden.npz"
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    async with (
        server(*answers) as (port, asked),
        LoopbackClient(port, max_body_bytes=10_000, timeout_seconds=10) as client,
    ):
        measured = await probes.run(
            client, path, model="m", signature=signature, max_samples=100, max_seconds=max_seconds
        )
    assert len(asked) == measured.samples + 1, "one request to warm up, one a sample"
    for header, raw in asked:
        assert header["inputs"][0]["shape"] == [1, 2]
        assert len(raw) == header["inputs"][0]["parameters"]["binary_data_size"] == 8
    return measured


async def test_counts_what_is_right(tmp_path: Path) -> None:
    answers = [binary(row) for row in (OUTPUTS[0], *OUTPUTS)]  # the first request warms up
    measured = await run(tmp_path, *answers)
    assert (measured.samples, measured.accuracy, measured.agreement, measured.max_abs_error) == (4, 0.75, 1.0, 0.0)


async def test_counts_what_is_wrong(tmp_path: Path) -> None:
    measured = await run(tmp_path, binary([9, 2, 1]))
    assert (measured.accuracy, measured.agreement, measured.max_abs_error) == (0.25, 0.5, 8.0)


async def test_takes_json_answers_and_missing_labels(tmp_path: Path) -> None:
    measured = await run(tmp_path, as_json([[3, 2, 1]]), labels=None)
    assert (measured.accuracy, measured.agreement) == (None, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_answers_that_are_no_numbers_are_an_error_that_can_be_sent(tmp_path: Path, value: float) -> None:
    measured = await run(tmp_path, binary([value] * 3))
    assert measured.max_abs_error == sys.float_info.max
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Measurement) == measured


async def test_single_values_agree_within_tolerance(tmp_path: Path) -> None:
    signature = msgspec.structs.replace(SIGNATURE, outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])])
    outputs = np.array([[100.0], [100.5], [101.5], [0.0]], dtype="<f4")
    measured = await run(tmp_path, binary([100.0]), signature=signature, **{"output.y": outputs, "labels": None})
    assert measured.agreement == 0.5


async def test_time_that_is_up_leaves_it_at_what_was_measured(tmp_path: Path) -> None:
    measured = await run(tmp_path, binary([3, 2, 1]), max_seconds=0.0)
    assert (measured.samples, measured.accuracy) == (1, 1.0)


async def test_half_precision_is_read(tmp_path: Path) -> None:
    signature = msgspec.structs.replace(SIGNATURE, outputs=[TensorSpec(name="y", datatype="FP16", shape=[-1, 3])])
    answer = binary([3, 2, 1], datatype="FP16", dtype="<f2")
    measured = await run(tmp_path, answer, signature=signature, **{"output.y": OUTPUTS.astype("<f2")})
    assert measured.agreement == 0.5


async def test_a_class_as_a_number_is_compared_with_the_label(tmp_path: Path) -> None:
    signature = msgspec.structs.replace(SIGNATURE, outputs=[TensorSpec(name="y", datatype="INT64", shape=[-1])])
    answer = binary([1], datatype="INT64", dtype="<i8", shape=[1])
    measured = await run(tmp_path, answer, signature=signature, **{"output.y": np.array([0, 1, 2, 0])})
    assert (measured.accuracy, measured.agreement) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(500, {}, b'{"error": "out of memory"}'), UnavailableError, "answered 500: out of memory"),
        (Answer(500, {}, b"<html>"), UnavailableError, "answered 500: <html>"),
        (Answer(500, {}, b"[1]"), UnavailableError, r"answered 500: \[1\]"),
        (binary([3, 2]), InvalidError, '"y" is FP32'),
        (binary([3, 2, 1], shape=[3]), InvalidError, "the signature says FP32"),
        (binary([3, 2, 1], datatype="INT32"), InvalidError, '"y" is INT32'),
        (binary([3, 2, 1], name="z"), InvalidError, 'lacks the output "y"'),
        (Answer(200, {}, b"nonsense"), InvalidError, "no inference response"),
        (Answer(200, {"inference-header-content-length": "99999"}, b"{}"), InvalidError, "is wrong"),
        (as_json([["a", 2, 1]]), InvalidError, "no number"),
    ],
)
async def test_what_is_no_answer_is_a_failure(tmp_path: Path, answer: Answer, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        await run(tmp_path, answer)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input.x": None}, 'lack the array "input.x"'),
        ({"input.x": INPUTS[:3]}, "not the same number"),
        ({"input.x": INPUTS.astype("<f8")}, '"input.x" is FP64'),
        ({"output.y": OUTPUTS[:, :2]}, '"output.y" is FP32'),
        ({"labels": LABELS.astype("<f4")}, "are not integers"),
        ({"input.x": INPUTS[:0], "output.y": OUTPUTS[:0], "labels": LABELS[:0]}, "no samples"),
    ],
)
async def test_samples_that_do_not_fit_the_signature(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        await run(tmp_path, binary([3, 2, 1]), **arrays)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(-5, 300)))
async def test_arbitrary_answers_raise_only_what_is_promised(tmp_path: Path, body: bytes, length: int | None) -> None:
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    with contextlib.suppress(InvalidError):
        await run(tmp_path, Answer(200, headers, body))


def test_percentiles_are_nearest_ranks() -> None:
    ordered = [float(n) for n in range(1, 21)]
    assert [probes.percentile(ordered, share) for share in (0.5, 0.95, 1.0)] == [10.0, 19.0, 20.0]
    assert probes.percentile([7.0], 0.95) == 7.0


def test_big_tensors_are_read_exactly() -> None:
    assert list(inference.numbers_of("INT64", struct.pack("<q", -(2**63)))) == [-(2**63)]
    with pytest.raises(InvalidError):
        inference.numbers_of("INT64", b"1234567")
    with pytest.raises(InvalidError):
        inference.numbers_of("BYTES", b"")
