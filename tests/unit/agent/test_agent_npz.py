"""Golden samples: everything NumPy writes is read alike, everything else is refused with a sentence."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skerry.agent import npz
from skerry.api.errors import InvalidError


def save(path: Path, **content: np.ndarray) -> Path:
    np.savez(path, **content)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=arrays.arrays(
        dtype=st.sampled_from([np.dtype(name) for name in npz.DATATYPES]),
        shape=arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    compressed=st.booleans(),
)
def test_reads_what_numpy_writes(tmp_path: Path, array: np.ndarray, compressed: bool) -> None:
    path = tmp_path / "golden.npz"
    (np.savez_compressed if compressed else np.savez)(path, **{"input.x": array, "labels": np.arange(2)})
    with npz.open_npz(path) as found:
        one = found["input.x"]
        assert (one.samples, one.shape) == (array.shape[0], array.shape[1:])
        assert one.datatype == npz.DATATYPES[array.dtype.str][0]
        assert b"".join(one.read() for _ in range(one.samples)) == array.tobytes()
        if one.sample_bytes:
            with pytest.raises(InvalidError, match="ends before"):
                one.read()


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.zeros((2, 3), dtype=">f4"), "plain array of numbers"),
        (np.array(["a", "b"]), "plain array of numbers"),
        (np.zeros(2, dtype=[("a", "<f4")]), "plain array of numbers"),
        (np.asfortranarray(np.zeros((2, 3))), "column order"),
        (np.float32(1.0), "0 dimensions"),
    ],
)
def test_refuses_arrays_it_cannot_read(tmp_path: Path, array: np.ndarray, cause: str) -> None:
    with pytest.raises(InvalidError, match=cause), npz.open_npz(save(tmp_path / "g.npz", x=array)):
        pass


def header(text: str, *, version: int = 1, length: int | None = None) -> bytes:
    raw = text.encode()
    size = len(raw) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + raw


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        header("__import__('os').system('true')"),
        header("{}", version=2, length=1 << 31),
        header("{}", version=9),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"\x80\x04N.",
    ],
)
def test_refuses_hostile_members(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(InvalidError), npz.open_npz(path):
        pass


def test_refuses_too_many_arrays(tmp_path: Path) -> None:
    path = save(tmp_path / "g.npz", **{f"a{n}": np.zeros(1) for n in range(npz.MAX_MEMBERS + 1)})
    with pytest.raises(InvalidError, match="more than 64"), npz.open_npz(path):
        pass


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_only_what_is_promised(tmp_path: Path, data: st.DataObject) -> None:
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.arange(24, dtype="<f4").reshape(4, 6), labels=np.arange(4))
    raw = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "g.npz"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(InvalidError), npz.open_npz(path) as found:  # anything else fails the test
        for one in found.values():
            for _ in range(one.samples):
                one.read()
