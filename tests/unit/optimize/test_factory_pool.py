"""Workers run beside each other within a bound, and none outlives the factory."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from skerry.optimize import bounds, pool
from skerry.optimize.pool import Ended, Job, Pool

MIB = 2**20
TAKE = "import sys; taken = bytearray({mib} << 20); "
"""Memory that is really used: a bytearray is filled with zeroes, page by page, when they are written."""


def run(
    jobs: Sequence[Job], *, memory: int = 1 << 40, parallel: int = 4, timeout: float = 60
) -> tuple[list[Ended], list[Any]]:
    heard: list[Any] = []
    workers = Pool(
        memory=memory,
        parallel=parallel,
        timeout_seconds=timeout,
        tell=lambda job, event: heard.append((job.name, event)),
        started=lambda job: heard.append((job.name, "started")),
    )
    return list(workers.run(jobs)), heard


def job(name: str, code: str, *, need: int = 0) -> Job:
    return Job(name=name, arguments=["-c", code], need=need)


def most_at_once(heard: Sequence[Any]) -> int:
    """The most jobs that had started and not yet said goodbye."""
    most = now = 0
    for _, event in heard:
        now += 1 if event == "started" else -1
        most = max(most, now)
    return most


BYE = "import time; time.sleep(0.2); print('{}')"


def test_events_arrive_whole_and_in_order() -> None:
    code = (
        "import sys\nfor n in range(3): print('{\"n\": %d}' % n); sys.stdout.flush()\nprint('noise', file=sys.stderr)"
    )
    ended, heard = run([job("a", code)])
    assert heard == [("a", "started"), *(("a", {"n": n}) for n in range(3))]
    assert (ended[0].job.name, ended[0].problem) == ("a", "")
    assert ended[0].seconds > 0


def test_as_many_as_are_allowed_run_at_once() -> None:
    ended, heard = run([job(str(n), BYE) for n in range(5)], parallel=2)
    assert len(ended) == 5
    assert most_at_once(heard) == 2


def test_as_many_as_fit_run_at_once_and_one_that_never_fits_runs_alone() -> None:
    jobs = [job(str(n), BYE, need=400 << 30) for n in range(3)] + [job("giant", BYE, need=4 << 40)]
    ended, heard = run(jobs)
    assert len(ended) == 4
    assert most_at_once(heard) == 2
    index = heard.index(("giant", "started"))
    assert heard[index + 1] == ("giant", {})


def test_too_much_together_is_done_one_by_one_and_too_much_alone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = TAKE.format(mib=120) + "import time; time.sleep(1.5)"
    ended, heard = run([job("a", hold), job("b", hold)], memory=220 * MIB)
    assert [one.problem for one in ended] == ["", ""]
    assert [name for name, event in heard if event == "started"].count("b") == 2  # it was stopped, and began again
    (alone,), _ = run([job("c", TAKE.format(mib=300) + "import time; time.sleep(60)")], memory=200 * MIB)
    assert "too little memory" in alone.problem
    assert "200 MiB are allowed" in alone.problem
    assert alone.peak_bytes > 200 * MIB


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such thing')", ("code 1", "no such thing")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ("SIGKILL", "too little memory")),
        ("import os; os.abort()", ("SIGABRT",)),
    ],
)
def test_a_worker_that_dies_is_said_why(code: str, words: Sequence[str]) -> None:
    (ended,), _ = run([job("a", code)])
    assert all(word in ended.problem for word in words), ended.problem


def test_a_worker_that_takes_too_long_is_stopped_with_its_children() -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('{\"pid\": %d}' % p.pid, flush=True); p.wait()"
    )
    (ended,), heard = run([job("a", code)], timeout=1)
    assert ended.problem == "not done within 1 s"
    pid = heard[-1][1]["pid"]
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_user_who_stops_listening_stops_the_workers() -> None:
    pids: list[int] = []
    workers = Pool(
        memory=1 << 40,
        parallel=2,
        timeout_seconds=60,
        tell=lambda _, event: pids.append(event["pid"]),
        started=lambda _: None,
    )
    say = "import os, time; print('{\"pid\": %d}' % os.getpid(), flush=True); "
    results = workers.run([job("quick", say), job("slow", say + "time.sleep(600)")])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_no_worker_is_left_when_the_factory_is_killed() -> None:
    code = (
        "from skerry.optimize.pool import Job, Pool\n"
        'say = "import os, time; print(\'{\\"pid\\": %d}\' % os.getpid(), flush=True); time.sleep(600)"\n'
        "tell = lambda job, event: print(event['pid'], flush=True)\n"
        "p = Pool(memory=1 << 40, parallel=1, timeout_seconds=600, tell=tell, started=lambda job: None)\n"
        "list(p.run([Job(name='a', arguments=['-c', say], need=0)]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as factory:
        assert factory.stdout is not None
        worker = psutil.Process(int(factory.stdout.readline()))
        factory.send_signal(signal.SIGKILL)
        worker.wait(timeout=60)


def test_memory_is_that_of_the_container_where_there_is_one(tmp_path: Path) -> None:
    free = bounds.free_memory(tmp_path)
    assert 0 < free < psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert bounds.free_memory(tmp_path) > 1000
    (tmp_path / "memory.max").write_text("1500\n")
    assert bounds.free_memory(tmp_path) == 900
    (tmp_path / "memory.current").write_text("2000\n")
    assert bounds.free_memory(tmp_path) == 0
    assert pool.memory_of(2**22 + 1) == 0
