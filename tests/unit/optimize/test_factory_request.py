"""What is asked is checked before any work begins, with the option or the file's field as the element."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import BadRequestError, InvalidError, NotFoundError
from skerry.optimize import jobs, request
from skerry.optimize.recipe import FORMATS, PRECISIONS, Optimization

GIVEN: dict[str, Any] = {
    "--torch": "model.py:build_model",
    "--weights": "w.pt",
    "--data": "data.npz",
    "--out": "out",
    "--name": "digits",
    "--model-version": "v1",
}
FILE: dict[str, Any] = {
    "name": "digits",
    "version": "v1",
    "source": {"path": "model.py:build_model", "weights": "w.pt"},
    "data": {"path": "data.npz"},
    "out": "package",
}


def read(**changes: Any) -> Optimization:
    """Read options; an argument's name is its option's, None leaves it out."""
    options = GIVEN | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return request.read(None, {name: value for name, value in options.items() if value is not None})


def read_file(directory: Path, changes: Any = None, **options: Any) -> Optimization:
    file = directory / "optimize.yaml"
    file.write_text(yaml.safe_dump(FILE | (changes or {})))
    return request.read(file, {f"--{name.replace('_', '-')}": value for name, value in options.items()})


@pytest.mark.parametrize("name", ["digits", "a", "face-id", "v1.2.3", "a--b", "0"])
def test_names_that_are_good_everywhere(name: str) -> None:
    assert read(name=name, model_version=name).name == name


@pytest.mark.parametrize(
    "name", ["", "Digits", "-a", "a-", "a..b", "a.-b", "a/b", "../a", "a_b", "a b", "x" * 129, "a\n"]
)
@pytest.mark.parametrize("option", ["name", "model_version"])
def test_names_that_are_not(name: str, option: str) -> None:
    with pytest.raises(InvalidError, match=f"--{option.replace('_', '-')}"):
        read(**{option: name})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("variants", ","),
        ("variants", "fp32,int3"),
        ("variants", "fp32-"),
        ("variants", "onnx"),
        ("variants", "tflite-fp32,onnx_int8"),
        ("allowed_drop", -0.1),
        ("allowed_drop", 5.0),
        ("allowed_drop", float("nan")),
        ("metric", "mood"),
        ("golden", 0),
        ("golden", 10**6),
        ("runs", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("memory", "much"),
        ("parallel", 0),
        ("timeout", 0),
        ("kind", "caffe"),
        ("torch", None),
        ("data", None),
        ("out", None),
    ],
)
def test_values_that_are_refused_by_the_options_name(option: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=f"--{option.replace('_', '-')}"):
        read(**{option: value})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        read(golden=0, seed=-1, name="A")
    assert {problem.element for problem in caught.value.each} == {"--golden", "--seed", "--name"}


@settings(deadline=None)
@given(st.floats(0, 1))
def test_any_share_is_an_allowed_drop(share: float) -> None:
    assert read(allowed_drop=share).allowed_drop == share


def test_an_error_metric_may_drop_by_more_than_one() -> None:
    assert read(metric="mae", allowed_drop=3.0).allowed_drop == 3


def test_a_precision_alone_means_onnx_and_a_name_twice_is_one() -> None:
    wanted = read(variants="fp32, fp32,int8-dynamic,tflite-int8,int8-pruned50")
    assert [v.name for v in wanted.variants] == ["onnx-fp32", "onnx-int8-dynamic", "tflite-int8", "onnx-int8-pruned50"]
    assert [v.name for v in read().variants] == ["onnx-fp32", "onnx-fp16", "onnx-int8"]


@given(st.sampled_from(FORMATS), st.sampled_from(PRECISIONS), st.from_regex(r"(-[a-z0-9]{1,5}){0,2}", fullmatch=True))
def test_every_variants_name_says_its_format_and_precision(form: str, precision: str, word: str) -> None:
    wanted = read(variants=f"{form}-{precision}{word}")
    found = jobs.parse_name(wanted.variants[0].name)
    assert found == (form, "int8-dynamic" if f"{precision}{word}-".startswith("int8-dynamic-") else precision)


@given(st.lists(st.tuples(st.sampled_from(FORMATS), st.sampled_from(PRECISIONS)), unique=True, min_size=2))
def test_no_two_variants_share_a_file(pairs: list[tuple[str, str]]) -> None:
    assert len({jobs.file_name("m", f"{form}-{precision}") for form, precision in pairs}) == len(pairs)


def test_the_file_and_the_options_make_the_same_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_file = read_file(tmp_path, {"source": FILE["source"] | {"kind": "pytorch"}, "out": "out", "golden": 5})
    assert by_file == read(golden=5)
    assert by_file.source.path == f"{tmp_path}/model.py:build_model"


def test_paths_are_the_files_own_or_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    variants = ["onnx-fp32", {"name": "onnx-fp32-pruned", "pruning": {"fineTune": "tune.py:tune"}}]
    wanted = read_file(tmp_path / "there", {"metric": "m.py:f", "variants": variants}, weights="w2.pt")
    assert wanted.source.path == f"{tmp_path}/there/model.py:build_model"
    assert wanted.source.weights == f"{tmp_path}/here/w2.pt"
    assert wanted.metric == f"{tmp_path}/there/m.py:f"
    assert wanted.variants[1].pruning is not None
    assert wanted.variants[1].pruning.fine_tune == f"{tmp_path}/there/tune.py:tune"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden": "many"}, ["optimize.yaml, golden", "whole number"]),
        ({"metrics": "accuracy"}, ["optimize.yaml, metrics", 'did you mean "metric"?']),
        ({"variants": [{"name": "onnx-int8", "perChanel": True}]}, ["variants[0].perChanel", "perChannel"]),
        ({"variants": ["onnx-fp32", "onnx-fp32"]}, ["variants[1].name", "twice"]),
        ({"variants": [{"name": "onnx-int8", "pruning": {"sparsity": 1}}]}, ["variants[0].pruning.sparsity"]),
        ({"variants": "onnx-fp32"}, ["optimize.yaml, variants", "expected a list"]),
        ({"source": None}, ["optimize.yaml, source", "is required"]),
        ({"source": {"path": "m.onnx", "weights": "w"}}, ["source.weights", "FILE.py:FUNCTION"]),
        ({"resources": {"memory": "4GB"}}, ["resources.memory"]),
    ],
)
def test_a_problem_in_the_file_names_file_and_field(tmp_path: Path, changes: Any, words: list[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        read_file(tmp_path, changes)
    assert all(word in caught.value.sentence for word in words), caught.value.sentence


@pytest.mark.parametrize("text", ["", "- a\n", "a: b\n---\nc: d\n", "a: [\n", "\0"])
def test_a_file_that_is_not_a_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "optimize.yaml").write_text(text)
    with pytest.raises(BadRequestError, match=r"optimize\.yaml"):
        request.read(tmp_path / "optimize.yaml", {})
    with pytest.raises(NotFoundError, match=r"absent\.yaml"):
        request.read(tmp_path / "absent.yaml", {})


def test_the_schema_says_what_the_reader_takes(tmp_path: Path) -> None:
    schema = request.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    good = FILE | {"variants": ["onnx-fp32", {"name": "tflite-int8", "allowedDrop": 0.1}], "opset": 17}
    assert list(check.iter_errors(good)) == []
    read_file(tmp_path, good)
    wrong: tuple[dict[str, Any], ...] = (
        {"metrics": "x"},
        {"golden": 0},
        {"variants": ["onnx"]},
        {"variants": []},
        {"name": "A"},
    )
    for bad in wrong:
        assert list(check.iter_errors(FILE | bad)), bad
        with pytest.raises(InvalidError):
            read_file(tmp_path, bad)


def test_every_field_is_explained_in_the_schema() -> None:
    for name, part in request.json_schema()["$defs"].items():
        for field, inner in part.get("properties", {}).items():
            assert len(inner.get("description", "")) > 10, f"{name}.{field}"
            assert json.dumps(inner)


@pytest.mark.parametrize("drop", [float("inf"), float("nan")])
def test_a_drop_without_an_end_is_refused(drop: float, tmp_path: Path) -> None:
    for metric in ("accuracy", "mae"):
        with pytest.raises(InvalidError, match="--allowed-drop: "):
            read(allowed_drop=drop, metric=metric)
    with pytest.raises(InvalidError, match=r"optimize\.yaml, variants\[0\]\.allowedDrop: "):
        read_file(tmp_path, {"variants": [{"name": "onnx-fp32", "allowedDrop": drop}]})
