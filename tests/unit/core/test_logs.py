"""Which lines of a log are wanted."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from skerry.core import logs
from skerry.core.messages import LogQuery

BEGAN = datetime(2026, 11, 23, 10, tzinfo=UTC)
LOG = (
    b"loading\n"
    b"2026-11-23T10:00:01.000Z INFO serve.listening url=x (a)\n"
    b"2026-11-23T10:00:02.000Z INFO serve.ready (a)\n"
    b"Traceback:\n"
    b"  line\n"
    b"2026-11-23T10:00:05+00:00 WARNING late (a)\n"
    b"2026-11-23T10:00:09.000Z INFO serve.listening url=y (a)\n"
    b"2026-11-23T10:00:10.000Z INFO serve.ready (a)\n"
)


def read(query: LogQuery, data: bytes = LOG) -> list[bytes]:
    return logs.Lines(query, fallback=BEGAN).take(data, last=True).splitlines()


def test_since_takes_lines_without_a_time_with_the_one_above() -> None:
    assert read(LogQuery()) == LOG.splitlines()
    assert read(LogQuery(since=BEGAN + timedelta(seconds=2))) == LOG.splitlines()[2:]
    assert read(LogQuery(since=BEGAN + timedelta(seconds=3))) == LOG.splitlines()[5:]
    assert read(LogQuery(since=BEGAN + timedelta(hours=1))) == []


def test_timestamps_stand_before_every_line() -> None:
    lines = read(LogQuery(timestamps=True))
    assert lines[0] == b"2026-11-23T10:00:00.000Z loading"
    assert lines[1].startswith(b"2026-11-23T10:00:01.000Z 2026-11-23T10:00:01.000Z INFO")
    assert lines[4] == b"2026-11-23T10:00:02.000Z   line"


def test_a_limit_counts_bytes_and_ends_it() -> None:
    reading = logs.Lines(LogQuery(limit_bytes=10), fallback=BEGAN)
    assert reading.take(b"loading\nmore\n") == b"loading\nmo"
    assert reading.full
    assert reading.take(b"and more\n") == b""
    assert not logs.Lines(LogQuery(), fallback=BEGAN).full


@given(st.lists(st.integers(0, len(LOG)), max_size=10), st.booleans(), st.sampled_from([None, 3, 6]))
def test_pieces_do_not_matter(cuts: list[int], timestamps: bool, seconds: int | None) -> None:
    since = None if seconds is None else BEGAN + timedelta(seconds=seconds)
    query = LogQuery(since=since, timestamps=timestamps)
    reading, marks = logs.Lines(query, fallback=BEGAN), sorted({0, len(LOG), *cuts})
    got = b"".join(reading.take(LOG[a:b]) for a, b in itertools.pairwise(marks)) + reading.take(b"", last=True)
    assert got.splitlines() == read(query)


def test_a_line_without_an_end_is_passed_on_in_pieces() -> None:
    reading = logs.Lines(LogQuery(timestamps=True), fallback=BEGAN)
    first = reading.take(b"x" * logs.MAX_LINE_BYTES)
    assert first.endswith(b"x" * 100)
    assert reading.take(b"y\nz\n") == b"y\n2026-11-23T10:00:00.000Z z\n"


def test_tail_counts_lines() -> None:
    assert logs.tail(LOG, 1) == LOG.splitlines(keepends=True)[-1]
    assert (logs.tail(LOG, 0), logs.tail(LOG, 100)) == (b"", LOG)


def test_previous_is_what_the_server_before_said() -> None:
    lines = LOG.splitlines(keepends=True)
    assert logs.previous(LOG) == b"".join(lines[1:6])
    assert logs.previous(b"".join(lines[:6])) == lines[0], "of one that never came to listen"
    assert logs.previous(b"".join(lines[1:6])) == b""
    assert logs.previous(b"a model printed serve.listening url\n" * 3) == b"", (
        "without a time it is not a server's word"
    )


@given(st.binary(max_size=300))
def test_no_bytes_are_a_reason_to_fail(data: bytes) -> None:
    logs.previous(data)
    reading = logs.Lines(LogQuery(timestamps=True, since=BEGAN), fallback=BEGAN)
    reading.take(data)
    assert logs.time_of(b"2026-99-99T10:00:00Z x") is None
    assert logs.time_of(b"2026-11-23T10:00:00+99:99 x") is None
