from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drivers.link import packets

topics = st.text(st.characters(exclude_characters="+#\x00", exclude_categories=("Cs",)), min_size=1, max_size=60)


def stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def read_all(data: bytes, **options: Any) -> list[packets.Packet]:
    reader, found = stream(data), []
    while (packet := await packets.read(reader, **options)) is not None:
        found.append(packet)
    return found


def run(data: bytes, **options: Any) -> list[packets.Packet]:
    return asyncio.run(read_all(data, **options))


@given(topics, st.binary(max_size=300), st.booleans(), st.integers(0, 65535))
def test_a_message_survives_the_wire(topic: str, payload: bytes, retain: bool, packet_id: int) -> None:
    message = packets.Publish(topic=topic, payload=payload, retain=retain, packet_id=packet_id)
    assert run(packets.publish(message) * 2) == [message, message]


@given(st.binary(max_size=200))
def test_any_bytes_are_packets_or_malformed(data: bytes) -> None:
    try:
        found = run(data)
    except packets.MalformedError:
        return
    assert len(found) <= len(data)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_body_is_a_packet_or_malformed(first: int, body: bytes) -> None:
    try:
        packet = asyncio.run(packets.parse(first, body))
    except packets.MalformedError:
        return
    assert isinstance(packet, packets.Packet)


@given(st.integers(0, 65535), st.sampled_from([0, 1]), st.binary(max_size=20), st.text(max_size=30))
def test_connect_is_read_with_its_will(keepalive: int, qos: int, will: bytes, client: str) -> None:
    def text(raw: bytes) -> bytes:
        return struct.pack("!H", len(raw)) + raw

    flags = 0x02 | 0x04 | 0x20 | qos << 3
    body = (
        text(b"MQTT")
        + bytes([4, flags])
        + struct.pack("!H", keepalive)
        + text(client.encode())
        + text(b"t")
        + text(will)
    )
    data = bytes([0x10, len(body)]) + body if len(body) < 128 else b""
    if not client:
        with pytest.raises(packets.MalformedError):
            run(data)
    elif data:
        assert run(data) == [
            packets.Connect(
                client_id=client,
                keepalive_seconds=keepalive,
                will=packets.Will(topic="t", payload=will, retain=True),
            )
        ]


def test_a_length_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(packets.MalformedError, match="268435455"):
        run(b"\x30\xff\xff\xff\x7f")
    with pytest.raises(packets.MalformedError, match="more than four bytes"):
        run(b"\x30\xff\xff\xff\xff\x01")
    with pytest.raises(packets.MalformedError, match="more than 1"):
        run(b"\x30\x02ab", limit=1)


def test_another_type_is_refused_before_its_length_is_known() -> None:
    with pytest.raises(packets.MalformedError, match="only 1 may come"):
        run(b"\x30", only=packets.CONNECT)


@pytest.mark.parametrize("cut", range(8))
def test_a_stream_that_ends_within_a_packet_ends(cut: int) -> None:
    whole = packets.publish(packets.Publish(topic="t", payload=b"xyz", packet_id=1))
    assert run(whole[:cut]) == []


def test_acknowledgements_have_the_specifications_bytes() -> None:
    assert packets.connack(packets.NOT_AUTHORIZED) == b"\x20\x02\x00\x05"
    assert packets.puback(7) == b"\x40\x02\x00\x07"
    assert packets.suback(7, [1, 0x80]) == b"\x90\x04\x00\x07\x01\x80"
    assert packets.unsuback(7) == b"\xb0\x02\x00\x07"
    assert packets.pingresp() == b"\xd0\x00"
