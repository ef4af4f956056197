"""The factory as the command line runs it: a process, whose events become progress bars.

Lives here: starting it and showing what it is at. Must not live here: an import of the factory, what options mean.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from skerry.api import quantity
from skerry.api.errors import InvalidError, SkerryError
from skerry.cli import output
from skerry.kit import processes

DONE, PARTIAL = 0, 3
_STOP_SECONDS = 30.0
_STEPS = {"started": 1, "retried": 1, "made": 2, "cached": 2, "measuring": 2, "finished": 3, "done": 3, "rejected": 3}
"""What a variant has behind it: waiting, being made, made, in the package or not."""
_STATES = {"started": "making", "made": "made, to be measured", "cached": "made before", "finished": "done"}
_BAR, _TEXTS = 20, 60
"""Columns of a bar, and what names, states and the clock take beside it: in a narrower terminal there are no bars."""


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Return the command line for the options that were given: None and False are not."""
    given: list[str] = []
    for name, value in options.items():
        if value is True:
            given.append(name)
        elif value is not None and value is not False:
            given += [name, str(value)]
    return given


def run(given: Sequence[str]) -> tuple[int, Path]:
    """Run the factory and show how far it is; return its exit code, 0 or 3 when partial, and the package.

    Raises the factory's own sentence as a SkerryError otherwise.
    """
    with (
        _terminated_as_interrupted(),
        _bars() as bars,
        _started(given, bars) as process,
    ):
        shown = _Shown(bars)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                shown.take(_parse(line))
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # it stops its own processes, and leaves nothing half done
            process.wait(_STOP_SECONDS)
            bars.console.print("stopped; nothing was published")
            raise
    if code not in (DONE, PARTIAL):
        raise _failure(shown.error, code)
    return code, Path(shown.package)


def ask(given: Sequence[str]) -> bytes:
    """Return what the factory prints for a question, such as what it can do. Raises SkerryError."""
    with _terminated_as_interrupted():
        done = subprocess.run(_command(*given), stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SkerryError(done.stdout.decode(errors="replace").strip().removeprefix("error: "))
    return done.stdout


def _command(*given: str) -> list[str]:
    """Return the factory's command line; it is asked to stop when this process ends, however that is."""
    return processes.python(["-m", "skerry.optimize", *given], signal_number=signal.SIGTERM)


@contextmanager
def _started(given: Sequence[str], bars: Progress) -> Iterator[subprocess.Popen[str]]:
    """Start the factory; what it and the user's code print beside the events goes above the bars, not through them."""
    shared = None if bars.disable else subprocess.PIPE
    command = _command(*given, "--progress", "json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=shared, text=True, errors="replace") as process:
        reader = threading.Thread(target=_pass_on, args=(process.stderr, bars), daemon=True)
        if shared is not None:
            reader.start()
        try:
            yield process
        finally:
            if shared is not None:
                reader.join(_STOP_SECONDS)


def _pass_on(stream: TextIO, bars: Progress) -> None:
    for line in stream:
        if line.strip():
            bars.console.print(output.plain(line.rstrip("\n")), markup=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does; it would end this process and leave the factory running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Shown:
    """The bars of one run."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._whole = bars.add_task("starting the factory", total=None, state="")
        self._tasks: dict[str, TaskID] = {}
        self.error: Mapping[str, Any] = {}
        self.package = ""

    def take(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        name = str(event.get("event", ""))
        if name == "started":
            name = f"{event['model']} {event['version']}"
            self._bars.update(self._whole, description=name, state="importing the source")
            for variant in event["variants"]:
                self._tasks[variant] = self._bars.add_task(variant, total=3, state="waiting", start=False)
        elif name == "baseline":
            self._bars.update(self._whole, state=f"source {event['metricName']} {event['metric']:.4f}")
        elif name == "done":
            self.package = str(event["package"])
            self._bars.update(self._whole, total=1, completed=1)
        elif name == "error":
            self.error = event
        elif name == "plot.skipped":
            self._bars.console.print(f"no picture: {event['reason']}", markup=False)
        elif name.startswith("kubernetes."):
            self._remote(name.partition(".")[2], event)
        elif str(event.get("variant")) in self._tasks:
            self._step(self._tasks[str(event["variant"])], name.partition(".")[2], event)

    def _remote(self, step: str, event: Mapping[str, Any]) -> None:
        """Show what is known of Jobs: which are done."""
        if step == "sent":
            self._bars.update(self._whole, state="inputs are in the registry")
        elif step == "applied":
            self._bars.update(self._whole, state=f"{len(event['jobs'])} Jobs")
        elif str(event.get("part")) in self._tasks:
            self._step(self._tasks[str(event["part"])], step, event)

    def _step(self, task: TaskID, step: str, event: Mapping[str, Any]) -> None:
        state = _STATES.get(step, step)
        if step == "done":
            judged = "not evaluated" if event["metric"] is None else f"{event['metric']:.4f}"
            state = f"{judged}  {event['latencyP50Ms']:.2f} ms  {quantity.human_bytes(event['size'])}"
        elif step == "retried":
            state = f"trying {event['next']}"
        elif step == "rejected":
            state = "cannot be made" if event["failed"] else "rejected: it loses too much"
        self._bars.start_task(task)
        self._bars.update(task, completed=_STEPS.get(step, 0), state=output.plain(state))


def _bars() -> Progress:
    bar = min(output.err.width - _TEXTS, _BAR)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=_one_line()),
        *((BarColumn(bar_width=bar),) if bar > 0 else ()),
        TextColumn("{task.fields[state]}", markup=False, table_column=_one_line()),
        TimeElapsedColumn(table_column=_one_line()),
    )
    return Progress(*columns, console=output.err, transient=True, disable=not output.err.is_terminal)


def _one_line() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")


def _failure(said: Mapping[str, Any], code: int) -> SkerryError:
    if cause := str(said.get("cause") or said.get("sentence") or ""):
        return InvalidError(cause, element=str(said.get("element") or ""), hint=str(said.get("hint") or ""))
    return SkerryError(f"the factory ended with code {code}")


def _parse(line: str) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
