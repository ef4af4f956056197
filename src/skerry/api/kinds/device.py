"""Device: a Linux machine at the edge that runs the agent."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec

from skerry.api.meta import API_VERSION, LABEL_PATTERN, Condition, ObjectMeta, Struct
from skerry.api.quantity import Quantity

WorkloadPhase = Literal[
    "Pending",
    "Fetching",
    "Verified",
    "Installed",
    "Starting",
    "Probing",
    "Shadowing",
    "Running",
    "RollingBack",
    "Failed",
    "Removing",
]


Word = Annotated[str, msgspec.Meta(max_length=256)]
"""What a device calls something; bounded, since a device may say anything."""
Sentence = Annotated[str, msgspec.Meta(max_length=4096)]

MAX_HOLD = timedelta(days=30)
"""A device bounds a hold by this, whatever it is told."""
WaitReason = Literal["", "Hold", "Window", "Link"]
"""What a workload waits for by policy, not by failure: such a wait never counts against a device."""


Refusal = Literal["", "Policy", "Thermal", "Memory", "Disk", "Trust"]
"""Why a device would not take a variant: its owner's policy, its temperature, memory, disk, or its trust anchor."""


class LinkPolicy(Struct, frozen=True, kw_only=True):
    """How downloads may use the device's network. The owner's word in `agent.toml` counts too; the stricter wins."""

    metered: bool | None = None
    """Whether bytes cost money; absent: as the device finds it (cellular counts as metered)."""
    max_bandwidth: Quantity | None = None
    """Most bytes per second that all downloads together may take, as in 500k; absent: no bound."""
    allow_metered_downloads: Quantity | None = None
    """Most bytes that one revision may still have to fetch over a metered link, as in 5Mi; 0: nothing at all; absent:
    no bound."""


class UpdateHold(Struct, frozen=True, kw_only=True):
    """Until then nothing new is started and nothing that serves is stopped; downloads go on."""

    until: datetime
    """It ends by itself. The device counts the time from when it learns of the hold, at most 30 days."""
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class DeviceSpec(Struct, frozen=True, kw_only=True):
    """What the operator wants of this device."""

    cordoned: bool = False
    """No new placements; what runs stays."""
    link: LinkPolicy = LinkPolicy()
    hold: UpdateHold | None = None
    """No update for a while; `skerry device hold` sets it."""


class Hardware(Struct, frozen=True, kw_only=True):
    """What the machine is made of, as the agent measured it."""

    arch: Word = ""
    """GOARCH name: amd64, arm64, arm, riscv64."""
    cpu_model: Word = ""
    cores: int = 0
    memory_bytes: int = 0
    """Memory that workloads may use: the machine's, or less if the agent's settings or a cgroup say so."""
    storage_bytes: int = 0
    """Size of the file system that holds the agent's state."""
    storage_free_bytes: int = 0
    accelerators: Annotated[list[Word], msgspec.Meta(max_length=64)] = []


class OperatingSystem(Struct, frozen=True, kw_only=True):
    """The Linux it runs (`/etc/os-release`, kernel, init)."""

    family: Word = ""
    version: Word = ""
    kernel: Word = ""
    libc: Word = ""
    init: Word = ""


class EngineFacts(Struct, frozen=True, kw_only=True):
    """One inference engine installed on the device."""

    name: Word
    version: Word = ""
    precisions: Annotated[list[Word], msgspec.Meta(max_length=32)] = []
    """Precisions it may run here; empty means all."""


class Network(Struct, frozen=True, kw_only=True):
    """How the device is connected."""

    kind: Literal["ethernet", "wifi", "cellular", "loopback", "unknown"] = "unknown"
    interface: Word = ""
    address: Word = ""
    metered: bool = False


class LimitFacts(Struct, frozen=True, kw_only=True):
    """By which means the device holds workloads to their limits; found by trying, not by guessing."""

    way: Literal["", "cgroup2", "cgroup1", "systemd", "rlimit"] = ""
    """Empty: not reported."""
    memory: bool = False
    """A memory limit is enforced on what a workload really uses."""
    cpu: bool = False
    """A CPU limit is enforced to the millicore; without it to whole cores."""
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    """Why this way: what was tried before it and failed."""


class HoldStatus(Struct, frozen=True, kw_only=True):
    """One update hold in force on a device."""

    holder: str
    """`operator`, or who asked on the device itself."""
    until: datetime
    """By the device's clock."""
    reason: str = ""


class TrustFacts(Struct, frozen=True, kw_only=True):
    """The trust anchor and policy that a device obeys."""

    anchor: int = 0
    """Version of the trust anchor; 0: it waits for its first."""
    policy: int = 0
    """Version of the signed policy; 0: none that counts, and nothing is taken."""
    anchor_expires_at: datetime | None = None
    policy_expires_at: datetime | None = None
    message: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    """What is wrong with what the hub offers, or with what the device has; empty when all is well."""


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """Everything a device says about itself; sent when it changes."""

    hostname: Word = ""
    agent_version: Word = ""
    boot_id: Word = ""
    hardware: Hardware = Hardware()
    os: OperatingSystem = OperatingSystem()
    engines: Annotated[list[EngineFacts], msgspec.Meta(max_length=32)] = []
    runtimes: Annotated[list[Word], msgspec.Meta(max_length=32)] = []
    protection: Word = ""
    """What opens models that are kept encrypted: `identity` (the device's own key), `file` (a key file that its owner
    named); empty: it cannot keep any, for want of a key or of a newer agent."""
    network: Network = Network()
    limits: LimitFacts = LimitFacts()
    trust: TrustFacts | None = None
    """None: the device has no trust anchor, and asks for no signatures."""


class Comparison(Struct, frozen=True, kw_only=True):
    """The golden inputs answered by the new version and by the one it replaces, both asked in turn while both ran."""

    replaced: Annotated[str, msgspec.Meta(max_length=253)] = ""
    """The model version that served until then; empty when there was none, and nothing to compare with."""
    samples: int = 0
    """Inputs that both answered; 0 with `reason` when they could not be compared."""
    agreement: float | None = None
    """Share of them for which both choose the same: the same arg-max, or all values within 1 %."""
    max_abs_difference: float | None = None
    latency_p95_ms: float | None = msgspec.field(default=None, name="latencyP95Ms")
    """Of the new version, asked in turn with the other."""
    replaced_latency_p95_ms: float | None = msgspec.field(default=None, name="replacedLatencyP95Ms")
    reason: Annotated[str, msgspec.Meta(max_length=300)] = ""
    """Why they could not be compared."""


class Observation(Struct, frozen=True, kw_only=True):
    """How the new version's server fared in the newest window of the bake time's length since it serves."""

    seconds: float = 0.0
    """Length of the window so far; less than what was asked for while it is under way."""
    requests: int = 0
    """Inference requests that the server answered or failed to answer; what clients did wrong is not counted."""
    errors: int = 0
    """Those of them that failed: by the engine, or because too much waited."""
    restarts: int = 0
    """Times the server ended by itself."""
    checks: int = 0
    """Times it was asked whether it is ready."""
    unready: int = 0
    """Checks that it did not answer with yes, asked twice."""
    peak_memory_bytes: int = 0
    """Peak resident memory of the server at the end of the window; 0 when unknown."""


class ShadowReport(Struct, frozen=True, kw_only=True):
    """What shadow mode showed: the same real requests answered by the version that served and by the new one."""

    beside: Annotated[str, msgspec.Meta(max_length=253)] = ""
    """The model version that served meanwhile; empty when there was none, and the new one served at once."""
    seconds: float = 0.0
    requests: int = 0
    """Requests that were passed on to the new version."""
    answered: int = 0
    agreed: int = 0
    """Answers that choose what the serving version chose."""
    errors: int = 0
    """Requests that the new version failed."""
    dropped: int = 0
    """Requests of the share that were not passed on, because too many waited."""
    max_abs_difference: float | None = None


class Measurement(Struct, frozen=True, kw_only=True):
    """What the golden samples showed on the device, through its inference server."""

    samples: int
    accuracy: float | None = None
    """Share of golden samples answered with the true label; None when the samples have no labels."""
    agreement: float
    """Share of samples whose arg-max (or value, within tolerance) equals the source model's."""
    max_abs_error: float
    latency_p50_ms: float
    latency_p95_ms: float
    """Whole request through the local server, one sample a request."""
    peak_memory_bytes: int
    """Peak resident memory of the inference server."""
    comparison: Comparison | None = None
    """With the version it replaces; None when that was not asked for, or the agent is too old to do it."""


class RunningRevision(Struct, frozen=True, kw_only=True):
    """Which revision is really serving."""

    rollout: Word
    revision: int
    model_version: Word
    variant: Word
    port: int
    """On the device's loopback."""
    since: datetime
    deployment_uid: Word = ""
    """Of the deployment whose rollout that is; empty where hub or agent was too old to say."""


class WorkloadStatus(Struct, frozen=True, kw_only=True):
    """One workload on one device, as the device reported it."""

    name: Word
    """The deployment's name."""
    rollout: Word
    """The rollout this device was last told to be on."""
    deployment_uid: Word = ""
    """Of the deployment whose rollout that is; empty where hub or agent is too old to say."""
    revision: int
    variant: Word
    phase: WorkloadPhase
    message: Sentence = ""
    """One sentence: what is going on, or what failed and why."""
    refusal: Refusal = ""
    """Why the device would not take `variant`, where it refused; `message` says more. Empty: it did not refuse."""
    waiting_for: WaitReason = ""
    """What holds it up by policy: an update hold, a window, the link. `message` says more."""
    waited_seconds: float = 0.0
    """How long this revision has been held up by policy so far, while it was not told to wait now."""
    measurement: Measurement | None = None
    """Measured for `rollout`, once its server answered."""
    observation: Observation | None = None
    """How `rollout` fares since it serves; None when that was not asked for, or the agent is too old to do it."""
    shadow: ShadowReport | None = None
    """What shadow mode showed of `rollout`, once it is over; None as above."""
    running: RunningRevision | None = None
    served: bool = False
    """`rollout` has served here since it was assigned, whether or not it does now."""
    restarts: int = 0
    fetched_bytes: int = 0
    """Bytes that came over the line to the hub for this revision; 0 when everything was cached."""
    saved_bytes: int = 0
    """Bytes that did not have to come for this revision, thanks to deltas."""
    peer_bytes: int = 0
    """Bytes that came for this revision from neighbours of the same site instead of the hub."""
    install_seconds: float | None = None
    """From accepting the desired state to Running, on the device's monotonic clock."""


class BenchmarkStatus(Struct, frozen=True, kw_only=True):
    """One variant that the hub asked the device to measure, beside what serves."""

    name: Annotated[str, msgspec.Meta(max_length=253)]
    """The hub's name for it, from the model file's digest and how it is served."""
    model_version: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    variant: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    phase: Literal["Pending", "Running", "Measured", "Failed"] = "Pending"
    message: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """One sentence: what it waits for, or why it failed."""
    refusal: Refusal = ""
    """Why the device would not even try; empty otherwise."""
    measurement: Measurement | None = None
    finished_at: datetime | None = None
    """By the device's clock."""


class DeviceStatus(Struct, frozen=True, kw_only=True):
    """What the hub knows of the device."""

    phase: Literal["Pending", "Online", "Offline"] = "Pending"
    last_seen: datetime | None = None
    hardware: Hardware = Hardware()
    os: OperatingSystem = OperatingSystem()
    engines: list[EngineFacts] = []
    runtimes: list[str] = []
    protection: str = ""
    """What opens models that are kept encrypted, see docs/encryption.md; empty: it cannot keep any."""
    network: Network = Network()
    limits: LimitFacts = LimitFacts()
    trust: TrustFacts | None = None
    """The trust anchor and policy that it obeys; None: it has no anchor, and asks for no signatures."""
    holds: list[HoldStatus] = []
    """Update holds in force on the device."""
    agent_version: str = ""
    boot_id: str = ""
    observed_manifest_version: int = 0
    """The newest desired state the device has accepted."""
    workloads: list[WorkloadStatus] = []
    benchmarks: list[BenchmarkStatus] = []
    """Variants that the hub asked it to measure, as long as it asks."""
    conditions: list[Condition] = []


class Device(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A Linux machine at the edge; `metadata.uid` is the CN of its certificate."""

    metadata: ObjectMeta
    spec: DeviceSpec = DeviceSpec()
    status: DeviceStatus = DeviceStatus()
    api_version: str = API_VERSION
    kind: Literal["Device"] = "Device"


DeviceName = Annotated[
    str, msgspec.Meta(pattern=LABEL_PATTERN, max_length=63, description="a DNS label: a-z, 0-9 and '-'")
]
