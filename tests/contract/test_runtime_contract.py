"""The contract of `core.ports.Runtime`, for every driver, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skerry.api.errors import AlreadyExistsError, InvalidError, UnavailableError
from skerry.core.ports import Instance, Launch, Runtime
from skerry.drivers.runtime.process import ProcessRuntime

WAIT_SECONDS = 20.0
READY = "print('ready', flush=True)"
SERVE = f"import time; {READY}; time.sleep(600)"

RuntimeFactory = Callable[[Path], Runtime]


@pytest.fixture(params=["process"])
def make_runtime(request: pytest.FixtureRequest) -> RuntimeFactory:
    factories: dict[str, RuntimeFactory] = {"process": ProcessRuntime}
    return factories[request.param]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "runtime"


@pytest.fixture
async def runtime(make_runtime: RuntimeFactory, state: Path) -> AsyncIterator[Runtime]:
    made = make_runtime(state)
    yield made
    for instance in await made.list():
        await made.stop(instance, grace_seconds=0)


def server(tmp_path: Path, code: str = SERVE, *, name: str = "digits-a", limit: int = 0, **variables: str) -> Launch:
    return Launch(
        name=name,
        argv=[sys.executable, "-c", code],
        directory=tmp_path,
        environment={"PATH": os.environ["PATH"], **variables},
        log=tmp_path / f"{name}.log",
        memory_limit_bytes=limit,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 (the condition is in another process)
            await asyncio.sleep(0.005)


async def started(runtime: Runtime, launch: Launch) -> Instance:
    instance = await runtime.start(launch)
    await until(lambda: "ready" in launch.log.read_text())
    return instance


async def test_a_started_server_is_alive_and_listed_and_gone_after_stop(runtime: Runtime, tmp_path: Path) -> None:
    instance = await started(runtime, server(tmp_path))
    assert await runtime.alive(instance)
    assert list(await runtime.list()) == [instance]
    await runtime.stop(instance, grace_seconds=5)
    assert not await runtime.alive(instance)
    assert list(await runtime.list()) == []


async def test_environment_directory_and_standard_streams_are_as_given(runtime: Runtime, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['X'], 'HOME' in os.environ, repr(sys.stdin.read()))"
    launch = server(tmp_path, code + "; print('to stderr', file=sys.stderr)", X="y z")
    instance = await runtime.start(launch)
    async with asyncio.timeout(WAIT_SECONDS):
        await runtime.wait(instance)
    assert f"{tmp_path} y z False ''" in launch.log.read_text()
    assert "to stderr" in launch.log.read_text()


async def test_the_log_is_appended_to(runtime: Runtime, tmp_path: Path) -> None:
    for _ in range(2):
        async with asyncio.timeout(WAIT_SECONDS):
            await runtime.wait(await runtime.start(server(tmp_path, "print('once')")))
    assert (tmp_path / "digits-a.log").read_text() == "once\nonce\n"


async def test_a_long_log_is_moved_aside_once(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "digits-a.log"
    log.write_bytes(b"x" * (5 * 1024 * 1024 + 1))
    async with asyncio.timeout(WAIT_SECONDS):
        await runtime.wait(await runtime.start(server(tmp_path, "print('new')")))
    assert log.read_text() == "new\n"
    assert (tmp_path / "digits-a.log.1").stat().st_size == 5 * 1024 * 1024


async def test_wait_tells_the_exit_status_and_the_last_words(runtime: Runtime, tmp_path: Path) -> None:
    instance = await runtime.start(server(tmp_path, "import sys; print('no model'); print(); sys.exit(3)"))
    async with asyncio.timeout(WAIT_SECONDS):
        assert await runtime.wait(instance) == "digits-a exited with status 3: no model"
        assert await runtime.wait(instance) == "digits-a exited with status 3: no model"  # asked late, still known
    assert not await runtime.alive(instance)


async def test_several_may_wait_and_a_signal_is_named(runtime: Runtime, tmp_path: Path) -> None:
    instance = await started(runtime, server(tmp_path))
    waiters = [asyncio.create_task(runtime.wait(instance)) for _ in range(3)]
    await asyncio.sleep(0)
    os.kill(int(instance.id.split(":")[0]), signal.SIGSEGV)
    async with asyncio.timeout(WAIT_SECONDS):
        assert {*await asyncio.gather(*waiters)} == {"digits-a was killed by SIGSEGV: ready"}


async def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(runtime: Runtime, tmp_path: Path) -> None:
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; time.sleep(600)"
    instance = await started(runtime, server(tmp_path, code))
    waiter = asyncio.create_task(runtime.wait(instance))
    await runtime.stop(instance, grace_seconds=0.1)
    assert not await runtime.alive(instance)
    assert await waiter == "digits-a was stopped"


async def test_a_server_may_finish_within_the_grace(runtime: Runtime, tmp_path: Path) -> None:
    code = f"""
import signal, sys, time
def finish(*_):
    print("finished", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
{READY}
time.sleep(600)
"""
    launch = server(tmp_path, code)
    instance = await started(runtime, launch)
    await runtime.stop(instance, grace_seconds=WAIT_SECONDS)
    assert launch.log.read_text().splitlines()[-1] == "finished"


async def test_stop_also_ends_what_the_server_left_behind(runtime: Runtime, tmp_path: Path) -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child + "time.sleep(600)"!r}])
print("child", child.pid, flush=True)
time.sleep(600)
"""
    launch = server(tmp_path, code)
    instance = await started(runtime, launch)
    await until(lambda: "child " in launch.log.read_text() and launch.log.read_text().endswith("\n"))
    pid = int(launch.log.read_text().split("child ")[1].split()[0])
    assert list(await runtime.list()) == [instance]  # one server, whatever it consists of
    await runtime.stop(instance, grace_seconds=0.1)
    assert not _runs(pid)


async def test_an_orphan_of_a_dead_server_is_still_listed_and_stopped(runtime: Runtime, tmp_path: Path) -> None:
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SERVE!r}])
print("child", child.pid, flush=True)
"""
    launch = server(tmp_path, code)
    instance = await started(runtime, launch)
    async with asyncio.timeout(WAIT_SECONDS):
        await runtime.wait(instance)
    pid = int(launch.log.read_text().split("child ")[1].split()[0])
    orphans = await runtime.list()
    assert [orphan.name for orphan in orphans] == ["digits-a"]
    await runtime.stop(orphans[0], grace_seconds=5)
    assert not _runs(pid)
    assert list(await runtime.list()) == []


async def test_stopping_what_is_gone_is_no_error(runtime: Runtime, tmp_path: Path) -> None:
    instance = await started(runtime, server(tmp_path))
    await runtime.stop(instance, grace_seconds=5)
    await runtime.stop(instance, grace_seconds=5)
    assert await runtime.peak_memory(instance) == 0


async def test_peak_memory_is_that_of_the_server(runtime: Runtime, tmp_path: Path) -> None:
    instance = await started(runtime, server(tmp_path, f"import time; b = b'x' * 50_000_000; {READY}; time.sleep(600)"))
    assert 50_000_000 < await runtime.peak_memory(instance) < 150_000_000


async def test_the_memory_limit_holds_and_is_named_as_the_reason(runtime: Runtime, tmp_path: Path) -> None:
    limit = 128 * 1024 * 1024
    code = f"import time; {READY}; time.sleep(0.2); b = bytearray({3 * limit}); time.sleep(600)"
    instance = await runtime.start(server(tmp_path, code, limit=limit))
    async with asyncio.timeout(WAIT_SECONDS):
        reason = await runtime.wait(instance)
    assert reason in (
        "digits-a was killed by SIGKILL: it needed more than its memory limit of 128 MiB",
        "digits-a exited with status 1, most likely at its memory limit of 128 MiB: MemoryError",
    )


async def test_two_servers_do_not_share_a_name(runtime: Runtime, tmp_path: Path) -> None:
    await started(runtime, server(tmp_path))
    with pytest.raises(AlreadyExistsError, match="digits-a"):
        await runtime.start(server(tmp_path))
    assert len(await runtime.list()) == 1


async def test_two_starts_of_one_name_at_once_give_one_server(runtime: Runtime, tmp_path: Path) -> None:
    outcomes = await asyncio.gather(*(runtime.start(server(tmp_path)) for _ in range(4)), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcomes) == [*["AlreadyExistsError"] * 3, "Instance"]
    assert len(await runtime.list()) == 1


async def test_what_cannot_be_started_is_said(runtime: Runtime, tmp_path: Path) -> None:
    launch = server(tmp_path)
    for broken, words in [
        (
            Launch(**{**_fields(launch), "argv": ["/nowhere/server"]}),
            "/nowhere/server: cannot be started: No such file",
        ),
        (Launch(**{**_fields(launch), "directory": tmp_path / "gone"}), "gone: cannot be started: No such file"),
        (Launch(**{**_fields(launch), "argv": []}), "digits-a: cannot be started"),
        (Launch(**{**_fields(launch), "argv": ["a\0b"]}), "cannot be started: embedded null byte"),
    ]:
        with pytest.raises(UnavailableError, match=words):
            await runtime.start(broken)
    assert list(await runtime.list()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a" * 300, "a\n"])
async def test_a_name_that_is_none_is_refused(runtime: Runtime, tmp_path: Path, name: str) -> None:
    launch = Launch(**{**_fields(server(tmp_path)), "name": name})
    with pytest.raises(InvalidError):
        await runtime.start(launch)


async def test_a_pid_that_belongs_to_somebody_else_is_never_ours(runtime: Runtime, tmp_path: Path) -> None:
    instance = await started(runtime, server(tmp_path))
    pid, start_time = instance.id.split(":")
    later = Instance(name=instance.name, id=f"{pid}:{int(start_time) + 1}")
    renamed = Instance(name="digits-b", id=instance.id)
    for other in (later, renamed):
        assert not await runtime.alive(other)
        await runtime.stop(other, grace_seconds=0)  # must not touch it
        assert await runtime.alive(instance)


async def test_runtimes_of_other_directories_do_not_see_it(
    runtime: Runtime, make_runtime: RuntimeFactory, tmp_path: Path
) -> None:
    instance = await started(runtime, server(tmp_path))
    stranger = make_runtime(tmp_path / "other")
    assert list(await stranger.list()) == []
    assert not await stranger.alive(instance)
    await stranger.stop(instance, grace_seconds=0)
    assert await runtime.alive(instance)


PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from skerry.core.ports import Launch
from skerry.drivers.runtime import process, spawn

async def main():
    state, directory, before_record = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "before-record"
    runtime = process.ProcessRuntime(state)
    if before_record:  # the agent dies between the fork and the record
        spawn.write_unsynced = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    await runtime.start(Launch(name="digits-a", argv=[sys.executable, "-c", sys.argv[4]], directory=directory,
                               environment={}, log=directory / "digits-a.log"))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture(params=["after-record", "before-record"])
def killed_agent(request: pytest.FixtureRequest, state: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(PARENT), str(state), str(tmp_path), request.param, SERVE]
    assert subprocess.run(argv, timeout=WAIT_SECONDS, check=False).returncode == -signal.SIGKILL


@pytest.mark.usefixtures("killed_agent")
async def test_a_server_outlives_a_killed_agent_and_is_adopted(
    make_runtime: RuntimeFactory, state: Path, tmp_path: Path
) -> None:
    runtime = make_runtime(state)
    found = await runtime.list()
    assert [instance.name for instance in found] == ["digits-a"]
    await until(lambda: "ready" in (tmp_path / "digits-a.log").read_text())
    assert await runtime.alive(found[0])
    assert await runtime.peak_memory(found[0]) > 0
    waiter = asyncio.create_task(runtime.wait(found[0]))
    await asyncio.sleep(0)
    os.kill(int(found[0].id.split(":")[0]), signal.SIGKILL)
    async with asyncio.timeout(WAIT_SECONDS):
        assert "its exit status is not known" in await waiter
    assert list(await runtime.list()) == []


@pytest.mark.usefixtures("killed_agent")
async def test_an_adopted_server_can_be_stopped(make_runtime: RuntimeFactory, state: Path) -> None:
    runtime = make_runtime(state)
    [instance] = await runtime.list()
    waiter = asyncio.create_task(runtime.wait(instance))
    await asyncio.sleep(0)
    await runtime.stop(instance, grace_seconds=5)
    assert not _runs(int(instance.id.split(":")[0]))
    assert await waiter == "digits-a was stopped"


async def test_a_server_that_cannot_be_recorded_does_not_run(runtime: Runtime, state: Path, tmp_path: Path) -> None:
    (state / "digits-a.json").mkdir()
    with pytest.raises(UnavailableError, match=r"digits-a\.json"):
        await runtime.start(server(tmp_path))
    assert list(await runtime.list()) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory of an otherwise full file system that has a runtime's identity already."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], check=False, timeout=10)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        ProcessRuntime(small / "runtime")
        with (small / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(b"x" * 512)
        yield small / "runtime"
    finally:
        subprocess.run(["umount", small], check=True, timeout=10)


@pytest.mark.parametrize("options", ["", "remount,ro"], ids=["full", "read-only"])
async def test_a_disk_that_takes_nothing_is_no_reason_not_to_serve(
    full_disk: Path, tmp_path: Path, options: str
) -> None:
    if options:
        mount = ["mount", "-o", options, str(full_disk.parent)]
        await asyncio.to_thread(subprocess.run, mount, check=True, timeout=10)
    runtime = ProcessRuntime(full_disk)
    silent = server(tmp_path, "import time; time.sleep(600)")  # whoever writes to its log there fails
    nowhere = replace(silent, log=full_disk / "logs" / "server.log")
    for _ in range(2):
        instance = await runtime.start(nowhere)
        assert list(await runtime.list()) == [instance]
        async with asyncio.timeout(WAIT_SECONDS):  # another one finds it by its marker, once it can show that
            while list(await ProcessRuntime(full_disk).list()) != [instance]:  # noqa: ASYNC110 (in another process)
                await asyncio.sleep(0.005)
        await runtime.stop(instance, grace_seconds=5)
        assert list(await runtime.list()) == []
        async with asyncio.timeout(WAIT_SECONDS):
            assert await runtime.wait(instance) == "digits-a was stopped"
    assert [name for name in os.listdir(full_disk) if name.endswith(".tmp")] == []


async def test_kernels_without_pidfd_are_served_too(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    instance = await started(runtime, server(tmp_path))
    waiter = asyncio.create_task(runtime.wait(instance))
    await asyncio.sleep(0)
    await runtime.stop(instance, grace_seconds=5)
    async with asyncio.timeout(WAIT_SECONDS):
        assert await waiter == "digits-a was stopped"
    assert list(await runtime.list()) == []


async def test_a_server_can_gain_no_privileges_but_we_can(runtime: Runtime, tmp_path: Path) -> None:
    launch = server(tmp_path, "print(open('/proc/self/status').read())")
    async with asyncio.timeout(WAIT_SECONDS):
        await runtime.wait(await runtime.start(launch))
    assert "NoNewPrivs:\t1" in launch.log.read_text()
    assert "NoNewPrivs:\t0" in _own_status()


async def test_no_descriptor_of_ours_reaches_the_server(runtime: Runtime, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        await started(runtime, server(tmp_path))
        os.close(writer)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""  # end of file: nobody else holds the other end
    finally:
        os.close(reader)


def _own_status() -> str:
    return Path("/proc/self/status").read_text()


def _fields(launch: Launch) -> dict[str, object]:
    return {name: getattr(launch, name) for name in Launch.__slots__}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
