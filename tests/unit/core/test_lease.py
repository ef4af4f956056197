"""Leases of update holds: they end by themselves, whatever the clocks of a device do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import MAX_HOLD, UpdateHold
from skerry.core import lease as leases
from skerry.core.journal import Moment
from skerry.core.lease import Lease

T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
amounts = st.floats(0, 30 * 86400, allow_nan=False)
jumps = st.floats(-40 * 365 * 86400, 40 * 365 * 86400, allow_nan=False)


def moment(*, wall: float = 0, monotonic: float = 1000, boot: str = "b1") -> Moment:
    return Moment(wall=T0 + timedelta(seconds=wall), monotonic=monotonic, boot=boot)


def hold(seconds: float, *, reason: str = "") -> Lease:
    return leases.take("till", seconds=seconds, reason=reason, now=moment())


@given(amounts, amounts, jumps)
def test_within_a_boot_only_the_monotonic_clock_counts(seconds: float, passed: float, jump: float) -> None:
    found = leases.left(hold(seconds), moment(wall=jump, monotonic=1000 + passed))
    assert abs(found - max(seconds - passed, 0)) < 1e-3


@given(amounts, jumps)
def test_a_reboot_neither_lengthens_a_hold_nor_ends_it_for_a_clock_that_went_back(seconds: float, jump: float) -> None:
    found = leases.left(hold(seconds), moment(wall=jump, monotonic=5, boot="b2"))
    assert 0 <= found <= seconds
    if jump <= 0:
        assert found == seconds
    else:
        assert abs(found - max(seconds - jump, 0)) < 1e-3


@given(amounts, st.lists(st.tuples(st.floats(0, 86400), jumps), max_size=6))
def test_noting_what_is_left_changes_nothing_and_reboots_never_add(
    seconds: float, boots: list[tuple[float, float]]
) -> None:
    lease = hold(seconds)
    for number, (ran, jump) in enumerate(boots):
        noted, now = lease.seconds, moment(wall=jump, monotonic=0, boot=f"r{number}")
        before = leases.left(lease, now)
        lease = leases.note(lease, now)
        assert leases.left(lease, now) == before <= noted, "never longer than it was when last noted"
        after = moment(wall=-jump, monotonic=ran, boot=f"r{number}")
        assert abs(leases.left(lease, after) - max(before - ran, 0)) < 1e-3
        lease = leases.note(lease, after)


def test_without_a_boot_id_the_wall_clock_counts() -> None:
    lease = leases.take("till", seconds=60, reason="", now=moment(boot=""))
    assert leases.left(lease, moment(wall=20, monotonic=0, boot="")) == 40


def test_the_operators_hold_lasts_until_its_end() -> None:
    wanted = UpdateHold(until=T0 + timedelta(hours=2), reason="open day")
    lease = leases.follow_hub(None, wanted, issued_at=T0, now=moment(wall=600))
    assert lease is not None
    assert (lease.holder, lease.seconds, lease.reason) == ("operator", 6600, "open day")
    assert leases.follow_hub(lease, wanted, issued_at=T0 + timedelta(hours=1), now=moment(wall=3600)) is lease
    longer = UpdateHold(until=T0 + timedelta(hours=3), reason="open day")
    renewed = leases.follow_hub(lease, longer, issued_at=T0, now=moment(wall=600))
    assert renewed is not None
    assert renewed.seconds == 3 * 3600 - 600
    assert leases.follow_hub(renewed, None, issued_at=T0, now=moment()) is None


@given(jumps, jumps, st.floats(-100 * 86400, 100 * 86400))
def test_no_clock_makes_an_operators_hold_longer_than_it_was_meant(wall: float, issued: float, length: float) -> None:
    issued_at = T0 + timedelta(seconds=issued)
    wanted = UpdateHold(until=issued_at + timedelta(seconds=length))
    lease = leases.follow_hub(None, wanted, issued_at=issued_at, now=moment(wall=wall))
    assert lease is not None
    assert 0 <= lease.seconds <= min(max(length, 0) + 1e-3, MAX_HOLD.total_seconds())


def test_an_expired_hold_stays_expired_when_it_is_told_again() -> None:
    wanted = UpdateHold(until=T0)
    lease = leases.follow_hub(None, wanted, issued_at=T0 - timedelta(hours=1), now=moment(wall=10))
    assert lease is not None
    assert leases.in_force([lease], moment(wall=-5000, boot="b2")) == []


def test_those_in_force_are_listed_the_longest_first_and_do_not_flicker() -> None:
    book = [hold(60), leases.take("x", seconds=90, reason="", now=moment()), hold(0)]
    listed = leases.in_force(book, moment())
    assert [(one.holder, one.until) for one in listed] == [
        ("x", T0 + timedelta(seconds=90)),
        ("till", T0 + timedelta(seconds=60)),
    ]
    later = leases.in_force(book, moment(wall=10.6, monotonic=1010))  # the wall clock runs a little fast
    assert leases.refresh(listed, later) == listed
    moved = leases.in_force(book, moment(wall=3600, monotonic=1010))
    assert leases.refresh(listed, moved) == moved
