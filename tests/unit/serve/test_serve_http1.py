"""Connections, over real sockets: order, bounds, timeouts, refusals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.serve.http1 import Request, Response, Server
from skerry.serve.limits import Limits

WAIT_SECONDS = 10.0
LIMITS = Limits(body_bytes=1000, buffered_bytes=1500, head_bytes=8192, pipelined=4, connections=8, sweep_seconds=0.01)


class Echo:
    """Answers at once with what it got, or, for /wait, when it is let go."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Response]] = []
        self.seen: list[Request] = []

    def __call__(self, request: Request) -> Response | asyncio.Future[Response]:
        self.seen.append(request)
        if request.target == b"/fail":
            raise RuntimeError("on purpose")
        if request.target.startswith(b"/wait"):
            self.waiting.append(asyncio.get_running_loop().create_future())
            return self.waiting[-1]
        if request.target == b"/large":
            return Response(body=(b"x" * 40_000_000,))
        return Response(body=(request.method, b" ", request.target, b" ", request.body))


class Running:
    def __init__(self, server: Server, echo: Echo, port: int) -> None:
        self.server = server
        self.echo = echo
        self.port = port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, raw: bytes) -> bytes:
        """Send, and return everything until the server closes."""
        async with self.client() as client:
            client.writer.write(raw)
            return await client.rest()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.echo.waiting) < count:  # noqa: ASYNC110 (polled: the parts under test have no test hooks)
                await asyncio.sleep(0.001)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(WAIT_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[Running]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    echo = Echo()
    server = Server(echo, limits)
    await server.listen(listener)
    try:
        yield Running(server, echo, listener.getsockname()[1])
    finally:
        await server.stop(0)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving() as made:
        yield made


def request(target: str = "/a", body: bytes = b"", *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: x", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


CLOSE = "Connection: close"


async def test_one_connection_serves_many_requests(running: Running) -> None:
    async with running.client() as client:
        for i in range(3):
            client.writer.write(request(f"/{i}", b"body"))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"POST /%d body" % i)
            assert headers["date"].endswith(" gmt")
            assert "connection" not in headers


async def test_requests_sent_at_once_are_answered_in_order(running: Running) -> None:
    async with running.client() as client:
        client.writer.write(request("/wait/1") + request("/2") + request("/3", b"", CLOSE))
        await running.until(1)
        assert [r.target for r in running.echo.seen] == [b"/wait/1"]  # one at a time
        running.echo.waiting[0].set_result(Response(body=(b"first",)))
        answer = await client.rest()
    assert [part.split(b"\r\n")[0] for part in answer.split(b"\r\n\r\n")[1:]] == [
        b"firstHTTP/1.1 200 OK",
        b"POST /2 HTTP/1.1 200 OK",
        b"POST /3 ",
    ]


async def test_a_request_may_come_byte_by_byte(running: Running) -> None:
    async with running.client() as client:
        for byte in request("/slow", b"abc", "X-Long: " + "y" * 200):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert (await client.answer())[2] == b"POST /slow abc"


async def test_a_chunked_body(running: Running) -> None:
    raw = (
        request("/c", b"", "Transfer-Encoding: chunked", CLOSE)
        + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n"
    )
    assert (await running.ask(raw)).endswith(b"POST /c abcdefg")


async def test_a_body_in_the_smallest_pieces_costs_no_more_memory_than_its_size() -> None:
    size = 200_000
    raw = request("/c", b"", "Transfer-Encoding: chunked", CLOSE) + b"1\r\nx\r\n" * size + b"0\r\n\r\n"
    async with serving(Limits()) as running:
        tracemalloc.start()
        try:
            assert (await running.ask(raw)).endswith(b"x" * 1000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(running.echo.seen[0].body) == size
    assert peak < 12 * size  # sent and received copies; a list of pieces would take over forty times as much


async def test_a_client_that_asks_before_it_sends_is_invited(running: Running) -> None:
    async with running.client() as client:
        client.writer.write(request("/e", b"", "Expect: 100-continue", "Content-Length: 3"))
        async with asyncio.timeout(WAIT_SECONDS):
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"abc")
        assert (await client.answer())[2] == b"POST /e abc"


async def test_a_client_with_too_much_is_told_before_it_sends(running: Running) -> None:
    raw = request("/e", b"", "Expect: 100-continue", "Content-Length: 1001")
    assert (await running.ask(raw)).startswith(b"HTTP/1.1 413 ")


async def test_http_1_0_and_head(running: Running) -> None:
    answer = await running.ask(request("/o", version="1.0"))
    assert b"Connection: close" in answer
    async with running.client() as client:
        client.writer.write(request("/o", b"", "Connection: keep-alive", version="1.0"))
        assert (await client.answer())[1]["connection"] == "keep-alive"
    answer = await running.ask(request("/h", b"", CLOSE, method="HEAD"))
    assert b"Content-Length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_an_offer_of_another_protocol_is_not_taken(running: Running) -> None:
    answer = await running.ask(request("/u", b"", "Connection: Upgrade", "Upgrade: h2c", method="GET"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"GET /u ")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),  # no Host
        (request("/a", b"", "Content-Length: 5", "Content-Length: 6"), 400),
        (request("/a", b"", "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (request("/a", b"", "Content-Length: -1"), 400),
        (request("/a", b"", "Bad Header: x"), 400),
        (request("/a", b"", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (request("/" + "a" * 3000), 414),
        (request("/a", b"", *[f"X-{i}: y" for i in range(200)]), 431),
        (request("/a", b"", "X: " + "y" * 9000), 431),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET /a HTTP/1.1\r\nX: " + b"y" * 9000, 431),
        (request("/a", b"x" * 1001), 413),
        (request("/a", b"", "Content-Length: " + "9" * 18), 413),
        (request("/a", b"", "Transfer-Encoding: chunked") + b"3ff\r\n" + b"x" * 1001, 413),
        (request("/a", b"", "Transfer-Encoding: chunked") + b"0\r\nX: " + b"y" * 9000, 431),
        (b"".join(request(f"/wait/{i}") for i in range(9)), 503),
        (request("/fail", b"", CLOSE), 500),
    ],
)
async def test_what_is_not_acceptable_is_refused_and_the_connection_closed(
    running: Running, raw: bytes, status: int
) -> None:
    async with running.client() as client:
        client.writer.write(raw)
        if status == 503:
            await running.until(1)
            for _ in range(6):
                for waiting in running.echo.waiting:
                    if not waiting.done():
                        waiting.set_result(Response())
                await asyncio.sleep(0.01)
        answer = await client.rest()
    last = answer[answer.rindex(b"HTTP/1.1 ") :]
    assert last.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in last
    assert last.split(b"\r\n\r\n")[1].startswith(b'{"error":"')


async def test_large_bodies_together_are_bounded_and_their_room_comes_back(running: Running) -> None:
    async with running.client() as first:
        first.writer.write(request("/wait", b"x" * 900))
        await running.until(1)
        assert (await running.ask(request("/b", b"y" * 900))).startswith(b"HTTP/1.1 503 ")
        running.echo.waiting[0].set_result(Response())
        await first.answer()
        assert (await running.ask(request("/b", b"y" * 900, CLOSE))).startswith(b"HTTP/1.1 200 ")
    assert running.server.reserve(1500)


async def test_connections_are_bounded(running: Running) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(LIMITS.connections):
            client = await stack.enter_async_context(running.client())
            client.writer.write(request("/a"))
            await client.answer()
        answer = await running.ask(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'{"error":"too many connections"}')


async def test_a_client_that_goes_away_withdraws_its_request(running: Running) -> None:
    async with running.client() as client:
        client.writer.write(request("/wait", b"x" * 500))
        await running.until(1)
    async with asyncio.timeout(WAIT_SECONDS):
        while running.server.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert running.echo.waiting[0].cancelled()
    assert running.server.reserve(1500)


@pytest.mark.parametrize(
    ("limits", "raw", "expected"),
    [
        (replace(LIMITS, keep_alive_seconds=0.01), b"", b""),
        (replace(LIMITS, keep_alive_seconds=0.01), request("/a"), b"POST /a "),
        (replace(LIMITS, head_seconds=0.01), b"GET /a HTTP/1.1\r\nHost", b"408"),
        (replace(LIMITS, body_idle_seconds=0.01), request("/a", b"", "Content-Length: 5") + b"abc", b"408"),
        (replace(LIMITS, head_seconds=0, request_seconds=0.01), request("/a", b"", "Content-Length: 5") + b"a", b"408"),
    ],
)
async def test_clients_that_let_it_wait_are_let_go(limits: Limits, raw: bytes, expected: bytes) -> None:
    async with serving(limits) as running:
        assert expected in await running.ask(raw)


async def test_a_client_that_does_not_read_is_let_go() -> None:
    async with serving(replace(LIMITS, write_idle_seconds=0.01)) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(request("/large"))
            async with asyncio.timeout(WAIT_SECONDS):
                while not running.echo.seen or running.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_slow_reader_gets_everything(running: Running) -> None:
    async with running.client() as client:
        client.writer.write(request("/large") + request("/next", b"", CLOSE))
        answer = await client.rest()
    assert answer.count(b"x" * 1000) == 40_000
    assert answer.endswith(b"POST /next ")


async def test_stopping_answers_what_is_under_way(running: Running) -> None:
    async with running.client() as busy, running.client() as idle, running.client() as half:
        for client in (busy, idle):
            client.writer.write(request("/a"))
            await client.answer()
        busy.writer.write(request("/wait"))
        half.writer.write(request("/h", b"", "Content-Length: 3") + b"a")
        await running.until(1)
        stopping = asyncio.create_task(running.server.stop(WAIT_SECONDS))
        assert await idle.rest() == b""
        running.echo.waiting[0].set_result(Response(body=(b"done",)))
        half.writer.write(b"bc")
        assert (await busy.rest()).endswith(b"done")
        assert (await half.rest()).endswith(b"POST /h abc")
        assert await stopping
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await asyncio.open_connection("127.0.0.1", running.port)


async def test_stopping_has_an_end(running: Running) -> None:
    async with running.client() as client:
        client.writer.write(request("/wait"))
        await running.until(1)
        assert not await running.server.stop(0.01)
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"Content-Length: 3\r\n", b"abc", request("/a")]
        ),
        max_size=6,
    )
)
def test_any_bytes_leave_the_server_working(pieces: list[bytes]) -> None:
    async def run() -> None:
        async with serving() as running:
            async with running.client() as client:
                for piece in pieces:
                    client.writer.write(piece)
                client.writer.write_eof()
                with contextlib.suppress(ConnectionResetError):
                    await client.rest()
            assert (await running.ask(request("/after", b"", CLOSE))).endswith(b"POST /after ")
            async with asyncio.timeout(WAIT_SECONDS):
                while running.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert running.server.reserve(LIMITS.buffered_bytes)

    asyncio.run(run())
