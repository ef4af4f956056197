from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.agent.spool import SEGMENTS, Batch, Spool
from skerry.core.messages import Sample, WorkloadSample

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LINE = 200
"""Bytes of one sample on the disk are fewer."""


def samples(numbers: Sequence[int]) -> list[Sample]:
    return [
        Sample(
            at=NOW + timedelta(minutes=number),
            cpu=0.5,
            memory_bytes=number,
            workloads=[WorkloadSample(name="digits", requests=number)],
        )
        for number in numbers
    ]


def numbers(found: Batch | None) -> list[int]:
    return [] if found is None else [sample.memory_bytes for sample in found.samples]


def drain(spool: Spool, *, at_a_time: int = 100) -> list[int]:
    found: list[int] = []
    while (batch := spool.read(max_bytes=1 << 20, max_samples=at_a_time)) is not None:
        found += numbers(batch)
        spool.forget(batch)
    return found


def test_what_was_kept_comes_back_in_order_also_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=1 << 20)
    assert spool.read(max_bytes=1000, max_samples=10) is None
    spool.append(samples(range(5)))
    spool.append(samples(range(5, 9)))
    again = Spool(tmp_path / "spool", limit_bytes=1 << 20)
    assert drain(again, at_a_time=2) == list(range(9))
    assert list((tmp_path / "spool").iterdir()) == []
    assert again.dropped == 0


def test_what_was_not_delivered_is_read_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=1 << 20)
    spool.append(samples(range(4)))
    assert numbers(spool.read(max_bytes=1 << 20, max_samples=2)) == [0, 1]
    first = spool.read(max_bytes=1 << 20, max_samples=2)
    assert numbers(first) == [0, 1]
    assert first is not None
    spool.forget(first)
    assert numbers(spool.read(max_bytes=1 << 20, max_samples=9)) == [2, 3]
    assert numbers(Spool(tmp_path / "spool", limit_bytes=1 << 20).read(max_bytes=1 << 20, max_samples=9)) == [
        0,
        1,
        2,
        3,
    ]


def test_one_message_is_bounded_in_bytes_but_never_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit_bytes=1 << 20)
    spool.append(samples(range(4)))
    assert numbers(spool.read(max_bytes=1, max_samples=9)) == [0]
    size = (tmp_path / "spool" / "1.jsonl").stat().st_size
    assert numbers(spool.read(max_bytes=size - 1, max_samples=9)) == [0, 1, 2]
    assert numbers(spool.read(max_bytes=size, max_samples=9)) == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), max_size=12), st.integers(4, 30))
def test_the_oldest_go_first_and_every_one_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], room: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    limit = room * LINE * SEGMENTS // 4
    spool = Spool(directory, limit_bytes=limit)
    written, delivered = 0, []
    for put, take in steps:
        spool.append(samples(range(written, written + put)))
        written += put
        assert sum(path.stat().st_size for path in directory.iterdir()) <= limit
        if take and (batch := spool.read(max_bytes=1 << 20, max_samples=take)) is not None:
            delivered += numbers(batch)
            spool.forget(batch)
    delivered += drain(spool)
    assert delivered == sorted(set(delivered)), "in order, none twice"
    assert len(delivered) + spool.dropped == written, "what is missing was counted"
    assert not written or delivered[-1] == written - 1, "the newest is never the one that is dropped"


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path, limit_bytes=1 << 20)
    spool.append(samples(range(3)))
    path = tmp_path / "1.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    spool = Spool(tmp_path, limit_bytes=1 << 20)
    spool.append(samples([3, 4]))
    found = drain(spool)
    assert found in ([0, 1, 3, 4], [0, 1, 2, 3, 4]), "only the line break may have been cut off"
    assert spool.dropped == 5 - len(found)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_lies_there_nothing_is_raised(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "1.jsonl").write_bytes(raw)
    (directory / "x.jsonl").write_bytes(b"")
    spool = Spool(directory, limit_bytes=1 << 20)
    spool.append(samples([7]))
    assert drain(spool) == [7]


def test_a_disk_that_takes_nothing_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "no-directory"
    place.write_text("")
    spool = Spool(place, limit_bytes=1 << 20)
    spool.append(samples(range(3)))
    assert spool.dropped == 3
    assert spool.read(max_bytes=100, max_samples=1) is None
    os.remove(place)
    spool.append(samples([3]))
    assert drain(spool) == [3]
