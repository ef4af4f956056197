"""The bound on downloads' bandwidth: its arithmetic on a clock of the test's own, and a real fetch that keeps to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.test_artifact_source_contract import (
    BLOB,
    CONTENT,
    WAIT,
    Registry,
    partial_of,
    serving_ranges,
)
from tests.contract.test_artifact_source_contract import registry as registry  # noqa: PLC0414 - a fixture

from skerry.drivers.registry.bandwidth import BURST_SECONDS, MAX_WAIT_SECONDS, Bandwidth
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 10_000_000), st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 10)), max_size=60))
def test_over_any_time_no_more_comes_than_the_bound_allows(rate: int, pieces: list[tuple[int, float]]) -> None:
    time = Time()
    bucket = Bandwidth(rate, monotonic=time)
    taken = 0
    for wanted, pause in pieces:
        time.now += pause
        count = bucket.piece(wanted)
        assert 1 <= count <= wanted
        bucket.take(count)
        taken += count
        while (wait := bucket.wait()) > 1e-9:
            assert wait <= MAX_WAIT_SECONDS
            time.now += wait
        assert taken <= rate * (time.now + BURST_SECONDS) * (1 + 1e-6) + 1


@given(st.integers(1, 1_000_000), st.integers(1, 1_000_000), st.integers(1, 1_000_000))
def test_a_new_bound_counts_at_once(first: int, second: int, count: int) -> None:
    time = Time()
    bucket = Bandwidth(first, monotonic=time)
    bucket.take(count)
    owed = bucket.wait()
    bucket.limit(second)
    assert bucket.wait() == pytest.approx(owed, abs=1e-6), "what is owed in time is still owed"
    bucket.limit(None)
    assert bucket.wait() == 0
    assert bucket.piece(1 << 20) == 1 << 20


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    time = Time()
    bucket = Bandwidth(1000, monotonic=time)
    bucket.take(2000)
    time.now = -50
    assert bucket.wait() == 2.0


def test_two_that_share_the_bound_pay_for_each_other() -> None:
    bucket = Bandwidth(1000, monotonic=Time())
    bucket.take(500)
    bucket.take(500)
    assert bucket.wait() == 1.0


async def test_a_fetch_waits_in_small_pieces_and_is_given_up_at_once(registry: Registry, tmp_path: Path) -> None:
    registry.script = serving_ranges()
    bucket = Bandwidth(1)  # a byte a second: without an end in sight
    source = OciArtifactSource(registry.url, None, OciSettings(reserve_bytes=0), bucket)
    came: list[int] = []
    fetching = asyncio.create_task(source.fetch("default/digits", BLOB, tmp_path / "blob", progress=came.append))
    async with asyncio.timeout(WAIT):
        while not came:  # noqa: ASYNC110 - a thread has no event for it
            await asyncio.sleep(0.005)
        fetching.cancel()
        await asyncio.wait({fetching})
    assert fetching.cancelled()
    assert 0 < sum(came) < len(CONTENT)
    assert partial_of(tmp_path / "blob").stat().st_size == sum(came), "kept, to be resumed"


async def test_a_fetch_goes_on_when_the_bound_is_lifted(registry: Registry, tmp_path: Path) -> None:
    registry.script = serving_ranges()
    bucket = Bandwidth(20_000)
    source = OciArtifactSource(registry.url, None, OciSettings(reserve_bytes=0), bucket)
    came: list[int] = []

    def progress(count: int) -> None:
        came.append(count)
        bucket.limit(None)

    async with asyncio.timeout(WAIT):
        await source.fetch("default/digits", BLOB, tmp_path / "blob", progress=progress)
    assert (tmp_path / "blob").read_bytes() == CONTENT
    assert came[0] <= 20_000 * BURST_SECONDS
