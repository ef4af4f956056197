"""The factory's bars: what each variant is at, in any terminal, whatever libraries print meanwhile."""

import io
import sys
from typing import Any

import pytest
from rich.progress import Progress

from skerry.cli import factory, output


class Terminal:
    """A console of a certain width, and what is on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
        monkeypatch.setattr(output.err, "_force_terminal", True)
        monkeypatch.setattr(output.err, "_width", width)
        monkeypatch.setattr(output.err, "_height", 40)
        self.stream = io.StringIO()
        monkeypatch.setattr(output.err, "_file", self.stream)
        self.bars: Progress = factory._bars()
        self.shown = factory._Shown(self.bars)

    def take(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.shown.take(event)

    def lines(self) -> list[str]:
        """What the bars would draw."""
        with output.err.capture() as capture:
            output.err.print(self.bars.get_renderable())
        return capture.get().splitlines()


@pytest.fixture(params=[50, 80, 200])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch, request.param)


NAMES = ["onnx-fp32", "onnx-int8-dynamic-with-a-long-word"]
STARTED = {"event": "started", "model": "digits", "version": "v1", "variants": NAMES}


def of(event: str, **more: Any) -> dict[str, Any]:
    return {"event": f"variant.{event}", "variant": NAMES[0], **more}


def test_every_variant_is_one_line_in_any_terminal(terminal: Terminal) -> None:
    terminal.take(STARTED, of("started"))
    lines = terminal.lines()
    assert len(lines) == 3
    assert all(len(line) <= output.err.width for line in lines)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "waiting"),
        ([of("started")], "making"),
        ([of("started"), of("retried", next="float16")], "trying float16"),
        ([of("started"), of("made")], "made, to be measured"),
        ([of("cached")], "made before"),
        ([of("made"), of("measuring")], "measuring"),
        ([of("measuring"), of("done", metric=0.99, latencyP50Ms=0.5, size=2048)], "0.9900  0.50 ms  2.0 KiB"),
        ([of("rejected", failed=False)], "rejected: it loses too much"),
        ([of("rejected", failed=True)], "cannot be made"),
        ([{"event": "kubernetes.finished", "part": NAMES[0]}], "done"),
    ],
)
def test_the_state_is_the_last_thing_that_happened(
    events: list[dict[str, Any]], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch, 120)
    terminal.take(STARTED, *events)
    assert state in terminal.lines()[1]


def test_the_clock_of_a_variant_starts_with_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 120)
    terminal.take(STARTED, of("started"))
    _, working, waiting = terminal.lines()
    assert "0:00:0" in working
    assert "-:--:--" in waiting


def test_what_others_print_stands_above_the_bars_and_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, 80)
    terminal.take(STARTED)
    factory._pass_on(io.StringIO("\n[red]a warning[/red]\x1b[2J\n"), terminal.bars)
    assert "[red]a warning[/red]\\x1b[2J\n" in terminal.stream.getvalue()
    assert "\x1b[2J" not in terminal.stream.getvalue()


def test_a_run_that_is_interrupted_says_so_and_ends_the_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, signal, time; print('{}', flush=True); os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"
    monkeypatch.setattr(factory, "_command", lambda *_: [sys.executable, "-c", code])
    said = io.StringIO()
    monkeypatch.setattr(output.err, "_file", said)
    with pytest.raises(KeyboardInterrupt):
        factory.run([])
    assert said.getvalue() == "stopped; nothing was published\n"
