"""What a trust policy's verdict on a model version means for those who deploy it. Pure.

Lives here: the reason to hold a rollout, the deployment's condition, and how much of its life a signed policy has left.
Must not live here: the verdict itself (`core.trust_policy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.trust_policy import TrustPolicy, TrustVerdict
from skerry.api.meta import Condition, find_condition, set_condition
from skerry.core.deployment import PENDING
from skerry.core.steps import Hold

CONDITION = "Trusted"
REFUSED = "NotTrusted"
ACCEPTED = "Accepted"
"""The policy's own condition, of which the last two are reasons."""
EXPIRES_SOON = "ExpiresSoon"
EXPIRED = "Expired"


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """From when to when something that is signed is good."""

    element: str
    issued_at: datetime
    expires_at: datetime


def remaining(lives: Sequence[Life], now: datetime) -> tuple[str, str, datetime | None]:
    """Return what of a policy's life is left: a reason (empty while all is well), a sentence, the next moment to look.

    As for devices, a clock that is behind what was signed counts as being at that time.
    """
    moment = max([now, *(one.issued_at for one in lives)])
    over = [f"{one.element} expired at {one.expires_at.isoformat()}" for one in lives if moment >= one.expires_at]
    if over:
        return EXPIRED, f"{over[0]}: devices with a trust anchor take nothing new; sign the next one", None
    halves = [one.issued_at + (one.expires_at - one.issued_at) / 2 for one in lives]
    late = sorted((one for one, half in zip(lives, halves, strict=True) if moment >= half), key=lambda o: o.expires_at)
    following = min((at for at in [*halves, *(one.expires_at for one in lives)] if at > moment), default=None)
    if not late:
        return "", "", following
    text = f"{late[0].element} expires at {late[0].expires_at.isoformat()}, and half of its life is over"
    return EXPIRES_SOON, f"{text}; sign the next one", following


def has_expired(policy: TrustPolicy | None) -> bool:
    """Return whether a signed policy has expired, as far as its condition says."""
    found = None if policy is None else find_condition(policy.status.conditions, ACCEPTED)
    if policy is None or found is None or found.observed_generation != policy.metadata.generation:
        return False
    return found.status == "False" and found.reason == EXPIRED


def is_refused(model: ModelVersion) -> bool:
    """Return whether nothing new of a model version may be deployed, as far as its last verdict says."""
    verdict = model.status.trust
    return verdict is not None and verdict.mode == "enforce" and not verdict.covered


def hold_of(policy: TrustPolicy | None, model: ModelVersion) -> Hold | None:
    """Say why a model version is not deployed under a policy; None when it may be."""
    if policy is None or policy.spec.mode != "enforce":
        return None
    verdict = model.status.trust
    about = (policy.metadata.uid, policy.metadata.generation)
    if verdict is None or (verdict.policy_uid, verdict.generation) != about:
        return Hold(
            reason=PENDING, message=f'model version "{model.metadata.name}": its signatures are about to be looked at'
        )
    if not verdict.covered:
        return Hold(reason=REFUSED, message=sentence(model.metadata.name, verdict))
    if has_expired(policy):
        found = find_condition(policy.status.conditions, ACCEPTED)
        return Hold(reason=REFUSED, message="" if found is None else found.message)
    return None


def sentence(name: str, verdict: TrustVerdict) -> str:
    """Return a refusal, or a warning, as people read it."""
    return f'model version "{name}" is not covered by the trust policy: {verdict.message}'


def with_condition(
    status: ModelDeploymentStatus, deployment: ModelDeployment, model: ModelVersion | None, now: datetime
) -> ModelDeploymentStatus:
    """Return the status with what the policy says of the model version it wants; without, where no policy is asked."""
    verdict = None if model is None else model.status.trust
    if model is None or verdict is None or verdict.mode == "off":
        kept = [one for one in status.conditions if one.type != CONDITION]
        return msgspec.structs.replace(status, conditions=kept)
    text = verdict.message if verdict.covered else sentence(model.metadata.name, verdict)
    reason = "Covered" if verdict.covered else REFUSED if verdict.mode == "enforce" else "Warned"
    condition = Condition(
        type=CONDITION,
        status="True" if verdict.covered else "False",
        reason=reason,
        message=text,
        last_transition_time=now,
        observed_generation=deployment.metadata.generation,
    )
    return msgspec.structs.replace(status, conditions=set_condition(status.conditions, condition))
