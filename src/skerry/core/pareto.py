"""The Pareto front of a model's variants: those that no other one beats in accuracy and latency at once.

Lives here: who is on the front. Must not live here: tables and pictures of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from skerry.api.kinds.variants import Variant


def front(variants: Sequence[Variant]) -> frozenset[str]:
    """Return the names of the variants that are on the front, by the metric's drop and the median latency.

    Another variant beats one when it is no worse in both and better in one; equals are all on the front. Of variants
    that nobody evaluated the fastest are.
    """
    return frozenset(one.name for one in variants if not any(_beats(other, one) for other in variants))


def _beats(other: Variant, one: Variant) -> bool:
    ours = _drop(one), one.profile.latency_p50_ms
    theirs = _drop(other), other.profile.latency_p50_ms
    return theirs != ours and theirs[0] <= ours[0] and theirs[1] <= ours[1]


def _drop(variant: Variant) -> float:
    return math.inf if variant.metric_drop is None else variant.metric_drop
