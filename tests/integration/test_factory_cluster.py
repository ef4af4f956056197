"""A run as Jobs, from the command to the package: the Jobs' own commands, a real registry between them.

Played where there is no cluster: see `tests/cluster/kubectl.py` for what is not.
"""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper

from skerry.optimize import cluster
from skerry.optimize.__main__ import DONE, ERROR, run

TOOLS = Path(__file__).resolve().parents[1] / "cluster"
METRIC = "from shares import share\n\ndef score(outputs, answers):\n    return share(outputs[0], answers)\n"
SHARES = "def share(scores, answers):\n    return float((scores.argmax(axis=1) == answers).mean())\n"
WIDTH, CLASSES = 16, 4


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry (CNCF distribution, as Debian has it)."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address},
    }
    (tmp_path / "registry.yml").write_text(yaml.safe_dump(settings))
    command = [program, "serve", str(tmp_path / "registry.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(address)
            yield address
        finally:
            process.kill()


def wait_for(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"http://{address}/v2/", trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model with its weights in a file beside it, judged by a function with a helper; the tools in PATH."""
    tools, place = tmp_path / "bin", tmp_path / "cluster"
    for directory in (tools, place):
        directory.mkdir()
    programs = {"python": "", "oras": f'"{TOOLS / "oras.py"}"', "kubectl": f'"{TOOLS / "kubectl.py"}"'}
    for name, program in programs.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SKERRY_TEST_CLUSTER", str(place))
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    site = tmp_path / "site"
    site.mkdir()
    write_model(site)
    (site / "metric.py").write_text(METRIC)
    (site / "shares.py").write_text(SHARES)
    yield site
    for started in place.glob("*.pid"):  # Jobs that still wait for what never comes
        with suppress(ProcessLookupError):
            os.killpg(int(started.read_text()), signal.SIGKILL)


def write_model(site: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((WIDTH, CLASSES)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", WIDTH), ("y", CLASSES))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, site / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    arrays: dict[str, Any] = {
        f"{part}_x": random.standard_normal((40, WIDTH)).astype(np.float32)
        for part in ("test", "calibration", "golden")
    }
    answers = {f"{part}_y": (arrays[f"{part}_x"] @ weights).argmax(axis=1) for part in ("test", "golden")}
    np.savez(site / "data.npz", **arrays, **answers)
    recipe = {
        "name": "small",
        "version": "v1",
        "source": {"path": "m.onnx"},
        "data": {"path": "data.npz"},
        "out": "package",
        "metric": "metric.py:score",
        "allowedDrop": 0.5,
        "runs": 5,
        "variants": ["onnx-fp32", "onnx-int8"],
    }
    (site / "optimize.yaml").write_text(yaml.safe_dump(recipe))


def make(site: Path, *given: str) -> tuple[int, list[dict[str, Any]]]:
    stream = io.StringIO()
    code = run(["--file", str(site / "optimize.yaml"), "--progress", "json", *given], stream)
    return code, [json.loads(line) for line in stream.getvalue().splitlines()]


def on_cluster(site: Path, registry: str) -> tuple[int, list[dict[str, Any]]]:
    where = ["--on", "kubernetes", "--repository", f"{registry}/factory/small", "--image", "skerry:1.0"]
    return make(site, *where, "--namespace", "models", "--plain-http")


def digests(package: Path) -> dict[str, str]:
    card = json.loads((package / "card.json").read_bytes())
    return {one["file"]: one["variant"]["blob"]["digest"] for one in card["variants"]}


def test_variants_travel_through_the_registry_and_are_collected(site: Path, registry: str) -> None:
    code, events = on_cluster(site, registry)
    logs = "\n".join(log.read_text() for log in (site.parent / "cluster").glob("*.log"))
    assert code == DONE, f"{events[-1]}\n{logs}"
    finished = [event["part"] for event in events if event["event"] == "kubernetes.finished"]
    assert set(finished) == {"import", "onnx-fp32", "onnx-int8", "collect"}
    assert events[-1]["kept"] == ["onnx-fp32", "onnx-int8"]
    collected = next((site.parent / "cluster").glob("*-collect.log")).read_text()
    assert collected.count('"variant.cached"') == 2  # it took what the other Jobs had made
    assert '"variant.started"' not in collected
    here, _ = make(site, "--out", str(site / "here"), "--no-cache")
    assert here == DONE
    assert digests(site / "package") == digests(site / "here")


def test_a_job_that_fails_for_good_is_told_at_once(site: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collecting Job would wait for it until its deadline, an hour or two."""
    monkeypatch.setenv("SKERRY_TEST_BROKEN", "onnx-int8")
    code, events = on_cluster(site, registry)
    assert code == ERROR
    assert events[-1]["element"].startswith("job/small-v1-")
    assert events[-1]["element"].endswith("-onnx-int8")
    assert "BackoffLimitExceeded" in events[-1]["cause"]
    assert "kubectl logs --namespace models job/small-v1-" in events[-1]["hint"]
    assert not (site / "package").exists()
