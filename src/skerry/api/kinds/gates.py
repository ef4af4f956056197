"""Gates: conditions, measured on the devices of a wave, that the next wave waits for; and shadow mode.

Every gate has a threshold, a least number of samples and of devices, and a word on devices that do not answer. The
formulas are in `docs/rollouts.md`. Must not live here: verdicts (`core.gates`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.duration import Duration
from skerry.api.meta import Ratio, Struct
from skerry.api.quantity import Quantity

Missing = Literal["fail", "ignore", "wait"]
"""A device that does not answer fails the gate, does not count, or is waited for without end."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1_000_000, description="a factor above 0")]


class SuccessGate(Struct, frozen=True, kw_only=True):
    """Share of the devices on the rollout, of this wave and those before, that reached Running."""

    min: Ratio = 1.0
    min_devices: Positive = 1
    """Devices that must have reached Running or failed; all of the wave when it has fewer."""
    missing: Missing = "fail"
    """What becomes of devices that said nothing of this rollout within `deviceTimeout`."""


class HealthGate(Struct, frozen=True, kw_only=True):
    """Share of the wave's devices whose server stayed up and answered for the whole bake time."""

    min: Ratio = 1.0
    min_devices: Count = 1
    missing: Missing = "fail"


class AccuracyGate(Struct, frozen=True, kw_only=True):
    """Accuracy on the golden samples, measured on the device; the worst device on the rollout counts."""

    min: Ratio
    min_samples: Positive = 1
    """A device with fewer golden samples than this does not answer."""
    min_devices: Count = 1
    missing: Missing = "fail"


class AgreementGate(Struct, frozen=True, kw_only=True):
    """How far the new version answers the golden inputs as the version it replaces does; the worst device counts.

    Both servers are asked while both run. Devices that replace nothing do not count.
    """

    min: Ratio
    """Lowest share of golden inputs for which both choose the same."""
    max_difference: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Largest absolute difference of any output value."""
    min_samples: Positive = 1
    """A device that compared fewer does not answer."""
    min_devices: Count = 1
    missing: Missing = "fail"


class LatencyGate(Struct, frozen=True, kw_only=True):
    """p95 latency of the golden samples through the local server; the worst device on the rollout counts."""

    max: Duration | None = None
    """Highest p95."""
    max_ratio: Factor | None = None
    """Highest p95 as a multiple of that of the version it replaces, both measured in turn; 1.1: at most 10 % slower.
    Devices that replace nothing do not count."""
    min_samples: Positive = 1
    min_devices: Count = 1
    missing: Missing = "fail"


class MemoryGate(Struct, frozen=True, kw_only=True):
    """Peak memory of the inference server after the golden samples, and to the end of the bake time where observed."""

    max: Quantity
    min_devices: Count = 1
    missing: Missing = "fail"


class ErrorRateGate(Struct, frozen=True, kw_only=True):
    """Share of inference requests in the bake time that the servers failed, over all devices on the rollout."""

    max: Ratio
    min_samples: Count = 1
    """Requests on all devices together; 0 lets a wave pass that nobody asked anything."""
    min_devices: Count = 1
    """Devices that reported their counts."""
    missing: Missing = "fail"
    """Also what becomes of a wave with too few requests."""


class ShadowGate(Struct, frozen=True, kw_only=True):
    """Agreement with the version it runs beside, on the same real requests; the worst device counts.

    The device itself switches over only when it holds; a device on which it does not keeps the version it has.
    """

    min: Ratio
    min_devices: Count = 1
    missing: Missing = "fail"
    """Too few requests within `strategy.shadow.duration`: `fail` gives the new version up, `ignore` switches over all
    the same, `wait` stays beside until there are enough."""


class Gates(Struct, frozen=True, kw_only=True):
    """Conditions, measured on the devices of a wave, that the next wave waits for; all must hold."""

    success_ratio: SuccessGate = SuccessGate()
    health: HealthGate | None = None
    accuracy: AccuracyGate | None = None
    agreement: AgreementGate | None = None
    latency_p95: LatencyGate | None = msgspec.field(default=None, name="latencyP95")
    peak_memory: MemoryGate | None = None
    error_rate: ErrorRateGate | None = None
    shadow_agreement: ShadowGate | None = None


class Shadow(Struct, frozen=True, kw_only=True):
    """Shadow mode: before it serves, the new version runs beside the old one and gets a share of the same requests.

    Nothing it answers reaches a caller.
    """

    share: Annotated[float, msgspec.Meta(gt=0, le=1, description="a share above 0, at most 1")] = 0.1
    """Of the requests of the version that serves."""
    duration: Duration = "10m"
    min_requests: Count = 0
    """Requests that both must have answered; see `gates.shadowAgreement.missing` for when there are fewer."""
