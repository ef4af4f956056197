"""The device protocol's messages, version 1: one contract, whatever carries it (MQTT, CoAP, memory).

Hub to device: `DesiredState` and `Command`, each in a signed `Envelope` (see `core.trust`).
Device to hub: `Reported`, `CommandResult`, `Online`; the link's identity (certificate CN = uid) authenticates them.

Devices of different ages talk to one hub: unknown fields are ignored by readers and kept by whoever stores the raw
bytes; an unknown message version is refused with a sentence. Every length is bounded here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from skerry.api.errors import InvalidError, TooLargeError, UnsupportedError
from skerry.api.kinds.device import DeviceFacts, WorkloadStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.api.meta import NAME_PATTERN, Struct

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""One message on any link; larger content travels as an artifact."""
MAX_WORKLOADS = 256
MAX_TAIL_LINES = 10_000

ShortText = Annotated[str, msgspec.Meta(max_length=4096)]


def _current_version() -> int:
    """As a factory, because a plain default would be left out on the wire, and readers insist on it."""
    return PROTOCOL_VERSION


class ServingDesired(Struct, frozen=True, kw_only=True):
    """How to serve; see `api.kinds.model_deployment.Serving`."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1


class WorkloadDesired(Struct, frozen=True, kw_only=True):
    """One model deployment as one device is to run it: everything needed to install it without asking again."""

    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=253)]
    """The deployment's name; names the workload's directory on the device."""
    rollout: ShortText
    revision: int
    model: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=253)]
    """Model name as served (`/v2/models/<model>`)."""
    model_version: ShortText
    """Name of the ModelVersion object."""
    version: ShortText
    """The model's own version, as served."""
    variant: ShortText
    format: ShortText
    needs: Requirements
    signature: ModelSignature
    repository: ShortText
    """Where the blobs lie on the hub's registry."""
    blob: Blob
    golden: Blob | None = None
    serving: ServingDesired = ServingDesired()
    memory_limit_bytes: int = 0
    """0 means none."""


class DesiredState(Struct, frozen=True, kw_only=True, tag="DesiredState"):
    """Everything that is to run on one device; replaces what was desired before."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    """The device this is for; a device refuses anybody else's."""
    manifest_version: Annotated[int, msgspec.Meta(ge=1)]
    """Strictly increasing per device."""
    issued_at: datetime
    workloads: Annotated[list[WorkloadDesired], msgspec.Meta(max_length=MAX_WORKLOADS)] = []


class Command(Struct, frozen=True, kw_only=True, tag="Command"):
    """A question to one device, answered by one `CommandResult` with the same id."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    id: ShortText
    expires_at: datetime
    verb: Literal["logs", "infer"]
    workload: ShortText
    tail_lines: Annotated[int, msgspec.Meta(ge=0, le=MAX_TAIL_LINES)] = 200
    """For `logs`."""
    request: dict[str, Any] = {}
    """For `infer`: the body of an Open Inference Protocol v2 request."""


class Reported(Struct, frozen=True, kw_only=True, tag="Reported"):
    """What the device is and does; the newest one replaces all before it."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    boot_id: ShortText
    """Changes whenever the agent starts."""
    seq: Annotated[int, msgspec.Meta(ge=0)]
    """Rises within one boot; late and repeated messages are told by it."""
    sent_at: datetime
    observed_manifest_version: int
    facts: DeviceFacts | None = None
    """Sent with the first report of a connection and when they change; None means as before."""
    workloads: Annotated[list[WorkloadStatus], msgspec.Meta(max_length=MAX_WORKLOADS)] = []
    refused: ShortText = ""
    """Why the last desired state was not accepted; empty when it was."""


class CommandResult(Struct, frozen=True, kw_only=True, tag="CommandResult"):
    """The answer to a command."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    id: ShortText
    error: ShortText = ""
    """One sentence; empty on success."""
    reason: ShortText = ""
    """What kind of error: the name of its type in `api.errors` without "Error", such as NotFound; may be empty."""
    text: Annotated[str, msgspec.Meta(max_length=1_000_000)] = ""
    """For `logs`."""
    response: dict[str, Any] = {}
    """For `infer`."""


class Online(Struct, frozen=True, kw_only=True, tag="Online"):
    """Presence; retained, and sent by the broker as the last will with `online` false."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    online: bool
    boot_id: ShortText = ""


class Signature(Struct, frozen=True, kw_only=True):
    """One signature over an envelope."""

    keyid: ShortText
    sig: Annotated[bytes, msgspec.Meta(max_length=256)]


class Envelope(Struct, frozen=True, kw_only=True):
    """A signed message: a DSSE v1 envelope (github.com/secure-systems-lab/dsse), base64 on the JSON wire."""

    payload_type: ShortText
    payload: bytes
    signatures: Annotated[list[Signature], msgspec.Meta(min_length=1, max_length=8)]


FromDevice = Reported | CommandResult | Online
ToDevice = DesiredState | Command

_T = TypeVar("_T")
_JSON = msgspec.json.Encoder()


class _Versioned(msgspec.Struct):
    v: Any = None


def encode(message: FromDevice | ToDevice | Envelope) -> bytes:
    """Return the message as JSON. Raises TooLargeError beyond the bound."""
    raw = _JSON.encode(message)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"{len(raw)} bytes are more than a message may have ({MAX_MESSAGE_BYTES})", element="message"
        )
    return raw


def decode(raw: bytes, kind: type[_T]) -> _T:
    """Parse one message of that type (a union of the tagged types works too).

    Raises InvalidError for anything malformed, UnsupportedError for another protocol version; never anything else,
    whatever the bytes.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        raise InvalidError(
            f"{len(raw)} bytes are more than a message may have ({MAX_MESSAGE_BYTES})", element="message"
        )
    try:
        version = msgspec.json.decode(raw, type=_Versioned).v if kind is not Envelope else PROTOCOL_VERSION
        if version != PROTOCOL_VERSION:
            raise UnsupportedError(
                f"message version {str(version)[:20]} is not {PROTOCOL_VERSION}",
                element="message",
                hint="update the older side, hub or agent",
            )
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise InvalidError(str(error)[:500], element="message") from None
