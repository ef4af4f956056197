"""DeviceClass: devices of one hardware signature, and what each variant was measured to cost on them.

Made and kept by the hub, read-only for everybody else. Lives here: the types. Must not live here: how a signature is
taken or a measurement learnt (`core.classes`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from skerry.api.kinds.device import EngineFacts, Measurement
from skerry.api.meta import API_VERSION, Digest, ObjectMeta, Struct

Source = Literal["benchmark", "install"]


class DeviceClassSpec(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The hardware signature: devices that agree in all of it are expected to cost the same."""

    arch: str = ""
    """GOARCH name."""
    cpu_model: str = ""
    """As the devices say, white space evened out."""
    cores: int = 0
    memory_bytes: int = 0
    """Memory for workloads, rounded to the nearest of 1 and 1.5 times a power of two."""
    accelerators: list[str] = []
    engines: list[EngineFacts] = []
    """Engines with their versions and the precisions they may run, by name."""


class ClassObservation(Struct, frozen=True, kw_only=True):
    """What one device of the class measured for one variant, or why it could not."""

    device: str
    """Name of the device; each contributes its newest measurement only."""
    uid: str
    at: datetime
    """When the hub learnt it."""
    source: Source
    measurement: Measurement | None = None
    failure: str = ""
    """Why it could not be measured; empty when it was."""


class VariantCost(Struct, frozen=True, kw_only=True):
    """What one variant costs on the class: medians over the newest observations, one a device."""

    digest: Digest
    """Of the variant's model file."""
    threads: int
    """Threads that the engine was given."""
    cpu_limit_millis: int = 0
    """CPU limit of the server, in thousandths of a core; 0: none."""
    variant: str
    """Its name, for people."""
    model_version: str
    """The model version it was last measured for."""
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = None
    """Peak resident memory of the inference server."""
    max_abs_error: float | None = None
    """Largest difference from the source model's outputs on the golden samples."""
    samples: int = 0
    """Golden samples behind the numbers, over all observations."""
    devices: int = 0
    """Devices behind the numbers; 0 when none could measure it, then the numbers are missing."""
    measured_at: datetime | None = None
    """When the newest of them was learnt."""
    source: Source = "install"
    """`benchmark` when any of them came from a benchmark."""
    failure: str = ""
    """Why the last device that tried could not measure it, where none could."""
    observations: list[ClassObservation] = []
    """The newest ones, newest first, bounded."""


class DeviceClassStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Who belongs to it, and what is known of variants on it."""

    members: int = 0
    """Devices with this signature now."""
    measured: int = 0
    """Variants with numbers."""
    variants: list[VariantCost] = []
    """By digest, threads and CPU limit; the least recently learnt are dropped beyond a bound."""


class DeviceClass(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Devices of one hardware signature, and what each variant was measured to cost on them."""

    metadata: ObjectMeta
    spec: DeviceClassSpec = DeviceClassSpec()
    status: DeviceClassStatus = DeviceClassStatus()
    api_version: str = API_VERSION
    kind: Literal["DeviceClass"] = "DeviceClass"
