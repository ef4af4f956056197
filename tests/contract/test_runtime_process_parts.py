"""The process runtime's reading of /proc, and its verdicts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.drivers.runtime import proc, spawn, verdict

STAT = (
    "{pid} ({name}) {state} 1 {pid} {pid} 0 -1 4194560 1 0 0 0 7 8 0 0 20 0 3 0 {start} 1000 200 18446744073709551615"
)


@settings(deadline=None)
@given(
    st.integers(1, 2**22),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15),
    st.sampled_from("RSDZX"),
    st.integers(0, 2**40),
)
def test_a_stat_line_is_read_whatever_the_command_is_called(pid: int, name: str, state: str, start: int) -> None:
    stat = proc.parse_stat(STAT.format(pid=pid, name=name, state=state, start=start))
    assert stat == proc.Stat(pid=pid, state=state, parent=1, group=pid, session=pid, start_time=start)
    assert stat.ended == (state in "ZX")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_other_text_is_none(text: str) -> None:
    stat = proc.parse_stat(text)
    assert stat is None or stat.start_time >= 0 or text.count(" ") >= 20


def test_this_process_is_read() -> None:
    stat = proc.read_stat(os.getpid())
    assert stat is not None
    assert (stat.parent, stat.group, stat.session) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert not stat.ended
    assert proc.read_peak_memory(os.getpid()) > 1_000_000
    assert os.getpid() in set(proc.pids())
    assert proc.read_variable(os.getpid(), "NO_SUCH_VARIABLE_HERE") is None
    assert proc.read_oom_kills() >= 0


def test_a_process_that_is_not_there() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert proc.read_stat(pid) is None
    assert proc.read_peak_memory(pid) == 0
    assert proc.read_variable(pid, "PATH") is None


@pytest.mark.parametrize(
    ("status", "fields", "sentence"),
    [
        (0, {}, "a exited with status 0"),
        (0, {"last_line": "bye"}, "a exited with status 0"),
        (1, {"last_line": "no model"}, "a exited with status 1: no model"),
        (-signal.SIGSEGV, {}, "a was killed by SIGSEGV"),
        (-64, {}, "a was killed by SIGRTMAX"),
        (-99, {}, "a was killed by signal 99"),
        (-signal.SIGKILL, {"oom_kills": 1}, "a was killed by SIGKILL: the machine ran out of memory"),
        (
            -signal.SIGABRT,
            {"memory_limit_bytes": 64 * 1024 * 1024, "last_line": "terminate: std::bad_alloc"},
            "a was killed by SIGABRT, most likely at its memory limit of 64 MiB: terminate: std::bad_alloc",
        ),
        (1, {"memory_limit_bytes": 1, "last_line": "no model"}, "a exited with status 1: no model"),
        (
            None,
            {},
            "a ended; its exit status is not known, because it was started before the agent",
        ),
        (1, {"stopped": True}, "a was stopped"),
    ],
)
def test_the_verdict_is_a_sentence(status: int | None, fields: dict[str, object], sentence: str) -> None:
    known = {"stopped": False, "oom_kills": 0, "memory_limit_bytes": 0, "last_line": "", **fields}
    assert verdict.describe(name="a", status=status, **known) == sentence  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"first\nlast\n\n", "last"),
        (b"\x1b[31mred\x07\xff\n", "[31mred \N{REPLACEMENT CHARACTER}"),
        (b"x" * 100_000, "x" * 300),
    ],
)
def test_the_last_line_of_a_log(tmp_path: Path, content: bytes, line: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    assert verdict.last_line(log) == line
    assert verdict.last_line(tmp_path / "none") == ""


def test_a_log_that_is_written_while_it_is_bounded_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as file:  # as a server has it: appending
        file.write(b"a" * spawn.MAX_LOG_BYTES + b"the end")
        spawn.bound_log(log)
        assert log.stat().st_size == 0
        file.write(b"on")
        spawn.bound_log(log)
    assert log.read_bytes() == b"on"
    older = (tmp_path / "log.1").read_bytes()
    assert len(older) == spawn.MAX_LOG_BYTES
    assert older.endswith(b"the end")
    spawn.bound_log(tmp_path / "none")


async def test_a_failure_in_the_fresh_thread_reaches_the_waiter() -> None:
    with pytest.raises(ZeroDivisionError):
        await spawn.in_fresh_thread(lambda: 1 // 0)
    assert await spawn.in_fresh_thread(lambda: threading.current_thread().name) == "spawn"


async def test_a_cancelled_start_is_carried_through_before_the_cancellation_is(tmp_path: Path) -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go.wait(20)
        done.set()

    starting = asyncio.create_task(spawn.in_fresh_thread(work))
    async with asyncio.timeout(20):
        await asyncio.to_thread(begun.wait)
        starting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not starting.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert done.is_set()
