"""What a trust policy's verdict on a model version means for those who deploy it. Pure.

Lives here: the reason to hold a rollout, and the deployment's condition. Must not live here: the verdict itself
(`core.trust_policy`).
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.trust_policy import TrustPolicy, TrustVerdict
from skerry.api.meta import Condition, set_condition
from skerry.core.deployment import PENDING
from skerry.core.steps import Hold

CONDITION = "Trusted"
REFUSED = "NotTrusted"


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
    return Hold(reason=REFUSED, message=sentence(model.metadata.name, verdict)) if not verdict.covered else None


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
