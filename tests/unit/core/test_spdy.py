"""SPDY/3.1 against a client of its own making: the draft's frames, in any pieces, and whatever else comes."""

from __future__ import annotations

import contextlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core import spdy
from skerry.core.spdy import Data, Left, Opened, Pinged, Reset, Spdy, SpdyError


class Client:
    """What kubectl writes."""

    def __init__(self) -> None:
        self.deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
        self.inflate = zlib.decompressobj(zdict=spdy.DICTIONARY)

    def block(self, headers: dict[str, str]) -> bytes:
        raw = len(headers).to_bytes(4)
        for name, value in headers.items():
            raw += len(name).to_bytes(4) + name.encode() + len(value).to_bytes(4) + value.encode()
        return self.deflate.compress(raw) + self.deflate.flush(zlib.Z_SYNC_FLUSH)

    def open(self, stream: int, headers: dict[str, str], *, last: bool = False) -> bytes:
        return frame(1, stream.to_bytes(4) + bytes(6) + self.block(headers), flags=int(last))


def frame(kind: int, content: bytes, *, flags: int = 0, version: int = 3) -> bytes:
    return (0x8000 | version).to_bytes(2) + kind.to_bytes(2) + bytes((flags,)) + len(content).to_bytes(3) + content


def data(stream: int, content: bytes, *, last: bool = False) -> bytes:
    return stream.to_bytes(4) + bytes((int(last),)) + len(content).to_bytes(3) + content


def packed(raw: bytes) -> bytes:
    deflate = Client().deflate
    return deflate.compress(raw) + deflate.flush(zlib.Z_SYNC_FLUSH)


def test_the_dictionary_is_the_draft_s() -> None:
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


words = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(st.dictionaries(words, words, max_size=4), st.binary(max_size=50), st.booleans()), max_size=5),
    st.lists(st.integers(0, 2000), max_size=12),
)
def test_streams_come_as_they_were_sent(streams: list[tuple[dict[str, str], bytes, bool]], cuts: list[int]) -> None:
    client, raw, expected = Client(), b"", list[spdy.Frame]()
    for number, (headers, content, last) in enumerate(streams):
        stream = 2 * number + 1
        raw += client.open(stream, headers, last=last) + data(stream, content, last=not last)
        expected += [Opened(stream, headers, last), Data(stream, content, not last)]
    raw += frame(6, (7).to_bytes(4)) + frame(3, (1).to_bytes(4) + (5).to_bytes(4)) + frame(4, b"\0" * 4)
    raw += frame(9, b"\0" * 8) + frame(7, b"\0" * 8)
    expected += [Pinged(7), Reset(1), Left()]
    marks = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    server = Spdy()
    seen = [one for a, b in itertools.pairwise(marks) for one in server.feed(raw[a:b])]
    assert seen == expected


def test_what_is_answered_can_be_read() -> None:
    server, client = Spdy(), Client()
    for stream in (1, 3):  # packed by what came before
        raw = server.reply(stream)
        assert raw[:4] == b"\x80\x03\x00\x02"
        assert raw[8:12] == stream.to_bytes(4)
        assert client.inflate.decompress(raw[12:]) == bytes(4)
    assert server.data(5, b"abc") == data(5, b"abc")
    assert server.data(5, last=True) == data(5, b"", last=True)
    assert server.reset(5) == frame(3, (5).to_bytes(4) + (3).to_bytes(4))
    assert server.pong(9) == frame(6, (9).to_bytes(4))


def test_headers_beyond_their_bound_are_refused_before_they_are_unpacked() -> None:
    client = Client()
    with pytest.raises(SpdyError, match="more than"):
        Spdy().feed(client.open(1, {"a": "b" * 1_000_000}))


def test_what_fills_the_bound_exactly_may_hide_more() -> None:
    """zlib has read everything then, and may hold the rest of the block back."""
    size = spdy.MAX_HEADER_BYTES - 4 - 4 - 1 - 4
    with pytest.raises(SpdyError, match="more than"):
        Spdy().feed(Client().open(1, {"a": "b" * size}))
    assert len(Spdy().feed(Client().open(1, {"a": "b" * (size - 1)}))) == 1


def test_header_blocks_can_be_counted() -> None:
    client, server = Client(), Spdy(max_blocks=2)
    assert len(server.feed(client.open(1, {}) + client.open(3, {}))) == 2
    with pytest.raises(SpdyError, match="more than 2 streams"):
        server.feed(frame(8, (1).to_bytes(4) + client.block({})))


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (frame(6, b"\0\0\0\1", version=2), "version 2"),
        (frame(6, b"\0"), "too short"),
        (frame(1, bytes(10) + b"garbage"), "cannot be unpacked"),
        (b"\0\0\0\1\0\xff\xff\xff", "frame has"),
        (frame(1, bytes(10) + packed(b"\0\0")), "0 headers"),
        (frame(1, bytes(10) + packed(b"\0\0\0\1\0\0\0\5a")), "end too early"),
        (frame(1, bytes(10) + packed(b"\0\0\1\0")), "256 headers"),
    ],
)
def test_what_is_no_spdy_is_refused(raw: bytes, cause: str) -> None:
    with pytest.raises(SpdyError, match=cause):
        Spdy().feed(raw)


@given(st.binary(max_size=200), st.integers(0, 12), st.integers(0, 255))
def test_no_bytes_do_anything_else(content: bytes, kind: int, flags: int) -> None:
    for raw in (content, frame(kind, content, flags=flags)):
        with contextlib.suppress(SpdyError):
            Spdy().feed(raw)
