"""The import of a whole source, as its worker does it: what it leaves for the variants."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from skerry.api.errors import InvalidError
from skerry.optimize import importing, jobs
from skerry.optimize.jobs import Facts, ImportJob
from skerry.optimize.recipe import Optimization
from skerry.optimize.standby import Standby

MODEL = """
import torch
from helper import features

def build_model():
    return torch.nn.Linear(features(), 2)
"""
HELPER = "def features():\n    return 4\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with a builder, what it imports, its weights, and data."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text(HELPER)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / "w.pt")
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{part}_x": random.standard_normal((40, 4)).astype(np.float32) for part in PARTS}
    labels = np.arange(40) % 2
    np.savez(tmp_path / "data.npz", **arrays, test_y=labels, golden_y=labels)
    return tmp_path


PARTS = ("test", "calibration", "golden")


def run(site: Path, **changes: Any) -> Facts:
    wanted = {
        "name": "small",
        "version": "v1",
        "source": {"path": f"{site}/model.py:build_model", "kind": "pytorch", "weights": f"{site}/w.pt"},
        "data": {"path": f"{site}/data.npz"},
        "out": f"{site}/package",
    }
    directory = site / "import"
    directory.mkdir()
    job = ImportJob(optimization=msgspec.convert(wanted | changes, Optimization), directory=str(directory))
    with Standby() as ready:
        importing.run(job, lambda *_said, **_more: None, ready)
    return jobs.read_facts(directory)


def test_it_may_run_in_the_builders_own_directory(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    read = run(site).read
    assert {name for name in read if name.startswith("source/")} == {"source/model.py", "source/helper.py"}


def test_a_metric_of_the_users_is_named_by_its_file_and_its_failure_is_a_sentence(site: Path) -> None:
    code = 'def score(outputs, answers):\n    return 0.5\n\ndef bad(outputs, answers):\n    return {}["x"]\n'
    (site / "metric.py").write_text(code)
    assert run(site, metric=f"{site}/metric.py:score").metric == "metric.py:score"
    (site / "import").rename(site / "first")
    with pytest.raises(InvalidError, match=r"metric\.py:bad: failed with KeyError at line 5"):
        run(site, metric=f"{site}/metric.py:bad")
