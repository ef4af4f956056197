"""What a step depends on: other code, another converter or another CPU is another step."""

import importlib.metadata
import stat
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Interval
from skerry.optimize import beside, cache, keys, profile, toolchains, user_code
from skerry.optimize.jobs import Facts
from skerry.optimize.recipe import Optimization, VariantSpec

NAME = "litert-torch"
FACTS = Facts(
    kind="pytorch",
    digests={},
    forms=["torch"],
    signature=ModelSignature(inputs=[], outputs=[]),
    metric="accuracy",
    higher_is_better=True,
    baseline=1.0,
    interval=Interval(low=1.0, high=1.0),
    samples=1,
    golden_samples=1,
)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No toolchain is named or installed."""
    monkeypatch.delenv(toolchains.variable(NAME), raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def wanted(directory: Path, **changes: Any) -> Optimization:
    plain = {
        "name": "small",
        "version": "v1",
        "source": {"path": f"{directory}/model.py:build_model"},
        "data": {"path": f"{directory}/data.npz"},
        "out": f"{directory}/package",
    }
    return msgspec.convert(plain | changes, Optimization)


def of(directory: Path, variant: str) -> str:
    run = wanted(directory)
    return keys.of_variant(run, VariantSpec(name=variant), FACTS, imported=keys.of_import(run))


def test_a_toolchain_that_comes_is_another_step_for_what_it_makes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without = of(tmp_path, "tflite-fp32"), of(tmp_path, "onnx-fp32")
    python = tmp_path / "there" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(toolchains.variable(NAME), str(python))
    found = of(tmp_path, "tflite-fp32"), of(tmp_path, "onnx-fp32")
    assert found[0] != without[0]
    assert found[1] == without[1]
    (tmp_path / "there/lib/python3.12/site-packages/litert_torch-0.9.0.dist-info").mkdir(parents=True)
    assert of(tmp_path, "tflite-fp32") not in (found[0], without[0])


def test_a_distribution_that_comes_is_another_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"torchao": "1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    keys.tools()  # once for all in a process
    monkeypatch.setattr(importlib.metadata, "version", version)
    before = of(tmp_path, "executorch-fp32")
    versions["executorch"] = "1"
    assert of(tmp_path, "executorch-fp32") != before


def test_another_cpu_is_another_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = of(tmp_path, "onnx-int8")
    monkeypatch.setattr(profile, "machine", lambda: "amd64 another")
    assert of(tmp_path, "onnx-int8") != before


def test_measurements_are_those_of_one_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"1")
    first = keys.of_profile("0", model, runs=5, machine="amd64")
    model.write_bytes(b"2")
    assert keys.of_profile("0", model, runs=5, machine="amd64") != first


def test_what_each_file_of_the_user_imports_is_named_by_its_role(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for role in ("code", "tune"):
        (tmp_path / role / "inner").mkdir(parents=True)
        (tmp_path / role / f"{role}_helper.py").write_text("")
        (tmp_path / role / "inner" / f"{role}_deep.py").write_text("")
        lines = f"import {role}_helper\nimport inner.{role}_deep\ndef run(module, amount): pass\n"
        (tmp_path / role / f"{role}.py").write_text(lines)
    (tmp_path / "link.py").symlink_to(tmp_path / "tune" / "tune.py")
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    source = {"path": str(tmp_path / "model.keras"), "code": str(tmp_path / "code" / "code.py")}
    pruning = {"sparsity": 0.5, "fineTune": f"{tmp_path}/link.py:run"}
    spec = msgspec.convert({"name": "onnx-fp32", "pruning": pruning}, VariantSpec)
    run = wanted(tmp_path, source=source)
    user_code.run_file(Path(run.source.code), hint="")
    assert set(beside.imported(run)) == {"code/code.py", "code/code_helper.py", "code/inner/code_deep.py"}
    sys.modules.pop("inner")
    user_code.load_function(f"{tmp_path}/link.py:run", hint="")
    found = beside.imported(run, spec)
    assert {name for name in found if "tune" in name} >= {"fineTune/tune_helper.py", "fineTune/inner/tune_deep.py"}
    places = beside.places(run, spec)
    assert places["source"] == tmp_path
    assert places[beside.ELSEWHERE] == Path("/")
    for name, digest in found.items():
        role, _, inner = name.partition("/")
        assert cache.digest(places[role] / inner) == digest
