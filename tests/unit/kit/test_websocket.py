"""The client's WebSocket against another implementation of it: `websockets`' server, in any pieces."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SERVER, Protocol
from websockets.server import ServerProtocol

from skerry.kit import websocket
from skerry.kit.websocket import Closed, Frames, Handshake, Message, Ping, ProtocolError

NO_EXTENSIONS: list[Extension] = []


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[a:b] for a, b in itertools.pairwise(marks)]


def fed(frames: Frames, raw: bytes, cuts: list[int]) -> list[websocket.Event]:
    return [event for piece in pieces(raw, cuts) for event in frames.feed(piece)]


def test_the_handshake_is_one_that_a_server_takes() -> None:
    server = ServerProtocol()
    shake = Handshake(host="hub:7443", path="/a?b=1", protocols=["v5.channel.k8s.io"], headers={"User-Agent": "x"})
    server.receive_data(shake.request())
    [request] = server.events_received()
    assert isinstance(request, Request)
    assert (request.path, request.headers["Host"]) == ("/a?b=1", "hub:7443")
    response = server.accept(request)
    assert response.status_code == 101
    head = {name.lower(): value for name, value in response.headers.raw_items()}
    assert shake.accept(head) == ""
    assert shake.accept(head | {"sec-websocket-protocol": "v5.channel.k8s.io"}) == "v5.channel.k8s.io"
    for wrong in (
        {"upgrade": "h2c"},
        {"connection": "close"},
        {"sec-websocket-accept": "x"},
        {"sec-websocket-protocol": "other"},
        {"sec-websocket-extensions": "permessage-deflate"},
    ):
        with pytest.raises(ProtocolError):
            shake.accept(head | wrong)


@pytest.mark.parametrize("path", ["/a\r\nX: y", "/ä"])
def test_nothing_breaks_out_of_its_line(path: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        Handshake(host="h", path=path).request()


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=5), st.binary(min_size=4, max_size=4))
def test_what_is_sent_is_what_a_server_reads(messages: list[tuple[bytes, bool]], mask: bytes) -> None:
    frames, server = Frames(max_message=1000, mask=lambda: mask), Protocol(SERVER)
    for data, _ in messages:
        server.receive_data(frames.message(data))
    server.receive_data(frames.close(1000, "done"))
    *seen, closed = server.events_received()
    assert [frame.data for frame in seen if isinstance(frame, Frame)] == [data for data, _ in messages]
    assert isinstance(closed, Frame)
    assert closed.opcode is Opcode.CLOSE
    assert server.close_rcvd is not None
    assert (server.close_rcvd.code, server.close_rcvd.reason) == (1000, "done")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_every_length_passes_both_ways(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    frames, server = Frames(max_message=200_000), Protocol(SERVER)
    server.receive_data(frames.message(data))
    [frame] = server.events_received()
    assert isinstance(frame, Frame)
    assert frame.data == data
    server.send_binary(data)
    assert fed(frames, b"".join(server.data_to_send()), []) == [Message(data)]


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 2000), max_size=10),
)
def test_messages_come_whole_whatever_the_pieces(messages: list[list[bytes]], cuts: list[int]) -> None:
    server = Protocol(SERVER)
    for parts in messages:
        server.send_binary(parts[0], fin=len(parts) == 1)
        server.send_ping(b"between")
        for index, part in enumerate(parts[1:], 2):
            server.send_continuation(part, fin=index == len(parts))
    server.send_close(1001, "bye")
    events = fed(Frames(max_message=1000), b"".join(server.data_to_send()), cuts)
    assert [event.data for event in events if isinstance(event, Message)] == [b"".join(parts) for parts in messages]
    assert sum(event == Ping(b"between") for event in events) == len(messages)
    assert events[-1] == Closed(1001, "bye")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x82\x7f\x00\x00\x00\x00\x00\x00\x03\xe9", websocket.TOO_BIG),  # 1001 bytes announced, none sent
        (b"\x02\x7d" + b"x" * 125 + b"\x80\x7e\x03\xe8", websocket.TOO_BIG),  # in two pieces
        (b"\x82\x80\x00\x00\x00\x00", websocket.PROTOCOL_ERROR),  # masked
        (b"\xc2\x00", websocket.PROTOCOL_ERROR),  # compressed
        (b"\x80\x00", websocket.PROTOCOL_ERROR),  # goes on with nothing
        (b"\x02\x00\x82\x00", websocket.PROTOCOL_ERROR),  # begins in the middle
        (b"\x83\x00", websocket.PROTOCOL_ERROR),  # no such kind
        (b"\x09\x00", websocket.PROTOCOL_ERROR),  # a ping in pieces
        (b"\x89\x7e\x00\x7e", websocket.PROTOCOL_ERROR),  # a ping of 126 bytes
        (b"\x88\x01x", websocket.PROTOCOL_ERROR),
        (b"\x88\x03\x03\xe8\xff", websocket.INVALID_TEXT),
    ],
)
def test_what_breaks_the_protocol_is_said(raw: bytes, code: int) -> None:
    frames = Frames(max_message=1000)
    with pytest.raises(ProtocolError) as raised:
        frames.feed(raw)
    assert raised.value.code == code


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_no_bytes_do_anything_else(raw: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(ProtocolError):
        fed(Frames(max_message=100), raw, cuts)


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_a_mask_laid_twice_is_none(data: bytes, mask: bytes) -> None:
    assert websocket.masked(data, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
    assert websocket.masked(websocket.masked(data, mask), mask) == data


def test_a_reason_is_cut_between_characters() -> None:
    server = Protocol(SERVER)
    server.receive_data(Frames(max_message=10).close(1011, "é" * 100))
    server.events_received()
    assert server.close_rcvd is not None
    assert server.close_rcvd.reason == "é" * 61
