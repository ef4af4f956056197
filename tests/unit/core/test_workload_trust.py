"""The life of a workload whose server the device does not trust, or not yet; and of signatures that come later."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trusting import NOW
from tests.unit.core.workload_world import wish

from skerry.api.kinds.variants import Blob
from skerry.core import current, journal, workload
from skerry.core.journal import (
    Event,
    Faulted,
    Fetch,
    Moment,
    Serve,
    Slot,
    State,
    Tidy,
    Trusting,
    Vouch,
    Vouched,
    Wanted,
)
from skerry.core.messages import WorkloadDesired

OLD, NEW = (Blob(digest=f"sha256:{digit * 64}", size=1) for digit in "ab")
AT = Moment(wall=NOW, monotonic=1.0, boot="boot")


def step(state: State, event: Event) -> tuple[State, list[journal.Action]]:
    after, actions = workload.step(state, event, AT)
    assert after is not None
    return after, actions


def serving(*, previous: bool = True, **changes: object) -> State:
    state = State(
        name="digits",
        phase="Running",
        serial=2,
        desired=signed(OLD),
        current=Slot(serial=2, desired=signed(OLD), since=NOW, admitted=True, verified_at=NOW),
        previous=Slot(serial=1, desired=wish("v1"), since=NOW, admitted=True) if previous else None,
        endpoint=4000,
        up=True,
    )
    return msgspec.structs.replace(state, **changes)


def signed(*signatures: Blob) -> WorkloadDesired:
    wanted: WorkloadDesired = msgspec.structs.replace(wish("v2"), signatures=list(signatures))
    return wanted


def refused(*, passing: bool, serial: int = 2) -> Faulted:
    return Faulted(serial=serial, component="check", element="digits", cause="no", refusal="Trust", passing=passing)


@given(count=st.integers(1, 3 * current.MAX_CRASHES), crashes=st.integers(0, current.MAX_CRASHES + 1))
def test_without_a_policy_nothing_falls_and_damage_is_still_healed(count: int, crashes: int) -> None:
    """However often it is asked: no server was started, so none has failed."""
    state = serving(crashes=crashes)
    for _ in range(count):
        state, [again] = step(state, refused(passing=True))
        assert isinstance(again, Serve)
    assert (state.crashes, state.restarts, state.up, state.phase) == (crashes, 0, False, "Starting")
    assert state.current is not None
    assert state.current.serial == 2
    state, [at_once] = step(state, Trusting())
    assert isinstance(at_once, Serve)
    assert at_once.delay_ceiling == 0
    lost = Faulted(serial=2, component="check", element="digits", cause="lost", damaged=True)
    state, actions = step(state, lost)
    assert any(isinstance(one, Fetch) for one in actions)


def test_what_the_policy_does_not_cover_falls_at_once_and_is_tried_again_by_another_policy() -> None:
    state, actions = step(serving(), refused(passing=False))
    assert [type(one) for one in actions] == [Tidy, Serve]
    assert state.current is not None
    assert (state.current.serial, state.refusal, state.distrusted) == (1, "Trust", False)
    assert workload.report(state).refusal == "Trust"
    state, actions = step(state, Trusting())
    assert state.candidate is not None
    assert state.candidate.desired == signed(OLD)
    assert (state.refusal, state.failure) == ("", "")


def test_what_nothing_can_stand_in_for_is_asked_again() -> None:
    state, [again] = step(serving(previous=False), refused(passing=False))
    assert isinstance(again, Serve)
    assert (state.phase, state.up, state.distrusted) == ("Failed", False, True)


@pytest.mark.parametrize("refusal", ["", "Memory", "Disk", "Policy"])
def test_another_policy_changes_nothing_about_other_failures(refusal: str) -> None:
    state = serving(failure="no", refusal=refusal, desired=wish("v3"), phase="Failed")
    assert step(state, Trusting()) == (state, [])


def test_later_signatures_count_once_they_are_here() -> None:
    state, actions = step(serving(), Wanted(signed(OLD, NEW)))
    [tidy, vouch] = actions
    assert (type(tidy), type(vouch)) == (Tidy, Vouch)
    assert state.current is not None
    assert state.current.signed.signatures == [OLD]
    assert workload.report(state).served, "it serves what is wished"
    # A newer list overtakes the fetch of this one.
    newest, _ = step(state, Wanted(signed(NEW)))
    assert step(newest, Vouched(serial=2, desired=signed(OLD, NEW))) == (newest, [])
    after, actions = step(state, Vouched(serial=2, desired=signed(OLD, NEW), verified_at=NOW))
    assert after.current is not None
    assert (after.current.kept, after.current.signed.signatures, actions) == (None, [OLD, NEW], [])
    # Back to what it was: nothing is missing.
    back, actions = step(state, Wanted(signed(OLD)))
    assert back.current is not None
    assert back.current.kept is None
    assert [type(one) for one in actions] == [Tidy]


def test_what_is_refused_by_its_old_signatures_serves_by_the_new_ones() -> None:
    state, _ = step(serving(previous=False), Wanted(signed(NEW)))
    state, _ = step(state, refused(passing=False))
    state, [serve] = step(state, Vouched(serial=2, desired=signed(NEW), verified_at=NOW))
    assert isinstance(serve, Serve)
    assert serve.slot.signed.signatures == [NEW]
    # With a version before it, that one serves until the new ones have come.
    state, _ = step(serving(), Wanted(signed(NEW)))
    state, actions = step(state, refused(passing=False))
    assert [type(one) for one in actions] == [Tidy, Serve, Fetch]
    assert state.current is not None
    assert state.current.serial == 1
