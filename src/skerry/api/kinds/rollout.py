"""Rollout: the carrying out of one generation of a deployment, in waves."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from skerry.api.kinds.device import Measurement
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.meta import API_VERSION, Condition, ObjectMeta, Struct

Verdict = Literal["Pending", "Passed", "Failed"]


class RolloutSpec(Struct, frozen=True, kw_only=True):
    """The frozen plan; immutable."""

    deployment: str
    deployment_uid: str
    revision: int
    """The deployment's generation that this carries out."""
    template: ModelDeploymentSpec
    model_digest: str = ""
    """Digest of the artifact that `template.modelVersion` stood for: the same name with another is another model."""
    previous: str = ""
    """The rollout that devices return to when this one fails; empty when there is none."""


class GateResult(Struct, frozen=True, kw_only=True):
    """One gate's verdict on one wave, with the measured value."""

    gate: str
    """`successRatio`, `failureThreshold`, `health`, `accuracy`, `agreement`, `agreementDifference`, `latencyP95`,
    `latencyP95Ratio`, `peakMemory`, `errorRate` or `shadowAgreement`."""
    verdict: Verdict
    threshold: float
    measured: float | None = None
    """In the threshold's unit: a ratio, milliseconds, bytes, or the outputs' own."""
    devices: int = 0
    """Devices that contributed a measurement."""
    missing: int = 0
    """Devices that run and did not answer this gate."""
    samples: int = 0
    """Golden samples or requests behind the measured value, over all devices."""
    worst: str = ""
    """The device with the worst value."""
    message: str = ""


class WaveDevice(Struct, frozen=True, kw_only=True):
    """One device's part in a wave. Only the first 50 of a wave are listed, failures first; the counts are complete."""

    name: str
    variant: str
    phase: str
    message: str = ""
    measurement: Measurement | None = None
    seconds: float | None = None
    """From the hub's assignment to the device's report that it runs."""


class WaveStatus(Struct, frozen=True, kw_only=True):
    """One wave as it stands."""

    name: str
    phase: Literal["Pending", "Progressing", "Baking", "Passed", "Failed"] = "Pending"
    target: int = 0
    """Devices on the new version, over all waves, when this one is done."""
    assigned: int = 0
    running: int = 0
    failed: int = 0
    started_at: datetime | None = None
    settled_at: datetime | None = None
    """When the last device of the wave reached Running or failed; baking counts from here."""
    finished_at: datetime | None = None
    gates: list[GateResult] = []
    devices: list[WaveDevice] = []


class RolloutStatus(Struct, frozen=True, kw_only=True):
    """How far it has come, and why it stopped if it did."""

    phase: Literal[
        "Pending", "Progressing", "Paused", "Succeeded", "RollingBack", "RolledBack", "Failed", "Superseded"
    ] = "Pending"
    current_wave: int = 0
    """Index into `waves`."""
    waves: list[WaveStatus] = []
    message: str = ""
    """One sentence for people."""
    selected: int = 0
    placed: int = 0
    """Selected devices that some variant fits."""
    unplaced: dict[str, str] = {}
    """Device name -> why no variant fits it; the first 50."""
    started_at: datetime | None = None
    failed_at: datetime | None = None
    """When a gate failed, or it was aborted, and the way back began."""
    finished_at: datetime | None = None
    conditions: list[Condition] = []


class Rollout(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One generation of a deployment being carried out, with each wave's gates and their measured values."""

    metadata: ObjectMeta
    spec: RolloutSpec
    status: RolloutStatus = RolloutStatus()
    api_version: str = API_VERSION
    kind: Literal["Rollout"] = "Rollout"
