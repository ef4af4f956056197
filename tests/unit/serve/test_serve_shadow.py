"""Shadow mode: who is asked, what is counted, and that nobody waits for it. Both servers are real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import SkerryError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.core.control import ShadowCounts
from skerry.kit.loopback import Answer
from skerry.serve import protocol
from skerry.serve import shadow as shadows
from skerry.serve.dataplane import Inference
from skerry.serve.http1 import Request, Response, Server, error_response
from skerry.serve.limits import Limits
from skerry.serve.shadow import Sample, Shadow, Totals
from skerry.serve.signature import SignatureCheck

WAIT_SECONDS = 10.0
CHECK = SignatureCheck(
    ModelSignature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[
            TensorSpec(name="scores", datatype="FP32", shape=[-1, 2]),
            TensorSpec(name="label", datatype="BYTES", shape=[-1]),
        ],
    )
)


def sample(*scores: float, label: str = "cat") -> Sample:
    """The model doubles what it gets."""
    row = np.array([scores], np.float32)
    return Sample(inputs={"x": row / 2}, outputs=[("label", np.array([label], object)), ("scores", row)])


class Other:
    """A server of the protocol whose model doubles, adds something, and says cat."""

    def __init__(self) -> None:
        self.added = 0.0
        self.seen: list[Request] = []
        self.held: list[tuple[Request, asyncio.Future[Response]]] = []
        self.hold = False
        self.broken: Callable[[], Response] | None = None

    def __call__(self, request: Request) -> Response | asyncio.Future[Response]:
        self.seen.append(request)
        if self.hold:
            self.held.append((request, asyncio.get_running_loop().create_future()))
            return self.held[-1][1]
        return self.broken() if self.broken is not None else self.answer(request)

    def answer(self, request: Request) -> Response:
        length = int(request.headers[b"inference-header-content-length"])
        asked = protocol.decode(request.body, length, CHECK, max_json_bytes=65536)
        outputs = {
            "scores": asked.inputs["x"] * np.float32(2) + np.array([[0, self.added]], np.float32),
            "label": np.array(["cat"], object),
        }
        inference = Inference(outputs=[(name, outputs[name]) for name in asked.outputs], engine_seconds=0)
        encoded = protocol.encode(asked, inference, model="m", version="v2")
        header = (b"Inference-Header-Content-Length", b"%d" % len(encoded.json))
        return Response(headers=(header,), body=(encoded.json, *encoded.binary))

    def let_go(self) -> None:
        self.hold = False
        for request, future in self.held:
            if not future.done():
                future.set_result(self.answer(request))
        self.held.clear()


@pytest.fixture
async def other() -> AsyncIterator[tuple[Other, int]]:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    made = Other()
    server = Server(made, Limits(sweep_seconds=0.01))
    await server.listen(bound)
    yield made, port
    await server.stop(0)


async def until(shadow: Shadow, condition: Callable[[ShadowCounts], bool]) -> ShadowCounts:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            counts = shadow.counts()
            assert counts is not None
            if condition(counts):
                return counts
            await asyncio.sleep(0.001)


def settled(counts: ShadowCounts) -> bool:
    return counts.mirrored == counts.answered + counts.errors


async def test_what_was_answered_is_asked_again_and_compared(other: tuple[Other, int]) -> None:
    server, port = other
    shadow = Shadow("m")
    assert (shadow.aimed, shadow.counts()) == (False, None)
    shadow.offer(sample(1, 2))  # nobody wants it
    shadow.aim(port, 1.0)
    shadow.offer(sample(1, 2))
    counts = await until(shadow, settled)
    assert counts == ShadowCounts(port=port, mirrored=1, answered=1, agreed=1)
    assert (server.seen[0].method, server.seen[0].target) == (b"POST", b"/v2/models/m/infer")
    server.added = -3.0
    shadow.offer(sample(1, 2))
    counts = await until(shadow, lambda found: found.answered == 2)
    assert (counts.agreed, counts.max_abs_difference) == (1, 3.0)
    shadow.offer(sample(1, 5))
    shadow.offer(sample(1, 5, label="dog"))
    counts = await until(shadow, lambda found: found.answered == 4)
    assert (counts.agreed, counts.errors, counts.dropped) == (2, 0, 0)
    shadow.aim(port, 0.0)
    shadow.offer(sample(1, 5))
    assert shadow.counts() == counts, "a share of nothing, and counting goes on"
    total = Totals(mirrored=4, answered=4, agreed=2)
    assert shadow.totals() == total
    shadow.stop()
    shadow.stop()
    assert (shadow.counts(), shadow.totals()) == (None, total), "what was counted stays"
    shadow.aim(port, 1.0)
    shadow.offer(sample(1, 5))
    await until(shadow, settled)
    assert shadow.totals()[:2] == (5, 5)
    shadow.aim(port + 1 if port < 65535 else port - 1, 0.0)
    again = shadow.counts()
    assert again is not None
    assert (again.mirrored, again.answered) == (0, 0)
    shadow.stop()
    assert shadow.counts() is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda: error_response(500, "no"),
        lambda: error_response(503, "busy"),
        lambda: Response(body=(b"{}",)),
        lambda: Response(body=(b'{"outputs": []}',), headers=((b"Inference-Header-Content-Length", b"999"),)),
        lambda: Response(body=(b"not json",), headers=((b"Inference-Header-Content-Length", b"8"),)),
        lambda: Response(
            body=(b'{"outputs":[{"name":"scores","datatype":"FP32","shape":[1,2],"parameters":{}}]}',),
            headers=((b"Inference-Header-Content-Length", b"79"),),
        ),
    ],
)
async def test_an_answer_that_is_none_is_an_error(other: tuple[Other, int], broken: Callable[[], Response]) -> None:
    server, port = other
    server.broken = broken
    shadow = Shadow("m")
    shadow.aim(port, 1.0)
    shadow.offer(sample(1, 2))
    counts = await until(shadow, settled)
    assert (counts.errors, counts.answered, counts.agreed) == (1, 0, 0)
    server.broken = None
    shadow.offer(sample(1, 2))
    counts = await until(shadow, lambda found: found.mirrored == 2 and settled(found))
    assert (counts.errors, counts.agreed) == (1, 1), "one failure does not end it"
    shadow.stop()


async def test_other_outputs_are_a_disagreement(other: tuple[Other, int]) -> None:
    server, port = other
    head = b'{"outputs":[{"name":"else","datatype":"INT8","shape":[1],"parameters":{"binary_data_size":1}}]}'
    server.broken = lambda: Response(
        body=(head, b"\x01"), headers=((b"Inference-Header-Content-Length", b"%d" % len(head)),)
    )
    shadow = Shadow("m")
    shadow.aim(port, 1.0)
    shadow.offer(sample(1, 2))
    counts = await until(shadow, settled)
    assert (counts.answered, counts.agreed) == (1, 0)
    shadow.stop()


async def test_nobody_there_is_an_error_and_a_slow_one_drops(
    other: tuple[Other, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, port = other
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        shadow = Shadow("m")
        shadow.aim(closed.getsockname()[1], 1.0)
        shadow.offer(sample(1, 2))
        assert (await until(shadow, settled)).errors == 1
    server.hold = True
    shadow.aim(port, 1.0)
    for _ in range(2 * shadows.MAX_WAITING):
        shadow.offer(sample(1, 2))  # returns at once, whatever the other does
    counts = shadow.counts()
    assert counts is not None
    assert (counts.mirrored, counts.dropped) == (shadows.MAX_WAITING, shadows.MAX_WAITING)
    await until(shadow, lambda _: bool(server.held))
    assert len(server.seen) == 1, "one at a time"
    server.let_go()
    counts = await until(shadow, settled)
    assert counts.agreed == shadows.MAX_WAITING
    monkeypatch.setattr(shadows, "MAX_WAITING_BYTES", 15)
    shadow.offer(sample(1, 2))
    counts = shadow.counts()
    assert counts is not None
    assert counts.dropped == shadows.MAX_WAITING + 1, "too large to keep"
    shadow.stop()


async def test_stopping_leaves_nothing_under_way(other: tuple[Other, int]) -> None:
    server, port = other
    server.hold = True
    shadow = Shadow("m")
    shadow.aim(port, 1.0)
    shadow.offer(sample(1, 2))
    await until(shadow, lambda _: bool(server.held))
    before = asyncio.all_tasks()
    shadow.stop()
    async with asyncio.timeout(WAIT_SECONDS):
        while not any(task.done() for task in before):  # noqa: ASYNC110 - it is cancelled, not awaited
            await asyncio.sleep(0.001)
    with contextlib.suppress(asyncio.InvalidStateError):
        server.let_go()


async def test_the_share_is_held_to() -> None:
    taken = 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        shadow = Shadow("m")
        shadow.aim(closed.getsockname()[1], 0.25)
        for _ in range(4000):
            shadow.offer(sample(1, 2))
        counts = shadow.counts()
        assert counts is not None
        taken = counts.mirrored + counts.dropped
        shadow.stop()
    assert 700 < taken < 1300  # 1000 +- 27 (one sigma): off by eleven of them


def test_the_request_is_the_protocols() -> None:
    head, body = shadows.encode(sample(1, 2, label="ä"))
    assert head % 8 == 0
    asked = protocol.decode(body, head, CHECK, max_json_bytes=65536)
    assert asked.inputs["x"].tolist() == [[0.5, 1.0]]
    assert (list(asked.outputs), asked.binary) == (["label", "scores"], frozenset({"label", "scores"}))


@given(st.binary(max_size=300), st.text(max_size=5))
def test_no_answer_breaks_the_comparison(body: bytes, length: str) -> None:
    answer = Answer(status=200, headers={shadows.LENGTH_HEADER.lower(): length or str(len(body))}, body=body)
    with contextlib.suppress(SkerryError):
        shadows.judge(sample(1, 2), answer)


shapes = st.lists(st.integers(-(2**40), 2**40), max_size=12)


@given(st.sampled_from(["FP32", "BYTES", "BOOL", "INT8", "BF16", ""]), shapes, st.binary(max_size=64))
def test_no_tensor_breaks_the_comparison(datatype: str, shape: list[int], raw: bytes) -> None:
    output = {"name": "scores", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    head = msgspec.json.encode({"outputs": [output]})
    answer = Answer(status=200, headers={shadows.LENGTH_HEADER.lower(): str(len(head))}, body=head + raw)
    with contextlib.suppress(SkerryError):
        agrees, difference = shadows.judge(sample(1, 2), answer)
        assert (agrees, 0 <= difference <= sys.float_info.max) == (False, True)
