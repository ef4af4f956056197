"""The demo's processes: a hub and agents as real programs, each with its own state directory and log.

Lives here: starting, killing and stopping. Must not live here: the story.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from skerry.api.errors import TimedOutError, UnavailableError
from skerry.cli import output

SKERRY = [sys.executable, "-m", "skerry.cli"]


class Programs:
    """All processes of one demo; leaving the context stops every one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for name in list(self._running):
            self._end(name)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start `skerry <arguments>` in the background, logging to `logs/<name>.log`."""
        logs = self._directory / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*SKERRY, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )

    def check(self, name: str) -> None:
        """Raise UnavailableError with the end of its log if the program has ended."""
        process = self._running.get(name)
        if process is not None and process.poll() is not None:
            log = self._directory / "logs" / f"{name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise UnavailableError(f"ended with code {process.returncode}: {' / '.join(last)}", element=name)

    def kill(self, name: str) -> None:
        """End it as a power cut would: SIGKILL, no clean-up."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> None:
        """End it in good order."""
        self._running[name].terminate()
        self._end(name)

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(arguments: Sequence[str], environment: dict[str, str], *, show: bool = True) -> str:
    """Run `skerry <arguments>` as a user would type it, print what it prints, and return that.

    Raises UnavailableError with the command's own words when it fails.
    """
    if show:
        here = f"{Path.cwd()}/"
        shown = " ".join(argument.replace(here, "") for argument in arguments)
        output.out.print(f"[bold cyan]$[/] [bold]skerry {shown}[/]")
    process = subprocess.Popen(
        [*SKERRY, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        text=True,
    )
    lines = []
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        lines.append(line)
        if show:
            output.out.print(f"  {line.rstrip()}", markup=False)
    problem = process.stderr.read()
    if process.wait() != 0:
        said = problem.strip().replace("\n", "\n  ").removeprefix("error: ")
        raise UnavailableError(said or f"ended with code {process.returncode}", element=f"skerry {arguments[0]}")
    return "".join(lines)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float, every: float = 0.1) -> float:
    """Wait until the condition holds; returns the seconds it took. Raises TimedOutError naming `what`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimedOutError(
                f"not within {seconds:.0f} s", element=what, hint="look into the logs below the demo's directory"
            )
        time.sleep(every)
    return time.monotonic() - began
