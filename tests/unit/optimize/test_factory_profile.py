"""Costs are measured in a process that holds the engine and the model, and not this one's libraries."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry.api.errors import InvalidError
from skerry.optimize import graph, profile

MIB = 1024**2


def matrix_model(path: Path, size: int) -> tuple[Path, Path]:
    """A model whose weights are size x size float32, its samples beside it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in ("input", "output")]
    weights = numpy_helper.from_array(np.random.default_rng(0).random((size, size), dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["input", "w"], ["output"])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path.write_bytes(graph.serialise(made))
    np.save(path.with_suffix(".npy"), np.zeros((1, size), np.float32))
    return path, path.with_suffix(".npy")


def test_larger_models_are_seen_to_need_more_memory(tmp_path: Path) -> None:
    small, large = (profile.measure(*matrix_model(tmp_path / f"{size}.onnx", size), runs=20) for size in (16, 2048))
    assert small.runs == large.runs == 20
    assert 0 < small.latency_p50_ms <= small.latency_p95_ms
    assert large.peak_memory_bytes - small.peak_memory_bytes > 15 * MIB  # 16 MiB of weights
    assert small.machine.split()[0] in {"amd64", "arm64", "arm", "riscv64"}


def test_the_process_has_no_factory_in_it(tmp_path: Path) -> None:
    model, samples = matrix_model(tmp_path / "m.onnx", 4)
    code = (
        "import sys; from skerry.optimize import profiled_process; "
        f"sys.argv = ['x', {str(model)!r}, {str(samples)!r}, '1', '1']; profiled_process.main(); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    modules = set(printed.stdout.splitlines()[-1].split())
    assert "onnxruntime" in modules
    assert not modules & {"torch", "onnx", "onnxscript", "onnxslim", "msgspec", "sklearn", "scipy"}


def test_a_slow_model_is_measured_with_fewer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MAX_SECONDS", 0.0)
    assert profile.measure(*matrix_model(tmp_path / "m.onnx", 4), runs=1000).runs == 10


def test_what_the_engine_refuses_is_said(tmp_path: Path) -> None:
    _, samples = matrix_model(tmp_path / "good.onnx", 4)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidError, match=r"the process that measures it failed \(.*bad\.onnx"):
        profile.measure(tmp_path / "bad.onnx", samples, runs=1)
