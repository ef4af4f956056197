from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from skerry.api.audit import EXPIRED, TORN, UNANSWERED, AuditEvent, ObjectReference, ResponseStatus, Stage, User
from skerry.api.errors import BadRequestError, StorageFullError, UnavailableError
from skerry.core.audit import Check
from skerry.core.audit_query import Question
from skerry.drivers import audit_files
from skerry.hub.audit import log as logs
from skerry.hub.audit import reading
from skerry.hub.audit.log import AuditSettings, open_log
from skerry.hub.audit.reading import Place
from skerry.kit.clock import SystemClock

CLOCK = SystemClock()
SETTINGS = AuditSettings()
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def event(number: int = 0, *, stage: Stage = "ResponseComplete", at: datetime = NOW) -> AuditEvent:
    return AuditEvent(
        audit_id=f"id-{number}",
        stage=stage,
        verb="create",
        user=User(username="admin"),
        object_ref=ObjectReference(resource="devices", name=f"d-{number}"),
        response_status=ResponseStatus(code=201),
        request_received_timestamp=at,
        stage_timestamp=at,
    )


def lines_in(directory: Path) -> list[bytes]:
    found = []
    for segment in audit_files.segments(directory):
        with segment.path.open("rb") as file:
            found += [line for line, whole in audit_files.lines(file) if whole]
    return found


def problems(directory: Path) -> list[str]:
    check = Check()
    return [problem for line in lines_in(directory) if (problem := check.take(line))] + check.end()


def read_all(directory: Path, question: Question | None = None, limit: int = 1000) -> list[AuditEvent]:
    place, found = Place(), []
    while True:
        page = reading.read_page(directory, question or Question(), place, limit=limit)
        found += [msgspec.json.decode(item, type=AuditEvent) for item in page.items]
        if page.at_end:
            return found
        place = page.next


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Have the system refuse to let any file grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_was_appended_is_there_in_order_chained_and_private(tmp_path: Path) -> None:
    async with open_log(tmp_path / "audit", SETTINGS, CLOCK) as log:
        await log.append(event(0), event(1))
        await asyncio.gather(*(log.append(event(number)) for number in range(2, 40)))
        newest = log.newest
    async with open_log(tmp_path / "audit", SETTINGS, CLOCK) as log:
        assert log.newest == newest
        await log.append(event(40))
    assert [item.audit_id for item in read_all(tmp_path / "audit")] == [f"id-{number}" for number in range(41)]
    assert problems(tmp_path / "audit") == []
    segment = audit_files.segments(tmp_path / "audit")[0]
    assert segment.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700


async def test_two_hubs_do_not_write_one_log(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK):
        with pytest.raises(UnavailableError, match="in use by another hub"):
            async with open_log(tmp_path, SETTINGS, CLOCK):
                raise AssertionError


async def test_a_power_cut_at_any_byte_of_the_last_entry_costs_that_entry_alone(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
        await log.append(event(1))
    path = audit_files.segments(tmp_path)[0].path
    whole = path.read_bytes()
    begin = whole.index(b"\n") + 1
    for cut in (*range(begin, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:cut])
        async with open_log(tmp_path, SETTINGS, CLOCK) as log:
            await log.append(event(2))
        assert problems(tmp_path) == []
        found = read_all(tmp_path)
        kept = [item.audit_id for item in found if item.user.username == "admin"]
        assert kept == ["id-0", "id-2"]
        told = [item.annotations[TORN] for item in found if TORN in item.annotations]
        assert told == ([str(cut - begin)] if cut > begin else [])


async def test_a_torn_end_of_zeros_is_taken_off(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
    path = audit_files.segments(tmp_path)[0].path
    path.write_bytes(path.read_bytes() + bytes(4096) + b"\n")
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(1))
    assert problems(tmp_path) == []
    assert [item.annotations[TORN] for item in read_all(tmp_path) if TORN in item.annotations] == ["4097"]


async def test_damage_in_the_middle_stays_and_shows_and_the_log_goes_on(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        for number in range(3):
            await log.append(event(number))
    path = audit_files.segments(tmp_path)[0].path
    changed = path.read_bytes().replace(b"d-1", b"d-9")
    path.write_bytes(changed)
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(3))
    assert path.read_bytes().startswith(changed)
    assert problems(tmp_path) == ["entry 2 is not the one that entry 3 was written after: it was changed"]
    path.write_bytes(changed.replace(b'{"kind":"Event"', b'x"kind":"Event"', 1))
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(4))
    assert "cannot be read" in problems(tmp_path)[0]
    assert read_all(tmp_path)[-1].audit_id == "id-4"


async def test_a_file_that_a_power_cut_left_empty_is_none(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
    audit_files.path_of(tmp_path, 2).touch()
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(1))
    assert problems(tmp_path) == []
    assert len(audit_files.segments(tmp_path)) == 1


async def test_what_was_begun_and_never_answered_is_told_at_the_next_start_and_once(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0, stage="RequestReceived"), event(1, stage="RequestReceived"))
        await log.append(event(1))
    for _ in range(2):
        async with open_log(tmp_path, SETTINGS, CLOCK):
            pass
    told = [item for item in read_all(tmp_path) if UNANSWERED in item.annotations]
    assert [(item.audit_id, item.stage) for item in told] == [("id-0", "Panic")]
    assert told[0].response_status is not None
    assert "may have been carried out" in told[0].response_status.message


async def test_what_was_begun_in_one_file_may_be_answered_in_the_next(tmp_path: Path) -> None:
    async with open_log(tmp_path, AuditSettings(file_bytes=1), CLOCK) as log:
        await log.append(event(0, stage="RequestReceived"), event(1, stage="RequestReceived"))
        await log.append(event(1))
    assert len(audit_files.segments(tmp_path)) == 2
    for _ in range(2):
        async with open_log(tmp_path, SETTINGS, CLOCK):
            pass
    assert [item.audit_id for item in read_all(tmp_path) if UNANSWERED in item.annotations] == ["id-0"]


async def test_a_full_disk_fails_what_cannot_be_recorded_and_nothing_else(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
        size, newest = audit_files.segments(tmp_path)[0].path.stat().st_size, log.newest
        with files_up_to(size + 100):
            results = await asyncio.gather(*(log.append(event(n)) for n in (1, 2, 3)), return_exceptions=True)
        assert all(isinstance(result, StorageFullError) for result in results)
        assert log.newest == newest
        await log.append(event(4))
    assert [item.audit_id for item in read_all(tmp_path)] == ["id-0", "id-4"]
    assert problems(tmp_path) == []


async def test_nothing_is_begun_with_hardly_any_room_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        log.check()
        monkeypatch.setattr(logs, "RESERVE_BYTES", 2**62)
        monkeypatch.setattr(logs, "_LOOK_SECONDS", 0.0)
        with pytest.raises(StorageFullError, match="what cannot be recorded is not done"):
            log.check()


async def test_a_file_that_cannot_be_mended_takes_nothing_more(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
        os.close(log._file)
        reader, log._file = os.pipe()
        os.close(reader)
        with pytest.raises(UnavailableError):
            await log.append(event(1))
        with pytest.raises(UnavailableError, match="cannot be written"):
            log.check()
    assert problems(tmp_path) == []


async def test_an_entry_is_written_though_who_waits_for_it_gives_up(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        waiting = [asyncio.create_task(log.append(event(number))) for number in range(20)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        log.note(event(20))
    assert {item.audit_id for item in read_all(tmp_path)} == {f"id-{number}" for number in range(21)}
    assert problems(tmp_path) == []


async def test_files_are_begun_anew_and_the_oldest_go_which_is_told(tmp_path: Path) -> None:
    settings = AuditSettings(file_bytes=4000, total_bytes=12_000)
    async with open_log(tmp_path, settings, CLOCK) as log:
        for number in range(60):
            await log.append(event(number))
    segments = audit_files.segments(tmp_path)
    assert 1 < len(segments) <= 4
    assert sum(segment.path.stat().st_size for segment in segments) <= 12_000 + 2 * 4000
    assert problems(tmp_path) == []
    assert any(EXPIRED in item.annotations for item in read_all(tmp_path))
    segments[1].path.unlink()
    assert "missing" in problems(tmp_path)[0]
    segments[0].path.unlink()
    assert "no entry says" in problems(tmp_path)[0]


async def test_a_file_that_is_taken_away_takes_nothing_new_with_it(tmp_path: Path) -> None:
    async with open_log(tmp_path / "audit", SETTINGS, CLOCK) as log:
        await log.append(event(0))
        audit_files.segments(tmp_path / "audit")[0].path.unlink()
        await log.append(event(1))
        assert [item.audit_id for item in read_all(tmp_path / "audit")] == ["id-1"]
        assert "no entry says" in problems(tmp_path / "audit")[0]
        (tmp_path / "audit").rename(tmp_path / "away")
        with pytest.raises(UnavailableError):
            log.check()


async def test_what_cannot_be_removed_is_kept_and_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "no", str(self), missing_ok)

    async with open_log(tmp_path, AuditSettings(file_bytes=1, total_bytes=1), CLOCK) as log:
        await log.append(event(0))
        monkeypatch.setattr(Path, "unlink", refuse)
        await log.append(event(1))
        await log.append(event(2))
        monkeypatch.undo()
        await log.append(event(3))
    assert [item.audit_id for item in read_all(tmp_path) if item.user.username == "admin"] == ["id-3"]
    assert problems(tmp_path) == []


async def test_old_files_go_by_their_age_but_not_the_newest(tmp_path: Path) -> None:
    async with open_log(tmp_path, AuditSettings(file_bytes=1), CLOCK) as log:
        for number in range(3):
            await log.append(event(number))
    long_ago = (CLOCK.now() - timedelta(days=91)).timestamp()
    for segment in audit_files.segments(tmp_path):
        os.utime(segment.path, (long_ago, long_ago))
    async with open_log(tmp_path, SETTINGS, CLOCK):
        pass
    assert read_all(tmp_path)[0].audit_id == "id-2"
    assert problems(tmp_path) == []


async def test_pages_go_on_where_they_ended_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_log(tmp_path, AuditSettings(file_bytes=4000), CLOCK) as log:
        for number in range(50):
            await log.append(event(number, at=NOW + timedelta(minutes=number)))
    everything = [f"id-{number}" for number in range(50)]
    for limit in (1, 7, 50, 1000):
        assert [item.audit_id for item in read_all(tmp_path, limit=limit)] == everything
    monkeypatch.setattr(reading, "MAX_SCANNED_BYTES", 1000)
    assert [item.audit_id for item in read_all(tmp_path)] == everything
    late = Question(since=NOW + timedelta(minutes=30), until=NOW + timedelta(minutes=33))
    assert [item.audit_id for item in read_all(tmp_path, late)] == ["id-30", "id-31", "id-32", "id-33"]
    page = reading.read_page(tmp_path, Question(name="d-49"), Place(), limit=10)
    assert not page.items
    assert not page.at_end


async def test_a_place_whose_file_has_expired_goes_on_with_what_is_left(tmp_path: Path) -> None:
    async with open_log(tmp_path, AuditSettings(file_bytes=1), CLOCK) as log:
        for number in range(4):
            await log.append(event(number))
    page = reading.read_page(tmp_path, Question(), Place(), limit=1)
    for segment in audit_files.segments(tmp_path)[:2]:
        segment.path.unlink()
    rest = reading.read_page(tmp_path, Question(), page.next, limit=10)
    assert [msgspec.json.decode(item)["auditID"] for item in rest.items] == ["id-2", "id-3"]


async def test_what_is_being_written_is_read_the_next_time(tmp_path: Path) -> None:
    async with open_log(tmp_path, SETTINGS, CLOCK) as log:
        await log.append(event(0))
    path = audit_files.segments(tmp_path)[0].path
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    page = reading.read_page(tmp_path, Question(), Place(), limit=10)
    assert len(page.items) == 1
    path.write_bytes(whole + whole)
    assert len(reading.read_page(tmp_path, Question(), page.next, limit=10).items) == 1


@pytest.mark.parametrize("text", ["x", "eyJ2IjoyfQ", "eyJmaWxlIjotMX0", "ÿ", "=" * 9])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError, match="not a token"):
        reading.parse_place(text)


def test_a_place_survives_its_text() -> None:
    place = Place(file=3, offset=77)
    assert reading.parse_place(place.text) == place
    assert reading.parse_place("") == Place()
