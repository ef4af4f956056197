"""HTTP over the loopback: what servers may answer, and that nothing else is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import SkerryError, TimedOutError, TooLargeError, UnavailableError
from skerry.kit.loopback import LoopbackClient


@asynccontextmanager
async def server(*answers: bytes, seen: list[bytes] | None = None, hang: bool = False) -> AsyncIterator[int]:
    """Answer each request with the next of these bytes, then close (or say nothing more)."""
    left = list(answers)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if seen is not None:
                    seen.append(head + body)
                writer.write(left.pop(0))
                await writer.drain()
            if hang:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def client(port: int, *, seconds: float = 5.0) -> LoopbackClient:
    return LoopbackClient(port, max_body_bytes=100, timeout_seconds=seconds)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi"


async def test_a_connection_is_kept() -> None:
    seen: list[bytes] = []
    async with server(OK, OK, seen=seen) as port, client(port) as one:
        for _ in range(2):
            answer = await one.request("POST", "/x", body=b"abc", headers={"Content-Type": "text/plain"})
            assert (answer.status, answer.headers["x-a"], answer.body) == (200, "b", b"hi")
    head = ["POST /x HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Length: 3", "Content-Type: text/plain"]
    assert seen[0] == "\r\n".join([*head, "", "abc"]).encode()


async def test_a_closing_server_is_connected_to_again() -> None:
    closing = OK.replace(b"X-A: b", b"Connection: close")
    async with server(closing, OK) as port, client(port) as one:
        assert (await one.request("GET", "/")).body == b"hi"
        assert (await one.request("GET", "/")).body == b"hi"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"", UnavailableError, "closed in the middle"),
        (OK[:-1], UnavailableError, "closed in the middle"),
        (b"HTTP/1.1 200 OK\r\n\r\n", UnavailableError, "how long it is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", UnavailableError, "how long it is"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", TooLargeError, "101 bytes, more than 100"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", UnavailableError, "how long it is"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", UnavailableError, "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100_000 + b"\r\n\r\n", UnavailableError, "head is longer"),
    ],
)
async def test_bad_answers_are_sentences(answer: bytes, error: type[SkerryError], words: str) -> None:
    async with server(answer) as port, client(port) as one:
        with pytest.raises(error, match=words):
            await one.request("GET", "/")


async def test_nobody_and_silence() -> None:
    async with server() as port:
        pass
    async with client(port) as one:
        with pytest.raises(UnavailableError, match="nothing listens there"):
            await one.request("GET", "/")
    async with server(b"", hang=True) as port, client(port, seconds=0.05) as one:
        with pytest.raises(TimedOutError, match="no answer within"):
            await one.request("GET", "/")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_answers_raise_only_what_is_promised(raw: bytes) -> None:
    async def ask() -> None:
        async with server(raw) as port, client(port) as one:
            with pytest.raises((UnavailableError, TooLargeError, TimedOutError)):
                await one.request("GET", "/")

    run(ask)


def run(work: Callable[[], object]) -> None:
    with asyncio.Runner() as runner:
        runner.run(work())  # type: ignore[arg-type]
