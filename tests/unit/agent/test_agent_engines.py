"""Engines: found by their packages' metadata, in whichever interpreter runs the servers."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from skerry.agent import engines
from skerry.api.kinds.device import EngineFacts
from skerry.core.engines import ENGINES


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all another interpreter sees of packages: one without site-packages."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def add(packages: Path, name: str, number: str) -> None:
    directory = packages / f"{name.replace('-', '_')}-{number}.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def test_what_is_installed_here_is_found_with_its_version() -> None:
    assert EngineFacts(name="onnxruntime", version=version("onnxruntime")) in engines.find()


def test_finding_engines_imports_none() -> None:
    code = (
        "import sys\n"
        "from skerry.agent import engines\n"
        "assert engines.find()\n"
        "loaded = {'onnxruntime', 'torch', 'numpy', 'ai_edge_litert', 'executorch'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_engines_of_another_interpreter_are_asked_there(packages: Path) -> None:
    python = str(packages / "python")
    assert engines.find(python) == []
    for name, number in [("numpy", "2.4.6"), ("httptools", "0.9.0"), ("ai-edge-litert", "2.3.0")]:
        add(packages, name, number)
    assert engines.find(python) == [EngineFacts(name="litert", version="2.3.0")]


def test_an_engine_that_lacks_what_it_needs_is_not_offered_and_the_report_says_what(packages: Path) -> None:
    python = str(packages / "python")
    add(packages, "executorch", "1.5.1")
    add(packages, "onnxruntime-gpu", "1.32.0")
    add(packages, "numpy", "2.4.6")
    found = {one.name: one for one in engines.survey(python)}
    assert engines.find(python) == []
    assert list(found) == list(ENGINES)
    assert (found["executorch"].version, found["executorch"].missing) == ("1.5.1", ["torch", "httptools"])
    assert found["onnxruntime"].version == "1.32.0", "any of the distributions that hold it"
    assert found["onnxruntime"].missing == ["httptools"], "what the server itself needs"
    assert found["litert"].missing == ["ai-edge-litert", "httptools"]
    assert found["litert"].install == "pip install 'skerry[litert]'"


@pytest.mark.parametrize("python", ["/does/not/exist", "/bin/false", "/bin/echo"])
def test_an_interpreter_that_cannot_be_asked_offers_nothing(python: str, caplog: pytest.LogCaptureFixture) -> None:
    assert engines.find(python) == []
    assert "engines.not_asked" in caplog.text


def test_the_table_names_every_engine_and_format_of_a_variant() -> None:
    from typing import get_args

    from skerry.api.kinds.variants import Engine, Format

    assert tuple(ENGINES) == get_args(Engine)
    assert {one.format for one in ENGINES.values()} == set(get_args(Format))
