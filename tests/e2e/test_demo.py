"""The demo as a test: the real programs, as users start them; what the report holds was measured in this run."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SKERRY = [sys.executable, "-m", "skerry.cli"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("demo") / "state"
    done = subprocess.run(
        [*SKERRY, "demo", "--dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        check=False,
    )
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(directory.glob("logs/*")))
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{logs}"
    return directory, done.stdout


@pytest.fixture(scope="module")
def report(demo: tuple[Path, str]) -> dict:
    return json.loads((demo[0] / "report.json").read_bytes())


def test_the_model_is_good_and_has_variants_for_two_engines(report: dict) -> None:
    assert report["baseline_accuracy"] >= 0.97
    assert report["rejected"] == []
    variants = {v["name"]: v for v in report["variants"]}
    assert set(variants) == {"onnx-fp32", "onnx-fp16", "onnx-int8", "tflite-int8"}
    assert {v["needs"]["engine"] for v in variants.values()} == {"onnxruntime", "litert"}
    for variant in variants.values():
        assert variant["metricDrop"] <= 0.01
        assert 0 < variant["profile"]["latencyP50Ms"] <= variant["profile"]["latencyP95Ms"]
    sizes = [variants[name]["blob"]["size"] for name in ("onnx-int8", "onnx-fp16", "onnx-fp32")]
    assert sizes == sorted(sizes)
    assert variants["tflite-int8"]["blob"]["size"] < variants["onnx-fp16"]["blob"]["size"]


def test_every_device_serves_the_variant_that_fits_it(report: dict) -> None:
    devices = report["devices"]
    assert len(devices) == 6
    by_class = {d["hardware_class"]: d["variant"] for d in devices}
    assert by_class["gateway"] == "onnx-int8", "by latency: all of ONNX runs there, and this is the fastest"
    assert by_class["camera"] == "onnx-fp32", "by memory: the engine has no int8, and fp16 does not fit"
    assert by_class["kiosk"] == "tflite-int8", "by engine: it has TensorFlow Lite only"
    for device in devices:
        assert device["test_images"] == 100
        assert device["test_accuracy"] >= 0.95
        assert device["golden_accuracy"] >= 0.9
        assert device["fetched_bytes"] > 0
        assert device["peak_memory_bytes"] > 10 * 1024 * 1024, "a whole server process"


def test_engines_are_told_and_explained(demo: tuple[Path, str]) -> None:
    _, printed = demo
    lines = [line.split() for line in printed.splitlines()]
    engines = {line[0]: line[4:] for line in lines if line and line[0] in ("kiosk-1", "camera-1") and "Online" in line}
    assert "litert" in engines["kiosk-1"]
    assert "onnxruntime" in engines["camera-1"]
    assert "engine onnxruntime is not on the device" in printed
    assert "engine litert is not on the device" in printed


def test_the_rollout_went_in_gated_waves(report: dict) -> None:
    waves = report["waves"]
    assert [w["phase"] for w in waves] == ["Passed"] * 3
    assert [w["target"] for w in waves] == [1, 3, 6]
    for wave in waves:
        gates = {g["gate"]: g for g in wave["gates"]}
        assert set(gates) == {"successRatio", "accuracy", "latencyP95"}
        assert all(g["verdict"] == "Passed" and g["devices"] > 0 for g in gates.values())
    for before, after in itertools.pairwise(waves):
        assert before["finishedAt"] <= after["startedAt"]


def test_the_update_came_by_deltas(report: dict) -> None:
    updates = report["updates"]
    assert {one["variant"] for one in updates} == {"onnx-int8", "onnx-fp32", "tflite-int8"}
    for one in updates:
        assert one["saved_bytes"] > 0.1 * one["full_bytes"], one
        assert one["fetched_bytes"] + one["saved_bytes"] >= one["full_bytes"]


def test_the_bad_version_was_stopped_by_the_canary_and_taken_back(report: dict) -> None:
    bad = report["bad_version"]
    assert bad["outcome"] == "RolledBack"
    assert bad["gate"] == "accuracy"
    assert bad["measured"] < 0.5 < bad["threshold"]
    assert len(bad["devices_touched"]) == 1
    assert "accuracy" in bad["message"]


def test_killed_and_cut_off_agents_converged(report: dict) -> None:
    assert {f["fault"] for f in report["faults"]} == {"agent killed", "hub unreachable"}
    assert [f["runs"] for f in report["faults"]] == ["digits-v3", "digits-v3"]
    assert report["faults"][0]["state_at_fault"] in ("Fetching", "Verified", "Installed", "Starting", "Probing")


def test_nothing_is_left_running_and_keys_are_private(demo: tuple[Path, str]) -> None:
    directory, _ = demo
    listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    assert [line for line in listing.splitlines() if str(directory) in line] == []
    keys = [path for path in directory.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()[:4096]]
    assert keys
    assert {oct(path.stat().st_mode & 0o777) for path in keys} == {"0o600"}


def test_it_ends_by_saying_what_was_proved_and_where_to_look(demo: tuple[Path, str]) -> None:
    directory, printed = demo
    assert "WHAT WAS PROVED" in printed
    assert f"Everything is in {directory}" in printed
