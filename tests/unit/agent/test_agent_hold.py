"""Update holds on the device: the book on the disk, the local socket, and what else has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.agent import local
from skerry.agent.disk import Disk
from skerry.agent.hold import FILE, MAX_LOCAL, Holds
from skerry.agent.local import LocalSocket, Request
from skerry.agent.policy import Link, check_link, combine
from skerry.agent.settings import HoldSettings, NetworkSettings
from skerry.api.errors import ConflictError, InvalidError, SkerryError, StorageFullError, UnavailableError
from skerry.api.kinds.device import LinkPolicy, Network, UpdateHold
from skerry.core.messages import DesiredState
from skerry.kit.clock import SystemClock

T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
WAIT_SECONDS = 20.0


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.jump = 0.0

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self.seconds + self.jump)

    def monotonic(self) -> float:
        return 100 + self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "state")


@pytest.fixture
def news() -> list[str]:
    return []


def book(disk: Disk, clock: Clock, news: list[str], *, boot: str = "b1") -> Holds:
    made = Holds(disk, clock, boot=boot, max_seconds=3600, changed=lambda: news.append("changed"))
    made.load()
    return made


@pytest.fixture
def holds(disk: Disk, clock: Clock, news: list[str]) -> Holds:
    return book(disk, clock, news)


def desired(hold: UpdateHold | None) -> DesiredState:
    return DesiredState(uid="d1", manifest_version=1, issued_at=T0, hold=hold)


def test_a_hold_is_on_the_disk_when_it_counts_and_survives_the_agent(
    holds: Holds, disk: Disk, clock: Clock, news: list[str]
) -> None:
    holds.take("till", seconds=600, reason="customers")
    assert holds.why() == "held by till until 2026-11-23T12:10:00+00:00: customers"
    assert news == ["changed"]
    clock.seconds = 200
    assert [one.holder for one in book(disk, clock, news).in_force()] == ["till"]
    clock.seconds = 600
    assert book(disk, clock, news).why() == ""


def test_it_survives_a_reboot_with_a_clock_that_starts_anew(
    holds: Holds, disk: Disk, clock: Clock, news: list[str]
) -> None:
    holds.take("till", seconds=600, reason="")
    clock.seconds, clock.jump = 100, -50 * 365 * 86400
    rebooted = book(disk, clock, news, boot="b2")
    assert len(rebooted.in_force()) == 1
    clock.seconds, clock.jump = 300, 0  # NTP has set it right
    assert len(rebooted.in_force()) == 1
    clock.seconds = 700
    assert rebooted.in_force() == []


def test_the_operators_hold_follows_the_desired_state(holds: Holds, clock: Clock) -> None:
    holds.accept(desired(UpdateHold(until=T0 + timedelta(hours=1), reason="open day")))
    assert holds.why() == "held by operator until 2026-11-23T13:00:00+00:00: open day"
    holds.take("till", seconds=60, reason="")
    assert "(and 1 more)" in holds.why()
    with pytest.raises(InvalidError, match="skerry device release"):
        holds.release("operator")
    holds.accept(desired(None))
    assert [one.holder for one in holds.in_force()] == ["till"]
    assert holds.release("till")
    assert not holds.release("till")
    assert holds.why() == ""


@pytest.mark.parametrize(
    ("holder", "seconds", "reason", "words"),
    [
        ("operator", 60, "", "no name for a holder"),
        ("", 60, "", "no name for a holder"),
        ("a b", 60, "", "no name for a holder"),
        ("till", 0, "", "is not between"),
        ("till", 3601, "", "is not between 0 and 3600 s"),
        ("till", float("nan"), "", "is not between"),
        ("till", 60, "two\nlines", "one line"),
        ("till", 60, "x" * 201, "one line"),
    ],
)
def test_what_is_no_hold_is_refused(holds: Holds, holder: str, seconds: float, reason: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        holds.take(holder, seconds=seconds, reason=reason)
    assert holds.why() == ""


def test_holders_are_bounded_and_those_whose_time_is_over_make_room(holds: Holds, clock: Clock) -> None:
    for number in range(MAX_LOCAL):
        holds.take(f"app-{number}", seconds=60, reason="")
    holds.take("app-0", seconds=120, reason="renewed")
    with pytest.raises(ConflictError):
        holds.take("one-more", seconds=60, reason="")
    clock.seconds = 61
    holds.take("one-more", seconds=60, reason="")
    assert {one.holder for one in holds.in_force()} == {"app-0", "one-more"}


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"\xff", b'[{"holder": 1}]'])
def test_a_damaged_book_is_an_empty_one(disk: Disk, clock: Clock, news: list[str], content: bytes) -> None:
    disk.write(FILE, content)
    holds = book(disk, clock, news)
    assert holds.why() == ""
    holds.take("till", seconds=60, reason="")
    assert len(book(disk, clock, news).in_force()) == 1


def test_a_hold_that_cannot_be_kept_is_not_taken(holds: Holds, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str, content: bytes) -> None:
        raise StorageFullError(element=name)

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(StorageFullError):
        holds.take("till", seconds=60, reason="")
    assert holds.why() == ""


async def test_its_end_is_told(disk: Disk) -> None:
    ended = asyncio.Event()
    made = Holds(disk, SystemClock(), boot="b1", max_seconds=3600, changed=ended.set)
    made.take("till", seconds=0.05, reason="")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(WAIT_SECONDS):
        while made.why():
            ended.clear()
            await ended.wait()
    running.cancel()
    await asyncio.wait({running})


# --- the local socket ---------------------------------------------------------------------------------------------


@pytest.fixture
async def listening(holds: Holds, tmp_path: Path) -> AsyncIterator[Path]:
    deep = tmp_path / ("x" * 100)  # longer than the address of a socket may be
    deep.mkdir()
    path = deep / "agent.sock"
    serving = asyncio.create_task(LocalSocket(holds, HoldSettings(socket=str(path)), tmp_path).run())
    async with asyncio.timeout(WAIT_SECONDS):
        while not path.exists() or not await asyncio.to_thread(answers, path):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    yield path
    serving.cancel()
    await asyncio.wait({serving})
    assert not path.exists()


def answers(path: Path) -> bool:
    try:
        return local.ask(path, Request(verb="status")).ok
    except SkerryError:
        return False


async def test_an_application_holds_and_releases(listening: Path, holds: Holds) -> None:
    asked = await asyncio.to_thread(
        local.ask, listening, Request(verb="hold", lasting="30m", holder="till", reason="customers")
    )
    assert [(one.holder, one.reason) for one in asked.holds] == [("till", "customers")]
    assert holds.why().startswith("held by till until 2026-11-23T12:30:00")
    assert (await asyncio.to_thread(local.ask, listening, Request(verb="status"))).holds == asked.holds
    assert (await asyncio.to_thread(local.ask, listening, Request(verb="release", holder="till"))).holds == []
    with pytest.raises(InvalidError, match="is not a duration"):
        await asyncio.to_thread(local.ask, listening, Request(verb="hold", lasting="soon"))


async def test_only_its_user_and_group_may_ask(listening: Path) -> None:
    mode = os.stat(listening).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"[]\n",
        b'{"verb": "reboot"}\n',
        b'{"verb": "hold"}\n',
        b'{"verb": "hold", "for": "-1h"}\n',
        b'{"verb": "hold", "for": "30m", "extra": 1}\n',
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
    ],
)
async def test_anything_else_is_a_sentence_and_the_next_line_counts(listening: Path, line: bytes) -> None:
    reader, writer = await _open(listening)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(line + b'{"verb": "status"}\n')
        refused, answered = json.loads(await reader.readline()), json.loads(await reader.readline())
    writer.close()
    assert refused["ok"] is False
    assert refused["error"]
    assert answered == {"ok": True, "error": "", "holds": []} | answered


async def test_a_line_without_an_end_is_hung_up_on(listening: Path) -> None:
    reader, writer = await _open(listening)
    async with asyncio.timeout(WAIT_SECONDS):
        writer.write(b"x" * 100_000)
        with contextlib.suppress(ConnectionError):  # hung up on, with bytes unread
            assert await reader.read() == b""
    writer.close()
    assert await asyncio.to_thread(answers, listening), "others are served on"


async def test_a_stale_socket_is_replaced_and_a_file_is_not(holds: Holds, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    serving = asyncio.create_task(LocalSocket(holds, HoldSettings(), tmp_path).run())
    async with asyncio.timeout(WAIT_SECONDS):
        while not await asyncio.to_thread(answers, path):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    serving.cancel()
    await asyncio.wait({serving})
    path.write_text("mine")
    await LocalSocket(holds, HoldSettings(), tmp_path).run()  # says why in the log, and ends
    assert path.read_text() == "mine"


async def test_a_group_that_is_not_there_does_not_take_the_agent_down(holds: Holds, tmp_path: Path) -> None:
    known = {group.gr_name for group in grp.getgrall()}
    name = next(f"nobody-{number}" for number in range(len(known) + 1) if f"nobody-{number}" not in known)
    await LocalSocket(holds, HoldSettings(group=name), tmp_path).run()


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is the agent running"):
        local.ask(tmp_path / "agent.sock", Request(verb="status"))


async def _open(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    directory = os.open(path.parent, os.O_PATH)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


# --- the link -----------------------------------------------------------------------------------------------------

sides = st.tuples(st.sampled_from([None, True, False]), st.sampled_from([None, "0", "1k", "5Mi"]))


@given(sides, sides, st.booleans(), st.integers(0, 10_000_000), st.booleans())
def test_the_stricter_word_wins(
    owner: tuple[bool | None, str | None],
    hub: tuple[bool | None, str | None],
    found: bool,
    missing: int,
    require: bool,
) -> None:
    owners = NetworkSettings(metered=owner[0], allow_metered_downloads=owner[1])
    policy = LinkPolicy(metered=hub[0], allow_metered_downloads=hub[1])
    network = Network(metered=found, kind="cellular", interface="wwan0")
    both = combine(owners, policy, network)
    for one, other in ((owners, LinkPolicy()), (NetworkSettings(), policy)):
        alone = combine(one, other, network)
        said = one.metered if one.metered is not None else other.metered
        if said and check_link(alone, network, missing=missing, require_unmetered=require) is not None:
            assert check_link(both, network, missing=missing, require_unmetered=require) is not None
    if not both.metered or missing == 0:
        assert check_link(both, network, missing=missing, require_unmetered=require) is None
    elif require:
        assert check_link(both, network, missing=missing, require_unmetered=require) is not None


def test_who_waits_is_told_why() -> None:
    network = Network(metered=True, kind="cellular", interface="wwan0")
    wait = check_link(Link(metered=True, metered_bytes=1024), network, missing=2048, require_unmetered=False)
    assert wait is not None
    assert wait.message == (
        "waits for an unmetered link: wwan0 (cellular) is metered, and may carry 1.0 KiB; "
        "2.0 KiB are still to be fetched"
    )
    assert check_link(Link(metered=True, metered_bytes=2048), network, missing=2048, require_unmetered=False) is None
    assert check_link(Link(metered=True), network, missing=1 << 40, require_unmetered=False) is None
    nothing = check_link(Link(metered=True, metered_bytes=0), network, missing=1, require_unmetered=False)
    assert nothing is not None
    assert "may carry nothing" in nothing.message


def test_bandwidth_is_the_lower_bound() -> None:
    both = combine(NetworkSettings(max_bandwidth="1M"), LinkPolicy(max_bandwidth="500k"), Network())
    assert both.bytes_per_second == 500_000
    assert combine(NetworkSettings(), LinkPolicy(), Network()).bytes_per_second is None
