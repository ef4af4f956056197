"""Deployments: when a change of the wish starts a rollout, and what a deployment's status says. Pure.

A rollout starts when one of `TEMPLATE_FIELDS` differs from the newest rollout's: what runs on the devices changes. The
others (selector, strategy, paused) take effect on the rollout at hand.

Lives here: comparisons and formulas (see docs/rollouts.md). Must not live here: the order of events (`core.rollout`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from skerry.api.kinds.device import RunningRevision
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import Condition, find_condition, set_condition
from skerry.core import steps
from skerry.core.steps import Hold
from skerry.core.waves import Member

TEMPLATE_FIELDS = ("model_version", "constraints", "resources", "runtime", "serving", "link", "protection")
PENDING = "ModelVersionPending"
"""Why a deployment waits whose model version has not been looked at yet."""
KEPT_ROLLOUTS = 10
"""Ended rollouts that stay for `undo` and for people, besides those still needed."""
_MAX_VARIANTS = 32  # counted; devices report these names
_MAX_WORD = 80


def same_template(one: ModelDeploymentSpec, other: ModelDeploymentSpec) -> bool:
    """Return whether both put the same thing onto devices."""
    return all(getattr(one, name) == getattr(other, name) for name in TEMPLATE_FIELDS)


def newest_of(rollouts: Iterable[Rollout]) -> Rollout | None:
    """Return the rollout of the highest revision."""
    return max(rollouts, key=lambda rollout: rollout.spec.revision, default=None)


def stable_of(rollouts: Iterable[Rollout]) -> Rollout | None:
    """Return the last rollout that succeeded."""
    return newest_of(rollout for rollout in rollouts if rollout.status.phase == "Succeeded")


def wanted_of(rollouts: Sequence[Rollout]) -> Rollout | None:
    """Return the rollout that devices are meant to be on: the newest, or the stable one when that failed."""
    newest = newest_of(rollouts)
    if newest is None or newest.status.phase in ("RollingBack", "RolledBack", "Failed", "Superseded"):
        return stable_of(rollouts)
    return newest


def superfluous(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return ended rollouts beyond those kept; never the newest, the stable one, or the one it may return to."""
    newest, stable = newest_of(rollouts), stable_of(rollouts)
    needed = {rollout.metadata.name for rollout in (newest, stable) if rollout is not None}
    needed |= {newest.spec.previous} if newest is not None else set()
    old = [r for r in rollouts if r.metadata.name not in needed and r.status.phase in steps.ENDED]
    return sorted(old, key=lambda rollout: -rollout.spec.revision)[KEPT_ROLLOUTS:]


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """What the selected devices serve, counted."""

    selected: int = 0
    ready: int = 0
    """Those that serve anything."""
    rollouts: Mapping[str, int] = field(default_factory=dict)
    """How many serve each rollout."""
    variants: Mapping[str, int] = field(default_factory=dict)
    """How many serve each variant."""
    idle: Sequence[str] = ()
    """The first few names of those that serve nothing."""


def count(members: Iterable[Member]) -> Census:
    """Return the count of what these devices serve; who is not selected does not count."""
    selected = [member for member in members if member.selected]
    serving = [m.report.running for m in selected if m.report is not None and m.report.running is not None]
    idle = sorted(m.name for m in selected if m.report is None or m.report.running is None)
    return Census(
        selected=len(selected),
        ready=len(serving),
        rollouts=Counter(running.rollout for running in serving),
        variants=Counter(map(variant_of, serving)),
        idle=idle[: steps.MAX_NAMED],
    )


def variant_of(running: RunningRevision) -> str:
    """Return the variant that a device names, bounded."""
    return running.variant[:_MAX_WORD]


def summarize(
    deployment: ModelDeployment,
    rollouts: Sequence[Rollout],
    members: Census | Sequence[Member],
    now: datetime,
    *,
    hold: Hold | None = None,
) -> ModelDeploymentStatus:
    """Return the deployment's status. `members` are its devices, or the count of them (`Roster.census`).

    `hold` says why its newest generation waits. A generation counts as observed when its model version has been looked
    at: until then nobody can know whether it leads to a new rollout, and whoever follows it must not take the old one
    for it.
    """
    newest, stable, wanted = newest_of(rollouts), stable_of(rollouts), wanted_of(rollouts)
    unknown = hold is not None and hold.reason == PENDING
    census = members if isinstance(members, Census) else count(members)
    target = wanted.metadata.name if wanted else ""
    return msgspec.structs.replace(
        deployment.status,
        observed_generation=deployment.status.observed_generation if unknown else deployment.metadata.generation,
        revision=wanted.spec.revision if wanted else 0,
        rollout=newest.metadata.name if newest else "",
        stable_rollout=stable.metadata.name if stable else "",
        selected=census.selected,
        updated=census.rollouts.get(target, 0) if wanted else 0,
        ready=census.ready,
        variants=_most_common(census.variants),
        conditions=set_condition(
            set_condition(deployment.status.conditions, _progressing(deployment, newest, hold, now)),
            _available(deployment, census, now),
        ),
    )


def meaningless(wish: ModelDeploymentSpec, model: ModelVersion) -> Hold | None:
    """Say which constraint means nothing for how this model was judged; None when each means something."""
    evaluation = model.spec.evaluation
    if wish.constraints.min_accuracy is None or evaluation is None or evaluation.higher_is_better:
        return None
    text = (
        f'spec.constraints.minAccuracy is a lower limit, and model version "{model.metadata.name}" is judged by '
        f"{evaluation.metric[:_MAX_WORD]}, of which less is better; leave it out: the factory's allowed drop has "
        "bounded what its variants lose"
    )
    return Hold(reason="ConstraintMeaningless", message=text)


def failing(deployment: ModelDeployment, reason: str, message: str, now: datetime) -> ModelDeploymentStatus:
    """Return the status with a Progressing condition that says what stands in the way."""
    condition = _condition(deployment, now, type="Progressing", status="False", reason=reason, message=message)
    return msgspec.structs.replace(deployment.status, conditions=set_condition(deployment.status.conditions, condition))


def _progressing(deployment: ModelDeployment, newest: Rollout | None, hold: Hold | None, now: datetime) -> Condition:
    """What holds it up, else what the newest rollout says."""
    known = find_condition(newest.status.conditions, "Progressing") if newest is not None else None
    if hold is not None:
        status, reason, message = "False", hold.reason, hold.message
    elif known is not None:
        status, reason, message = known.status, known.reason, known.message
    else:
        status, reason, message = "True", "NewRollout", "the rollout is about to start"
    return _condition(deployment, now, type="Progressing", status=status, reason=reason, message=message)


def _available(deployment: ModelDeployment, census: Census, now: datetime) -> Condition:
    """Whether every selected device serves some revision, as far as their last reports say."""
    missing = census.selected - census.ready
    status = "True" if census.selected and not missing else "False"
    reason = "NoDevices" if not census.selected else "DevicesNotServing" if missing else "AllDevicesServing"
    message = f"{census.ready} of {steps.devices(census.selected)} serving"
    message += f"; not {steps.names(census.idle, missing)}" if missing else ""
    return _condition(deployment, now, type="Available", status=status, reason=reason, message=message)


def _most_common(counts: Mapping[str, int]) -> dict[str, int]:
    """Those that most devices serve, the first by name where as many do."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_VARIANTS]
    return dict(sorted(ordered))


def _condition(deployment: ModelDeployment, now: datetime, **fields: Any) -> Condition:
    return Condition(last_transition_time=now, observed_generation=deployment.metadata.generation, **fields)
