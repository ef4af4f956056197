"""Device: a Linux machine at the edge that runs the agent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.meta import API_VERSION, LABEL_PATTERN, Condition, ObjectMeta, Struct

WorkloadPhase = Literal[
    "Pending",
    "Fetching",
    "Verified",
    "Installed",
    "Starting",
    "Probing",
    "Running",
    "RollingBack",
    "Failed",
    "Removing",
]


Word = Annotated[str, msgspec.Meta(max_length=256)]
"""What a device calls something; bounded, since a device may say anything."""
Sentence = Annotated[str, msgspec.Meta(max_length=4096)]


class DeviceSpec(Struct, frozen=True, kw_only=True):
    """What the operator wants of this device."""

    cordoned: bool = False
    """No new placements; what runs stays."""


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


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """Everything a device says about itself; sent when it changes."""

    hostname: Word = ""
    agent_version: Word = ""
    boot_id: Word = ""
    hardware: Hardware = Hardware()
    os: OperatingSystem = OperatingSystem()
    engines: Annotated[list[EngineFacts], msgspec.Meta(max_length=32)] = []
    runtimes: Annotated[list[Word], msgspec.Meta(max_length=32)] = []
    network: Network = Network()


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


class RunningRevision(Struct, frozen=True, kw_only=True):
    """Which revision is really serving."""

    rollout: Word
    revision: int
    model_version: Word
    variant: Word
    port: int
    """On the device's loopback."""
    since: datetime


class WorkloadStatus(Struct, frozen=True, kw_only=True):
    """One workload on one device, as the device reported it."""

    name: Word
    """The deployment's name."""
    rollout: Word
    """The rollout this device was last told to be on."""
    revision: int
    variant: Word
    phase: WorkloadPhase
    message: Sentence = ""
    """One sentence: what is going on, or what failed and why."""
    measurement: Measurement | None = None
    """Measured for `rollout`, once its server answered."""
    running: RunningRevision | None = None
    served: bool = False
    """`rollout` has served here since it was assigned, whether or not it does now."""
    restarts: int = 0
    fetched_bytes: int = 0
    """Bytes that came over the network for this revision; 0 when everything was cached."""
    install_seconds: float | None = None
    """From accepting the desired state to Running, on the device's monotonic clock."""


class DeviceStatus(Struct, frozen=True, kw_only=True):
    """What the hub knows of the device."""

    phase: Literal["Pending", "Online", "Offline"] = "Pending"
    last_seen: datetime | None = None
    hardware: Hardware = Hardware()
    os: OperatingSystem = OperatingSystem()
    engines: list[EngineFacts] = []
    runtimes: list[str] = []
    network: Network = Network()
    agent_version: str = ""
    boot_id: str = ""
    observed_manifest_version: int = 0
    """The newest desired state the device has accepted."""
    workloads: list[WorkloadStatus] = []
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
