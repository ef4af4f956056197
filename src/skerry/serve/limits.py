"""Every bound on what comes from outside, in one place.

Lives here: numbers with their unit and reason. Must not live here: the code that holds to them.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request, one connection and all of them together may cost."""

    body_bytes: int = 64 * MIB
    """One request's body, JSON and binary tensors together."""
    json_bytes: int = 16 * MIB
    """The JSON part of it: as objects it takes up to sixteen times as much; larger tensors travel as binary."""
    buffered_bytes: int = 128 * MIB
    """All bodies held at once: received, waiting and running."""
    head_bytes: int = 64 * 1024
    """Request line and headers, or a stretch of a chunked body that brings no data."""
    target_bytes: int = 2048
    headers: int = 100
    pipelined: int = 16
    """Requests received on one connection and not answered yet."""
    connections: int = 256
    queued: int = 64
    """Requests that wait for the engine; one more is refused with 503."""
    head_seconds: float = 15.0
    """From a request's first byte to the end of its headers."""
    body_idle_seconds: float = 30.0
    """Without a byte of an unfinished body."""
    request_seconds: float = 300.0
    """From a request's first byte to its last."""
    keep_alive_seconds: float = 75.0
    """An open connection between requests."""
    write_idle_seconds: float = 60.0
    """Without the client taking a byte of an answer."""
    sweep_seconds: float = 1.0
    """How often, while there are connections, these times are looked at."""
    linger_seconds: float = 2.0
    """After a refusal: how long what still arrives is read and dropped, so that the client gets to see the answer."""


MAX_TENSORS = 64
"""Inputs, or outputs, of one request."""
MAX_RANK = 8
"""Dimensions of one tensor, and so the depth of nested JSON data."""
MAX_ELEMENTS = 2**31 - 1
MAX_ID_CHARACTERS = 1024
MAX_PARAMETERS = 64
"""In one `parameters` object."""
MAX_SIGNATURE_BYTES = MIB
"""Of the signature's file."""
