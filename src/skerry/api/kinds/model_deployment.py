"""ModelDeployment: the user's wish. This model version, on devices that match, within these limits, rolled out so."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.duration import Duration
from skerry.api.kinds.variants import Engine, Format, Precision
from skerry.api.meta import API_VERSION, Condition, LabelSelector, Name, ObjectMeta, Ratio, Struct
from skerry.api.quantity import Quantity


class Constraints(Struct, frozen=True, kw_only=True):
    """What a variant must meet to be placed; measured on the device's class where known, else in the factory."""

    max_latency: Duration | None = None
    """Highest p95 latency."""
    min_accuracy: Ratio | None = None
    """Lowest evaluation metric."""
    max_memory: Quantity | None = None
    """Highest peak memory of the inference server."""
    engines: list[Engine] = []
    formats: list[Format] = []
    precisions: list[Precision] = []


class ResourceList(Struct, frozen=True, kw_only=True):
    """Amounts of CPU and memory."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(Struct, frozen=True, kw_only=True):
    """What the inference server is given."""

    limits: ResourceList = ResourceList()


class Serving(Struct, frozen=True, kw_only=True):
    """How the model is served on the device."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """Port on the device's loopback; 0 lets the agent choose one and keep it."""
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1
    """Threads the engine may use; 0 means all cores."""


class Wave(Struct, frozen=True, kw_only=True):
    """How far one step of the rollout goes, by `count` or by `percent` of the devices that can be placed."""

    name: Annotated[
        str, msgspec.Meta(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9 ]{0,61}[A-Za-z0-9])?)?$(?!\n)", max_length=63)
    ] = ""
    """Letters, digits, and "-", "_", "." or spaces between them; `wave-<number>` unless given."""
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Devices on the new version when this wave is done."""
    percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    """Share of the selected devices that some variant fits, on the new version when this wave is done; rounded up."""


def _default_waves() -> list[Wave]:
    return [Wave(name="canary", count=1), Wave(name="all", percent=100)]


class SuccessGate(Struct, frozen=True, kw_only=True):
    """Share of the devices on the rollout, of this wave and those before, that reached Running."""

    min: Ratio = 1.0


class AccuracyGate(Struct, frozen=True, kw_only=True):
    """Accuracy on the golden samples, measured on the device; the worst device on the rollout counts."""

    min: Ratio
    min_samples: Annotated[int, msgspec.Meta(ge=1)] = 1
    """A device with fewer golden samples than this fails the gate."""


class LatencyGate(Struct, frozen=True, kw_only=True):
    """p95 latency of the golden samples through the local server; the worst device on the rollout counts."""

    max: Duration


class Gates(Struct, frozen=True, kw_only=True):
    """Conditions, measured on the devices of a wave, that the next wave waits for; all must hold."""

    success_ratio: SuccessGate = SuccessGate()
    accuracy: AccuracyGate | None = None
    latency_p95: LatencyGate | None = msgspec.field(default=None, name="latencyP95")


class Strategy(Struct, frozen=True, kw_only=True):
    """How a new generation spreads."""

    waves: Annotated[list[Wave], msgspec.Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=_default_waves
    )
    """Cumulative, in order; unless the last is `percent: 100`, one gated wave for all the rest follows."""
    gates: Gates = Gates()
    bake_time: Duration = "0s"
    """How long a wave must stay healthy before its gates are judged."""
    device_timeout: Duration = "10m"
    """A device that is not Running this long after its assignment counts as failed."""
    on_failure: Literal["rollback", "pause"] = "rollback"
    """After a failed gate: put the previous version back on the devices that moved, or stop and wait."""


class ModelDeploymentSpec(Struct, frozen=True, kw_only=True):
    """The wish itself; a change of model version, constraints, resources, runtime or serving starts a rollout.

    The selector, the strategy and `paused` take effect on the rollout at hand.
    """

    model_version: Name
    """`metadata.name` of a ModelVersion in the same namespace."""
    device_selector: LabelSelector
    constraints: Constraints = Constraints()
    resources: Resources = Resources()
    runtime: Literal["auto", "process"] = "auto"
    serving: Serving = Serving()
    strategy: Strategy = Strategy()
    paused: bool = False
    """No further wave starts while true."""


class ModelDeploymentStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Where the wish stands. Counts are over the devices that match the selector now."""

    observed_generation: int = 0
    revision: int = 0
    """The generation devices are meant to be on: the last one that succeeded, or the one that is rolling out."""
    rollout: str = ""
    """The newest rollout."""
    stable_rollout: str = ""
    """The last rollout that succeeded: what a failure returns to, and what late devices get."""
    selected: int = 0
    updated: int = 0
    """Devices running `revision`."""
    ready: int = 0
    """Devices running any revision."""
    variants: dict[str, int] = {}
    """Devices running each variant."""
    conditions: list[Condition] = []


class ModelDeployment(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A model version on the devices that match, within limits, rolled out in gated waves."""

    metadata: ObjectMeta
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()
    api_version: str = API_VERSION
    kind: Literal["ModelDeployment"] = "ModelDeployment"
