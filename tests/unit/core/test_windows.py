"""Cron schedules and windows, held to a scan of every minute; clocks that are set forward and back included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api import cron
from skerry.api.errors import InvalidError
from skerry.api.kinds.pacing import UpdateWindows, Window
from skerry.core import windows
from skerry.core.messages import WindowDesired

MINUTE = timedelta(minutes=1)


# --- the plain way: look at every minute ---------------------------------------------------------------------------


def field_matches(text: str, value: int, low: int, high: int) -> bool:
    """crontab(5), read once more, without the module under test."""
    for item in text.split(","):
        body, _, step = item.partition("/")
        first, _, last = body.partition("-")
        begin, end = (low, high) if body == "*" else (int(first), int(last or first))
        if value in range(begin, end + 1, int(step or 1)):
            return True
    return False


def shows(schedule: str, local: datetime) -> bool:
    minute, hour, day, month, weekday = schedule.split()
    by_day = field_matches(day, local.day, 1, 31)
    number = local.isoweekday() % 7
    by_weekday = field_matches(weekday, number, 0, 7) or (number == 0 and field_matches(weekday, 7, 0, 7))
    either = not day.startswith("*") and not weekday.startswith("*")
    return (
        field_matches(minute, local.minute, 0, 59)
        and field_matches(hour, local.hour, 0, 23)
        and field_matches(month, local.month, 1, 12)
        and (by_day or by_weekday if either else by_day and by_weekday)
    )


def scan(schedule: str, zone: str, start: datetime, minutes: int) -> list[datetime]:
    """Every start in (start, start + minutes], by looking at each minute, and at what the clock skipped before it."""
    found = []
    last = (start.astimezone(ZoneInfo(zone))).replace(tzinfo=None)
    for number in range(1, minutes + 1):
        at = start + number * MINUTE
        local = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        skipped = [last + n * MINUTE for n in range(1, max(int((local - last) / MINUTE), 1))]
        if any(shows(schedule, one) for one in (*skipped, local)):
            found.append(at)
        last = local
    return found


def never_comes(schedule: str) -> bool:
    """No day from one leap year to the next shows it."""
    days = (datetime(2024, 1, 1) + timedelta(days=n) for n in range(8 * 366))  # noqa: DTZ001 - a local day
    date = " ".join(["*", "*", *schedule.split()[2:]])
    return not any(shows(date, day) for day in days)


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    ranges = st.tuples(one, one).map(lambda pair: f"{min(pair)}-{max(pair)}")
    stepped = st.tuples(st.one_of(ranges, st.just("*")), st.integers(1, 20)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    item = st.one_of(one.map(str), ranges, stepped)
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


SCHEDULES = st.tuples(numbers(0, 59), numbers(0, 23), numbers(1, 31), numbers(1, 12), numbers(0, 7)).map(" ".join)
CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1, 0, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, 0, tzinfo=UTC)),  # forward at midnight
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, 0, tzinfo=UTC)),  # back over midnight
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),  # by half an hour
    ("Pacific/Apia", datetime(2011, 12, 30, 10, 0, tzinfo=UTC)),  # a whole day is left out
    ("Asia/Kolkata", datetime(2026, 6, 1, tzinfo=UTC)),
    ("UTC", datetime(2024, 2, 29, 12, 0, tzinfo=UTC)),
]


@settings(max_examples=100, deadline=None)
@given(
    schedule=SCHEDULES,
    place=st.sampled_from(CHANGES),
    before=st.integers(0, 36 * 60),
    seconds=st.integers(0, 59),
)
def test_the_next_start_is_what_a_scan_of_every_minute_finds(
    schedule: str, place: tuple[str, datetime], before: int, seconds: int
) -> None:
    zone, change = place
    if never_comes(schedule):
        with pytest.raises(InvalidError, match="never comes"):
            cron.parse(schedule)
        return
    start = change - before * MINUTE
    minutes = before + 30 * 60
    expected = scan(schedule, zone, start, minutes)
    found = []
    at = start + timedelta(seconds=seconds)
    while (following := windows.next_start(schedule, zone, at)) is not None:
        if following > start + minutes * MINUTE:
            break
        assert following > at
        found.append(following)
        at = following + timedelta(seconds=seconds)
        if len(found) > 40:
            expected = expected[: len(found)]
            break
    assert found == expected


def test_starts_that_are_years_away_are_found() -> None:
    assert windows.next_start("0 0 29 2 *", "UTC", datetime(2096, 3, 1, tzinfo=UTC)) == datetime(
        2104, 2, 29, tzinfo=UTC
    )
    assert windows.next_start("0 0 1 1 *", "UTC", datetime(9999, 12, 1, tzinfo=UTC)) is None


def test_a_skipped_start_comes_after_the_gap_and_a_repeated_one_twice() -> None:
    spring = windows.next_start("30 2 * * *", "Europe/Berlin", datetime(2026, 3, 29, 0, 0, tzinfo=UTC))
    assert spring == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # 03:00, the first minute there is
    first = windows.next_start("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 25, 0, 0, tzinfo=UTC))
    assert first == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert windows.next_start("30 2 * * *", "Europe/Berlin", first) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("@daily", "has 1 fields"),
        ("60 * * * *", '"60" is not a minute (0 to 59)'),
        ("* 24 * * *", '"24" is not a hour (0 to 23)'),
        ("* * 0 * *", '"0" is not a day of month (1 to 31)'),
        ("* * * 13 *", '"13" is not a month (1 to 12)'),
        ("* * * * 8", '"8" is not a day of week (0 to 7)'),
        ("* * * foo *", '"foo" is not a month (1 to 12)'),
        ("5-1 * * * *", "ends before it begins"),
        ("5/2 * * * *", "a step needs a range"),
        ("*/0 * * * *", "more than 0"),
        ("*-5 * * * *", "cannot be read as minute"),
        ("1,,2 * * * *", "cannot be read as minute"),
        ("-1 * * * *", "cannot be read as minute"),
        ("٣ * * * *", "cannot be read as minute"),
        ("0 0 31 2,4,6 *", "never comes"),
        ("0 " * 100, "fields"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_reason(text: str, cause: str) -> None:
    with pytest.raises(InvalidError) as error:
        cron.parse(text)
    assert cause in error.value.sentence


@given(st.text(max_size=40))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (cron.parse, cron.zone):
        try:
            parse(text)
        except InvalidError as error:
            assert error.cause  # noqa: PT017 - anything else is the failure


def test_utc_needs_no_tables() -> None:
    assert cron.zone("UTC") is UTC
    assert windows.next_start("0 2 * * *", "UTC", datetime(2026, 1, 1, 3, tzinfo=UTC)) == datetime(
        2026, 1, 2, 2, tzinfo=UTC
    )


def test_names_are_read_in_any_case_and_sunday_has_two_numbers() -> None:
    assert cron.parse("0 2 * JAN-mar Sun") == cron.parse("0 2 * 1-3 7") == cron.parse("0 2 * 1,2,3 0")


@pytest.mark.parametrize(
    "name", ["Europe/Nowhere", "../../etc/passwd", "/etc/passwd", "Europe", "localtime", "", "a" * 65]
)
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidError, match="not a time zone"):
        cron.zone(name)


# --- windows -------------------------------------------------------------------------------------------------------


def desired(schedule: str, minutes: float, *, zone: str = "UTC", delay: float = 0) -> WindowDesired:
    return WindowDesired(schedule=schedule, time_zone=zone, duration_seconds=minutes * 60, delay_seconds=delay)


WINDOWS = st.builds(
    WindowDesired,
    schedule=st.sampled_from(["0 2 * * *", "*/20 * * * *", "30 1-3 * * 0", "* * * * *", "15 23 28-31 * *"]),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
    duration_seconds=st.sampled_from([60.0, 600.0, 3600.0, 93600.0]),
    delay_seconds=st.sampled_from([0.0, 30.0, 59.0]),
)
HALVES = WINDOWS.filter(lambda window: window.delay_seconds % 30 == 0)


def is_open(listed: list[WindowDesired], at: datetime) -> bool:
    """By every start of the last days."""
    for window in listed:
        length, delay = timedelta(seconds=window.duration_seconds), timedelta(seconds=window.delay_seconds)
        begin = (at - length).replace(second=0, microsecond=0) - MINUTE
        starts = scan(window.schedule, window.time_zone, begin, int(length / MINUTE) + 2)
        if any(start + delay <= at < start + length for start in starts):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    listed=st.lists(WINDOWS, min_size=1, max_size=3),
    minute=st.integers(-600, 600),
    seconds=st.sampled_from([0, 1, 30, 59]),
)
def test_a_window_is_open_exactly_when_one_of_its_starts_says_so(
    listed: list[WindowDesired], minute: int, seconds: int
) -> None:
    now = datetime(2026, 3, 29, 1, 0, tzinfo=UTC) + timedelta(minutes=minute, seconds=seconds)
    opens = windows.opening(listed, now)
    assert opens is not None
    assert (opens == now) == is_open(listed, now)
    if opens > now:
        assert is_open(listed, opens)
        assert not is_open(listed, opens - timedelta(seconds=1))
        probe = now + (opens - now) / 2
        assert not is_open(listed, probe)


@settings(max_examples=30, deadline=None)
@given(
    listed=st.lists(WINDOWS, min_size=1, max_size=3),
    minute=st.integers(-600, 600),
    seconds=st.sampled_from([0, 1, 30, 59]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_what_is_said_of_a_window_holds_until_it_turns(
    listed: list[WindowDesired], minute: int, seconds: int, share: float
) -> None:
    now = datetime(2026, 3, 29, 1, 0, tzinfo=UTC) + timedelta(minutes=minute, seconds=seconds)
    opens, until = windows.opening(listed, now), windows.open_until(listed, now)
    assert opens is not None
    assert (until is not None) == (opens == now)
    turns = until or opens
    assert turns > now
    later = now + share * (turns - now)
    assert windows.opening(listed, later) == (later if until is not None else opens)


@given(
    listed=st.lists(HALVES, max_size=2), minute=st.integers(0, 600), timeout=st.sampled_from([60, 600, 5400, 100_000])
)
def test_a_deadline_counts_only_open_time(listed: list[WindowDesired], minute: int, timeout: int) -> None:
    start = datetime(2026, 3, 28, 20, 0, tzinfo=UTC) + minute * MINUTE
    end = windows.deadline(listed, start, timedelta(seconds=timeout))
    counted, at = 0.0, start
    while at < end:  # nothing opens or closes within half a minute
        opens = windows.opening(listed, at)
        assert opens is not None
        if opens > at:
            at = min(opens, end)
            continue
        step = min(timedelta(seconds=30), end - at)
        middle = windows.opening(listed, at + step - timedelta(microseconds=1))
        counted += step.total_seconds() if middle == at + step - timedelta(microseconds=1) else 0.0
        at += step
    assert counted == pytest.approx(timeout)
    assert windows.opening(listed, end - timedelta(microseconds=1)) == end - timedelta(microseconds=1)


def test_the_spread_is_the_devices_own_every_time_and_stays_inside_the_window() -> None:
    wanted = UpdateWindows(
        download=[Window(schedule="0 2 * * *", duration="1h", spread="30m")],
        switch_over=[Window(schedule="0 4 * * *", duration="1h", spread="1h", time_zone="Europe/Berlin")],
    )
    delays = []
    for number in range(300):
        told = windows.desired_of(wanted, f"uid-{number}")
        assert told == windows.desired_of(wanted, f"uid-{number}")
        assert told is not None
        assert told.switch_over[0].delay_seconds < 3600
        delays.append(told.download[0].delay_seconds)
    assert all(0 <= delay < 1800 for delay in delays)
    quarters = [sum(q * 450 <= delay < (q + 1) * 450 for delay in delays) for q in range(4)]
    assert min(quarters) > 40, "the starts are spread over all of it"
    assert windows.desired_of(UpdateWindows(), "uid-1") is None


def test_a_device_says_what_it_waits_for_and_mistrusts_a_clock_that_is_wrong() -> None:
    listed = [desired("0 2 * * *", 60, delay=90)]
    noon = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    waits = windows.closed(listed, noon, issued_at=noon, what="switch-over")
    assert waits is not None
    assert waits.until == datetime(2026, 11, 24, 2, 1, 30, tzinfo=UTC)
    assert waits.message == "waits with the switch-over for its window, which opens at 2026-11-24T02:01:30Z"
    inside = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)
    assert windows.closed(listed, inside, issued_at=noon, what="switch-over") is None
    wrong = windows.closed(listed, datetime(1970, 1, 2, 2, 30, tzinfo=UTC), issued_at=noon, what="switch-over")
    assert wrong is not None
    assert wrong.until is None
    assert wrong.message == (
        "waits with the switch-over: its clock says 1970-01-02T02:30:00Z, before the assignment was made "
        "(2026-11-23T12:00:00Z); set the clock, or wait for NTP"
    )
    assert windows.closed(listed, inside - timedelta(seconds=30), issued_at=inside, what="x") is None, "a little slack"
    assert windows.closed([], datetime(1970, 1, 1, tzinfo=UTC), issued_at=noon, what="x") is None
    strange = windows.closed([desired("0 2 * * *", 60, zone="Mars/Base")], noon, issued_at=noon, what="download")
    assert strange is not None
    assert "tzdata" in strange.message
