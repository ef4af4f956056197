"""Commands beside a server, as real processes: nothing of them is left, whatever they did to get away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from skerry.core.ports import Execution
from skerry.drivers.runtime import proc, sessions

WAIT_SECONDS = 30.0
AWAY = "env -i setsid sh -c 'echo $$ > {pids}/$$; exec sleep 300' </dev/null >/dev/null 2>&1 &"
"""In a session of its own, without the marker, and an orphan at once."""


def execution(tmp_path: Path, script: str) -> Execution:
    (tmp_path / "pids").mkdir(exist_ok=True)
    words = script.format(pids=tmp_path / "pids")
    return Execution(argv=["/bin/sh", "-c", words], directory=tmp_path, environment={"PATH": os.environ["PATH"]})


def alive(tmp_path: Path) -> list[int]:
    found = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    return [pid for pid in found if (stat := proc.read_stat(pid)) is not None and not stat.ended]


async def until(happened: object) -> None:
    assert callable(happened)
    async with asyncio.timeout(WAIT_SECONDS):
        while not happened():  # noqa: ASYNC110 - processes of processes, of which nobody tells
            await asyncio.sleep(0.01)


async def test_nothing_is_left_of_a_command_that_ended(tmp_path: Path) -> None:
    script = f"{AWAY} ({AWAY}) & until [ $(ls {{pids}} | wc -l) = 2 ]; do sleep 0.01; done; echo said; exit 3"
    running = await sessions.start(execution(tmp_path, script), "runtime", [])
    assert await running.wait() == 3
    assert alive(tmp_path) == [], "at the command's end already"
    assert os.read(running.output, 100) == b"said\n"
    assert os.read(running.output, 100) == b"", "nobody has the other end any more"
    await running.end()


async def test_nothing_is_left_of_one_that_is_ended(tmp_path: Path) -> None:
    script = f"trap '' TERM HUP; {AWAY} while :; do {AWAY} sleep 0.001; done"  # and there are always new ones
    running = await sessions.start(execution(tmp_path, script), "runtime", [])
    await until(lambda: len(alive(tmp_path)) > 5)
    await running.end()
    assert alive(tmp_path) == []


async def test_nothing_is_left_when_the_agent_is_killed(tmp_path: Path) -> None:
    agent = f"""
        import asyncio
        from pathlib import Path
        from skerry.core.ports import Execution
        from skerry.drivers.runtime import sessions
        async def main():
            argv = ["/bin/sh", "-c", {execution(tmp_path, AWAY + " sleep 300").argv[2]!r}]
            environment = {{"PATH": "/usr/bin:/bin"}}
            await sessions.start(Execution(argv=argv, directory=Path("/"), environment=environment), "x", [])
            await asyncio.sleep(300)
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(agent))
    try:
        await until(lambda: alive(tmp_path))
    finally:
        process.kill()
        await process.wait()
    await until(lambda: not alive(tmp_path))


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_command_is_as_if_started_by_nobody(tmp_path: Path, terminal: bool) -> None:
    said = tmp_path / "said"
    script = (
        "import os, sys; out = open(sys.argv[1], 'w'); "
        "out.write(' '.join(os.listdir('/proc/self/fd')) + open('/proc/self/status').read())"
    )
    argv = [sys.executable, "-I", "-S", "-c", script, str(said)]
    running = await sessions.start(
        Execution(argv=argv, directory=tmp_path, environment={"A": "b"}, terminal=terminal), "r", []
    )
    assert await running.wait() == 0
    await running.end()
    descriptors, _, rest = said.read_text().partition("Name:")
    assert {int(one) for one in descriptors.split()} == {0, 1, 2, 3, 4}, "two are the script's own"
    words = rest.split()
    ignored = int(words[words.index("SigIgn:") + 1], 16) & 0x7FFFFFFF  # above are libc's own, which no program can set
    assert ignored == sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ)), "Python's own"
    assert words[words.index("NoNewPrivs:") + 1] == "1"


async def test_a_keeper_that_is_killed_leaves_what_carries_the_marker_to_the_agent(tmp_path: Path) -> None:
    script = "echo $$ > {pids}/$$; setsid sh -c 'echo $$ > {pids}/$$; exec sleep 300' & sleep 300"
    running = await sessions.start(execution(tmp_path, script), "runtime", [])
    await until(lambda: len(alive(tmp_path)) == 2)
    os.kill(running._process.pid, signal.SIGKILL)
    assert await running.wait() == 137
    await running.end()
    assert alive(tmp_path) == []
