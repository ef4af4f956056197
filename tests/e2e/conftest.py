"""A site for end-to-end tests: a trained and packaged model, a hub process, agents as processes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.site import Site

from skerry.cli.demo.programs import SKERRY, Programs
from skerry.cli.example import copy_out


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Programs(tmp_path) as programs:
        yield Site(tmp_path, programs)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model, trained shortly, as one fp32 variant."""
    directory = tmp_path_factory.mktemp("digits")
    copy_out("digits", directory / "digits")
    script = str(directory / "digits" / "train.py")
    trained = [sys.executable, script, "--out", str(directory / "v1"), "--epochs", "4"]
    subprocess.run(trained, check=True, capture_output=True, timeout=300)
    optimize = [
        *(*SKERRY, "model", "optimize", "--torch", f"{directory}/digits/model.py:build_model", "--variants", "fp32"),
        *("--weights", f"{directory}/v1/weights.pt", "--data", f"{directory}/v1/data.npz", "--name", "digits"),
        *("--model-version", "v1", "--out", f"{directory}/package"),
    ]
    subprocess.run(optimize, check=True, capture_output=True, timeout=300)
    return directory / "package"


DEPLOYMENT = """\
apiVersion: skerry.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: digits
spec:
  modelVersion: digits-v1
  deviceSelector:
    matchLabels: {site: lab}
  strategy:
    waves: [{count: 1}, {count: 2}, {count: 3}, {percent: 100}]
    bakeTime: 500ms
    gates:
      accuracy: {min: 0.9}
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT)
    return path
