"""SIGTERM at any moment of the agent's life, from its first import to its last breath: it ends with 0, nothing is lost.

The moments are audit events of the interpreter (imports, opened files, sockets ...), counted in an undisturbed run.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from tests.integration.agent.processes import Device
from tests.integration.agent.surroundings import PATIENCE
from tests.integration.agent.test_agent_process import is_running, version_at

from skerry.agent.ending import Ending

AT_MOMENT = """
import os, runpy, signal, sys

number, trace, count = int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT), 0


def look(event, arguments):
    global count
    if event == "os.kill" or signal.getsignal(signal.SIGTERM) in (None, signal.SIG_DFL):
        return
    count += 1
    os.write(trace, f"{event}\\n".encode())
    if count == number:
        os.kill(os.getpid(), signal.SIGTERM)


sys.argv[:] = sys.argv[2:]
sys.addaudithook(look)
runpy.run_module("skerry.agent", run_name="__main__")
"""
MOMENTS = 6


def live(device: Device, number: int) -> int:
    """Run it with a SIGTERM at that moment, and with one once all runs unless it has ended by then."""
    trace = device.directory.parent / "trace"
    trace.unlink(missing_ok=True)
    device.log_file.unlink(missing_ok=True)
    device.start("-c", AT_MOMENT, str(number), str(trace))
    process = device.process
    assert process is not None
    device.process = None  # it may end at any time
    device.wait(
        lambda journal: process.poll() is not None or (is_running("digits-v1")(journal) and "link.lost" in device.log())
    )
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE)


def test_a_sigterm_at_any_moment_ends_it_in_order(device: Any, models: Any) -> None:
    trace = device.directory.parent / "trace"
    device.accept(models["v1"].desired())
    assert live(device, 0) == 0
    moments = trace.read_text().splitlines()
    assert len(moments) > 100
    assert "import" in moments[:5], "signals are held before anything else is imported"
    for number in (1, *range(2, len(moments), len(moments) // MOMENTS)):
        assert live(device, number) == 0, f"{moments[number - 1]}, {number} of {len(moments)}\n{device.log()}"
    device.log_file.unlink()
    device.start()
    device.wait_log("agent.started")
    assert version_at(device.wait(is_running("digits-v1"))["current"]["port"]) == "v1"
    device.wait_servers(1)
    assert device.end(signal.SIGTERM) == 0


def test_signals_are_told_once_also_when_they_came_first() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    told: list[str] = []
    ending = Ending()
    try:
        ending.hold()
        signal.raise_signal(signal.SIGTERM)
        assert ending.received == [signal.SIGTERM]
        ending.tell(lambda: told.append("end"))
        signal.raise_signal(signal.SIGINT)
        assert (told, ending.received) == (["end"], [signal.SIGTERM, signal.SIGINT])
        ending.received.remove(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            ending.release()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
