"""data.npz is read strictly: what is wrong is named, and nothing in it is ever run."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, TooLargeError
from skerry.optimize import arrays as containers
from skerry.optimize import dataset

SHAPE = (3, 4)


def arrays(**changes: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    good = {
        "test_x": generator.random((12, *SHAPE), dtype=np.float32),
        "test_y": np.arange(12, dtype=np.int64) % 3,
        "calibration_x": generator.random((5, *SHAPE), dtype=np.float32),
        "golden_x": generator.random((7, *SHAPE), dtype=np.float32),
        "golden_y": np.arange(7, dtype=np.int64) % 3,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def written(path: Path, **changes: Any) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def flat(data: dataset.Dataset) -> dict[str, np.ndarray]:
    return {
        "test_x": data.test.inputs["input"],
        "test_y": data.test.targets,
        "calibration_x": data.calibration["input"],
        "golden_x": data.golden.inputs["input"],
        "golden_y": data.golden.targets,
    }


def test_reads_what_was_written(tmp_path: Path) -> None:
    data = dataset.load(written(tmp_path / "data.npz"))
    for name, expected in arrays().items():
        np.testing.assert_array_equal(flat(data)[name], expected)
    assert len(data.digest) == 64
    assert data.name == "data.npz"


def test_byte_order_and_memory_order_of_the_file_do_not_matter(tmp_path: Path) -> None:
    odd = np.asfortranarray(arrays()["golden_x"].astype(">f4"))
    data = dataset.load(written(tmp_path / "data.npz", golden_x=odd))
    np.testing.assert_array_equal(flat(data)["golden_x"], arrays()["golden_x"])
    assert flat(data)["golden_x"].dtype.isnative
    assert flat(data)["golden_x"].flags.c_contiguous


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden_y": None}, ("array golden_y", "is missing")),
        ({"test_x": np.zeros((12, *SHAPE))}, ("array test_x", "is float64", "float32")),
        ({"test_x": np.zeros((0, *SHAPE), np.float32)}, ("array test_x", "at least one sample")),
        ({"calibration_x": np.float32(1)}, ("array calibration_x", "has shape []")),
        ({"golden_x": np.zeros((7, 4, 3), np.float32)}, ("array golden_x", "float32 [4, 3]", "float32 [3, 4]")),
        ({"calibration_x": np.zeros((5, *SHAPE), np.uint8)}, ("array calibration_x", "uint8", "float32")),
        ({"calibration_x": np.full((5, *SHAPE), np.nan, np.float32)}, ("array calibration_x", "NaN")),
        ({"test_x": np.full((12, *SHAPE), np.inf, np.float32)}, ("array test_x", "infinite")),
        ({"test_y": np.zeros(12, np.int32)}, ("array test_y", "is int32", "int64")),
        ({"test_y": np.zeros(11, np.int64)}, ("array test_y", "[11]", "12 samples")),
        ({"golden_y": np.zeros((7, 1), np.int64)}, ("array golden_y", "[7, 1]", "one dimension")),
        ({"golden_y": np.full(7, -1)}, ("array golden_y", "negative", "from 0")),
    ],
)
def test_names_the_array_and_what_is_wrong_with_it(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidError) as caught:
        dataset.load(written(tmp_path / "data.npz", **changes))
    assert all(word in caught.value.sentence for word in words), caught.value.sentence
    assert caught.value.hint


class _Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    np.savez(tmp_path / "data.npz", **arrays(test_x=np.array([_Bomb(mark)], dtype=object)))
    with pytest.raises(InvalidError, match="holds Python objects, which are never read"):
        dataset.load(tmp_path / "data.npz")
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(InvalidError, match=r"is not an \.npz archive"):
        dataset.load(tmp_path / "bare.npz")
    assert not mark.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.npz: no such file"):
        dataset.load(tmp_path / "absent.npz")


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 3)})
    written(tmp_path / "data.npz", test_x=None)
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("test_x.npy", header.getvalue())
    with pytest.raises(InvalidError, match=r"array test_x: cannot be read"):
        dataset.load(tmp_path / "data.npz")


@settings(deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), noise=st.binary(min_size=1, max_size=40))
def test_damaged_files_give_an_error_of_ours_or_valid_data(
    tmp_path_factory: pytest.TempPathFactory, position: float, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    content = bytearray(written(path).read_bytes())
    start = int(position * len(content))
    content[start : start + len(noise)] = noise
    path.write_bytes(content)
    try:
        data = dataset.load(path)
    except SkerryError as error:
        assert error.element  # noqa: PT017 - either outcome is right
    else:
        assert flat(data)["test_x"].shape[1:] == SHAPE


def test_golden_samples_are_chosen_by_the_seed_and_keep_their_labels(tmp_path: Path) -> None:
    data = dataset.load(written(tmp_path / "data.npz"))
    assert data.with_golden(7, seed=0) is data
    fewer = data.with_golden(3, seed=1)
    assert fewer.golden.inputs["input"].shape == (3, *SHAPE)
    for sample, label in zip(fewer.golden.inputs["input"], fewer.golden.targets, strict=True):
        origin = next(i for i, whole in enumerate(data.golden.inputs["input"]) if np.array_equal(whole, sample))
        assert data.golden.targets[origin] == label
    np.testing.assert_array_equal(fewer.golden.inputs["input"], data.with_golden(3, seed=1).golden.inputs["input"])


def spread(root: Path, **changes: Any) -> Path:
    """Write the arrays as a directory of files."""
    for name, value in arrays(**changes).items():
        part, _, array = name.partition("_")
        (root / part).mkdir(parents=True, exist_ok=True)
        np.save(root / part / f"{array}.npy", value)
    return root


def test_a_directory_holds_the_same_as_an_archive(tmp_path: Path) -> None:
    data = dataset.load(spread(tmp_path / "data"))
    for name, expected in arrays().items():
        np.testing.assert_array_equal(flat(data)[name], expected)
    assert data.name == "data"
    assert data.digest == dataset.load(spread(tmp_path / "again")).digest
    changed = arrays()["golden_y"] + 1
    assert data.digest != dataset.load(spread(tmp_path / "other", golden_y=changed)).digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"golden_y": None}, ("golden_y", "is missing")),
        ({"test_x": np.zeros((12, *SHAPE))}, ("file test/x.npy", "is float64")),
        ({"calibration_x": np.array([{}])}, ("file calibration/x.npy", "Python objects")),
    ],
)
def test_files_of_a_directory_are_named(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError) as caught:
        dataset.load(spread(tmp_path / "data", **changes))
    assert all(word in caught.value.sentence for word in words), caught.value.sentence


def several(**changes: Any) -> dict[str, Any]:
    """Arrays of a model with two inputs."""
    made: dict[str, Any] = {}
    for name, value in arrays().items():
        if name.endswith("_x"):
            made |= {f"{name}.image": value, f"{name}.age": value[:, 0, 0]}
        else:
            made[name] = value
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_a_model_with_several_inputs_has_an_array_for_each(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **several())
    data = dataset.load(tmp_path / "data.npz").bound_to(["image", "age"])
    assert list(data.test.inputs) == list(data.calibration) == list(data.golden.inputs) == ["image", "age"]
    np.testing.assert_array_equal(data.golden.inputs["age"], arrays()["golden_x"][:, 0, 0])
    fewer = data.with_golden(3, seed=1)
    np.testing.assert_array_equal(fewer.golden.inputs["image"][:, 0, 0], fewer.golden.inputs["age"])
    with pytest.raises(InvalidError, match=r"data\.npz: has image, age as inputs, but the model takes x, y"):
        data.bound_to(["x", "y"])


def test_an_unnamed_tensor_takes_the_models_name(tmp_path: Path) -> None:
    data = dataset.load(written(tmp_path / "data.npz")).bound_to(["pixels"])
    assert list(data.test.inputs) == list(data.calibration) == list(data.golden.inputs) == ["pixels"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_x": np.zeros((12, 2), np.float32)}, "there is test_x and test_x.age"),
        ({"test_x.age": np.zeros(11, np.float32)}, "different numbers of samples"),
        ({"golden_x.age": None}, "golden_x has image as tensors, test_x has age, image"),
        ({"calibration_x.age": np.zeros(5, np.int64)}, "array calibration_x.age: samples are int64"),
    ],
)
def test_tensors_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "data.npz", **several(**changes))
    with pytest.raises(InvalidError) as caught:
        dataset.load(tmp_path / "data.npz")
    assert words in caught.value.sentence


def test_answers_may_be_any_numbers_where_the_metric_says_so(tmp_path: Path) -> None:
    masks = {"test_y": np.zeros((12, 3, 4), np.int64), "golden_y": np.zeros((7, 3, 4), np.int64)}
    data = dataset.load(written(tmp_path / "data.npz", **masks), targets="values")
    assert data.golden.targets.shape == (7, 3, 4)
    with pytest.raises(InvalidError, match="one dimension"):
        dataset.load(tmp_path / "data.npz")
    odd = masks | {"golden_y": np.zeros((7, 2), np.int64)}
    with pytest.raises(InvalidError, match=r"golden_y: answers are int64 \[2\], those of test_y are int64 \[3, 4\]"):
        dataset.load(written(tmp_path / "odd.npz", **odd), targets="values")
    nan = {"test_y": np.full(12, np.nan), "golden_y": np.zeros(7)}
    with pytest.raises(InvalidError, match="array test_y: holds NaN"):
        dataset.load(written(tmp_path / "nan.npz", **nan), targets="values")


def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    root = spread(tmp_path / "data")
    os.truncate(root / "test" / "x.npy", containers.MAX_BYTES + 1)  # a file with a hole: it takes no room
    with pytest.raises(TooLargeError, match=r"data, file test/x\.npy: \d+ bytes are too many"):
        dataset.load(root)
    nothing = arrays()["test_x"][:0]
    with pytest.raises(InvalidError, match="at least one sample"):
        dataset.load(spread(root, test_x=nothing))
