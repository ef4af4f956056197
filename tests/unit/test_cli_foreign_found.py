"""What a model's directory says of itself, and what hostile ones get."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.api.errors import BadRequestError, InvalidError, SkerryError, UnsupportedError
from skerry.cli import foreign, importing
from skerry.core.card import About


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "onnx").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "onnx/model.onnx").touch()
    return directory


def about(directory: Path) -> About:
    found = foreign.recognise(directory)
    assert found is not None
    return found.about


def test_front_matter_and_the_first_words_are_taken(model: Path) -> None:
    (model / "README.md").write_text(
        "---\nlicense: mit\npipeline_tag: image-classification\ntags: [a, 7, b]\n---\n"
        "# Title\n\nFirst\nwords.\n\nMore.\n"
    )
    assert about(model) == About(
        license="mit", task="image-classification", tags=["a", "b"], description="First words."
    )


def test_a_readme_without_front_matter_still_describes(model: Path) -> None:
    (model / "README.md").write_text("# Title\n\nWords.\n")
    assert about(model) == About(description="Words.")


def test_mlflow_metadata_is_taken_and_graphs_beside_it(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {onnx: {data: model.onnx}}\nmetadata: {license: mit, task: scoring}\n")
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.pte").touch()
    found = foreign.recognise(tmp_path)
    assert found is not None
    assert (found.kind, found.about) == ("an MLflow model", About(license="mit", task="scoring"))
    assert [path.name for path in (*found.graphs, *found.skipped)] == ["model.onnx", "model.pte"]


def test_cloudpickled_functions_are_refused(tmp_path: Path) -> None:
    flavors = "flavors: {python_function: {loader_module: mlflow.pyfunc.model, cloudpickle_version: 3.1.1}}\n"
    (tmp_path / "MLmodel").write_text(flavors)
    (tmp_path / "python_model.pkl").touch()
    with pytest.raises(UnsupportedError, match="of pickles"):
        foreign.recognise(tmp_path)


def test_words_cannot_steer_a_terminal_nor_fill_a_card(model: Path) -> None:
    front = {"license": "a\x1b[2Jb\u202ec", "tags": ["t" * 999] * 999, "model_description": "d" * 9999}
    (model / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n")
    said = about(model)
    assert said.license == "a[2Jbc"
    assert (len(said.tags), len(said.tags[0]), len(said.description)) == (32, 200, 2000)


def test_bombs_in_yaml_are_not_unfolded(model: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (model / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    with pytest.raises(BadRequestError):
        foreign.recognise(model)
    (model / "MLmodel").write_text("\n".join(lines))
    with pytest.raises(BadRequestError):
        foreign.recognise(model)


def test_deep_json_is_refused(model: Path) -> None:
    (model / "config.json").write_text("[" * 100_000)
    with pytest.raises(BadRequestError, match="nested deeper"):
        foreign.recognise(model)


@pytest.mark.parametrize("name", ["config.json", "README.md", "MLmodel"])
def test_a_description_of_a_gigabyte_is_not_read(model: Path, name: str) -> None:
    with (model / name).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidError, match="larger than"):
        foreign.recognise(model)


@pytest.mark.parametrize("name", ["README.md", "config.json", "onnx/more.onnx", "deeper"])
def test_links_that_lead_out_or_nowhere_are_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret" if name == "deeper" else tmp_path / "secret/file")
    with pytest.raises(InvalidError, match="leads out of the directory"):
        foreign.recognise(model)


def test_a_link_to_itself_is_no_file(model: Path) -> None:
    os.symlink("loop.onnx", model / "loop.onnx")
    found = foreign.recognise(model)
    assert found is not None
    assert [path.name for path in found.graphs] == ["model.onnx"]


@pytest.mark.parametrize("name", ["a/b", "../up", "Upper", "a" * 64, "a\n", ""])
def test_names_that_are_none_are_refused_before_anything_runs(model: Path, tmp_path: Path, name: str) -> None:
    found = foreign.recognise(model)
    assert found is not None
    with pytest.raises(InvalidError, match="is not a name"):
        importing.adopt(found, tmp_path / "out", name=name or "-", version="v1")
    with pytest.raises(InvalidError, match="is not a name"):
        importing.adopt(found, tmp_path / "out", name="fine", version=name)
    assert not (tmp_path / "out").exists()


@given(st.text(max_size=300), st.sampled_from(["MLmodel", "README.md"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_whatever_is_written_is_words_or_one_of_our_errors(model: Path, text: str, name: str) -> None:
    (model / name).write_text(f"---\n{text}\n---\n{text}", encoding="utf-8", errors="replace")
    try:
        said = about(model)
    except SkerryError:
        return
    finally:
        (model / name).unlink()
    words = said.license + said.task + said.description + "".join(said.tags)
    assert words.isprintable()
