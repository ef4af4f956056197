"""`skerry model optimize` that is told to end: the factory ends with it, and nothing is published."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

HANGING = """
import pathlib, time

def build_model():
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(600)
"""


def _until(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_factory_ends_with_the_command(number: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HANGING)
    for name in ("w.pt", "data.npz"):
        (tmp_path / name).touch()
    _write_data(tmp_path / "data.npz")
    given = "--torch model.py:build_model --weights w.pt --data data.npz --name small --model-version v1 --out package"
    command = [sys.executable, "-m", "skerry.cli", "model", "optimize", *given.split(), "--cache", "cache"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ) as process:
        below: list[psutil.Process] = []
        try:
            _until((tmp_path / "begun").is_file)
            below = psutil.Process(process.pid).children(recursive=True)
            assert len(below) >= 2  # the factory and its worker
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
            _, alive = psutil.wait_procs(below, timeout=20)
            for left in alive:
                left.kill()
    assert not alive
    assert not (tmp_path / "package").exists()


def _write_data(path: Path) -> None:
    import numpy as np

    samples, labels = np.zeros((4, 4), np.float32), np.arange(4) % 2
    np.savez(path, test_x=samples, test_y=labels, calibration_x=samples, golden_x=samples, golden_y=labels)
