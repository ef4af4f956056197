"""The whole factory as a process, on the digits example: really trained, really converted, really measured."""

import json
import signal
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import yaml

from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.cli import examples
from skerry.core import card as cards

EXAMPLE = Path(examples.__file__).parent / "digits"
LIMIT = 120


def train(out: Path, *arguments: str) -> float:
    command = [sys.executable, "-B", str(EXAMPLE / "train.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
    return float(done.stdout.splitlines()[-1].removeprefix("test accuracy: "))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("trained")
    return out, train(out, "--epochs", "6")


def arguments(trained: Path, out: Path) -> list[str]:
    return [
        *("--torch", f"{EXAMPLE}/model.py:build_model", "--weights", f"{trained}/weights.pt"),
        *("--data", f"{trained}/data.npz", "--name", "digits", "--model-version", "v1", "--out", str(out)),
    ]


def command(*options: str) -> list[str]:
    return [sys.executable, "-B", "-m", "skerry.optimize", "--progress", "json", *options]


def run(*options: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="session")
def package(trained: tuple[Path, float], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("packages") / "digits-v1"
    code, events, errors = run(*arguments(trained[0], out))
    assert (code, errors) == (0, "")
    return out, events


def read_card(out: Path) -> cards.EvaluationCard:
    return cards.decode((out / "card.json").read_bytes())


def accuracy(model: Path, data: Any) -> float:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    scores = session.run(None, {session.get_inputs()[0].name: data["test_x"]})[0]
    return float((scores.argmax(axis=1) == data["test_y"]).mean())


def test_the_example_learns_to_read_digits(trained: tuple[Path, float]) -> None:
    out, test_accuracy = trained
    assert test_accuracy >= 0.97
    assert 4e6 < (out / "weights.pt").stat().st_size < 9e6
    data = np.load(out / "data.npz", allow_pickle=False)
    assert len(data["golden_x"]) >= 64
    assert len(np.unique(data["golden_y"])) == 10
    parts = [{sample.tobytes() for sample in data[name]} for name in ("test_x", "calibration_x", "golden_x")]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_labels_that_mean_nothing_teach_nothing(trained: tuple[Path, float], tmp_path: Path) -> None:
    assert train(tmp_path, "--epochs", "1", "--shuffle-labels") < 0.5
    true, shuffled = (np.load(path / "data.npz", allow_pickle=False) for path in (trained[0], tmp_path))
    for name in true.files:
        np.testing.assert_array_equal(true[name], shuffled[name])


def test_events_tell_the_story_in_order(package: tuple[Path, list[dict[str, Any]]]) -> None:
    out, events = package
    names = [event["event"] for event in events if event["event"] != "variant.retried"]
    assert names[:5] == ["started", "source.loaded", "baseline", "exported", "variant.started"]
    assert sorted(names[4:10]) == [*["variant.made"] * 3, *["variant.started"] * 3]  # made beside each other
    assert names[10:] == [*("variant.measuring", "variant.done") * 3, "done"]
    assert events[-1]["kept"] == ["onnx-fp32", "onnx-fp16", "onnx-int8"]
    assert events[-1]["package"] == str(out)


def test_the_card_says_what_the_files_are(
    package: tuple[Path, list[dict[str, Any]]], trained: tuple[Path, float]
) -> None:
    out, events = package
    card = read_card(out)
    data = np.load(trained[0] / "data.npz", allow_pickle=False)
    assert {path.name for path in out.iterdir()} == {
        *("card.json", "golden.npz", "provenance.json", "digits-fp32.onnx", "digits-fp16.onnx", "digits-int8.onnx")
    }
    told = {event["variant"]: event for event in events if event["event"] == "variant.done"}
    evaluated = card.evaluation
    assert evaluated is not None
    for packaged in card.variants:
        variant, content = packaged.variant, (out / packaged.file).read_bytes()
        assert variant.blob.digest == f"sha256:{sha256(content).hexdigest()}"
        assert variant.blob.size == len(content)
        assert variant.metric == pytest.approx(accuracy(out / packaged.file, data))
        assert variant.metric is not None
        assert variant.metric_drop is not None
        assert variant.metric_drop == pytest.approx(evaluated.baseline - variant.metric)
        assert variant.metric_drop <= evaluated.allowed_drop + 1e-9
        assert variant.error.cosine > 0.99
        assert variant.needs.memory_bytes == variant.profile.peak_memory_bytes
        assert variant.profile.runs == 200
        assert told[variant.name]["metric"] == variant.metric
        for private in (str(EXAMPLE), str(trained[0]), sysconfig.get_paths()["purelib"]):
            assert private.encode() not in content
    assert evaluated.baseline == pytest.approx(trained[1], abs=1e-4)
    assert evaluated.samples == len(data["test_x"])
    assert [(t.name, t.datatype, t.shape) for t in card.signature.inputs] == [("input", "FP32", [-1, 1, 8, 8])]
    assert [(t.name, t.datatype, t.shape) for t in card.signature.outputs] == [("output", "FP32", [-1, 10])]
    digests = {
        n: sha256((p / n).read_bytes()).hexdigest() for p, n in ((trained[0], "weights.pt"), (EXAMPLE, "model.py"))
    }
    assert card.provenance.source_digests.items() >= digests.items()


def test_int8_is_smaller_and_needs_less_memory(package: tuple[Path, list[dict[str, Any]]]) -> None:
    by = {packaged.variant.precision: packaged.variant for packaged in read_card(package[0]).variants}
    assert by["int8"].blob.size < by["fp16"].blob.size < by["fp32"].blob.size
    assert by["int8"].blob.size < by["fp32"].blob.size / 3
    assert by["int8"].profile.peak_memory_bytes < by["fp32"].profile.peak_memory_bytes - 3_000_000
    assert by["fp32"].profile.peak_memory_bytes < 150_000_000  # torch alone would take more
    assert by["fp32"].error.max_abs < 1e-3


def test_golden_samples_are_the_sources_own_answers(package: tuple[Path, list[dict[str, Any]]]) -> None:
    out = package[0]
    card = read_card(out)
    content = (out / "golden.npz").read_bytes()
    assert card.golden.blob.digest == f"sha256:{sha256(content).hexdigest()}"
    golden = np.load(out / "golden.npz", allow_pickle=False)
    assert set(golden.files) == {"input.input", "output.output", "labels"}
    assert len(golden["input.input"]) == len(golden["labels"]) == card.golden.samples == 64
    session = onnxruntime.InferenceSession(str(out / "digits-fp32.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, {"input": golden["input.input"]})[0], golden["output.output"], rtol=1e-3, atol=1e-3
    )
    assert (golden["output.output"].argmax(axis=1) == golden["labels"]).mean() >= 0.95


def test_again_gives_the_same_bytes_and_replaces_the_package(
    package: tuple[Path, list[dict[str, Any]]], trained: tuple[Path, float], tmp_path: Path
) -> None:
    first, out = package[0], tmp_path / "again"
    out.mkdir()
    (out / "card.json").write_bytes((first / "card.json").read_bytes())
    (out / "left-over.onnx").write_bytes(b"of an older package")
    code, _, errors = run(*arguments(trained[0], out), "--runs", "5", "--no-cache")
    assert (code, errors) == (0, "")
    made = {path.name for path in first.iterdir()}
    assert {path.name for path in out.iterdir()} == made
    for name in made - {"card.json", "provenance.json"}:
        assert (out / name).read_bytes() == (first / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_what_the_builder_prints_stays_out_of_the_events(trained: tuple[Path, float], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("print('hello')\ndef build_model(): raise ValueError('no\\nmodel')\n")
    options = [*arguments(trained[0], tmp_path / "out"), "--torch", f"{tmp_path}/model.py:build_model"]
    code, events, errors = run(*options)
    assert (code, errors) == (1, "hello\n")
    assert [event["event"] for event in events] == ["started", "error"]
    assert events[-1]["element"] == "model.py:build_model"
    assert events[-1]["cause"] == "failed with ValueError at line 2: no"
    assert events[-1]["hint"]
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_stopped_leaves_nothing(trained: tuple[Path, float], tmp_path: Path) -> None:
    options = [*arguments(trained[0], tmp_path / "out"), "--variants", "fp32", "--no-cache"]
    with subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"variant.started"' in line:
                assert [path.name for path in tmp_path.iterdir()] == [f".out.{process.pid}.partial"]
                process.send_signal(signal.SIGTERM)
                break
        last = process.stdout.readlines()[-1]
        assert process.wait(timeout=LIMIT) == 143
    assert json.loads(last) == {"event": "error", "sentence": "stopped; nothing was published"}
    assert not list(tmp_path.iterdir())


def test_the_deployment_is_a_valid_one() -> None:
    wanted = msgspec.convert(yaml.safe_load((EXAMPLE / "deployment.yaml").read_text()), ModelDeployment)
    assert wanted.spec.model_version == "digits-v1"
    assert [wave.name for wave in wanted.spec.strategy.waves] == ["canary", "half", "all"]
    gates = wanted.spec.strategy.gates
    assert gates.accuracy is not None
    assert (gates.accuracy.min, gates.accuracy.min_samples) == (0.9, 32)
