"""Neighbours that lie, are busy, take too much or squat on a name: none of them costs more than itself."""

# ruff: noqa: ASYNC110, F811 - what happens at the other end has no event to wait for; fixtures are named as they are
from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.integration.agent.test_agent_peers import (
    CONTENT,
    PATH,
    WAIT,
    Make,
    Member,
    authority,  # noqa: F401
    client,
    desired,
    make,  # noqa: F401
    raw,
    seek,
)
from tests.integration.agent.test_agent_peers_discovery import has_multicast

from skerry.agent import peers, peers_discovery, peers_server
from skerry.agent.peers import Found, Neighbourhood, Peers
from skerry.agent.peers_discovery import SERVICE
from skerry.agent.settings import PeerSettings
from skerry.api.kinds.variants import Blob
from skerry.core.journal import Slot
from skerry.kit.clock import SystemClock

SOUND = 300_000
"""Bytes that came from the hub."""


def begun(member: Member, content: bytes = CONTENT[:SOUND]) -> Any:
    path = member.target.with_name(f"{member.target.name}.partial")
    path.write_bytes(content)
    return path


# --- lies -----------------------------------------------------------------------------------------------------------


def span(start: int, size: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {start}-{size - 1}/{size}"}


LIES: dict[str, Callable[[int, int, Any], list[Any]]] = {
    "no such part": lambda start, size, stand: [416, stand, 0, b""],
    "another part": lambda start, size, stand: [206, {**stand, **span(0, size)}, size, b""],
    "another length": lambda start, size, stand: [206, {**stand, **span(start, size)}, 5, b"12345"],
    "all of it": lambda start, size, stand: [200, stand, size, b"x"],
    "nothing of it": lambda start, size, stand: [
        206,
        {**stand, **span(start, size)},
        size - start,
        bytes(size - start),
    ],
}


@pytest.mark.parametrize("kind", LIES)
async def test_a_lie_costs_nothing_of_what_the_hub_gave(make: Make, kind: str) -> None:
    liar = await make("da")
    liar.have()
    buyer = await make("db", liar)
    partial_ = begun(buyer)

    async def lies(file: int, size: int, header: str, stand: dict[str, str], writer: asyncio.StreamWriter) -> int:
        start = int(header.partition("=")[2].rstrip("-") or 0)
        status, headers, length, body = LIES[kind](start, size, stand)
        if not start:  # asked for all of it: other content
            status, headers, length, body = 200, stand, size, bytes(size)
        peers_server._send(writer, status, headers, size=length)
        writer.write(body)
        return int(status)

    assert liar.peers.server is not None
    liar.peers.server._give = lies  # type: ignore[method-assign]
    assert not (await seek(buyer))[0]
    assert partial_.read_bytes() == CONTENT[:SOUND]
    assert sorted(path.name for path in buyer.target.parent.iterdir()) == [partial_.name]
    [until] = buyer.peers._leave_until.values()
    assert until > buyer.peers.clock.monotonic() + peers.SLOW_SECONDS


async def test_who_is_honest_is_not_blamed_for_what_was_there_before(make: Make) -> None:
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    partial_ = begun(buyer, bytes(SOUND))
    assert (await seek(buyer))[0]
    assert buyer.target.read_bytes() == CONTENT
    assert not partial_.exists()
    assert buyer.peers._leave_until == {}


async def test_what_is_read_before_it_is_asked_for_does_not_count_as_slow(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "SPEED_SECONDS", 0.1)
    seller = await make("da")
    seller.have()
    buyer = await make("db", seller)
    name, real = begun(buyer).name, os.pread

    def slow_card(descriptor: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            time.sleep(0.15)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", slow_card)
    assert await seek(buyer) == (True, len(CONTENT) - SOUND)


# --- turns ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def held(seller: Member, by: Member, count: int) -> AsyncIterator[None]:
    """Take so many turns, and nothing of what comes."""
    writers = []
    async with asyncio.timeout(WAIT):
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", seller.port, ssl=client(by))
            writer.write(f"GET {PATH} HTTP/1.1\r\n\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writers.append(writer)
    try:
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_one_device_has_its_share_of_the_turns_and_no_more(make: Make) -> None:
    seller = await make("da", max_bandwidth="64Ki")
    seller.have()
    greedy, other = await make("db"), await make("dc")
    async with held(seller, greedy, peers_server.MAX_TURNS):
        request = f"GET {PATH} HTTP/1.1\r\n\r\n".encode()
        assert (await raw(seller, client(greedy), request)).startswith(b"HTTP/1.1 503 ")
        async with held(seller, other, 1):
            pass


async def test_who_is_sent_away_by_a_busy_one_asks_it_again(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(peers, "ASK_AGAIN_SECONDS", 0.1)
    seller = await make("da", max_bandwidth="256Ki")
    seller.have()
    buyer = await make("db", seller)
    sent_away: list[float] = []
    real = peers.Seeking._noted

    def noted(self: peers.Seeking, told: Any) -> Any:  # only looked at
        sent_away.extend(self._busy_until.values())
        return real(self, told)

    monkeypatch.setattr(peers.Seeking, "_noted", noted)
    async with held(seller, buyer, peers_server.MAX_TURNS):
        seeking = asyncio.ensure_future(seek(buyer))
        async with asyncio.timeout(WAIT):
            while not sent_away and not seeking.done():
                await asyncio.sleep(0.01)
        assert not seeking.done()
    assert await seeking == (True, len(CONTENT))
    assert buyer.peers._leave_until == {}


def test_who_takes_too_little_for_too_long_is_hung_up_on() -> None:
    speed = peers_server._Speed()
    for _ in range(1000):  # what costs no waiting is never too slow
        speed.note(1, 0.0)
    for _ in range(100):
        speed.note(peers_server.LEAST_SPEED, 0.9)
    speed = peers_server._Speed()
    for _ in range(11):
        speed.note(peers_server.LEAST_SPEED // 2, 0.9)
    with pytest.raises(TimeoutError, match="took"):
        speed.note(1, peers_server.STALL_SECONDS)


async def test_no_more_is_taken_at_a_time_than_leaves_threads_for_others(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers_server, "MAX_TURNS", 64)
    seller = await make("da", max_transfers=16, max_bandwidth="512Ki")
    buyer = await make("db", seller)
    jobs, now, most, real = [], 0, 0, peers._at_speed

    async def counted(*arguments: Any) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await real(*arguments)
        finally:
            now -= 1

    monkeypatch.setattr(peers, "_at_speed", counted)  # it does what it does, and is counted

    async def one(blob: Blob) -> bool:
        with buyer.peers.seeking(desired(blob), blob) as seeking:
            return await seeking.brought(buyer.disk.blob(blob), lambda _: None, lambda: True)

    for number in range(2 * peers.MAX_TAKING):
        content = os.urandom(150_000)
        blob = Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))
        seller.disk.blob(blob).write_bytes(content)
        want = msgspec.structs.replace(desired(blob), name=f"w{number}")
        seller.named[want.name] = [Slot(serial=1, desired=want)]
        jobs.append(asyncio.ensure_future(one(blob)))
    async with asyncio.timeout(WAIT):
        assert all(await asyncio.gather(*jobs))
    assert most == peers.MAX_TAKING


# --- what fails, and goes on ----------------------------------------------------------------------------------------


async def test_it_listens_as_soon_as_it_can(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "RETRY_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        late = await make("da", listen=False)
        hood = (await make("db")).peers._hood
        wanted = PeerSettings(listen=f"127.0.0.1:{port}")
        member = Peers(late.disk, SystemClock(), wanted, hood, named=dict)
        running = asyncio.ensure_future(member.run())
        await asyncio.sleep(0.1)
        assert not running.done()
        assert member.server is not None
        assert member.server.port == 0
    async with asyncio.timeout(WAIT):
        while not member.server.port:
            await asyncio.sleep(0.01)
    assert member.server.port == port
    running.cancel()
    await asyncio.wait({running})


async def test_whatever_is_wrong_with_finding_is_not_the_agent_s_end(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(peers, "RETRY_SECONDS", 0.01)
    one = await make("da")
    tries = 0

    @contextlib.asynccontextmanager
    async def fails_at_first(wanted: PeerSettings, port: Callable[[], int]) -> AsyncIterator[Found]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("as a library may")
        yield {"dz": ("127.0.0.1", 1)}

    hood = one.peers._hood
    assert isinstance(hood, Neighbourhood)
    found = Peers(
        one.disk,
        SystemClock(),
        PeerSettings(discover=True),
        Neighbourhood(
            **{name: getattr(hood, name) for name in hood.__dataclass_fields__} | {"discovery": fails_at_first}
        ),
        named=dict,
    )
    running = asyncio.ensure_future(found.run())
    async with asyncio.timeout(WAIT):
        while not found._found:
            assert not running.done()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait({running})


async def test_a_device_whose_name_somebody_else_bears_is_found_all_the_same(monkeypatch: Any) -> None:
    zeroconf = pytest.importorskip("zeroconf.asyncio")
    if not has_multicast():
        pytest.skip("this machine carries no multicast over the loopback")
    discover = partial(peers_discovery.discovered, interfaces=["127.0.0.1"])
    stranger = zeroconf.AsyncZeroconf(interfaces=["127.0.0.1"])
    squat = zeroconf.AsyncServiceInfo(
        SERVICE, f"da.{SERVICE}", port=9, addresses=[socket.inet_aton("127.0.0.9")], server="x.local."
    )
    await (await stranger.async_register_service(squat))
    try:
        async with asyncio.timeout(WAIT), discover("db", PeerSettings(discover=True), lambda: 0) as by:
            while by.get("da") != ("127.0.0.9", 9):
                await asyncio.sleep(0.05)
            async with discover("da", PeerSettings(listen="127.0.0.1:7445", discover=True), lambda: 7445):
                while ("127.0.0.1", 7445) not in by.values():
                    await asyncio.sleep(0.05)
    finally:
        await stranger.async_unregister_all_services()
        await stranger.async_close()


async def test_what_is_announced_follows_the_listener(monkeypatch: Any) -> None:
    pytest.importorskip("zeroconf")
    if not has_multicast():
        pytest.skip("this machine carries no multicast over the loopback")
    monkeypatch.setattr(peers_discovery, "LOOK_SECONDS", 0.1)
    discover, port = partial(peers_discovery.discovered, interfaces=["127.0.0.1"]), 0
    async with asyncio.timeout(WAIT):
        wanted = PeerSettings(listen="127.0.0.1:7445", discover=True)
        async with discover("da", wanted, lambda: port), discover("db", PeerSettings(discover=True), lambda: 0) as by:
            for port in (7445, 7446):
                while ("127.0.0.1", port) not in by.values():
                    await asyncio.sleep(0.05)
