"""A factory that was killed goes on where it stopped: what was finished is not made again, and nothing else changes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml

MODEL = """
import torch

def build_model():
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
"""
TUNE = """
import pathlib, time

def fine_tune(module, amount):
    here = pathlib.Path(__file__)
    if here.with_name("hold").exists():
        here.with_name("begun").touch()
        time.sleep(600)
"""
VARIANTS = [
    "onnx-fp32",
    "onnx-int8",
    {"name": "onnx-fp32-tuned", "pruning": {"sparsity": 0.1, "fineTune": "tune.py:fine_tune"}},
    "onnx-fp16",
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "tune.py").write_text(TUNE)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    torch.save(module.state_dict(), tmp_path / "w.pt")
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{part}_x": random.standard_normal((64, 16)).astype(np.float32) for part in ("test", "calibration", "golden")
    }
    labels = np.arange(64) % 4
    np.savez(tmp_path / "data.npz", **arrays, test_y=labels, golden_y=labels)
    recipe = {
        "name": "small",
        "version": "v1",
        "source": {"path": "model.py:build_model", "weights": "w.pt"},
        "data": {"path": "data.npz"},
        "out": "package",
        "allowedDrop": 1.0,
        "runs": 5,
        "variants": VARIANTS,
        "resources": {"parallel": 1},
    }
    (tmp_path / "optimize.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def command(site: Path, cache: str, *more: str) -> list[str]:
    given = ["--file", str(site / "optimize.yaml"), "--cache", str(site / cache), "--progress", "json", *more]
    return [sys.executable, "-m", "skerry.optimize", *given]


def make(site: Path, cache: str, *more: str) -> list[dict[str, Any]]:
    done = subprocess.run(command(site, cache, *more), stdout=subprocess.PIPE, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill_in_the_middle(site: Path) -> list[dict[str, Any]]:
    """Run until the third variant is being made, then pull the plug; return what was said until then."""
    (site / "hold").touch()
    with subprocess.Popen(command(site, "cache"), stdout=subprocess.PIPE, env=os.environ) as process:
        below: list[psutil.Process] = []
        try:
            end = time.monotonic() + 240
            while not (site / "begun").exists():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        finally:
            process.kill()
            _, alive = psutil.wait_procs(below, timeout=60)
        assert below
        assert not alive
        assert process.stdout is not None
        said = [json.loads(line) for line in process.stdout.read().splitlines()]
    (site / "hold").unlink()
    return said


def of(events: list[dict[str, Any]], name: str) -> list[str]:
    return [event["variant"] for event in events if event["event"] == name]


def digests(package: Path) -> dict[str, Any]:
    card = json.loads((package / "card.json").read_bytes())
    return {one["file"]: one["variant"]["blob"]["digest"] for one in card["variants"]} | {
        "golden": card["golden"]["blob"]["digest"]
    }


def test_what_was_done_before_a_kill_is_not_done_again(site: Path) -> None:
    before = kill_in_the_middle(site)
    assert of(before, "variant.started") == ["onnx-fp32", "onnx-int8", "onnx-fp32-tuned"]
    assert not (site / "package").exists()
    left = {path.name.partition("-")[0] for path in (site / "cache").iterdir()}
    assert left == {"import", "variant", "work"}  # whole entries, and what was at work

    after = make(site, "cache")
    assert "source.cached" in {event["event"] for event in after}
    assert of(after, "variant.cached") == ["onnx-fp32", "onnx-int8"]
    assert of(after, "variant.started") == ["onnx-fp32-tuned", "onnx-fp16"]
    assert list((site / "cache" / "work").iterdir()) == []  # what the killed run left is swept away
    assert [path.name for path in site.iterdir() if path.name.endswith((".partial", ".old"))] == []

    fresh = make(site, "other", "--out", str(site / "fresh"))
    assert of(fresh, "variant.cached") == []
    assert digests(site / "package") == digests(site / "fresh")
    assert len(digests(site / "package")) == 5
