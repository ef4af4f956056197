"""What the factory keeps, tries again, rejects or cannot make, on small models made to cause it."""

import io
import itertools
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skerry.core import card as cards
from skerry.optimize.__main__ import DONE, ERROR, PARTIAL, USAGE, run

WIDTH = 32
CHAIN = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8),
    )
"""
WITHOUT_WEIGHTS = """
from torch import nn

class Folded(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 8, 4).amax(dim=2)

def build_model():
    return Folded()
"""


def chain(*, spread: float = 0.0, outlier: float = 1.0) -> torch.nn.Sequential:
    """The module of CHAIN with seeded weights that give the same answers for any `spread` and `outlier`.

    `spread` scales hidden channels apart by that many powers of ten and back again; `outlier` expects the first input
    to be that many times larger.
    """
    torch.manual_seed(3)
    layers: list[torch.nn.Module] = []
    for index in range(5):
        layers += [torch.nn.Linear(WIDTH, 8 if index == 4 else WIDTH), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    linear = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        linear[0].weight[:, 0].div_(outlier)
        for layer, following in itertools.pairwise(linear):
            scale = torch.pow(10, (torch.rand(WIDTH) - 0.5) * spread)
            layer.weight.mul_(scale[:, None])
            layer.bias.mul_(scale)
            following.weight.div_(scale)
    return module


class Inputs:
    """Files of one run of the factory, with labels that are the model's own answers: its baseline is 1."""

    def __init__(self, directory: Path, module: torch.nn.Module, code: str, *, outlier: float = 1.0) -> None:
        self.directory = directory
        (directory / "model.py").write_text(textwrap.dedent(code))
        torch.save(module.state_dict(), directory / "w.pt")
        random = np.random.default_rng(0)
        samples = random.standard_normal((400, WIDTH)).astype(np.float32)
        samples[:, 0] *= outlier
        with torch.no_grad():
            labels = module(torch.from_numpy(samples)).argmax(dim=1).numpy()
        self.arrays: dict[str, Any] = {
            "test_x": samples[:250],
            "test_y": labels[:250],
            "calibration_x": samples[250:350],
            "golden_x": samples[350:],
            "golden_y": labels[350:],
        }
        self.write()

    @property
    def out(self) -> Path:
        return self.directory / "package"

    def write(self, **changes: Any) -> None:
        np.savez(self.directory / "data.npz", **(self.arrays | changes))

    def run(self, *options: str, progress: str = "json") -> tuple[int, str]:
        given = {
            "--torch": f"{self.directory}/model.py:build_model",
            "--weights": f"{self.directory}/w.pt",
            "--data": f"{self.directory}/data.npz",
            "--name": "m",
            "--model-version": "v1",
            "--out": str(self.out),
            "--runs": "5",
            "--progress": progress,
        }
        stream = io.StringIO()
        return run([*(part for pair in given.items() for part in pair), *options], stream), stream.getvalue()

    def make(self, *options: str) -> tuple[int, list[dict[str, Any]]]:
        code, text = self.run(*options)
        return code, [json.loads(line) for line in text.splitlines()]

    def card(self) -> cards.EvaluationCard:
        return cards.decode((self.out / "card.json").read_bytes())


@pytest.fixture
def plain(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path, chain(), CHAIN)


def retried(events: list[dict[str, Any]]) -> list[str]:
    return [event["recipe"] for event in events if event["event"] == "variant.retried"]


def test_a_variant_that_lost_its_accuracy_is_rejected_with_the_reason(tmp_path: Path) -> None:
    """Channels of very different size in one tensor: eight bits cannot hold them, per channel or not."""
    inputs = Inputs(tmp_path, chain(spread=8), CHAIN)
    code, events = inputs.make("--variants", "fp32,int8")
    assert code == DONE
    card = inputs.card()
    assert card.evaluation is not None
    assert card.evaluation.baseline == 1
    assert [packaged.variant.name for packaged in card.variants] == ["onnx-fp32"]
    (rejected,) = card.rejected
    assert rejected.name == "onnx-int8"
    assert rejected.metric is not None
    assert rejected.metric < 0.9
    assert f"accuracy {rejected.metric:.4f} is" in rejected.reason
    assert "more than the allowed 0.01" in rejected.reason
    ways = ("per-channel", "per-tensor", "percentile", "entropy", "float-ends")
    recipes = [f"static-qdq-{way}" for way in ways]
    assert all(recipe in rejected.reason for recipe in recipes)
    assert retried(events) == recipes[:-1]
    told = next(event for event in events if event["event"] == "variant.rejected")
    assert told["reason"] == rejected.reason
    assert not told["failed"]
    assert sorted(path.name for path in inputs.out.iterdir()) == [
        "card.json",
        "golden.npz",
        "m-fp32.onnx",
        "provenance.json",
    ]


def test_the_next_recipe_may_save_a_variant(tmp_path: Path) -> None:
    """One input a thousand times larger than the others: only a first layer left in float32 still sees those."""
    inputs = Inputs(tmp_path, chain(outlier=1000), CHAIN, outlier=1000)
    code, events = inputs.make("--variants", "int8", "--allowed-drop", "0.15")
    assert code == DONE
    assert retried(events) == [f"static-qdq-{way}" for way in ("per-channel", "per-tensor", "percentile", "entropy")]
    (packaged,) = inputs.card().variants
    assert packaged.variant.recipe == "static-qdq-float-ends"
    assert packaged.variant.metric_drop is not None
    assert packaged.variant.metric_drop <= 0.15
    assert inputs.card().rejected == []


def test_without_any_survivor_there_is_no_package(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, chain(spread=8), CHAIN)
    code, events = inputs.make("--variants", "int8")
    assert code == ERROR
    assert "m: no variant survives (onnx-int8: accuracy" in events[-1]["sentence"]
    assert "--allowed-drop" in events[-1]["hint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "model.py", "w.pt"]


def test_a_variant_that_cannot_be_made_does_not_stop_the_others(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.forward = lambda x: x.reshape(-1, 8, 4).amax(dim=2)  # type: ignore[method-assign]
    inputs = Inputs(tmp_path, module, WITHOUT_WEIGHTS)
    code, events = inputs.make()
    assert code == PARTIAL
    assert [packaged.variant.name for packaged in inputs.card().variants] == ["onnx-fp32", "onnx-fp16"]
    (rejected,) = inputs.card().rejected
    assert rejected.metric is None
    assert "has no layer whose weights can be int8" in rejected.reason
    assert next(event for event in events if event["event"] == "variant.rejected")["failed"]


def test_exactly_the_allowed_drop_is_allowed(plain: Inputs) -> None:
    labels = plain.arrays["test_y"].copy()
    labels[:25] = (labels[:25] + 1) % 8
    plain.write(test_y=labels)
    code, _ = plain.make("--variants", "fp32", "--allowed-drop", "0")
    assert code == DONE
    evaluation = plain.card().evaluation
    assert evaluation is not None
    assert evaluation.baseline == pytest.approx(0.9)
    assert plain.card().variants[0].variant.metric == pytest.approx(0.9)


def test_options_reach_the_card(plain: Inputs) -> None:
    code, _ = plain.make("--variants", "fp32,fp32", "--metric", "f1-macro", "--golden", "9", "--seed", "7")
    assert code == DONE
    card = plain.card()
    assert len(card.variants) == 1
    assert card.variants[0].variant.profile.runs == 5
    assert card.evaluation is not None
    assert (card.evaluation.metric, card.golden.samples, card.provenance.seed) == ("f1-macro", 9, 7)


def test_people_get_lines_they_can_read(plain: Inputs) -> None:
    code, text = plain.run("--variants", "fp32", progress="text")
    assert code == DONE
    started, loaded, baseline, exported, variant, done = text.splitlines()
    assert started == "m v1: making onnx-fp32"
    assert loaded.startswith("loaded the pytorch model")
    assert baseline == "baseline: accuracy 1.0000 on 250 test samples"
    assert exported.startswith("exported to ONNX")
    assert variant.startswith("onnx-fp32")
    assert done.startswith(f"{plain.out}: kept 1")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--torch", "absent.py:build_model"], ERROR, ("absent.py: no such file", "model.py:build_model")),
        (["--weights", __file__], ERROR, ("test_factory_verdicts.py: ", "torch.save(model.state_dict(), path)")),
        (["--data", __file__], ERROR, ("is not an .npz archive", "test_x")),
        (["--out", os.path.dirname(__file__)], ERROR, ("holds files and is not a model package", "another --out")),
        (["--out", "/proc/package"], ERROR, ("/proc/package: cannot be written",)),
        (["--name", "Digits!"], ERROR, ("--name", "a-z and 0-9")),
        (["--variants", "fp32,int3"], ERROR, ("--variants", "int3", "fp32, fp16, int8")),
        (["--variants", ","], ERROR, ("--variants", "has 0 entries", "fp32, fp16")),
        (["--metric", "mood"], ERROR, ("--metric", "accuracy, top-<k>, f1-macro")),
        (["--golden", "0"], ERROR, ("--golden: 0 is out of range", "at least 1")),
        (["--allowed-drop", "much"], USAGE, ("--allowed-drop", "much")),
        (["--golden"], USAGE, ("--golden", "--help")),
        (["--progress", "loud"], USAGE, ("--progress", "loud")),
    ],
)
def test_wrong_options_are_answered_in_one_sentence(
    plain: Inputs, options: list[str], code: int, words: tuple[str, ...]
) -> None:
    ended, text = plain.run(*options)
    sentence = json.loads(text.splitlines()[-1])["sentence"] if "loud" not in options else text.strip()
    assert ended == code
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert sorted(path.name for path in plain.directory.iterdir()) == ["data.npz", "model.py", "w.pt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({name: np.zeros((9, 7), np.float32) for name in ("test_x", "calibration_x", "golden_x")}, ("[batch, 7]",)),
        ({"test_y": np.full(250, 8)}, ("data.npz, array test_y: holds class 8", "8 classes, counted from 0")),
        ({"golden_y": np.full(50, 99)}, ("array golden_y: holds class 99",)),
    ],
)
def test_data_that_does_not_fit_the_model(plain: Inputs, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    if "test_x" in changes:
        changes |= {"test_y": np.zeros(9, np.int64), "golden_y": np.zeros(9, np.int64)}
    plain.write(**changes)
    code, events = plain.make()
    assert code == ERROR
    assert all(word in events[-1]["sentence"] for word in words), events[-1]["sentence"]
    assert not plain.out.exists()


def test_a_model_that_gives_no_scores_is_refused(plain: Inputs) -> None:
    (plain.directory / "model.py").write_text(CHAIN.replace("nn.Linear(32, 8),", "nn.Linear(32, 8), nn.Softmax(1),"))
    assert plain.make("--variants", "fp32")[0] == DONE
    code = CHAIN.replace("nn.Linear(32, 8),", "nn.Linear(32, 8), nn.Unflatten(1, (2, 4)),")
    (plain.directory / "model.py").write_text(code)
    ended, events = plain.make("--variants", "fp32")
    assert ended == ERROR
    assert "its first output has shape [batch, 2, 4]" in events[-1]["sentence"]
    code = CHAIN.replace("nn.Linear(32, 8),", "nn.Linear(32, 8), nn.Threshold(1e9, float('inf')),")
    (plain.directory / "model.py").write_text(code)
    ended, events = plain.make("--variants", "fp32")
    assert ended == ERROR
    assert "gives NaN or infinite outputs on the test set" in events[-1]["sentence"]
