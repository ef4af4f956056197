"""Processes that wait for their job: taken once, replaced when dead, never left behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from skerry.optimize import jobs, standby
from skerry.optimize.pool import Job, Pool
from skerry.optimize.standby import Standby

ECHO = ["-c", "import os, sys; print(os.getpid(), *sys.argv[1:], sys.stdin.readline().strip())"]


def answer(process: "subprocess.Popen[bytes]", line: bytes) -> list[str]:
    standby.give(process, line)
    with process:
        assert process.stdout is not None
        return process.stdout.read().decode().split()


def test_one_that_waits_is_taken_once_with_what_it_did_ahead() -> None:
    with Standby() as ready:
        ready.start(ECHO, ahead=["early"])
        (waiting,) = ready.pids
        assert answer(ready.take(ECHO), b"job") == [str(waiting), "early", "job"]
        assert ready.pids == []
        pid, said = answer(ready.take(ECHO), b"other")
        assert (pid == str(waiting), said) == (False, "other")


def test_one_that_died_is_replaced_and_another_program_is_not_taken() -> None:
    with Standby() as ready:
        ready.start(ECHO)
        (dead,) = ready.pids
        psutil.Process(dead).kill()
        psutil.Process(dead).wait(30)
        assert answer(ready.take(ECHO), b"job")[1:] == ["job"]
        ready.start(["-c", "input()"])
        assert answer(ready.take(ECHO), b"job")[1:] == ["job"]
        assert len(ready.pids) == 1


def test_nobody_is_left_when_the_block_ends() -> None:
    with Standby(own_groups=True) as ready:
        ready.start(ECHO)
        ready.start(ECHO)
        waiting = [psutil.Process(pid) for pid in ready.pids]
    assert not any(process.is_running() for process in waiting)


def test_a_job_for_one_that_has_ended_is_no_error_here() -> None:
    with Standby() as ready:
        process = ready.take(["-c", ""])
        process.wait(30)
        standby.give(process, b"job")
        with process:
            assert process.returncode == 0


def test_the_pool_takes_who_waits_and_ends_them_where_memory_is_short() -> None:
    heard: list[dict[str, Any]] = []

    def run(ready: Standby, memory: int) -> None:
        code = "import json, os; line = input(); print(json.dumps({'pid': os.getpid(), 'line': line}))"
        pool = Pool(
            memory=memory,
            parallel=1,
            timeout_seconds=60,
            tell=lambda _, event: heard.append(event),
            started=lambda _: ready.start(ECHO),
            ready=ready,
        )
        list(pool.run([Job(name="a", arguments=["-c", code], need=0, given=b"hello")]))

    with Standby(own_groups=True) as ready:
        run(ready, 1 << 40)
        assert heard[0]["line"] == "hello"
        assert len(ready.pids) == 1
        run(ready, 1 << 20)
        assert ready.pids == []


def test_a_worker_whose_streams_are_held_by_another_process_is_done_when_it_ends() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    pool = Pool(memory=1 << 40, parallel=1, timeout_seconds=60, tell=lambda *_: None, started=lambda _: None)
    (ended,) = pool.run([Job(name="a", arguments=["-c", code], need=0)])
    assert ended.problem == ""


def test_a_worker_nobody_has_a_job_for_ends_in_silence() -> None:
    command = [sys.executable, *jobs.WORKER, *jobs.SIMPLIFIER, "json", "no.such.module"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("line", [b"", b"no json\n", b'{"a": 1}\n'])
def test_the_process_that_runs_a_model_needs_its_arguments(line: bytes) -> None:
    command = [sys.executable, "-m", "skerry.serve.once", "--ready", "onnxruntime"]
    done = subprocess.run(command, input=line, capture_output=True, check=False, timeout=120)
    assert done.returncode == 1
    assert b"standard input: holds no JSON array of arguments" in done.stderr


def test_a_line_comes_as_it_was_given() -> None:
    line = jobs.line(Path("/somewhere/with\nnew lines/job.json"), 5)
    assert b"\n" not in line
    assert jobs.read_line(line) == ("/somewhere/with\nnew lines/job.json", 5)
    assert json.loads(line) == msgspec.json.decode(line)
