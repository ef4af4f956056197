"""`skerry model import` as users run it: real graphs become packages, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.models import directories

from skerry.core import card as cards
from skerry.core.card import About, EvaluationCard


def import_model(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "skerry.cli", "model", "import", str(directory), "--runs", "5", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def imported(directory: Path, into: Path, *options: str) -> EvaluationCard:
    done = import_model(directory, "--into", str(into), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return cards.decode((into / cards.CARD_FILE).read_bytes())


def test_without_data_the_graph_of_the_highest_precision_answers(tmp_path: Path) -> None:
    model = directories.hugging_face(tmp_path / "Tiny_Model")
    onnx.save(directories.graph("other"), str(model / "onnx/unlike.onnx"))
    (model / "broken.onnx").write_bytes(b"no graph")
    (model / "program.pte").touch()
    card = imported(model, tmp_path / "package")
    assert (card.model, card.version, card.evaluation) == ("tiny-model", "v1", None)
    assert card.about == About(
        license="apache-2.0", task="tabular-classification", tags=["tiny"], description="A tiny model."
    )
    variants = [packaged.variant for packaged in card.variants]
    assert [(v.name, v.needs.engine, v.metric) for v in variants] == [
        ("onnx-fp32", "onnxruntime", None),
        ("onnx-int8-dynamic", "onnxruntime", None),
    ]
    assert variants[0].error.max_abs == 0
    assert 0 < variants[1].error.max_abs < 0.2
    assert all(v.profile.latency_p50_ms > 0 and v.profile.peak_memory_bytes > 0 for v in variants)
    reasons = {one.name: one.reason for one in card.rejected}
    assert set(reasons) == {"program.pte", "broken.onnx", "onnx-fp32-unlike"}
    assert "does not name its tensors" in reasons["program.pte"]
    assert "broken.onnx" in reasons["broken.onnx"]
    assert "onnx/unlike.onnx" in reasons["onnx-fp32-unlike"]
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} <= set(card.provenance.source_digests)
    with np.load(tmp_path / "package" / cards.GOLDEN_FILE) as golden:
        assert set(golden.files) == {"input.x", "output.y"}
        assert np.allclose(golden["input.x"] @ directories.WEIGHTS, golden["output.y"], atol=1e-5)
    alone = onnx.load(tmp_path / "package" / card.variants[0].file, load_external_data=False)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in alone.graph.initializer)


def test_with_data_each_file_is_judged_by_the_best(tmp_path: Path) -> None:
    model = directories.hugging_face(tmp_path / "tiny")
    data = str(directories.data(tmp_path / "data.npz"))
    card = imported(model, tmp_path / "package", "--data", data, "--version", "v7", "--allowed-drop", "0.2")
    assert card.version == "v7"
    assert card.evaluation is not None
    assert (card.evaluation.metric, card.evaluation.baseline, card.evaluation.samples) == ("accuracy", 1.0, 64)
    metrics = {packaged.variant.name: packaged.variant.metric for packaged in card.variants}
    assert metrics["onnx-fp32"] == 1.0
    assert 0.8 <= (metrics["onnx-int8-dynamic"] or 0) <= 1.0
    with np.load(tmp_path / "package" / cards.GOLDEN_FILE) as golden:
        assert len(golden["labels"]) == card.golden.samples == 16


def test_what_loses_too_much_is_rejected(tmp_path: Path) -> None:
    model = directories.hugging_face(tmp_path / "tiny")
    worse = directories.quantised()
    worse.graph.initializer[0].raw_data = bytes(24)  # all weights 0: it always answers the same
    onnx.save(worse, str(model / "onnx/model_quantized.onnx"))
    card = imported(model, tmp_path / "package", "--data", str(directories.data(tmp_path / "data.npz")))
    assert [packaged.variant.name for packaged in card.variants] == ["onnx-fp32"]
    assert "worse than the reference's 1.0000, more than the allowed 0.01" in card.rejected[0].reason
    assert not list((tmp_path / "package").glob("*int8*"))


def test_mlflow_is_imported(tmp_path: Path) -> None:
    card = imported(directories.mlflow(tmp_path / "run"), tmp_path / "package", "--name", "scores")
    assert (card.model, [packaged.file for packaged in card.variants]) == ("scores", ["scores-fp32.onnx"])


def test_where_nothing_can_be_used_nothing_is_there(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.onnx").write_bytes(b"no graph")
    done = import_model(model, "--into", str(tmp_path / "package"))
    assert done.returncode != 0
    assert "no graph can be used (model.onnx" in done.stderr.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / "letter.txt").write_text("dear")
    done = import_model(directories.mlflow(tmp_path / "run"), "--into", str(kept))
    assert done.returncode != 0
    assert [path.name for path in kept.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("location", ["../secret", "link"])
def test_weights_outside_of_the_directory_are_not_read(tmp_path: Path, location: str) -> None:
    model = directories.mlflow(tmp_path / "run")
    (tmp_path / "secret").write_bytes(directories.WEIGHTS.tobytes())
    if location == "link":
        (model / "link").symlink_to(tmp_path / "secret")
    made = directories.graph()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (model / "model.onnx").write_bytes(made.SerializeToString())
    done = import_model(model, "--into", str(tmp_path / "package"))
    assert done.returncode != 0
    assert "no graph can be used" in done.stderr or "leads out of the directory" in done.stderr
    assert not (tmp_path / "package").exists()


def test_what_the_factory_made_is_told_by_its_contents(tmp_path: Path) -> None:
    onnx.save(directories.graph(), str(tmp_path / "tiny.onnx"))
    data = str(directories.data(tmp_path / "data.npz"))
    wanted = {"onnx-fp16", "onnx-int8", "tflite-fp32", "tflite-fp16", "tflite-int8", "tflite-int8-dynamic"}
    model = tmp_path / "model"
    argv = [sys.executable, "-m", "skerry.optimize", "--source", str(tmp_path / "tiny.onnx"), "--data", data]
    argv += ["--name", "tiny", "--model-version", "v1", "--variants", ",".join(sorted(wanted)), "--runs", "1"]
    subprocess.run([*argv, "--allowed-drop", "0.5", "--out", str(model)], check=True, capture_output=True, timeout=300)
    made = cards.decode((model / cards.CARD_FILE).read_bytes())
    (model / cards.CARD_FILE).unlink()
    (model / "config.json").write_text("{}")
    card = imported(model, tmp_path / "package", "--name", "again")
    assert {one.variant.name for one in card.variants} == wanted
    given = {one.variant.name: one.variant.blob for one in made.variants}
    kept = {one.variant.name: one.variant.blob for one in card.variants}
    assert {name: kept[name] for name in wanted if name.startswith("tflite")} == {
        name: given[name] for name in wanted if name.startswith("tflite")
    }
    assert card.variants[0].variant.name == "tflite-fp32"  # the highest precision is the reference
