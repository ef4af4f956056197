"""What the factory keeps is what it read: files that change meanwhile, code from anywhere, other attempts' failures."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from skerry.optimize import cache, factory, request
from skerry.optimize.__main__ import DONE, ERROR, run
from skerry.optimize.pool import Job, Pool
from skerry.optimize.standby import Standby

MODEL = """
import os
import torch
from elsewhere.net import SCALE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) * SCALE

def build_model():
    return Net()
"""
METRIC = """
import beside

def score(outputs, answers):
    return float(abs(outputs[0] - answers).mean()) * beside.ONE

score.higher_is_better = False
"""
NEEDS_FILE = """
import pathlib

def fine_tune(module, amount):
    pathlib.Path(__file__).with_name("there").read_bytes()
"""
PARTS = ("test", "calibration", "golden")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose code comes from PYTHONPATH, as that of an editable package does."""
    directory, library = tmp_path / "site", tmp_path / "lib" / "elsewhere"
    directory.mkdir()
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")
    (library / "net.py").write_text("SCALE = 1.0\n")
    monkeypatch.setenv("PYTHONPATH", f"{library.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name, text in (("model.py", MODEL), ("metric.py", METRIC), ("beside.py", "ONE = 1\n"), ("tune.py", NEEDS_FILE)):
        (directory / name).write_text(text)
    write_weights(directory, 0)
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{part}_x": random.standard_normal((16, 4)).astype(np.float32) for part in PARTS}
    answers = np.zeros((16, 2), np.float32)
    np.savez(directory / "data.npz", **arrays, test_y=answers, golden_y=answers)
    return directory


def write_weights(directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(4, 2)
    torch.save({f"linear.{name}": value for name, value in linear.state_dict().items()}, directory / "w.pt")


class Watched(io.StringIO):
    """A stream that does something when an event is told."""

    def __init__(self, event: str = "", then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._event, self._then = event, then

    def write(self, text: str) -> int:
        if f'"{self._event}"' in text:
            self._then()
        return super().write(text)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def write_recipe(directory: Path, **changes: Any) -> Path:
    recipe = {
        "name": "small",
        "version": "v1",
        "source": {"path": "model.py:build_model", "weights": "w.pt"},
        "data": {"path": "data.npz"},
        "out": "package",
        "metric": "metric.py:score",
        "allowedDrop": 100,
        "runs": 5,
        "variants": ["onnx-fp32"],
    }
    file = directory / "optimize.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


def make(directory: Path, *more: str, stream: Watched | None = None) -> tuple[int, list[dict[str, Any]]]:
    told = stream or Watched()
    store = directory.parent / "cache"
    given = ["--file", str(directory / "optimize.yaml"), "--cache", str(store), "--progress", "json", *more]
    return run(given, told), told.events()


def names(events: list[dict[str, Any]]) -> set[str]:
    return {event["event"] for event in events}


@pytest.mark.parametrize("event", ["source.loaded", "variant.started"])
def test_weights_that_change_meanwhile_are_told_and_nothing_of_it_is_kept(site: Path, event: str) -> None:
    write_recipe(site)
    code, events = make(site, stream=Watched(event, lambda: write_weights(site, 1)))
    assert code == ERROR
    assert (events[-1]["element"], events[-1]["cause"]) in {
        ("w.pt", "changed while it was read"),
        ("model.py:build_model", "changed while it was read"),
    }
    assert not (site / "package").exists()
    kept = {path.name.partition("-")[0] for path in (site.parent / "cache").iterdir()}
    assert kept == ({"work"} if event == "source.loaded" else {"work", "import"})
    assert make(site)[0] == DONE
    random = np.load(site / "data.npz")["test_x"]
    weights = torch.load(site / "w.pt")
    expected = random @ weights["linear.weight"].numpy().T + weights["linear.bias"].numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(site / "package" / "small-fp32.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: random})
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_code_that_changes_after_it_was_imported_is_told(site: Path) -> None:
    write_recipe(site)
    code, events = make(site, stream=Watched("baseline", lambda: void((site / "beside.py").write_text("ONE = 2\n"))))
    assert code == ERROR
    assert (events[-1]["element"], events[-1]["cause"]) == ("beside.py", "changed while it was read")


def void(_: object) -> None:
    """Return nothing."""


def test_code_from_anywhere_counts(site: Path) -> None:
    write_recipe(site)
    assert make(site)[0] == DONE
    assert names(make(site)[1]) >= {"source.cached", "variant.cached"}
    (site.parent / "lib" / "elsewhere" / "net.py").write_text("SCALE = 3.0\n")
    code, events = make(site)
    assert code == DONE
    assert names(events) >= {"source.loaded", "variant.started"}


def test_what_a_step_could_not_make_is_tried_again_but_by_who_collects(site: Path) -> None:
    tuned = {"name": "onnx-fp32-tuned", "pruning": {"sparsity": 0.1, "fineTune": "tune.py:fine_tune"}}
    write_recipe(site, variants=["onnx-fp32", tuned])
    for step in ("import", "onnx-fp32", "onnx-fp32-tuned"):
        assert make(site, "--step", step)[0] == DONE
    collected = make(site, "--step", "collect")[1]
    assert "variant.started" not in names(collected)
    assert collected[-1]["rejected"] == ["onnx-fp32-tuned"]
    (site / "there").touch()  # what was missing
    code, events = make(site)
    assert code == DONE
    assert [event["variant"] for event in events if event["event"] == "variant.started"] == ["onnx-fp32-tuned"]
    assert events[-1]["rejected"] == []


FIRST = """
import json, pathlib, sys
mark = pathlib.Path(sys.argv[1])
if mark.exists():
    sys.exit(0)
mark.touch()
event = {"event": "error", "sentence": "too little memory", "element": "", "cause": "", "hint": ""}
print(json.dumps(event), flush=True)
"""


def test_what_an_earlier_attempt_said_does_not_outlive_it(site: Path) -> None:
    wanted = request.read(write_recipe(site), {})
    with Standby() as ready:
        told: list[str] = []
        made = factory._Run(
            wanted=wanted,
            cache=cache.Cache(site.parent / "cache"),
            tell=lambda name, **_: told.append(name),
            memory=1 << 30,
            ready=ready,
        )
        pool: Pool = factory._pool(made, parallel=1)
        job = Job(name="onnx-fp32", arguments=["-c", FIRST, str(site / "mark")], need=1)
        verdicts = [factory._heard(made, ended) for _ in range(2) for ended in pool.run([job])]
    assert told == ["variant.started", "variant.started"]
    assert verdicts[0] is not None
    assert verdicts[1] is None
