"""How long a signed policy is good: a warning at half of its life, and nothing rolled out by one that has expired."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests import trusting
from tests.trusting import NOW

from skerry.api.kinds.trust_policy import TrustPolicy, TrustPolicyStatus, TrustVerdict
from skerry.api.meta import Condition, ObjectMeta
from skerry.core import trusted
from skerry.core.trusted import Life

HOURS = st.integers(-100, 300)


def life(name: str, hours: int) -> Life:
    return Life(element=name, issued_at=NOW, expires_at=NOW + timedelta(hours=hours))


@given(HOURS, st.integers(1, 200), st.integers(1, 200))
def test_each_moment_that_changes_something_is_the_next_to_look(at: int, policy: int, root: int) -> None:
    lives = [life("policy", policy), life("root", root)]
    now = NOW + timedelta(hours=at)
    reason, message, wake_at = trusted.remaining(lives, now)
    hours = max(at, 0)
    expired, late = hours >= min(policy, root), 2 * hours >= min(policy, root)
    assert reason == (trusted.EXPIRED if expired else trusted.EXPIRES_SOON if late else "")
    assert bool(message) == (expired or late)
    if expired:
        assert wake_at is None, "it does not come back"
        return
    assert wake_at is not None
    assert wake_at > now
    just_before = max(wake_at - timedelta(seconds=1), now)
    assert trusted.remaining(lives, just_before)[:2] == (reason, message), "nothing is missed until then"


def test_the_one_that_expires_first_is_named() -> None:
    lives = [life("policy", 50), life("root", 20)]
    assert trusted.remaining(lives, NOW + timedelta(hours=49))[1].startswith("root expired at")
    assert trusted.remaining(lives, NOW + timedelta(hours=11))[1].startswith("root expires at")


def test_nothing_is_rolled_out_by_a_policy_that_has_expired() -> None:
    policy = TrustPolicy(metadata=ObjectMeta(name="default", uid="u1", generation=2))
    model = trusting.model_version(TrustVerdict(policy_uid="u1", generation=2, covered=True))

    def hold(reason: str, *, status: str = "False", generation: int = 2, mode: str = "enforce") -> str:
        condition = Condition(
            type="Accepted",
            status=status,
            reason=reason,
            message="it expired",
            last_transition_time=NOW,
            observed_generation=generation,
        )
        said = msgspec.structs.replace(policy, status=TrustPolicyStatus(conditions=[condition]))
        found = trusted.hold_of(trusting.replace_spec(said, mode=mode), model)
        return "" if found is None else f"{found.reason}: {found.message}"

    assert hold("Expired") == "NotTrusted: it expired"
    assert hold("Expired", mode="warn") == ""
    assert hold("Expired", generation=1) == "", "that was said of the one before"
    assert hold("ExpiresSoon", status="True") == ""
    assert hold("Invalid") == "", "the hub obeys what is written; devices are not handed it"
