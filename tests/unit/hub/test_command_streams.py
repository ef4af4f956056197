"""A command's SPDY streams: which is which, what is bounded, and how it ends, against frames as kubectl writes them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.test_spdy import Client, data, frame, packed

from skerry.api.errors import UnavailableError
from skerry.core import channels
from skerry.core.messages import RemoteSession
from skerry.hub import command_streams as module
from skerry.hub.command_streams import CommandStreams

V4, V3, V2, V1 = channels.STREAM_COMMAND_PROTOCOLS
SESSION = RemoteSession(tunnel="", purpose="exec", argv=["sh"], stdin=True, stdout=True, stderr=True)
TERMINAL = msgspec.structs.replace(SESSION, tty=True, stderr=False)
OPENED = {"error": 1, "stdin": 3, "stdout": 5, "stderr": 7}


class Line:
    """A connection whose peer said all of this, and then waits, or leaves."""

    def __init__(self, *pieces: bytes, stays: bool = False) -> None:
        self.pieces, self.stays, self.sent, self.closed = list(pieces), stays, b"", False
        self.code, self.reason = 1000, ""
        self.left = asyncio.Event()
        self.waits = asyncio.Event()

    async def receive(self) -> bytes | None:
        if not self.pieces and self.stays:
            self.waits.set()
            await self.left.wait()
        return self.pieces.pop(0) if self.pieces else None

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = True

    async def gone(self) -> None:
        await self.left.wait()


def opening(streams: dict[str, int], client: Client | None = None) -> list[bytes]:
    client = client or Client()
    return [client.open(number, {"streamtype": kind}) for kind, number in streams.items()]


def frames(raw: bytes) -> list[tuple[int, bytes]]:
    """What was sent: the frame's kind (0 for data) with its content, numbers first."""
    found = []
    while raw:
        size = int.from_bytes(raw[5:8])
        head, content, raw = raw[:5], raw[8 : 8 + size], raw[8 + size :]
        found.append((head[3], content) if head[0] & 0x80 else (0, head[:4] + bytes((head[4],)) + content))
    return found


def said(stream: int, content: bytes, *, last: bool = False) -> tuple[int, bytes]:
    return 0, stream.to_bytes(4) + bytes((int(last),)) + content


async def opened(*pieces: bytes, session: RemoteSession = SESSION, protocol: str = V4) -> tuple[CommandStreams, Line]:
    streams = dict(OPENED) if session is SESSION else {"error": 1, "stdin": 3, "stdout": 5}
    if session.tty and protocol in (V4, V3):
        streams["resize"] = 9
    line = Line(*opening(streams), *pieces)
    one = CommandStreams(line, session, protocol)
    await one.open()
    assert [kind for kind, _ in frames(line.sent)] == [2] * len(streams), "each is accepted"
    line.sent = b""
    return one, line


@given(st.permutations(list(OPENED)), st.integers(1, 60))
async def test_streams_may_be_opened_in_any_order_and_cut_anyhow(order: list[str], cut: int) -> None:
    raw = b"".join(opening({kind: OPENED[kind] for kind in order})) + data(3, b"in", last=True)
    line = Line(*(raw[at : at + cut] for at in range(0, len(raw), cut)))
    one = CommandStreams(line, SESSION, V4)
    await one.open()
    assert await one.receive() == b"\0in"
    assert await one.receive() == bytes((channels.CLOSE, channels.STDIN))
    assert await one.receive() is None
    line.sent = b""
    await one.send(b"\1out")
    await one.send(b"\2err")
    assert frames(line.sent) == [said(5, b"out"), said(7, b"err")]


async def test_a_terminal_has_a_stream_for_its_size_from_v3_on() -> None:
    for protocol in (V4, V3):
        one, _ = await opened(data(9, b'{"Width":9,"Height":5}\n'), session=TERMINAL, protocol=protocol)
        message = await one.receive()
        assert message is not None
        assert channels.parse_size(message[1:]) == channels.Size(width=9, height=5)
    for protocol in (V2, V1):
        await opened(session=TERMINAL, protocol=protocol)  # and is not waited for before


@pytest.mark.parametrize(
    ("protocol", "status", "word"),
    [
        (V4, channels.ended(3), channels.ended(3)[1:]),
        (V4, channels.ended(0), channels.ended(0)[1:]),
        (V3, channels.ended(3), b"command terminated with non-zero exit code: 3"),
        (V1, channels.failed("why"), b"why"),
        (V3, channels.ended(0), b""),
    ],
)
async def test_how_it_ended_is_said_as_the_protocol_has_it(protocol: str, status: bytes, word: bytes) -> None:
    one, line = await opened(protocol=protocol)
    await one.send(status)
    await one.close()
    assert frames(line.sent)[0] == said(1, word)
    assert sorted(frames(line.sent)[1:]) == [said(number, b"", last=True) for number in OPENED.values()]
    assert line.closed


async def test_who_reads_late_is_waited_for() -> None:
    """Its library throws away what it has not read when the connection ends."""
    one, line = await opened()
    line.stays = True
    closing = asyncio.create_task(one.close())
    async with asyncio.timeout(20):
        await line.waits.wait()
        assert len(frames(line.sent)) == len(OPENED), "it knows that this is all"
        assert not line.closed
        line.left.set()
        await closing
    assert line.closed


async def test_who_stays_without_a_word_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.01)
    one, line = await opened()
    line.stays = True
    await one.close()
    assert line.closed


async def test_pings_are_answered_and_what_was_given_up_is_left_alone() -> None:
    reset = frame(3, (5).to_bytes(4) + (5).to_bytes(4))
    one, line = await opened(frame(6, (7).to_bytes(4)), reset + frame(3, (3).to_bytes(4) + (5).to_bytes(4)))
    assert await one.receive() == bytes((channels.CLOSE, channels.STDIN))
    await one.send(b"\1out")
    assert frames(line.sent) == [(6, (7).to_bytes(4))]


@pytest.mark.parametrize("extra", [{"streamtype": "other"}, {"streamtype": "stdin"}, {}])
async def test_other_streams_are_refused(extra: dict[str, str]) -> None:
    client = Client()
    line = Line(*opening(OPENED, client), client.open(11, extra) + data(11, b"x"))
    one = CommandStreams(line, SESSION, V4)
    await one.open()
    assert await one.receive() is None
    assert frames(line.sent)[-1] == (3, (11).to_bytes(4) + (3).to_bytes(4))


async def test_a_stream_s_number_counts_once() -> None:
    one = CommandStreams(Line(*opening({"error": 1, "stdin": 3, "stdout": 3, "stderr": 5})), SESSION, V4)
    with pytest.raises(UnavailableError):
        await one.open()


async def test_much_input_at_a_time_reaches_the_device_in_its_measure() -> None:
    content = bytes(range(256)) * 4000
    one, _ = await opened(data(3, content))
    got = b""
    while (message := await one.receive()) is not None:
        assert len(message) <= module.PIECE_BYTES + 1
        got += message[1:]
    assert got == content


@pytest.mark.parametrize(
    "pieces",
    [
        opening({"error": 1, "stdout": 5}),  # and leaves
        [b"GET / HTTP/1.1\r\n\r\n" + bytes(600_000)],
        [frame(1, bytes(10) + b"garbage")],
        [Client().open(1, {"streamtype": "error", "x": "y" * 1_000_000})],
        [frame(1, (1).to_bytes(4) + bytes(6) + packed(b"\0\0\0\1" + b"\xff" * 8))],
        [b"\0\0\0\1\0\xff\xff\xff"],
        [*opening({"stdin": 3}), *(data(3, bytes(100_000)) for _ in range(100))],
    ],
)
async def test_who_opens_nothing_that_can_be_used_is_sent_away(pieces: list[bytes]) -> None:
    line = Line(*pieces)
    one = CommandStreams(line, SESSION, V4)
    with pytest.raises(UnavailableError, match="did not open"):
        await one.open()
    assert len(line.pieces) >= len(pieces) - 5, "no more than a bound of it is read"
    await one.close()
    assert line.closed


async def test_streams_without_an_end_are_not_unpacked_for_ever() -> None:
    client = Client()
    first = opening(OPENED, client)
    many = [client.open(11 + 2 * number, {"a": "b" * 15_000}) for number in range(1000)]
    line = Line(*first, *many)
    one = CommandStreams(line, SESSION, V4)
    await one.open()
    assert await one.receive() is None
    assert len(line.pieces) >= len(many) - module.MAX_BLOCKS


async def test_a_client_that_only_waits_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.01)
    with pytest.raises(UnavailableError, match="did not open"):
        await CommandStreams(Line(stays=True), SESSION, V4).open()


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=80), st.builds(frame, st.integers(0, 12), st.binary(max_size=40)))))
async def test_no_bytes_do_anything_else(pieces: list[bytes]) -> None:
    one, line = await opened(*pieces)
    while (message := await one.receive()) is not None:
        assert message[0] in (channels.STDIN, channels.RESIZE, channels.CLOSE)
    await one.send(b"\1out")
    await one.close()
    assert line.closed
