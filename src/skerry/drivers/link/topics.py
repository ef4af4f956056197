"""The link's topics and who may use them: pure rules, one place for the clients and the embedded broker.

Lives here: topic names, their bounds, the access rules. Must not live here: sockets, certificates, message contents.
The same rules as a pattern ACL for other brokers are in docs/protocol.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from skerry.api.errors import TooLargeError
from skerry.core.messages import MAX_MESSAGE_BYTES

Channel: TypeAlias = Literal["desired", "command", "reported", "telemetry", "online"]

DeviceChannel: TypeAlias = Literal["desired", "command"]

ROOT = "skerry/v1/d"
CHANNELS: tuple[Channel, ...] = get_args(Channel)
HUB_FILTERS: dict[str, int] = {f"{ROOT}/+/online": 1, f"{ROOT}/+/reported": 1, f"{ROOT}/+/telemetry": 0}
"""What a hub subscribes to, and with which QoS."""
DEVICE_CHANNELS: tuple[DeviceChannel, ...] = get_args(DeviceChannel)
"""What a device subscribes to, of its own, with QoS 1."""
MAX_BYTES: dict[Channel, int] = {
    "desired": MAX_MESSAGE_BYTES,
    "command": MAX_MESSAGE_BYTES,
    "reported": MAX_MESSAGE_BYTES,
    "telemetry": 256 * 1024,
    "online": 4096,
}
"""Longest payload per channel."""

MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 1024
"""Longest MQTT packet: payload, topic, header."""

_PUBLISHED_BY: dict[str, dict[Channel, tuple[bool, ...]]] = {
    "device": {"reported": (False,), "telemetry": (False,), "online": (False, True)},
    "hub": {"desired": (True,), "command": (False,), "online": (True,)},
}
"""Who publishes where, and with which retained flags; a hub may only clear `online`."""

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Who is at the other end of a connection, as its certificate says."""

    role: Literal["device", "hub"]
    name: str
    """A device's uid; a hub's client id."""
    namespace: str = ""
    """A device's, as its certificate says; one without is no device's."""


def topic(uid: str, channel: Channel) -> str:
    """Return a device's topic."""
    return f"{ROOT}/{uid}/{channel}"


def is_uid(text: str) -> bool:
    """Return whether the text can be a device's uid: no wildcard, no separator, at most 128 characters."""
    return _UID.fullmatch(text) is not None


def parse(name: str) -> tuple[str, Channel] | None:
    """Return a topic's uid and channel, or None for a topic that is none of ours."""
    if not name.startswith(f"{ROOT}/"):
        return None
    uid, _, last = name.removeprefix(f"{ROOT}/").partition("/")
    if not is_uid(uid):
        return None
    return next(((uid, channel) for channel in CHANNELS if channel == last), None)


def bounded(payload: bytes, channel: Channel) -> bytes:
    """Return the payload if its channel carries that much. Raises TooLargeError."""
    if len(payload) > MAX_BYTES[channel]:
        raise TooLargeError(
            f"{len(payload)} bytes are more than a message may have ({MAX_BYTES[channel]})", element=channel
        )
    return payload


def refuse_publish(peer: Peer, name: str, *, size: int, retain: bool) -> str:
    """Return why the peer may not publish this, or nothing when it may."""
    parsed = parse(name)
    if parsed is None:
        return "no such topic"
    uid, channel = parsed
    allowed = _PUBLISHED_BY[peer.role].get(channel, ())
    checks = (
        (peer.role == "device" and uid != peer.name, "another device's topic"),
        (not allowed, f"not for a {peer.role} to say"),
        (retain not in allowed, "wrong retained flag"),
        (size > MAX_BYTES[channel], f"more than {MAX_BYTES[channel]} bytes"),
        (peer.role == "hub" and channel == "online" and size > 0, "only the device itself says that it is there"),
    )
    return next((reason for refused, reason in checks if refused), "")


def refuse_subscribe(peer: Peer, pattern: str) -> str:
    """Return why the peer may not subscribe to this filter, or nothing when it may."""
    if peer.role == "hub":
        return "" if pattern in HUB_FILTERS else "not a filter of the hub's"
    own = (topic(peer.name, channel) for channel in DEVICE_CHANNELS)
    return "" if pattern in own else "not one of the device's own topics"


def refuse_will(peer: Peer, name: str, *, size: int) -> str:
    """Return why the peer may not leave this last will, or nothing when it may."""
    if peer.role != "device" or name != topic(peer.name, "online"):
        return "a last will goes to the device's own online topic"
    return refuse_publish(peer, name, size=size, retain=True)
