"""Parts of a blob by several connections: only where that is faster, always in order, and as hard to fool as one is."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError, NotFoundError, UnavailableError
from skerry.api.kinds.variants import Blob
from skerry.drivers.registry import ahead
from skerry.drivers.registry.bandwidth import Bandwidth
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings

WAIT = 60.0
PART = 4096
CONTENT = os.urandom(64 * PART + 17)
BLOB = Blob(digest=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", size=len(CONTENT))

Handler = http.server.BaseHTTPRequestHandler


@dataclass
class Registry:
    """Serves ranges over connections that stay open."""

    url: str = ""
    content: bytes = CONTENT
    lie: Callable[[Handler, int, int], bool] = lambda handler, start, end: False
    """Answers in its own way where it returns True."""
    ranges: list[str] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, handler: Handler) -> None:
        header = handler.headers.get("Range", "")
        with self.lock:
            self.ranges.append(header)
        first, _, last = header.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last) + 1 if last else len(self.content)
        if self.lie(handler, start, end):
            return
        send(
            handler,
            206 if header else 200,
            self.content[start:end],
            start=start if header else None,
            of=len(self.content),
        )


def send(handler: Handler, status: int, body: bytes, *, start: int | None = None, of: int = 0) -> None:
    handler.send_response(status)
    if start is not None:
        handler.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{of}")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(ahead, "PART_BYTES", PART)
    monkeypatch.setattr(ahead, "TRY_BYTES", 8 * PART)
    monkeypatch.setattr(ahead, "LEAST_BYTES", 16 * PART)
    monkeypatch.setattr(ahead, "FAST_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "WORTH", 0.0)  # more are always worth it, whatever this machine does beside
    made = Registry()

    class Answers(Handler):
        protocol_version = "HTTP/1.1"
        timeout = WAIT

        def setup(self) -> None:
            with made.lock:
                made.connections += 1
            super().setup()

        def do_GET(self) -> None:  # noqa: N802 - as http.server calls it
            made.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nobody reads it."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hung up is no news."""

    with Server(("127.0.0.1", 0), Answers) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def fetch(registry: Registry, target: Path, *, bandwidth: Bandwidth | None = None, **more: Any) -> int:
    counts: list[int] = []
    source = OciArtifactSource(registry.url, None, OciSettings(**{"connections": 4, **more}), bandwidth)

    async def fetched() -> None:
        async with asyncio.timeout(WAIT):
            await source.fetch("default/digits", BLOB, target, progress=counts.append)
            await asyncio.sleep(0)

    asyncio.run(fetched())
    return sum(counts)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "blob"


def partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def test_several_connections_bring_it_whole_and_once(registry: Registry, target: Path) -> None:
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert 3 <= registry.connections <= 4
    asked = sorted(tuple(map(int, one.removeprefix("bytes=").split("-"))) for one in registry.ranges)
    assert asked[0][0] == 0
    assert asked[-1][1] == len(CONTENT) - 1
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(asked))


def test_where_one_is_as_good_the_rest_comes_in_one(registry: Registry, target: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ahead, "WORTH", 1e9)
    assert fetch(registry, target) == len(CONTENT)
    assert registry.ranges[-1] == f"bytes={16 * PART}-"
    assert target.read_bytes() == CONTENT


def test_a_fast_link_is_not_tried_further(registry: Registry, target: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ahead, "FAST_SECONDS", 1e9)
    fetch(registry, target)
    assert registry.ranges[-1] == f"bytes={8 * PART}-"
    assert registry.connections == 2


@pytest.mark.parametrize("case", ["one connection", "a bound", "little is missing"])
def test_what_is_asked_for_at_once_as_ever(registry: Registry, target: Path, case: str) -> None:
    bandwidth = Bandwidth(10**9) if case == "a bound" else None
    if case == "little is missing":
        partial_of(target).write_bytes(CONTENT[: 49 * PART])
    fetch(registry, target, bandwidth=bandwidth, connections=1 if case == "one connection" else 4)
    assert len(registry.ranges) == 1
    assert target.read_bytes() == CONTENT


def test_it_goes_on_where_it_stopped(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    assert fetch(registry, target) == len(CONTENT) - 1000
    assert min(int(one.removeprefix("bytes=").split("-")[0]) for one in registry.ranges) == 1000


@pytest.mark.parametrize("at", [0, 8, 9, 40, 63])
def test_a_break_leaves_what_is_in_order_and_nothing_else(registry: Registry, target: Path, at: int) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        if start <= at * PART < end:
            send(handler, 503, b"")
            return True
        return False

    registry.lie = lie
    with pytest.raises(UnavailableError, match="503"):
        fetch(registry, target)
    assert partial_of(target).read_bytes() == CONTENT[: at * PART]
    assert not target.exists()
    registry.lie = lambda handler, start, end: False
    assert fetch(registry, target) == len(CONTENT) - at * PART
    assert target.read_bytes() == CONTENT


def test_what_is_not_there_is_final(registry: Registry, target: Path) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        send(handler, 404, b"")
        return True

    registry.lie = lie
    with pytest.raises(NotFoundError):
        fetch(registry, target)


def short(handler: Handler, start: int, end: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(CONTENT)}")
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    handler.wfile.write(CONTENT[start : end - 100])
    handler.close_connection = True


LIES: dict[str, Callable[[Handler, int, int], None]] = {
    "everything": lambda handler, start, end: send(handler, 200, CONTENT),
    "another part": lambda handler, start, end: send(handler, 206, CONTENT[: end - start], start=0, of=len(CONTENT)),
    "too little": lambda handler, start, end: send(
        handler, 206, CONTENT[start : end - 1], start=start, of=len(CONTENT)
    ),
    "too much": lambda handler, start, end: send(handler, 206, CONTENT[start : end + 9], start=start, of=len(CONTENT)),
    "no such part": lambda handler, start, end: send(handler, 416, b""),
    "nonsense": lambda handler, start, end: send(handler, 206, b"x" * (end - start)),
}


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("at", [0, 20])
def test_a_registry_that_gives_no_such_part_is_asked_for_all_that_is_missing(
    registry: Registry, target: Path, kind: str, at: int
) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        if start >= at * PART and end - start <= 8 * PART:
            LIES[kind](handler, start, end)
            return True
        return False

    registry.lie = lie
    fetch(registry, target)
    assert target.read_bytes() == CONTENT
    open_ended = [one for one in registry.ranges if not one or one.endswith("-")]
    assert len(open_ended) == 1


def test_what_came_of_a_part_that_breaks_off_is_kept_and_one_connection_brings_the_rest(
    registry: Registry, target: Path
) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        if start == 10 * PART and end == 11 * PART:
            short(handler, start, end)
            return True
        return False

    registry.lie = lie
    fetch(registry, target)
    assert target.read_bytes() == CONTENT
    assert registry.ranges[-1] == f"bytes={11 * PART - 100}-"


@pytest.mark.parametrize("connections", [1, 4])
def test_a_line_that_always_breaks_early_makes_progress_each_time(
    registry: Registry, target: Path, connections: int
) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        send_beginning(handler, start, end, 7 * PART)
        return True

    registry.lie = lie
    sizes, tries = [0], 0
    while not target.exists():
        tries += 1
        assert tries <= 10
        try:
            fetch(registry, target, connections=connections)
        except UnavailableError:
            sizes.append(partial_of(target).stat().st_size)
    assert all(after - before >= 7 * PART for before, after in itertools.pairwise(sizes))
    assert target.read_bytes() == CONTENT


def send_beginning(handler: Handler, start: int, end: int, most: int) -> None:
    handler.send_response(206 if "Range" in handler.headers else 200)
    if "Range" in handler.headers:
        handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(CONTENT)}")
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    handler.wfile.write(CONTENT[start : min(end, start + most)])
    handler.close_connection = True


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_registry_that_wants_one_connection_is_left_with_one(registry: Registry, target: Path, status: int) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        if end - start == PART:  # what only several ask for
            send(handler, status, b"")
            return True
        return False

    registry.lie = lie
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert registry.ranges[-1] == f"bytes={8 * PART}-"


def test_connections_that_the_registry_closes_are_made_again(registry: Registry, target: Path) -> None:
    def lie(handler: Handler, start: int, end: int) -> bool:
        handler.close_connection = True  # without a word of it, as one does that is restarted
        return False

    registry.lie = lie
    assert fetch(registry, target) == len(CONTENT)
    assert target.read_bytes() == CONTENT


def test_other_content_is_refused_and_not_kept(registry: Registry, target: Path) -> None:
    registry.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(IntegrityError):
        fetch(registry, target)
    assert not partial_of(target).exists()
    assert not target.exists()


def test_a_poisoned_beginning_is_found_out_and_all_comes_again(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(b"\x00" * 20 * PART)
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


def test_a_cancelled_fetch_ends_at_once(registry: Registry, target: Path) -> None:
    let_go = threading.Event()

    def lie(handler: Handler, start: int, end: int) -> bool:
        if start >= 10 * PART:
            let_go.wait(WAIT)
        return False

    registry.lie = lie

    async def cancelled() -> None:
        came = asyncio.Event()
        source = OciArtifactSource(registry.url, None, OciSettings(connections=4, idle_seconds=3600))
        fetching = asyncio.ensure_future(source.fetch("default/digits", BLOB, target, progress=lambda _: came.set()))
        async with asyncio.timeout(WAIT):
            await came.wait()
            while len(registry.ranges) < 5:  # noqa: ASYNC110 - the registry announces nothing
                await asyncio.sleep(0.005)
            fetching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetching

    try:
        asyncio.run(cancelled())
    finally:
        let_go.set()
    assert CONTENT.startswith(partial_of(target).read_bytes())
    registry.lie = lambda handler, start, end: False
    fetch(registry, target)
    assert target.read_bytes() == CONTENT


# --- how many -------------------------------------------------------------------------------------------------------


class Link:
    """A link in a time of its own: so many bytes a second for a connection, and for all together."""

    def __init__(self, each: float, total: float) -> None:
        self.each, self.total, self.now = each, total, 0.0

    def run(self, size: int, most: int) -> list[int]:
        """Return the number of connections that brought each part."""
        widths = []
        found = ahead.widest(
            lambda start, end: bytes(end - start),
            0,
            size,
            most,
            stream=lambda start, end: iter([bytes(end - start)]),
            monotonic=lambda: self.now,
        )
        for width, part in found:
            widths.append(width)
            self.now += len(part) / min(self.each * width, self.total)
        return widths


MIB = 1024 * 1024


def test_a_bound_for_each_connection_is_overcome() -> None:
    widths = Link(1e6, 1e8).run(64 * MIB, 4)
    assert widths == [1] + [2] * 4 + [4] * 56


def test_more_than_the_link_carries_are_not_used() -> None:
    assert Link(1e6, 2e6).run(64 * MIB, 4) == [1] + [2] * 4 + [4] * 4 + [2] * 52


def test_a_link_that_one_fills_is_left_to_one() -> None:
    assert Link(1e6, 1e6).run(64 * MIB, 4) == [1] + [2] * 4


def test_a_link_that_is_fast_enough_is_left_to_one() -> None:
    assert Link(1e8, 1e9).run(64 * MIB, 4) == [1]


@given(st.binary(max_size=300), st.integers(1, 5), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_parts_come_in_order_whoever_is_slow(content: bytes, width: int, part: int) -> None:
    def ask(start: int, end: int) -> bytes:
        time.sleep(0.0005 if content[start] % 2 else 0)  # the order in which they end is the machine's
        return content[start:end]

    before = ahead.PART_BYTES, ahead.TRY_BYTES
    ahead.PART_BYTES, ahead.TRY_BYTES = part, 4 * part
    try:
        assert b"".join(ahead.in_order(ask, 0, len(content), width)) == content
    finally:
        ahead.PART_BYTES, ahead.TRY_BYTES = before


def test_no_more_is_kept_than_a_few_parts() -> None:
    asked: list[int] = []

    def ask(start: int, end: int) -> bytes:
        asked.append(start)
        return bytes(1)

    given_ = ahead.in_order(ask, 0, 100 * ahead.PART_BYTES, 3)
    next(given_)
    given_.close()
    assert len(asked) <= 5
