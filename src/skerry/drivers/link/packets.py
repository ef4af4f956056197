"""MQTT 3.1.1 packets on a stream: framed and bounded here, read and written by amqtt's packet classes.

A packet is read whole, after its length was checked, and parsed from memory; so a wrong length inside it cannot reach
into the next one, and nothing longer than the bound is ever read. Lives here: bytes to packets and back. Must not live
here: who may send what.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeAlias

from amqtt.adapters import BufferReader  # type: ignore[import-untyped]
from amqtt.mqtt import packet as codec  # type: ignore[import-untyped]
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket  # type: ignore[import-untyped]
from amqtt.mqtt.pingresp import PingRespPacket  # type: ignore[import-untyped]
from amqtt.mqtt.puback import PubackPacket  # type: ignore[import-untyped]
from amqtt.mqtt.publish import PublishPacket  # type: ignore[import-untyped]
from amqtt.mqtt.suback import SubackPacket  # type: ignore[import-untyped]
from amqtt.mqtt.unsuback import UnsubackPacket  # type: ignore[import-untyped]

from skerry.drivers.link.topics import MAX_PACKET_BYTES

CONNECT = 1
"""CONNECT's packet type."""
MAX_CONNECT_BYTES = 8192
MAX_FILTERS = 16
"""In one SUBSCRIBE or UNSUBSCRIBE."""

ACCEPTED = 0x00
BAD_PROTOCOL_VERSION = 0x01
IDENTIFIER_REJECTED = 0x02
SERVER_UNAVAILABLE = 0x03
NOT_AUTHORIZED = 0x05
FAILURE = 0x80
"""SUBACK's code for a filter that was refused."""


class MalformedError(Exception):
    """Bytes that are no MQTT 3.1.1 packet a client may send; the connection ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Will:
    """What to publish when the client vanishes."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Connect:
    """CONNECT, of protocol level 4."""

    client_id: str
    keepalive_seconds: int
    will: Will | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Publish:
    """PUBLISH with QoS 0 or 1; `packet_id` is 0 with QoS 0."""

    topic: str
    payload: bytes
    retain: bool = False
    packet_id: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledge:
    """PUBACK."""

    packet_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribe:
    """SUBSCRIBE: filters with the QoS asked for."""

    packet_id: int
    filters: list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsubscribe:
    """UNSUBSCRIBE."""

    packet_id: int
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Ping:
    """PINGREQ."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """DISCONNECT: the client leaves on purpose, its last will is void."""


Packet: TypeAlias = Connect | Publish | Acknowledge | Subscribe | Unsubscribe | Ping | Disconnect


class UnknownProtocolError(MalformedError):
    """A CONNECT of another MQTT version; it is answered before the connection ends."""


async def read(
    reader: asyncio.StreamReader, *, limit: int = MAX_PACKET_BYTES, only: int | None = None
) -> Packet | None:
    """Return the next packet, or None at the end of the stream; with `only`, no other type. Raises MalformedError.

    A packet that will be refused for its type or length is refused before it is read.
    """
    try:
        first = await reader.read(1)
        if not first:
            return None
        _check_type(first[0], only)
        length = await _read_length(reader)
        if length > limit:
            raise MalformedError(f"a packet of {length} bytes, more than {limit}")
        body = await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
    return await parse(first[0], body)


async def parse(first: int, body: bytes) -> Packet:
    """Return the packet with that first byte and that body. Raises MalformedError, never anything else."""
    _check_type(first, None)
    kind, flags = first >> 4, first & 0x0F
    header = codec.MQTTFixedHeader(kind, flags, len(body))
    try:
        raw = await packet_class(header).from_stream(BufferReader(body), fixed_header=header)
        packet: Packet = _READERS[kind](raw)
    except MalformedError:
        raise
    except Exception as error:  # noqa: BLE001 - amqtt's parsers raise whatever the bytes lead to
        raise MalformedError(f"packet type {kind}: {type(error).__name__} {str(error)[:200]}") from None
    return packet


def connack(code: int) -> bytes:
    """Return CONNACK; there never is an old session to resume."""
    return bytes(ConnackPacket.build(0, code).to_bytes())


def publish(packet: Publish) -> bytes:
    """Return PUBLISH, with QoS 1 when it has a packet id."""
    qos = 1 if packet.packet_id else 0
    built = PublishPacket.build(packet.topic, packet.payload, packet.packet_id or None, False, qos, packet.retain)
    return bytes(built.to_bytes())


def puback(packet_id: int) -> bytes:
    """Return PUBACK."""
    return bytes(PubackPacket.build(packet_id).to_bytes())


def suback(packet_id: int, codes: list[int]) -> bytes:
    """Return SUBACK: per filter the QoS granted, or FAILURE."""
    return bytes(SubackPacket.build(packet_id, codes).to_bytes())


def unsuback(packet_id: int) -> bytes:
    """Return UNSUBACK."""
    return bytes(UnsubackPacket.build(packet_id).to_bytes())


def pingresp() -> bytes:
    """Return PINGRESP."""
    return bytes(PingRespPacket.build().to_bytes())


def _check_type(first: int, only: int | None) -> None:
    kind, flags = first >> 4, first & 0x0F
    if kind not in _READERS or (kind != codec.PUBLISH and flags != _FLAGS.get(kind, 0)):
        raise MalformedError(f"packet type {kind} with flags {flags}")
    if only is not None and kind != only:
        raise MalformedError(f"packet type {kind}, where only {only} may come")


async def _read_length(reader: asyncio.StreamReader) -> int:
    """Read the remaining length (MQTT 3.1.1, 2.2.3): seven bits a byte, at most four bytes."""
    length = 0
    for position in range(4):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return length
    raise MalformedError("a remaining length of more than four bytes")


def _connect(raw: Any) -> Connect:
    header, payload = raw.variable_header, raw.payload
    if header.proto_name != "MQTT" or header.proto_level != 4:
        raise UnknownProtocolError(f"protocol {header.proto_name[:16]} level {header.proto_level}")
    if header.reserved_flag or payload.client_id_is_random:
        raise MalformedError("CONNECT without a client id, or with the reserved flag")
    will = None
    if header.will_flag:
        if payload.will_topic is None or payload.will_message is None or header.will_qos > 1:
            raise MalformedError("CONNECT with a last will that is incomplete or of QoS 2")
        will = Will(topic=payload.will_topic, payload=bytes(payload.will_message), retain=header.will_retain_flag)
    return Connect(client_id=payload.client_id, keepalive_seconds=header.keep_alive, will=will)


def _publish(raw: Any) -> Publish:
    if raw.qos > 1:
        raise MalformedError(f"PUBLISH with QoS {raw.qos}; 0 and 1 are carried")
    return Publish(
        topic=raw.variable_header.topic_name,
        payload=raw.payload.data,
        retain=raw.retain_flag,
        packet_id=_packet_id(raw) if raw.qos else 0,
    )


def _subscribe(raw: Any) -> Subscribe:
    filters = _bounded(raw.payload.topics)
    if any(qos > 2 for _, qos in filters):
        raise MalformedError("SUBSCRIBE with an unknown QoS")
    return Subscribe(packet_id=_packet_id(raw), filters=filters)


def _unsubscribe(raw: Any) -> Unsubscribe:
    return Unsubscribe(packet_id=_packet_id(raw), filters=_bounded(raw.payload.topics))


def _bounded(filters: list[Any]) -> list[Any]:
    if not 0 < len(filters) <= MAX_FILTERS:
        raise MalformedError(f"{len(filters)} filters in one packet; 1 to {MAX_FILTERS} are carried")
    return filters


def _packet_id(raw: Any) -> int:
    number = int(raw.variable_header.packet_id)
    if not number:
        raise MalformedError("packet id 0")
    return number


_READERS: dict[int, Any] = {
    codec.CONNECT: _connect,
    codec.PUBLISH: _publish,
    codec.PUBACK: lambda raw: Acknowledge(packet_id=_packet_id(raw)),
    codec.SUBSCRIBE: _subscribe,
    codec.UNSUBSCRIBE: _unsubscribe,
    codec.PINGREQ: lambda _: Ping(),
    codec.DISCONNECT: lambda _: Disconnect(),
}
_FLAGS = {codec.SUBSCRIBE: 2, codec.UNSUBSCRIBE: 2}
"""Flags a packet type must have (MQTT 3.1.1, table 2.2); 0 where it is not named; PUBLISH has meanings for its."""
