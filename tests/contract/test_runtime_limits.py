"""Limits of servers, by real control groups where this machine lets us make them, and by every other way it has."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import UnavailableError
from skerry.core.ports import Instance, Launch
from skerry.drivers.runtime import cgroups, limits, proc, verdict
from skerry.drivers.runtime.cgroups import Kills, Place, UnusableError
from skerry.drivers.runtime.limits import Way
from skerry.drivers.runtime.process import ProcessRuntime

WAIT_SECONDS = 30.0
MIB = 1024 * 1024
HUNGRY = "import time; print('ready', flush=True); time.sleep(0.1); b = bytearray({size}); time.sleep(600)"
IDLE = "import time; print('ready', flush=True); time.sleep(600)"


def a_place() -> Place:
    for find in (cgroups.find_v2, cgroups.find_v1):
        try:
            return find()
        except UnusableError:
            continue
    pytest.skip(f"no control groups can be made here: {limits.find().reason}")


@pytest.fixture
def grouped() -> Way:
    place = a_place()
    name = "cgroup2" if place.version == 2 else "cgroup1"
    return Way(name=name, memory=True, cpu=place.cpu is not None, reason="", place=place)


@pytest.fixture
def by_rlimit() -> Way:
    return Way(name="rlimit", memory=False, cpu=False, reason="")


@pytest.fixture
async def runtime(tmp_path: Path, grouped: Way) -> AsyncIterator[ProcessRuntime]:
    made = ProcessRuntime(tmp_path / "runtime", way=grouped)
    yield made
    for instance in await made.list():
        await made.stop(instance, grace_seconds=0)
    assert groups_of(grouped, tmp_path / "runtime") == [], "nothing of ours is left"


def groups_of(way: Way, directory: Path) -> list[str]:
    assert way.place is not None
    runtime_id = (directory / "runtime-id").read_text().strip()
    bases = {base for base in (way.place.memory, way.place.cpu) if base is not None}
    return sorted(str(path) for base in bases for path in base.glob(f"skerry-{runtime_id}*"))


def launch(tmp_path: Path, code: str = IDLE, **amounts: int) -> Launch:
    return Launch(
        name="digits-1",
        argv=[sys.executable, "-c", code],
        directory=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        log=tmp_path / "log",
        **amounts,
    )


def pid_of(instance: Instance) -> int:
    return int(instance.id.split(":")[0])


def runs(pid: int) -> bool:
    stat = proc.read_stat(pid)
    return stat is not None and not stat.ended


async def until(condition: object) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 (in another process)
            await asyncio.sleep(0.005)


async def started(runtime: ProcessRuntime, wanted: Launch) -> Instance:
    instance = await runtime.start(wanted)
    await until(lambda: "ready" in wanted.log.read_text())
    return instance


# --- control groups -----------------------------------------------------------------------------------------------


async def test_what_needs_more_memory_than_its_limit_is_killed_and_that_is_said(
    runtime: ProcessRuntime, grouped: Way, tmp_path: Path
) -> None:
    wanted = launch(tmp_path, HUNGRY.format(size=256 * MIB), memory_limit_bytes=64 * MIB)
    instance = await runtime.start(wanted)
    async with asyncio.timeout(WAIT_SECONDS):
        said = [await runtime.wait(instance) for _ in range(2)]
    assert said == ["digits-1 was killed by SIGKILL: it needed more than its memory limit of 64 MiB"] * 2
    assert groups_of(grouped, tmp_path / "runtime") == [], "the group is gone with its server"


async def test_what_stays_within_its_limit_runs_though_it_reserves_more(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    code = f"import mmap, time; m = mmap.mmap(-1, {1024 * MIB}); m[0] = 1; print('ready', flush=True); time.sleep(600)"
    instance = await started(runtime, launch(tmp_path, code, memory_limit_bytes=96 * MIB))
    assert await runtime.alive(instance)


async def test_a_server_is_in_its_group_with_all_it_starts(
    runtime: ProcessRuntime, grouped: Way, tmp_path: Path
) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); {IDLE}"
    wanted = launch(tmp_path, code, cpu_limit_millis=500, cpu_request_millis=250, memory_request_bytes=8 * MIB)
    instance = await started(runtime, wanted)
    record = limits.Limiter(grouped, (tmp_path / "runtime" / "runtime-id").read_text().strip())
    for directory in record.group("digits-1"):
        inside = (directory / "cgroup.procs").read_text().split()
        assert str(pid_of(instance)) in inside
        assert len(inside) == 2
    if grouped.cpu:
        cpu = record.group("digits-1")[-1]
        if grouped.name == "cgroup2":
            assert (cpu / "cpu.max").read_text().split() == ["50000", "100000"]
        else:
            assert (cpu / "cpu.cfs_quota_us").read_text().strip() == "50000"
            assert (cpu / "cpu.shares").read_text().strip() == "256"
    await runtime.stop(instance, grace_seconds=5)
    assert groups_of(grouped, tmp_path / "runtime") == []


async def test_stopping_ends_what_fled_from_its_session(runtime: ProcessRuntime, tmp_path: Path) -> None:
    fled = "import os, time; os.setsid(); open('fled', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {fled!r}], env={{}})
print("ready", flush=True)
time.sleep(600)
"""
    instance = await started(runtime, launch(tmp_path, code, memory_limit_bytes=256 * MIB))
    await until(lambda: (tmp_path / "fled").exists() and (tmp_path / "fled").read_text())
    pid = int((tmp_path / "fled").read_text())
    await runtime.stop(instance, grace_seconds=5)
    await until(lambda: not runs(pid))


async def test_a_program_that_is_not_there_is_said_at_once(
    runtime: ProcessRuntime, grouped: Way, tmp_path: Path
) -> None:
    missing = Launch(
        name="digits-1",
        argv=["/nowhere/server"],
        directory=tmp_path,
        environment={},
        log=tmp_path / "log",
        memory_limit_bytes=MIB,
    )
    with pytest.raises(UnavailableError, match="/nowhere/server: cannot be started: No such file"):
        await runtime.start(missing)
    assert groups_of(grouped, tmp_path / "runtime") == []


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from skerry.core.ports import Launch
from skerry.drivers.runtime import process, spawn

async def main():
    state, before_record = Path(sys.argv[1]), sys.argv[2] == "before-record"
    runtime = process.ProcessRuntime(state)
    if before_record:
        spawn.write_unsynced = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    await runtime.start(Launch(name="digits-1", argv=[sys.executable, "-c", sys.argv[3]], directory=state.parent,
                               environment={}, log=state.parent / "log", memory_limit_bytes=256 << 20))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def start_and_be_killed(state: Path, moment: str, code: str) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(KILLED), str(state), moment, code]
    assert subprocess.run(argv, timeout=WAIT_SECONDS, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["after-record", "before-record"])
async def test_groups_of_a_killed_agent_hold_on_and_are_removed_by_the_next(
    moment: str, grouped: Way, tmp_path: Path
) -> None:
    state = tmp_path / "runtime"
    await asyncio.to_thread(start_and_be_killed, state, moment, IDLE)
    heir = ProcessRuntime(state, way=grouped)
    [instance] = await heir.list()
    assert len(groups_of(grouped, state)) == (
        1 if grouped.place and grouped.place.cpu in (None, grouped.place.memory) else 2
    )
    os.kill(pid_of(instance), signal.SIGKILL)  # while nobody watches, as if this agent had been killed too
    await until(lambda: not Path(f"/proc/{pid_of(instance)}").exists())
    assert await ProcessRuntime(state, way=grouped).list() == []
    assert groups_of(grouped, state) == []


async def test_an_earlier_agents_server_that_was_killed_for_memory_is_recognised(grouped: Way, tmp_path: Path) -> None:
    state = tmp_path / "runtime"
    code = f"""
import os, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.005)
b = bytearray({512 * MIB})
"""
    await asyncio.to_thread(start_and_be_killed, state, "after-record", code)
    heir = ProcessRuntime(state, way=grouped)
    [instance] = await heir.list()
    waiting = asyncio.create_task(heir.wait(instance))
    (tmp_path / "go").touch()
    async with asyncio.timeout(WAIT_SECONDS):
        assert (await waiting).endswith("it needed more than its memory limit of 256 MiB")


# --- version 2's own files, also where its controllers are bound to version 1 -------------------------------------


@pytest.fixture
def v2_group() -> Iterator[Path]:
    """A group of version 2, with or without controllers, below this process's own."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    point = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if point is None:
        pytest.skip("version 2 is not mounted here")
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    made = Path(point, own[3:].lstrip("/"), f"skerry-test-{os.getpid()}", "digits-1")
    try:
        made.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no group of version 2 can be made here: {error}")
    yield made
    cgroups.remove([made], kill=True)
    assert not made.parent.exists()


async def test_version_2_holds_a_server_and_what_fled_from_it_and_ends_them_all_at_once(
    v2_group: Path, tmp_path: Path
) -> None:
    fled = "import os, time; os.setsid(); open('fled', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {fled!r}], env={{}}); {IDLE}"
    argv = cgroups.joining([v2_group], [sys.executable, "-c", code])
    server = await asyncio.to_thread(subprocess.Popen, argv, cwd=tmp_path, stdout=subprocess.DEVNULL)
    await until(lambda: (tmp_path / "fled").exists() and (tmp_path / "fled").read_text())
    left = int((tmp_path / "fled").read_text())
    assert set(cgroups._pids(v2_group)) == {server.pid, left}
    assert _group_of(left) == _group_of(server.pid)
    assert _group_of(left).endswith("/digits-1")
    assert not cgroups.remove([v2_group], kill=False), "it is in use"
    assert (v2_group / "cgroup.kill").exists()
    assert cgroups.remove([v2_group], kill=True)
    assert server.wait(WAIT_SECONDS) == -signal.SIGKILL
    await until(lambda: not runs(left))
    assert cgroups.read_kills([v2_group]) == Kills(), "a group that is gone says nothing"


async def test_version_2_is_swept_but_for_what_is_in_use(v2_group: Path) -> None:
    place = Place(version=2, memory=v2_group.parent.parent, cpu=None)
    runtime = v2_group.parent.name.removeprefix("skerry-")
    argv = cgroups.joining([v2_group], [sys.executable, "-c", IDLE])
    server = await asyncio.to_thread(subprocess.Popen, argv, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert await asyncio.to_thread(server.stdout.readline) == b"ready\n"
    (v2_group.parent / "digits-2").mkdir()
    (v2_group.parent / "digits-3").mkdir()
    assert cgroups.sweep(place, runtime, keep=["digits-3"]) == 1
    assert sorted(path.name for path in v2_group.parent.iterdir() if path.is_dir()) == ["digits-1", "digits-3"]
    server.kill()
    server.wait(WAIT_SECONDS)
    server.stdout.close()
    assert cgroups.sweep(place, runtime, keep=[]) == 2


def _group_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


# --- resource limits, the last resort -----------------------------------------------------------------------------


async def test_without_groups_resource_limits_hold(by_rlimit: Way, tmp_path: Path) -> None:
    runtime = ProcessRuntime(tmp_path / "runtime", way=by_rlimit)
    code = "import os; print('ready', len(os.sched_getaffinity(0)), flush=True); " + HUNGRY.format(size=512 * MIB)
    instance = await runtime.start(launch(tmp_path, code, memory_limit_bytes=64 * MIB, cpu_limit_millis=500))
    async with asyncio.timeout(WAIT_SECONDS):
        said = await runtime.wait(instance)
    assert said == "digits-1 exited with status 1, most likely at its memory limit of 64 MiB: MemoryError"


async def test_without_groups_cpu_is_limited_to_whole_cores(by_rlimit: Way, tmp_path: Path) -> None:
    runtime = ProcessRuntime(tmp_path / "runtime", way=by_rlimit)
    instance = await started(runtime, launch(tmp_path, cpu_limit_millis=500))
    assert len(os.sched_getaffinity(pid_of(instance))) == 1
    await runtime.stop(instance, grace_seconds=5)


# --- the choice ---------------------------------------------------------------------------------------------------


def test_the_way_is_tried_out_and_the_reason_is_kept() -> None:
    found = limits.find()
    assert found.name in ("cgroup2", "cgroup1", "systemd", "rlimit")
    assert found.reason
    assert found.memory == (found.name != "rlimit")
    assert limits.find() is found


def test_the_first_way_that_works_is_taken_and_those_before_it_explain_themselves() -> None:
    def broken() -> Way:
        raise UnusableError("it is not mounted")

    def works() -> Way:
        return Way(name="cgroup1", memory=True, cpu=True, reason="")

    found = limits.choose([("cgroup2", broken), ("cgroup1", works), ("systemd", broken)])
    assert (found.name, found.reason) == ("cgroup1", "no cgroup2: it is not mounted")
    last = limits.choose([("cgroup2", broken), ("cgroup1", broken)])
    assert (last.name, last.memory, last.cpu) == ("rlimit", False, False)
    assert last.reason == "no cgroup2: it is not mounted; no cgroup1: it is not mounted"
    assert limits.choose([("cgroup1", works)]).reason == "it is the best there is"


def test_a_machine_without_control_groups_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="not mounted"):
        cgroups.find_v2(tmp_path)
    with pytest.raises(UnusableError, match="memory controller is not mounted"):
        cgroups.find_v1(tmp_path)


def test_a_group_without_the_memory_controller_is_no_place(tmp_path: Path) -> None:
    """A tree of plain files, as a container sees one that nothing was delegated in."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/x.scope\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    own = tmp_path / "sys/fs/cgroup/user.slice/x.scope"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("pids\n")
    with pytest.raises(UnusableError, match=r"the memory controller is not delegated .*x\.scope"):
        cgroups.find_v2(tmp_path)


def test_a_unit_that_systemd_has_not_delegated_is_no_place_even_for_root(tmp_path: Path) -> None:
    """There, one server that is killed for memory would take the agent and all the others with it."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/x.service\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    own = tmp_path / "sys/fs/cgroup/system.slice/x.service"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(UnusableError, match=r"systemd has not delegated it; set Delegate=yes .*x\.service"):
        cgroups.find_v2(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_somebody_else_s_group_is_no_place() -> None:
    with pytest.raises(UnusableError):
        cgroups.find_v1(Path("/"))


def test_a_scope_gets_its_limits_as_properties(tmp_path: Path) -> None:
    way = Way(name="systemd", memory=True, cpu=True, reason="", systemd=("systemd-run", "--scope"))
    wanted = launch(tmp_path, memory_limit_bytes=MIB, cpu_limit_millis=250, cpu_request_millis=100)
    command = limits.Limiter(way, "x").prepare(wanted)
    assert command[:2] == ["systemd-run", "--scope"]
    assert command[2 : command.index("--")] == [
        f"--property=MemoryMax={MIB}",
        "--property=MemorySwapMax=0",
        "--property=CPUQuota=25%",
        "--property=CPUWeight=4",
    ]
    assert command[command.index("--") + 1 :] == list(wanted.argv)


def test_what_has_no_limits_is_started_as_it_is(tmp_path: Path) -> None:
    wanted = launch(tmp_path)
    for way in (limits.find(), Way(name="systemd", memory=True, cpu=True, reason="", systemd=("systemd-run",))):
        assert limits.Limiter(way, "x").prepare(wanted) == list(wanted.argv)


@given(st.integers(1, 10_000_000))
def test_cpu_amounts_stay_within_what_the_kernel_takes(millis: int) -> None:
    assert 1 <= cgroups.weight_of(millis) <= 10_000
    assert 2 <= cgroups.shares_of(millis) <= 262_144
    assert cgroups.quota_of(millis) >= 1000
    assert cgroups.weight_of(millis) <= cgroups.weight_of(millis + 1)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (Kills(killed=1, own_limit=True), "a was killed by SIGKILL: it needed more than its memory limit of 64 MiB"),
        (Kills(killed=1, own_limit=False), "a was killed by SIGKILL: the machine ran out of memory"),
        (Kills(), "a was killed by SIGKILL, most likely at its memory limit of 64 MiB"),
    ],
)
def test_the_verdict_tells_the_limit_from_the_machine(own: Kills, sentence: str) -> None:
    said = verdict.describe(
        name="a", status=-9, stopped=False, oom_kills=0, memory_limit_bytes=64 * MIB, last_line="", own=own
    )
    assert said == sentence


async def test_what_an_earlier_server_left_in_its_group_is_ended_before_the_next_one(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    fled = "import os, time; os.setsid(); open('fled', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {fled!r}], env={{}})
while not (os.path.exists("fled") and os.path.getsize("fled")):
    time.sleep(0.005)
"""
    async with asyncio.timeout(WAIT_SECONDS):
        first = await runtime.start(launch(tmp_path, code, memory_limit_bytes=256 * MIB))
        assert await runtime.wait(first) == "digits-1 exited with status 0"
    left = int((tmp_path / "fled").read_text())
    assert runs(left)
    second = await started(runtime, launch(tmp_path, memory_limit_bytes=256 * MIB))
    assert await runtime.alive(second)
    await until(lambda: not runs(left))
