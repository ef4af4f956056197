"""A log that is moved aside while it is read: nothing is lost that is still there, and nothing comes twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skerry.agent.remote import following
from skerry.agent.remote.following import Tail
from skerry.drivers.runtime import spawn


class Log:
    """One that a server writes to."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        path.touch()

    def write(self, lines: int) -> None:
        with self.path.open("ab") as file:
            for _ in range(lines):
                file.write(b"2026-01-01T00:00:00.000Z INFO line %08d .......................\n" % self.count)
                self.count += 1


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(spawn, "MAX_LOG_BYTES", 40_000)
    monkeypatch.setattr(following, "CHUNK", 1000)
    return Log(tmp_path / "server.log")


def rest(tail: Tail) -> bytes:
    """Everything that there is now; it ends when nothing comes twice in a row, as where one log follows another."""
    found, quiet = b"", 0
    while quiet < 3:
        more = tail.more()
        quiet = 0 if more else quiet + 1
        found += more
    return found


def numbers(content: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"line (\d{8}) \.+\n", content)]


@pytest.mark.parametrize("after", [0, 3, 300], ids=["empty", "shorter", "longer than before"])
def test_a_reader_that_is_behind_goes_on_in_what_was_moved_aside(log: Log, after: int) -> None:
    tail = Tail(path=log.path)
    log.write(200)
    assert tail.last(1) == log.path.read_bytes().splitlines(keepends=True)[-1]
    log.write(500)
    got = tail.more() + tail.more()
    log.write(1)
    spawn.bound_log(log.path)
    log.write(after)
    got += rest(tail)
    assert numbers(got) == list(range(200, log.count))
    log.write(5)
    assert numbers(rest(tail)) == list(range(log.count - 5, log.count))
    tail.close()


def test_it_may_be_moved_again_meanwhile(log: Log) -> None:
    tail = Tail(path=log.path)
    log.write(200)
    tail.last(0)
    log.write(500)
    spawn.bound_log(log.path)
    got = tail.more() + tail.more()
    log.write(700)
    spawn.bound_log(log.path)
    log.write(20)
    got += rest(tail)
    before, said, after = got.partition(following.LOST)
    assert said
    assert numbers(before) == list(range(200, 700))
    found = numbers(after)
    assert 700 < found[0] < 900, "of the one between, the beginning was never moved aside"
    assert found == list(range(found[0], log.count))


def test_what_is_lost_is_said(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    tail = Tail(path=log.path)
    log.write(10)
    tail.last(0)
    log.write(3000)  # more than is moved aside
    spawn.bound_log(log.path)
    log.write(10)
    got = rest(tail)
    found = numbers(got)
    assert got.count(following.LOST) == 1
    assert found == list(range(found[0], log.count))
    assert found[0] > 10
    assert "remote.lines_lost" in caplog.text


def test_a_log_that_somebody_empties_is_read_on(log: Log) -> None:
    tail = Tail(path=log.path)
    log.write(10)
    tail.last(0)
    log.path.write_bytes(b"")
    log.write(2)
    assert numbers(rest(tail)) == [10, 11]
    log.path.unlink()
    assert tail.more() == b""


def test_a_log_that_was_emptied_is_not_told_again_from_an_older_one(log: Log) -> None:
    log.write(400)
    spawn.bound_log(log.path)
    log.write(400)
    spawn.bound_log(log.path)
    log.write(3)
    tail = Tail(path=log.path)
    tail.last(3)
    log.path.write_bytes(b"")
    log.write(2)
    assert numbers(rest(tail)) == [803, 804]
    log.write(800)
    spawn.bound_log(log.path)  # now it is another one that was moved aside
    log.write(1)
    assert numbers(rest(tail))[-1] == 1605
    tail.close()
