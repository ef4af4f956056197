"""The contract of `core.ports.Runtime` on commands beside a server, and on what a server uses."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from skerry.api.errors import UnavailableError
from skerry.core.ports import Executed, Execution, Instance, Launch, Runtime
from skerry.drivers.runtime.process import ProcessRuntime
from skerry.drivers.runtime.sessions import readable

WAIT_SECONDS = 20.0
RuntimeFactory = Callable[[Path], Runtime]


@pytest.fixture(params=["process"])
def make_runtime(request: pytest.FixtureRequest) -> RuntimeFactory:
    factories: dict[str, RuntimeFactory] = {"process": ProcessRuntime}
    return factories[request.param]


@pytest.fixture
async def runtime(make_runtime: RuntimeFactory, tmp_path: Path) -> AsyncIterator[Runtime]:
    made = make_runtime(tmp_path / "runtime")
    yield made
    for instance in await made.list():
        await made.stop(instance, grace_seconds=0)


async def logged(path: Path, word: bytes) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while word not in path.read_bytes():  # noqa: ASYNC110, ASYNC240 - another process's file
            await asyncio.sleep(0.01)


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


async def start(runtime: Runtime, tmp_path: Path, code: str = "", *, limit: int = 0) -> Instance:
    code = f"{code}\nprint('ready', flush=True)\nimport time; time.sleep(600)"
    launch = Launch(
        name="digits-1",
        argv=[sys.executable, "-c", code],
        directory=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        log=tmp_path / "log",
        memory_limit_bytes=limit,
    )
    instance = await runtime.start(launch)
    await logged(launch.log, b"ready")
    return instance


def command(tmp_path: Path, script: str, *, terminal: bool = False) -> Execution:
    return Execution(
        argv=["sh", "-c", script], directory=tmp_path, environment={"PATH": os.environ["PATH"]}, terminal=terminal
    )


async def output(session: Executed) -> bytes:
    """What it writes, to the end."""
    found = b""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                data = os.read(session.output, 65536)
            except BlockingIOError:
                await readable(session.output)
                continue
            except OSError:  # a terminal whose other end is closed
                return found
            if not data:
                return found
            found += data


async def test_a_command_runs_beside_its_server(runtime: Runtime, tmp_path: Path) -> None:
    instance = await start(runtime, tmp_path)
    session = await runtime.execute(instance, command(tmp_path, "pwd; cat; exit 7"))
    os.write(session.input, b"given\n")
    session.close_input()
    assert await output(session) == f"{tmp_path}\ngiven\n".encode()
    assert await session.wait() == 7
    await session.end()
    assert [one.id for one in await runtime.list()] == [instance.id], "it is no server"
    assert await runtime.alive(instance)


async def test_a_terminal_is_the_command_s_own(runtime: Runtime, tmp_path: Path) -> None:
    instance = await start(runtime, tmp_path)
    script = "read word; echo got-$word; stty size; trap 'exit 9' INT; read more; exit 1"
    session = await runtime.execute(instance, command(tmp_path, script, terminal=True))
    session.resize(50, 120)
    os.write(session.input, b"it\n")
    seen = b""
    async with asyncio.timeout(WAIT_SECONDS):
        while b"50 120" not in seen:
            await readable(session.output)
            seen += os.read(session.output, 4096)
    assert b"got-it" in seen
    os.write(session.input, b"\x03")
    async with asyncio.timeout(WAIT_SECONDS):
        assert await session.wait() in (9, 130)
    await session.end()


async def test_nothing_of_it_is_left(runtime: Runtime, tmp_path: Path) -> None:
    instance = await start(runtime, tmp_path)
    script = "sleep 600 & echo $!; setsid sleep 600 & echo $!; echo $$; sleep 600"
    session = await runtime.execute(instance, command(tmp_path, script))
    async with asyncio.timeout(WAIT_SECONDS):
        seen = b""
        while seen.count(b"\n") < 3:
            await readable(session.output)
            seen += os.read(session.output, 4096)
    await session.end()
    assert not any(runs(int(pid)) for pid in seen.split())
    assert await session.wait() == 128 + signal.SIGKILL
    assert await runtime.alive(instance)


async def test_a_server_that_ended_takes_no_commands(runtime: Runtime, tmp_path: Path) -> None:
    instance = await start(runtime, tmp_path)
    await runtime.stop(instance, grace_seconds=0)
    with pytest.raises(UnavailableError, match="does not run"):
        await runtime.execute(instance, command(tmp_path, "true"))
    assert await runtime.usage(instance) is None


async def test_a_directory_that_is_gone_is_an_error(runtime: Runtime, tmp_path: Path) -> None:
    instance = await start(runtime, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnavailableError, match="cannot be started"):
        await runtime.execute(instance, command(tmp_path / "gone", "true"))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_a_server_uses_is_that_of_all_its_processes(runtime: Runtime, tmp_path: Path) -> None:
    code = """
import subprocess, sys
kept = b"x" * 50_000_000
child = "kept = b'y' * 60_000_000; import time; print('child', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
for _ in range(3_000_000): pass
"""
    instance = await start(runtime, tmp_path, code)
    await logged(tmp_path / "log", b"child")
    used = await runtime.usage(instance)
    assert used is not None
    assert 110_000_000 < used.memory_bytes < 300_000_000
    assert 0 < used.cpu_seconds < 60
