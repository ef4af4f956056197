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
from skerry.api.kinds.device import BenchmarkStatus, DeviceFacts, HoldStatus, LinkPolicy, UpdateHold, WorkloadStatus
from skerry.api.kinds.model_deployment import Protection
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.trust_policy import MAX_ENVELOPE_CHARACTERS, MAX_ROOT_CHARACTERS, MAX_ROOTS
from skerry.api.kinds.variants import Blob, Delta, Requirements
from skerry.api.meta import NAME_PATTERN, Struct

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""One message on any link; larger content travels as an artifact."""
MAX_WORKLOADS = 256
MAX_TAIL_LINES = 10_000
MAX_SAMPLES = 512
"""In one telemetry message; its bytes are bounded by its topic."""
MAX_HOLDS = 32
MAX_BENCHMARKS = 32
"""Variants that one device may be asked to measure at a time."""
MAX_DELTAS = 8
"""Ways to one blob that a device is told of."""
MAX_SIGNATURES = 8
"""Of one model version, that a device is told of."""
BENCHMARK_PREFIX = "benchmark."
"""Begins the names of what is to be measured; they are longer than a deployment's name can be."""

ShortText = Annotated[str, msgspec.Meta(max_length=4096)]


def _current_version() -> int:
    """As a factory, because a plain default would be left out on the wire, and readers insist on it."""
    return PROTOCOL_VERSION


class ServingDesired(Struct, frozen=True, kw_only=True):
    """How to serve; see `api.kinds.model_deployment.Serving`."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1


class ObserveDesired(Struct, frozen=True, kw_only=True):
    """Watch the server once it serves, and report windows of this length; see `api.kinds.device.Observation`."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    min_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The first window goes on until there are so many."""


class ShadowDesired(Struct, frozen=True, kw_only=True):
    """Run beside the version that serves before taking over; see `api.kinds.gates.Shadow` and `ShadowGate`."""

    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 600.0
    min_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    missing: Literal["fail", "ignore", "wait"] = "ignore"
    """What to do when there are fewer requests."""


class WindowDesired(Struct, frozen=True, kw_only=True):
    """One update window as a device keeps it; see `api.kinds.pacing.Window`."""

    schedule: Annotated[str, msgspec.Meta(max_length=128)]
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] = "UTC"
    duration_seconds: Annotated[float, msgspec.Meta(gt=0, le=604800)]
    delay_seconds: Annotated[float, msgspec.Meta(ge=0, le=604800)] = 0
    """After the window's opening, for this device; the hub spreads a fleet's starts by it."""


class WindowsDesired(Struct, frozen=True, kw_only=True):
    """When this device may fetch, and when it may switch over, by its own clock; empty means at any time."""

    issued_at: datetime | None = None
    """By the hub's clock, when the assignment was made: a device whose clock is before that does not trust it."""
    download: Annotated[list[WindowDesired], msgspec.Meta(max_length=16)] = []
    switch_over: Annotated[list[WindowDesired], msgspec.Meta(max_length=16)] = []


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
    deltas: Annotated[list[Delta], msgspec.Meta(max_length=MAX_DELTAS)] = []
    """Shorter ways to `blob`, from blobs that the device may have; any of them may be ignored."""
    signatures: Annotated[list[Blob], msgspec.Meta(max_length=MAX_SIGNATURES)] = []
    """Sigstore bundles that sign the model version's files, in the same repository; see docs/signing.md. The hub does
    not vouch for them."""
    card: Blob | None = None
    """The evaluation card, which names the model that a signature is over; for devices that ask for signatures."""
    serving: ServingDesired = ServingDesired()
    memory_limit_bytes: int = 0
    """0 means none."""
    compare: bool = False
    """Ask the version that serves the same golden inputs, and compare."""
    observe: ObserveDesired | None = None
    shadow: ShadowDesired | None = None
    cpu_limit_millis: int = 0
    """Thousandths of a core; 0 means none."""
    memory_request_bytes: int = 0
    cpu_request_millis: int = 0
    require_unmetered: bool = False
    """Fetch nothing of it over a metered link."""
    windows: WindowsDesired | None = None
    """None: nothing waits for a window."""
    protection: Protection = "none"
    """How its files lie on the disk; see `ModelDeploymentSpec.protection`."""
    deployment_uid: ShortText = ""
    """Tells a deployment from an earlier one of its name, whose rollouts had its names; empty from an older hub."""


class TrustDesired(Struct, frozen=True, kw_only=True):
    """What a hub hands its devices of trust anchor and policy; both prove themselves, see `core.anchor`."""

    roots: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=MAX_ROOT_CHARACTERS)]], msgspec.Meta(max_length=MAX_ROOTS)
    ] = []
    """The anchor's versions, in their order."""
    policy: Annotated[str, msgspec.Meta(max_length=MAX_ENVELOPE_CHARACTERS)] = ""
    """The namespace's policy; empty: none that is signed."""


MAX_MANIFEST_VERSION = 2**53 - 1
"""What every JSON parser reads exactly."""
MAX_MANIFEST_JUMP = 2**32
"""Above what a device accepted before: no hub gets there, and who had its key once is not to use up all versions."""


class DesiredState(Struct, frozen=True, kw_only=True, tag="DesiredState"):
    """Everything that is to run on one device; replaces what was desired before."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    """The device this is for; a device refuses anybody else's."""
    manifest_version: Annotated[int, msgspec.Meta(ge=1, le=MAX_MANIFEST_VERSION)]
    """Strictly increasing per device, by `MAX_MANIFEST_JUMP` at most."""
    issued_at: datetime
    workloads: Annotated[list[WorkloadDesired], msgspec.Meta(max_length=MAX_WORKLOADS)] = []
    benchmarks: Annotated[list[WorkloadDesired], msgspec.Meta(max_length=MAX_BENCHMARKS)] = []
    """What is to be measured once beside what runs, one after the other, and never serves anybody."""
    link: LinkPolicy = LinkPolicy()
    """The Device's `spec.link`."""
    hold: UpdateHold | None = None
    """The Device's `spec.hold`."""
    trust: TrustDesired | None = None
    """None: nothing new; a device goes on with what it has."""


MAX_ARGUMENTS = 1000
MAX_ARGUMENT_CHARACTERS = 128 * 1024
MAX_FORWARDED_PORTS = 32


class LogQuery(Struct, frozen=True, kw_only=True):
    """What of a workload's log is wanted, as Kubernetes' PodLogOptions say it."""

    since: datetime | None = None
    """Nothing that was logged before; a line without a time counts with the one above it."""
    timestamps: bool = False
    """Every line begins with a time."""
    previous: bool = False
    """What the server before the one that runs now has logged."""
    limit_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Most bytes; 0 no more than the rest allows."""


class RemoteSession(Struct, frozen=True, kw_only=True):
    """A conversation with a workload, over a connection that the device opens to its hub for it alone."""

    tunnel: ShortText
    """The connection's id: known to nobody else, good for one connection and for seconds."""
    purpose: Literal["exec", "attach", "forward", "logs"]
    protocol: ShortText = ""
    """What is spoken over it: a subprotocol as Kubernetes names it; empty for `logs`, which is the text itself."""
    user: ShortText = ""
    """Who asked, for the device's own log."""
    argv: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=MAX_ARGUMENT_CHARACTERS)]], msgspec.Meta(max_length=MAX_ARGUMENTS)
    ] = []
    """For `exec`."""
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False
    ports: Annotated[
        list[Annotated[int, msgspec.Meta(ge=1, le=65535)]], msgspec.Meta(max_length=MAX_FORWARDED_PORTS)
    ] = []
    """For `forward` where the protocol does not name them itself."""
    log: LogQuery = LogQuery()
    """For `logs` and `attach`, which follow it."""


class Command(Struct, frozen=True, kw_only=True, tag="Command"):
    """A question to one device, answered by one `CommandResult` with the same id."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    id: ShortText
    expires_at: datetime
    verb: Literal["logs", "infer", "remote"]
    workload: ShortText
    tail_lines: Annotated[int, msgspec.Meta(ge=0, le=MAX_TAIL_LINES)] = 200
    """For `logs`, and where a log is followed from."""
    log: LogQuery = LogQuery()
    """For `logs`."""
    remote: RemoteSession | None = None
    """For `remote`."""
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
    benchmarks: Annotated[list[BenchmarkStatus], msgspec.Meta(max_length=MAX_BENCHMARKS)] = []
    holds: Annotated[list[HoldStatus], msgspec.Meta(max_length=MAX_HOLDS)] = []
    """Update holds in force."""
    refused: ShortText = ""
    """Why the last desired state was not accepted; empty when it was."""
    refused_manifest_version: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The version of a desired state that was refused because a newer one, or the same one with other content, was
    accepted before; 0 when that is not why, or nothing was refused."""


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


class WorkloadSample(Struct, frozen=True, kw_only=True):
    """What one workload's server did since the sample before."""

    name: ShortText
    requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Inferences that were answered, errors included."""
    errors: Annotated[int, msgspec.Meta(ge=0)] = 0
    latency_p95_ms: float | None = None
    """None when nothing was asked, or it was not measured."""
    cpu_millis: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Thousandths of a core that its processes used on average since the sample before; None when it is not known."""
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Resident memory of its processes at that moment; None when it is not known."""


class Sample(Struct, frozen=True, kw_only=True):
    """What a device used at one moment, or on average since the sample before."""

    at: datetime
    """By the device's own clock."""
    cpu: Annotated[float, msgspec.Meta(ge=0)]
    """Share of all cores that was busy, 0 to 1."""
    memory_bytes: Annotated[int, msgspec.Meta(ge=0)]
    """Not available to others, of the whole machine."""
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Since the sample before: what `cpu` and the workloads' counts are averages over; 0 when it is not known."""
    workloads: Annotated[list[WorkloadSample], msgspec.Meta(max_length=MAX_WORKLOADS)] = []


class Telemetry(Struct, frozen=True, kw_only=True, tag="Telemetry"):
    """Samples in order of time; those kept while there was no hub come in further messages of their own."""

    v: int = msgspec.field(default_factory=_current_version)
    uid: str
    boot_id: ShortText
    samples: Annotated[list[Sample], msgspec.Meta(max_length=MAX_SAMPLES)]
    dropped: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Older samples that were lost to the bound of the spool, since the last message."""


class Signature(Struct, frozen=True, kw_only=True):
    """One signature over an envelope."""

    keyid: ShortText
    sig: Annotated[bytes, msgspec.Meta(max_length=256)]


class Envelope(Struct, frozen=True, kw_only=True):
    """A signed message: a DSSE v1 envelope (github.com/secure-systems-lab/dsse), base64 on the JSON wire."""

    payload_type: ShortText
    payload: bytes
    signatures: Annotated[list[Signature], msgspec.Meta(min_length=1, max_length=8)]


FromDevice = Reported | CommandResult | Online | Telemetry
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
