"""Promotion: what people say to a rollout while it runs, as annotations on it that any client of the API can write.

- `skerry.dev/approved: <wave>` lets the rollout go on after that wave and all before it, once they have passed.
- `skerry.dev/abort: <reason>` rolls it back now, whatever `onFailure` says; before its end only.

They are on the Rollout and not in the deployment's spec because they concern this one carrying out: the next rollout
starts without them, and the wish that a file or a Git repository holds stays as it is.
Must not live here: what follows (`core.rollout`).
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry.api.kinds.model_deployment import Strategy, Wave
from skerry.api.kinds.rollout import Rollout, WaveStatus
from skerry.api.meta import GROUP

APPROVED = f"{GROUP}/approved"
ABORT = f"{GROUP}/abort"
_MAX_TEXT = 300


def abort_reason(rollout: Rollout) -> str:
    """Return why somebody aborted it; empty when nobody did. An annotation without a text is a word too."""
    said = rollout.metadata.annotations.get(ABORT)
    return "" if said is None else said.strip()[:_MAX_TEXT] or "no reason was given"


def awaited(rollout: Rollout, strategy: Strategy, plan: Sequence[Wave], rows: Sequence[WaveStatus], index: int) -> str:
    """Return the wave whose approval the wave at `index` waits for; empty when it may start."""
    if index == 0:
        return ""
    asked = plan[index - 1].promotion if index - 1 < len(plan) else None
    if (asked or strategy.promotion) == "automatic":
        return ""
    names = [row.name for row in rows]
    approved = rollout.metadata.annotations.get(APPROVED, "")
    return "" if approved in names[index - 1 :] else names[index - 1]
