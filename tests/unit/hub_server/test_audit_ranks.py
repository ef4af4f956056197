"""Whose entries may drive out whose, and what is told of the registry and of requests that end with the hub."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.hub_server.test_audit_middleware import ADMIN, ALICE, CLOCK, DEVICES, STRANGER, Hub, hub_in, run

from skerry.api.audit import READS_UNRECORDED, REQUEST, UNANSWERED, UNRECORDED, AuditEvent
from skerry.core.access import Identity
from skerry.core.audit import Check
from skerry.core.audit_query import Question
from skerry.drivers import audit_files
from skerry.hub.audit import reading
from skerry.hub.audit.log import AuditLog, AuditSettings
from skerry.hub.audit.ranked import open_ranked_log
from skerry.hub.audit.reading import Place

SMALL = 512 * 1024
LOG = f"{DEVICES}/gone/log"
BLOBS = "/v2/default/digits/blobs/uploads/"


def admin(name: str) -> Identity:
    return Identity(role="admin", name=name)


def problems(part: AuditLog) -> list[str]:
    check = Check()
    found = []
    for segment in audit_files.segments(part.directory):
        with segment.path.open("rb") as file:
            found += [problem for line, _ in audit_files.lines(file) if (problem := check.take(line))]
    return found + check.end()


def size_of(part: AuditLog) -> int:
    return sum(segment.path.stat().st_size for segment in audit_files.segments(part.directory))


async def read_logs(hub: Hub, who: Identity, times: int) -> None:
    for _ in range(times):
        assert (await hub.ask(who, "GET", LOG, params={"x": "y" * 1500})).status_code == 404


async def test_reads_without_number_drive_out_neither_writes_nor_others_reads(tmp_path: Path) -> None:
    async with hub_in(tmp_path, most=SMALL) as hub:
        assert (await hub.ask(admin("mallory"), "DELETE", f"{DEVICES}/till-1")).status_code == 404
        await read_logs(hub, admin("bob"), 1)
        await read_logs(hub, admin("viewer"), 600)  # 1.2 MiB of entries
        await read_logs(hub, admin("carol"), 1)
        assert (await hub.create("one")).status_code == 201
        entries = hub.entries()
        users = Counter(entry.user.username for entry in entries)
        counted = Counter[str]()
        for entry in entries:
            counted.update(json.loads(entry.annotations.get(READS_UNRECORDED, "{}")))
        assert [entry.verb for entry in entries if entry.user.username == "mallory"] == ["delete"]
        assert (users["bob"], users["carol"]) == (1, 1)
        assert 3 < users["viewer"] < 20
        assert counted == {"viewer": 600 - users["viewer"]}
        assert problems(hub.log.main) == problems(hub.log.bulk) == []


async def test_who_writes_without_number_drives_out_nobody_elses_writes_and_each_is_recorded(tmp_path: Path) -> None:
    async with hub_in(tmp_path, most=SMALL) as hub:
        assert (await hub.ask(admin("bob"), "DELETE", f"{DEVICES}/till-1")).status_code == 404
        share = hub.log.main.settings.total_bytes // 8
        for number in range(250):
            assert (await hub.ask(admin("mallory"), "DELETE", f"{DEVICES}/till-{number}")).status_code == 404
        assert (await hub.ask(admin("carol"), "DELETE", f"{DEVICES}/till-1")).status_code == 404
        assert size_of(hub.log.main) < share + 8 * 1024
        assert problems(hub.log.main) == problems(hub.log.bulk) == []
        main = Counter(entry.user.username for entry in hub.entries("") if entry.user.username != "system:hub")
        assert main["bob"] == main["carol"] == 2
        whole = reading.read_page(hub.log.directory, Question(user="mallory", part="bulk"), Place(), limit=1000)
        newest = msgspec.json.decode(whole.items[-1], type=AuditEvent)
        assert newest.object_ref is not None
        assert newest.object_ref.name == "till-249"
        assert newest.stage == "ResponseComplete"


async def test_refusals_of_a_day_stay_within_a_share_and_are_counted_beyond_it(tmp_path: Path) -> None:
    async with hub_in(tmp_path, most=SMALL) as hub:
        event = AuditEvent(audit_id="x", stage="ResponseComplete", request_received_timestamp=CLOCK.now(),
                           stage_timestamp=CLOCK.now(), request_uri="/" + "a" * 2000)  # fmt: skip
        parts = [hub.log.part_for_refusal(event) for _ in range(200)]
        assert parts == sorted(parts, key=[hub.log.main, hub.log.bulk, None].index)
        assert 0 < parts.count(hub.log.main) * 2000 < hub.log.main.settings.total_bytes // 8
        assert 0 < parts.count(hub.log.bulk) * 2000 < hub.log.bulk.settings.total_bytes // 8
        assert parts.count(None) > 150
        for _ in range(10):
            assert (await hub.ask(STRANGER, "GET", DEVICES)).status_code == 401
        assert (await hub.create("one")).status_code == 201
        assert hub.entries()[0].user.username == "system:anonymous"


async def test_strangers_whose_requests_fail_do_not_fill_the_bulk_part(tmp_path: Path) -> None:
    enrollments = DEVICES.replace("devices", "enrollments")
    bearer = {"Authorization": "Bearer skj1.a.b.c"}
    async with hub_in(tmp_path, most=64 * 1024) as hub:  # a user's share is 6 KiB, and 2 KiB of the bulk part
        for _ in range(30):
            refused = await hub.ask(STRANGER, "POST", f"{enrollments}?x={'y' * 900}", content=b"{", headers=bearer)
            assert 400 <= refused.status_code < 500
        assert (await hub.create("one")).status_code == 201
        assert size_of(hub.log.bulk) < 4 * 1024
        entries = hub.entries()
        strangers = sum(entry.user.username == "system:anonymous" for entry in entries)
        counted = sum(int(entry.annotations.get(UNRECORDED, 0)) for entry in entries)
        assert 0 < strangers < 10
        assert strangers + counted == 30


async def test_commands_in_devices_are_kept_as_long_as_writes(tmp_path: Path) -> None:
    async with hub_in(tmp_path, reads="metadata") as hub:
        await hub.ask(ADMIN, "GET", "/api/v1/namespaces/default/pods/a.b/exec")
        await hub.ask(ADMIN, "GET", f"{DEVICES}/x")
        await hub.ask(ALICE, "GET", f"{DEVICES}/x")
        main, bulk = (
            reading.read_page(hub.log.directory, Question(part=part), Place(), limit=10).items
            for part in ("main", "bulk")
        )
        assert [msgspec.json.decode(item)["responseStatus"]["code"] for item in main][1:] == [403]
        assert b"exec" in main[0]
        assert len(bulk) == 1


async def test_both_parts_are_read_as_one_by_time_whatever_the_page(tmp_path: Path) -> None:
    now = CLOCK.now()

    def event(number: int) -> AuditEvent:
        return AuditEvent(
            audit_id=f"id-{number}",
            stage="ResponseComplete",
            request_received_timestamp=now,
            stage_timestamp=now.replace(year=now.year - 1, microsecond=number),
        )

    async with open_ranked_log(tmp_path, AuditSettings(total_bytes=SMALL, file_bytes=700), CLOCK) as log:
        for number in range(20):
            grown = log.grown
            await (log.bulk if number % 3 else log.main).append(event(number))
            assert grown.is_set()  # who follows hears of either
        for limit in (1, 3, 1000):
            place, found = Place(), list[str]()
            while True:
                page = reading.read_page(tmp_path, Question(), place, limit=limit)
                found += [msgspec.json.decode(item)["auditID"] for item in page.items]
                place = reading.parse_place(page.next.text)
                if page.at_end:
                    break
            assert found == [f"id-{number}" for number in range(20)]
        await log.bulk.append(event(20))
        page = reading.read_page(tmp_path, Question(), place, limit=9)
        assert [msgspec.json.decode(item)["auditID"] for item in page.items] == ["id-20"]


async def test_two_requests_with_one_audit_id_are_two_when_the_hub_ends(tmp_path: Path) -> None:
    async with hub_in(tmp_path / "hub") as hub:
        never = asyncio.Event()

        async def receive() -> Any:
            await never.wait()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        chosen = {"Audit-Id": "same"}
        pending = asyncio.create_task(run(hub, ADMIN, f"POST {DEVICES}", receive, send, headers=chosen))
        async with asyncio.timeout(20):
            while not hub.entries("RequestReceived"):  # noqa: ASYNC110 - the log signals its readers only
                await asyncio.sleep(0.005)
        assert (await hub.create("one", headers=chosen)).status_code == 201
        shutil.copytree(hub.log.directory, tmp_path / "as-it-was")  # when the power went
        pending.cancel()
        await asyncio.wait([pending])
    for _ in range(2):  # and it is told once
        async with open_ranked_log(tmp_path / "as-it-was", AuditSettings(), CLOCK) as log:
            items = reading.read_page(log.directory, Question(), Place(), limit=100).items
    found = [msgspec.json.decode(item, type=AuditEvent) for item in items]
    (told,) = [entry for entry in found if UNANSWERED in entry.annotations]
    (answered,) = [entry for entry in found if entry.stage == "ResponseComplete"]
    assert told.annotations[REQUEST] != answered.annotations[REQUEST]


@pytest.mark.parametrize("digest_first", [True, False])
async def test_what_changes_the_registry_is_written_down_before_and_after(tmp_path: Path, digest_first: bool) -> None:
    blob = b"weights"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    async with hub_in(tmp_path) as hub:
        assert (await hub.ask(ADMIN, "POST", BLOBS)).status_code == 202
        assert hub.entries("") == []  # an upload that is begun is nothing yet
        query = f"?digest={digest}&x=1" if digest_first else f"?x=1&%64igest={digest}"
        assert (await hub.ask(ADMIN, "POST", BLOBS + query, content=blob)).status_code == 201
        mounted = f"/v2/default/other/blobs/uploads/?mount={digest}&from=default/digits"
        assert (await hub.ask(ADMIN, "POST", mounted)).status_code == 201
        assert (await hub.ask(ADMIN, "DELETE", f"/v2/default/other/blobs/{digest}")).status_code == 202
        assert (await hub.ask(STRANGER, "DELETE", f"/v2/default/other/blobs/{digest}")).status_code == 401
        seen = [(entry.verb, entry.stage, entry.annotations.get(REQUEST, "")) for entry in hub.entries("")]
        refused = seen.pop()
        assert [stage for _, stage, _ in seen] == ["RequestReceived", "ResponseComplete"] * 3
        assert [key for *_, key in seen[::2]] == [key for *_, key in seen[1::2]]
        assert len({key for *_, key in seen}) == 3
        assert refused[1:] == ("ResponseComplete", "")
        assert "mount=sha256" in hub.entries()[1].request_uri


async def test_the_registry_is_not_changed_where_that_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = b"weights"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    async with hub_in(tmp_path) as hub:
        assert (await hub.ask(ADMIN, "POST", f"{BLOBS}?digest={digest}", content=blob)).status_code == 201
        monkeypatch.setattr("skerry.hub.audit.log.RESERVE_BYTES", 2**62)
        monkeypatch.setattr("skerry.hub.audit.log._LOOK_SECONDS", 0.0)
        assert (await hub.ask(ADMIN, "DELETE", f"/v2/default/digits/blobs/{digest}")).status_code == 507
        monkeypatch.undo()
        assert (await hub.ask(ADMIN, "HEAD", f"/v2/default/digits/blobs/{digest}")).status_code == 200
