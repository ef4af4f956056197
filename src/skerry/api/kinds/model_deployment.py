"""ModelDeployment: the user's wish. This model version, on devices that match, within these limits, rolled out so."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.amount import Amount
from skerry.api.duration import Duration
from skerry.api.kinds.gates import Gates, Shadow
from skerry.api.kinds.pacing import Disruption, Rate, UpdateWindows
from skerry.api.kinds.variants import Engine, Format, Precision
from skerry.api.meta import API_VERSION, Condition, LabelSelector, Name, ObjectMeta, Ratio, Struct
from skerry.api.quantity import Quantity


class Constraints(Struct, frozen=True, kw_only=True):
    """What a variant must meet to be placed; measured on the device's class where known, else in the factory."""

    max_latency: Duration | None = None
    """Highest p95 latency."""
    min_accuracy: Ratio | None = None
    """Lowest evaluation metric; of a model that is judged by a metric of which less is better, refused."""
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

    requests: ResourceList = ResourceList()
    """What it gets when the device is busy: placement keeps it free, and the kernel shares CPU by it."""
    limits: ResourceList = ResourceList()
    """What it never exceeds: beyond its CPU it waits, beyond its memory it is killed."""


class Serving(Struct, frozen=True, kw_only=True):
    """How the model is served on the device."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """Port on the device's loopback; 0 lets the agent choose one and keep it."""
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 1
    """Threads the engine may use; 0 means all cores."""


class DeploymentLink(Struct, frozen=True, kw_only=True):
    """What the deployment asks of the devices' networks."""

    require_unmetered: bool = False
    """Nothing of it is fetched over a metered link: such a device waits, and says so."""


Promotion = Literal["automatic", "manual"]


class Wave(Struct, frozen=True, kw_only=True):
    """How far one step of the rollout goes: by `count` or `percent` of the devices that can be placed, by `selector`.

    A selector alone takes all devices that match it; with count or percent, so many of those that match it.
    """

    name: Annotated[
        str, msgspec.Meta(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9 ]{0,61}[A-Za-z0-9])?)?$(?!\n)", max_length=63)
    ] = ""
    """Letters, digits, and "-", "_", "." or spaces between them; `wave-<number>` unless given."""
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Devices on the new version when this wave is done."""
    percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    """Share of the selected devices that some variant fits, on the new version when this wave is done; rounded up."""
    selector: LabelSelector | None = None
    """Only devices whose labels match are taken by this wave, and counted for its count or percent."""
    promotion: Promotion | None = None
    """What follows when this wave has passed: the next one at once, or after an approval; absent: as the strategy."""


def _default_waves() -> list[Wave]:
    return [Wave(name="canary", count=1), Wave(name="all", percent=100)]


class Strategy(Struct, frozen=True, kw_only=True):
    """How a new generation spreads."""

    waves: Annotated[list[Wave], msgspec.Meta(min_length=1, max_length=100)] = msgspec.field(
        default_factory=_default_waves
    )
    """Cumulative, in order; unless the last is `percent: 100`, one gated wave for all the rest follows."""
    gates: Gates = Gates()
    shadow: Shadow | None = None
    """Run the new version beside the old one first; absent: it takes over once its golden samples were answered."""
    promotion: Promotion = "automatic"
    """From a wave that passed to the next: at once, or after `skerry rollout approve` (an annotation, see the docs)."""
    rate: Rate | None = None
    """How many devices a minute; absent: a whole wave at once."""
    disruption: Disruption | None = None
    """How many devices of one site, say, may be disturbed at a time; absent: no bound."""
    windows: UpdateWindows = UpdateWindows()
    """When devices may download, and when they may switch over; empty: at any time."""
    success_threshold: Amount | None = None
    """A wave is done when so many devices, or that share of them, run, without waiting for the others; absent: when
    each runs or has failed."""
    failure_threshold: Amount | None = None
    """The rollout fails as soon as more devices than this, or than this share of them, have failed; absent: by its
    gates alone."""
    bake_time: Duration = "0s"
    """How long a wave must stay healthy before its gates are judged."""
    device_timeout: Duration = "10m"
    """A device that is not Running this long after its assignment counts as failed; only time in which the windows
    let it go on counts."""
    on_failure: Literal["rollback", "pause"] = "rollback"
    """After a failed gate: put the previous version back on the devices that moved, or stop and wait."""


class PlacementPolicy(Struct, frozen=True, kw_only=True):
    """How variants are chosen; see docs/placement.md."""

    benchmark: bool = False
    """Before a wave takes devices of a class on which a candidate was never measured, have one device of that class
    fetch and measure all candidates. False: the factory's numbers count until installs have measured them."""
    timeout: Duration = "5m"
    """How long a rollout waits for benchmarks, counted from the first; then the factory's numbers count."""
    on_refusal: Literal["nextBest", "fail"] = "fail"
    """When a device refuses its variant: give it the next best of those it has not refused, or leave it failed."""


Protection = Literal["none", "encrypted"]


class ModelDeploymentSpec(Struct, frozen=True, kw_only=True):
    """The wish itself; a change of model version, constraints, resources, runtime, serving, link or protection starts
    a rollout.

    The selector, placement, the strategy and `paused` take effect on the rollout at hand.
    """

    model_version: Name
    """`metadata.name` of a ModelVersion in the same namespace."""
    device_selector: LabelSelector
    constraints: Constraints = Constraints()
    resources: Resources = Resources()
    runtime: Literal["auto", "process"] = "auto"
    serving: Serving = Serving()
    link: DeploymentLink = DeploymentLink()
    protection: Protection = "none"
    """`encrypted`: model and golden samples lie encrypted on the device's disk, by a key of its own, and are in plain
    only in memory; devices that cannot do so are not chosen. See docs/encryption.md for what that protects from."""
    placement: PlacementPolicy = PlacementPolicy()
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
