"""Digits from PyTorch and from Keras through every format and precision: made, run by its engine, judged, measured."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.integration import test_serve_engines as served_engines
from tests.integration.serving import serving

from skerry.api.errors import SkerryError
from skerry.cli import examples
from skerry.core import card as cards
from skerry.optimize import toolchains
from skerry.serve import engines

EXAMPLE = Path(examples.__file__).parent / "digits"
LIMIT = 400
PYTORCH = {
    "tflite-fp32": {},
    "tflite-fp16": {},
    "tflite-int8-dynamic": {},
    "tflite-int8": {},
    "executorch-fp32": {},
    "executorch-int8": {},
    "torchscript-fp32": {},
    "torchscript-fp32-scripted": {"recipe": "scripted"},
    "torchscript-fp32-lite": {"recipe": "lite-interpreter"},
    "torchscript-int8-dynamic": {},
}
KERAS = {
    **{name: {} for name in ("onnx-fp32", "tflite-fp32", "tflite-fp16", "tflite-int8-dynamic", "tflite-int8")},
    **{name: {} for name in ("executorch-fp32", "executorch-int8", "torchscript-fp32", "torchscript-int8-dynamic")},
    "torchscript-fp32-lite": {"recipe": "graph-lite-interpreter"},
}
ENGINES = {"onnx": "onnxruntime", "tflite": "litert", "executorch": "executorch", "torchscript": "torchscript"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("formats")
    command = [sys.executable, "-B", str(EXAMPLE / "train.py"), "--out", str(out), "--epochs", "6"]
    subprocess.run(command, capture_output=True, check=True, timeout=LIMIT)
    return out


@pytest.fixture(scope="session")
def keras_model(trained: Path) -> Path:
    code = (
        "import numpy as np, keras\n"
        "from sklearn.datasets import load_digits\n"
        "keras.utils.set_random_seed(0)\n"
        f"data = dict(np.load('{trained}/data.npz'))\n"
        "for name in data:\n"
        "    if name.endswith('_x'): data[name] = np.ascontiguousarray(data[name].transpose(0, 2, 3, 1))\n"
        "x = (load_digits().images / 16).astype('float32')[..., None]\n"
        "L = keras.layers\n"
        "model = keras.Sequential([keras.Input((8, 8, 1), name='image'), L.Conv2D(16, 3, activation='relu'),\n"
        "    L.MaxPool2D(), L.Flatten(), L.Dense(64, activation='relu'), L.Dense(10, name='scores')])\n"
        "model.compile('adam', keras.losses.SparseCategoricalCrossentropy(from_logits=True))\n"
        "model.fit(x, load_digits().target, epochs=8, batch_size=32, verbose=0)\n"
        f"model.save('{trained}/digits.keras')\n"
        f"np.savez('{trained}/keras.npz', **data)\n"
    )
    subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, check=True, timeout=LIMIT)
    return trained


def optimise(out: Path, **wanted: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run the factory with an optimize.yaml; return its exit code and what it told."""
    recipe = {"name": "digits", "version": "v1", "out": str(out), "runs": 10, **wanted}
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-B", "-m", "skerry.optimize", "-f", str(file), "--no-cache", "--progress", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def pytorch(trained: Path, **more: Any) -> dict[str, Any]:
    source = {"path": f"{EXAMPLE}/model.py:build_model", "weights": str(trained / "weights.pt")}
    return {"source": source, "data": {"path": str(trained / "data.npz")}, **more}


def read(out: Path) -> dict[str, cards.PackagedVariant]:
    card = cards.decode((out / "card.json").read_bytes())
    assert card.rejected == []
    return {packaged.variant.name: packaged for packaged in card.variants}


@pytest.fixture(scope="session")
def from_pytorch(trained: Path) -> Path:
    out = trained / "pytorch"
    variants = [{"name": name, **options} for name, options in PYTORCH.items()]
    code, events = optimise(out, **pytorch(trained, variants=variants))
    assert code == 0, events[-1]
    return out


@pytest.fixture(scope="session")
def from_keras(keras_model: Path) -> Path:
    out = keras_model / "keras"
    code, events = optimise(
        out,
        source={"path": str(keras_model / "digits.keras")},
        data={"path": str(keras_model / "keras.npz")},
        variants=[{"name": name, **options} for name, options in KERAS.items()],
    )
    assert code == 0, events[-1]
    return out


def check(packaged: cards.PackagedVariant, out: Path) -> None:
    variant = packaged.variant
    assert variant.metric_drop is not None
    assert variant.metric_drop <= 0.01 + 1e-9
    assert variant.error.cosine > (0.9999 if variant.precision in {"fp32", "fp16"} else 0.98)
    assert variant.needs.engine == ENGINES[variant.format]
    assert variant.profile.peak_memory_bytes > 30_000_000
    content = (out / packaged.file).read_bytes()
    assert len(content) == variant.blob.size
    for private in (str(EXAMPLE), str(out.parent), str(Path(sys.executable).parent.parent)):
        assert private.encode() not in content


@pytest.mark.parametrize("name", PYTORCH)
def test_every_format_from_pytorch_keeps_the_accuracy(name: str, from_pytorch: Path) -> None:
    check(read(from_pytorch)[name], from_pytorch)


@pytest.mark.parametrize("name", KERAS)
def test_every_format_from_keras_keeps_the_accuracy(name: str, from_keras: Path) -> None:
    check(read(from_keras)[name], from_keras)


@pytest.mark.parametrize("name", KERAS)
def test_a_server_gives_the_answers_that_the_engine_gives_in_process(
    name: str, from_keras: Path, tmp_path: Path
) -> None:
    card = cards.decode((from_keras / "card.json").read_bytes())
    (file, engine) = next(
        (from_keras / packaged.file, packaged.variant.needs.engine)
        for packaged in card.variants
        if packaged.variant.name == name
    )
    with np.load(from_keras / "golden.npz") as golden:
        images = golden["input.image"]
    model = engines.open_engine(engine).load(file, card.signature, threads=1)
    with serving(tmp_path, *served_engines.options(tmp_path, engine, file, card.signature)) as served:
        for inputs in ({"image": images[:1]}, {"image": images[1:6]}):
            (expected,) = model.infer(inputs, ["scores"])
            for answered in (served_engines.ask_binary(served, inputs), served_engines.ask_json(served, inputs)):
                assert list(answered) == ["scores"]
                np.testing.assert_array_equal(answered["scores"], expected)


def test_lower_precision_makes_smaller_files(from_pytorch: Path) -> None:
    size = {name: packaged.variant.blob.size for name, packaged in read(from_pytorch).items()}
    assert size["tflite-fp16"] < size["tflite-fp32"] * 0.6
    assert size["tflite-int8"] < size["tflite-fp32"] * 0.3
    assert size["tflite-int8-dynamic"] < size["tflite-fp32"] * 0.3
    assert size["executorch-int8"] < size["executorch-fp32"] * 0.3
    assert size["torchscript-int8-dynamic"] < size["torchscript-fp32"] * 0.3


def test_the_same_model_gives_the_same_bytes_again(from_pytorch: Path, trained: Path) -> None:
    out = trained / "again"
    names = ("tflite-int8", "torchscript-fp32")
    code, events = optimise(out, **pytorch(trained, variants=[{"name": name} for name in names]))
    assert code == 0, events[-1]
    first, second = read(from_pytorch), read(out)
    assert {name: second[name].variant.blob for name in names} == {name: first[name].variant.blob for name in names}


def test_the_toolchain_converts_what_our_own_way_converts_too(from_pytorch: Path, trained: Path) -> None:
    try:
        toolchains.find("litert-torch")
    except SkerryError as error:
        pytest.skip(error.sentence)
    out = trained / "toolchain"
    variants = [
        {"name": "tflite-fp32", "recipe": "litert-torch"},
        {"name": "tflite-int8", "recipe": "litert-torch-static-per-channel"},
    ]
    code, events = optimise(out, **pytorch(trained, variants=variants))
    assert code == 0, events[-1]
    for packaged in read(out).values():
        check(packaged, out)


def test_a_toolchain_that_is_not_there_costs_only_its_variant(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_TOOLCHAIN_LITERT_TORCH", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    variants = [{"name": "tflite-fp32", "recipe": "litert-torch"}, {"name": "onnx-fp32"}]
    code, events = optimise(tmp_path / "out", **pytorch(trained, variants=variants))
    assert code == 3
    assert events[-1]["kept"] == ["onnx-fp32"]
    (refused,) = [event for event in events if event["event"] == "variant.rejected"]
    assert "skerry model toolchain install litert-torch" in refused["reason"]


def test_nonsense_is_rejected_by_its_accuracy(trained: Path, tmp_path: Path) -> None:
    """Activation ranges from samples that are all nothing: the file is made, runs, and is worth nothing."""
    with np.load(trained / "data.npz") as data:
        arrays = dict(data)
    arrays["calibration_x"] = np.full_like(arrays["calibration_x"], 1e-6)
    np.savez(tmp_path / "data.npz", **arrays)
    wanted = pytorch(trained, variants=[{"name": "tflite-int8"}, {"name": "onnx-fp32"}])
    code, events = optimise(tmp_path / "out", **wanted | {"data": {"path": str(tmp_path / "data.npz")}})
    assert code == 0, events[-1]
    (rejected,) = [event for event in events if event["event"] == "variant.rejected"]
    assert rejected["variant"] == "tflite-int8"
    assert rejected["metric"] < 0.5
    assert "below the source model's" in rejected["reason"]
