"""docs/tutorial.md, executed: every `console` block's commands, in order, in one shell."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_tutorial_works(tmp_path: Path) -> None:
    lines = commands()
    assert len(lines) > 15
    # The programs are found as an activated environment would find them.
    (tmp_path / "bin").mkdir()
    for name, module in (("skerry", "-m skerry.cli "), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        script.chmod(0o755)
    text = "set -e\n" + "".join(f"echo {shlex.quote('+ ' + line)}\n{line}\n" for line in lines)
    shell = subprocess.Popen(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=600)
    finally:
        _end_group(shell.pid)
        _end_servers(tmp_path)
    assert shell.returncode == 0, printed[-6000:]
    assert "Succeeded" in printed
    assert "onnx-int8" in printed
    expected = re.search(r"^label (\d)$", printed, re.MULTILINE)
    answered = re.search(r"^highest: (\d)$", printed, re.MULTILINE)
    assert expected
    assert answered
    assert expected.group(1) == answered.group(1)


def _end_group(leader: int) -> None:
    """The hub and the agent run in the shell's background."""
    try:
        os.killpg(leader, signal.SIGTERM)
    except ProcessLookupError:
        return


def _end_servers(directory: Path) -> None:
    """Inference servers outlive their agent on purpose; here they end with the test."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory) in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ValueError):
                continue
