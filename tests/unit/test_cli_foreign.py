"""Directories that hold a model and are no package: what is said of them."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.cli import foreign
from skerry.cli.package import read_card


def test_a_graph_is_named_and_what_makes_a_package_of_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {}}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").touch()
    with pytest.raises(
        InvalidError, match=r"a Hugging Face model, not a package; onnx/model\.onnx can be made into one"
    ):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("config", "file", "cause"),
    [
        ({}, "model.safetensors", "weights only"),
        ({}, "pytorch_model.bin", "pickles"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "model.safetensors", "code of its own"),
        ({}, "README.md", "without a file that can be made into variants"),
    ],
)
def test_what_cannot_run_or_would_run_code_is_refused(
    tmp_path: Path, config: dict[str, object], file: str, cause: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).touch()
    with pytest.raises(UnsupportedError, match=cause):
        read_card(tmp_path)


def test_mlflow_is_told_by_its_description(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  python_function: {loader_module: mlflow.sklearn}\n")
    (tmp_path / "model.pkl").touch()
    with pytest.raises(UnsupportedError, match="an MLflow model of pickles"):
        read_card(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InvalidError, match=r"model\.onnx can be made into one"):
        read_card(tmp_path)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    (tmp_path / "secret.onnx").touch()
    (inside / "model.onnx").symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(InvalidError, match="leads out of the directory"):
        read_card(inside)


def test_anything_else_is_just_no_package(tmp_path: Path) -> None:
    assert foreign.explain(tmp_path) is None
    with pytest.raises(InvalidError, match=r"card\.json"):
        read_card(tmp_path)


@given(st.binary(max_size=200), st.sampled_from(["MLmodel", "config.json"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_whatever_a_description_says_is_one_of_our_errors(tmp_path: Path, raw: bytes, name: str) -> None:
    for other in tmp_path.iterdir():
        other.unlink()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(SkerryError):
        read_card(tmp_path)
