"""What the agent and an inference server of its own tell each other, over a Unix socket in the slot's directory.

One question and one reply a connection, each one packet (SOCK_SEQPACKET): JSON, and with it at most one descriptor
(SCM_RIGHTS). The socket is its owner's alone (0600, in a directory of 0700). On a disk that takes no socket, full or
read only, it has an abstract name instead, which anybody may use; so both ends ask the kernel who the other one is.
Lives here: the messages, their bounds, the names. Must not live here: sockets (`agent.endpoint`, `serve.control`).

Source: unix(7).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.meta import Struct

SOCKET_FILE = "control.sock"
"""In the slot's directory, which is the server's working directory."""
ABSTRACT_PREFIX = "\0skerry/control"
MAX_PACKET_BYTES = 16 * 1024
MAX_DRAIN_SECONDS = 600.0

Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_DRAIN_SECONDS)]


# --- questions ----------------------------------------------------------------------------------------------------


class Accept(Struct, frozen=True, kw_only=True, tag="accept"):
    """Accept connections on the listening socket that comes with this: the workload's endpoint. Answer: `Done`.

    Asked again with the same socket it changes nothing; another one takes its place.
    """


class Lend(Struct, frozen=True, kw_only=True, tag="lend"):
    """Give a descriptor of the endpoint's listening socket. Answer: `Done`, with the descriptor if there is one."""


class Retire(Struct, frozen=True, kw_only=True, tag="retire"):
    """Accept nothing more, answer what is under way, close each connection after its next answer, and end.

    Answer: `Done`, at once. Asked again it changes nothing.
    """

    idle_seconds: Seconds = 5.0
    """A connection that asks nothing more is closed after so long."""
    seconds: Seconds = 60.0
    """Whatever is under way then is given up."""


class Mirror(Struct, frozen=True, kw_only=True, tag="mirror"):
    """Send a share of the inference requests, once they are answered, to another server, and compare. Answer: `Done`.

    Asked again for the same port it goes on counting; for another port it begins anew.
    """

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    """On the loopback."""
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Of the requests that were answered with outputs."""


class StopMirror(Struct, frozen=True, kw_only=True, tag="stopMirror"):
    """Mirror nothing more and forget what was counted. Answer: `Done`."""


class Observe(Struct, frozen=True, kw_only=True, tag="observe"):
    """Tell the counters. Answer: `Observation`."""


Question = Accept | Lend | Retire | Mirror | StopMirror | Observe


# --- replies ------------------------------------------------------------------------------------------------------


class Done(Struct, frozen=True, kw_only=True, tag="done"):
    """It is done."""


class Refused(Struct, frozen=True, kw_only=True, tag="refused"):
    """It is not done, and why."""

    error: Annotated[str, msgspec.Meta(max_length=1000)]


class ShadowCounts(Struct, frozen=True, kw_only=True):
    """What came of mirroring. `mirrored` = `answered` + `errors` + those that are under way."""

    port: int
    mirrored: int = 0
    """Requests that were taken for the other server."""
    answered: int = 0
    """It gave outputs, and they were compared."""
    agreed: int = 0
    """Of the answered: with the same outcome, by the rule of `serve.agreement`."""
    errors: int = 0
    """It answered with an error, with something else, or not in time."""
    dropped: int = 0
    """Requests that were due but not taken, because too many waited; the caller noticed nothing."""
    max_abs_difference: float = 0.0
    """Largest difference between two numbers of the same place; the largest double where one of them is not finite."""


class Observation(Struct, frozen=True, kw_only=True, tag="observation"):
    """Counters since the server's start."""

    boot: str
    """Drawn at random at the server's start: where it differs, the counters began anew."""
    requests: int = 0
    """Inference requests that the server had to answer: all but `refused` and those whose caller left."""
    errors: int = 0
    """Of these: failed, or turned away because too much waited."""
    refused: int = 0
    """Inference requests that did not fit the model or the protocol; the callers' mistakes."""
    in_flight: int = 0
    ready: bool = False
    accepting: bool = False
    """It accepts connections on the workload's endpoint."""
    retiring: bool = False
    shadow: ShadowCounts | None = None
    """None: it mirrors nothing."""


Reply = Done | Refused | Observation

_QUESTIONS: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_REPLIES: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_ENCODER = msgspec.json.Encoder()


def abstract_name(device: int, inode: int) -> str:
    """Return the socket's name where the slot's directory, which has these numbers, takes no socket (unix(7))."""
    return f"{ABSTRACT_PREFIX}/{device:x}-{inode:x}"


def encode(message: Question | Reply) -> bytes:
    """Return one packet."""
    return _ENCODER.encode(message)


def decode_question(packet: bytes) -> Question:
    """Raises InvalidError."""
    try:
        return _QUESTIONS.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"cannot be read: {str(error)[:300]}", element="control message") from None


def decode_reply(packet: bytes) -> Reply:
    """Raises InvalidError."""
    try:
        return _REPLIES.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"cannot be read: {str(error)[:300]}", element="control message") from None
