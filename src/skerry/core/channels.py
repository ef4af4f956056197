"""Kubernetes' streaming protocols: channels, over WebSocket by a message's first byte, and the status at the end.

Pure. Lives here: names, numbers, framing, the `metav1.Status` that says how a command ended. Must not live here: who
reads or writes a channel. Source: Kubernetes `apimachinery/pkg/util/remotecommand/constants.go`, KEP-4006.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from skerry.api.errors import UnavailableError

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
CLOSE = 255
"""v5: the second byte names a channel on which nothing more comes. Devices know it of forwarded ports too."""
V5 = "v5.channel.k8s.io"
V4 = "v4.channel.k8s.io"
COMMAND_PROTOCOLS = (V5, V4)
"""Of exec and attach, best first."""
SPDY_FORWARD = "SPDY/3.1+portforward.k8s.io"
FORWARD_PROTOCOLS = (SPDY_FORWARD, V4)
STREAM_COMMAND_PROTOCOLS = (V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
"""Of exec and attach with a SPDY stream for each channel. Who offers none means the last, which was the first."""
STREAM_FORWARD_PROTOCOL = "portforward.k8s.io"
STREAM_TYPES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
"""By the header `streamType` with which a client opens one."""
MAX_SIDE = 10_000
"""Of a terminal, in characters."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """A terminal's size in characters."""

    width: int = msgspec.field(name="Width", default=0)
    height: int = msgspec.field(name="Height", default=0)


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class _Status(msgspec.Struct):
    status: str = ""
    reason: str = ""
    message: str = ""
    details: _Details = msgspec.field(default_factory=_Details)


def choose(offered: Sequence[str], known: Sequence[str]) -> str:
    """Return the best protocol that both sides know; "" when there is none."""
    return next((one for one in known if one in offered), "")


def frame(channel: int, data: bytes | memoryview = b"") -> bytes:
    """Return a message of a channel."""
    return bytes((channel,)) + data


def parse_size(data: bytes) -> Size | None:
    """Return a terminal's new size; None for what is none."""
    try:
        size = msgspec.json.decode(data, type=Size)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return size if 0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE else None


def ended(code: int) -> bytes:
    """Return the status of a command that ended with this exit code, as a message of the error channel."""
    if code == 0:
        return _status("Success")
    cause = {"reason": "ExitCode", "message": str(code)}
    message = f"command terminated with non-zero exit code: {code}"
    return _status("Failure", message=message, reason="NonZeroExitCode", details={"causes": [cause]}, code=500)


def exit_code(status: bytes) -> int:
    """Return the exit code that a status means. Raises UnavailableError for a command that was not run to its end."""
    try:
        read = msgspec.json.decode(status, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnavailableError("ended with a status that cannot be read", element="the command") from None
    if read.status == "Success":
        return 0
    codes = [cause.message for cause in read.details.causes if cause.reason == "ExitCode"]
    if read.reason == "NonZeroExitCode" and codes and codes[0].isascii() and codes[0].isdigit():
        return min(int(codes[0][:9]), 255)
    raise UnavailableError(read.message[:2000] or read.reason, element="the command")


def sentence(status: bytes) -> bytes:
    """Return what protocols before v4 have instead of a status: why it failed, or nothing."""
    try:
        read = msgspec.json.decode(status, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return status
    return b"" if read.status == "Success" else (read.message or read.reason or "failed").encode()


def failed(message: str, *, reason: Literal["InternalError", "Timeout"] = "InternalError") -> bytes:
    """Return the status of a command that could not be carried out, or not to its end."""
    return _status("Failure", message=message, reason=reason, code=504 if reason == "Timeout" else 500)


def _status(outcome: str, **fields: Any) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome, **fields}
    return frame(ERROR, msgspec.json.encode(status))
