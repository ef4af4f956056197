"""Costs are measured in fresh processes: the engine alone for latency, the real inference server for memory."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry.api.errors import InvalidError, TimedOutError
from skerry.optimize import graph, profile, serving

MIB = 1024**2


def matrix_model(path: Path, size: int) -> Path:
    """A model whose weights are size x size float32."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in ("input", "output")]
    weights = numpy_helper.from_array(np.random.default_rng(0).random((size, size), dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["input", "w"], ["output"])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path.write_bytes(graph.serialise(made))
    return path


def conditions(model: Path, size: int, *, runs: int = 20) -> profile.Conditions:
    signature = graph.signature(graph.parse(model.read_bytes()))
    samples, described = model.parent / "samples.npz", model.parent / "signature.json"
    np.savez(samples, input=np.zeros((3, size), np.float32))
    described.write_bytes(msgspec.json.encode(signature))
    return profile.Conditions(
        engine="onnxruntime", signature=signature, signature_file=described, samples_file=samples, runs=runs
    )


def peak_memory(model: Path, given: profile.Conditions, size: int = 4) -> int:
    sample = {"input": np.zeros((1, size), np.float32)}
    with serving.Server(given.engine, model, given.signature_file) as server:
        server.wait_ready()
        return server.peak_memory(given.signature, sample)


def test_larger_models_are_seen_to_need_more_memory(tmp_path: Path) -> None:
    profiles = []
    for size in (16, 2048):
        model = matrix_model(tmp_path / f"{size}.onnx", size)
        profiles.append(profile.measure(model, conditions(model, size)))
    small, large = profiles
    assert small.runs == large.runs == 20
    assert 0 < small.latency_p50_ms <= small.latency_p95_ms
    assert large.peak_memory_bytes - small.peak_memory_bytes > 15 * MIB  # 16 MiB of weights
    assert 20 * MIB < small.peak_memory_bytes < 150 * MIB  # torch alone would take more
    assert small.machine.split()[0] in {"amd64", "arm64", "arm", "riscv64"}


def test_a_slow_model_is_measured_with_fewer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MAX_SECONDS", 0.0)
    model = matrix_model(tmp_path / "m.onnx", 4)
    assert profile.measure(model, conditions(model, 4, runs=1000)).runs == 10


def test_what_the_engine_refuses_is_said(tmp_path: Path) -> None:
    given = conditions(matrix_model(tmp_path / "good.onnx", 4), 4)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidError, match=r"its engine does not run it \(.*bad\.onnx"):
        profile.measure(tmp_path / "bad.onnx", given)


def test_what_the_server_refuses_is_said(tmp_path: Path) -> None:
    given = conditions(matrix_model(tmp_path / "m.onnx", 4), 4)
    other = matrix_model(tmp_path / "other.onnx", 5)
    with pytest.raises(InvalidError, match=r"the inference server does not take it \(.*shape"):
        peak_memory(other, given)
    with pytest.raises(InvalidError, match=r"the inference server refuses a sample \(.*shape"):
        peak_memory(tmp_path / "m.onnx", given, size=9)


def test_a_server_that_does_not_become_ready_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = conditions(matrix_model(tmp_path / "m.onnx", 4), 4)
    monkeypatch.setattr(serving, "START_SECONDS", 0.0)
    with pytest.raises(TimedOutError, match="not ready within 0 s"):
        peak_memory(tmp_path / "m.onnx", given)


def test_no_server_is_left_when_the_factory_is_killed(tmp_path: Path) -> None:
    model = matrix_model(tmp_path / "m.onnx", 4)
    given = conditions(model, 4)
    code = (
        "import sys, time; from pathlib import Path; from skerry.optimize import serving\n"
        f"model, signature = Path({str(model)!r}), Path({str(given.signature_file)!r})\n"
        "with serving.Server('onnxruntime', model, signature) as server:\n"
        "    server.wait_ready(); print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as factory:
        assert factory.stdout is not None
        server = psutil.Process(int(factory.stdout.readline()))
        assert "skerry.serve" in server.cmdline()
        factory.kill()
        server.wait(timeout=60)
