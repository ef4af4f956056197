"""Samples through a file that takes so many at a time; tensors of a file against the signature's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve.engines.batches import Batches, fixed_batch
from skerry.serve.engines.binding import FileTensor, accept, bind

FILE = Path("m.tflite")


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=list(shape))


X, SCALE, Y = spec("x", -1, 2), spec("scale", 1), spec("y", -1)


@given(count=st.integers(1, 40), size=st.integers(1, 9), exact=st.booleans())
def test_pieces_are_as_large_as_the_file_takes_and_join_to_the_whole(count: int, size: int, exact: bool) -> None:
    seen: list[int] = []

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        x, scale = arrays
        seen.append(len(x))
        return [x.sum(axis=1) * scale[0], x[:, 0]]

    x = np.random.default_rng(count).standard_normal((count, 2))
    whole = Batches(size=size, exact=exact).run([x, np.array([3.0])], [X, SCALE], [Y, spec("z", -1)], run)
    np.testing.assert_array_equal(whole[0], x.sum(axis=1) * 3)
    np.testing.assert_array_equal(whole[1], x[:, 0])
    assert len(seen) == -(-count // size)
    assert all(piece == size if exact else piece <= size for piece in seen)
    assert sum(seen) == count if not exact else sum(seen) < count + size


def test_what_cannot_be_cut_or_joined_is_said() -> None:
    batches = Batches(size=2, exact=True)
    with pytest.raises(InvalidError, match=r"different numbers of samples: \{'x': 3, 'b': 2\}"):
        batches.run([np.zeros((3, 2)), np.zeros((2, 2))], [X, spec("b", -1, 2)], [Y], lambda a: [a[0][:, 0]])
    with pytest.raises(InvalidError, match=r'3 samples.*takes 2 at a time, since output "sum" is no batch'):
        batches.run([np.zeros((3, 2))], [X], [spec("sum")], lambda a: [a[0].sum()])
    with pytest.raises(SkerryError, match="gave 1 answers to 2 samples"):
        batches.run([np.zeros((3, 2))], [X], [Y], lambda a: [a[0][:1, 0]])


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([[-1, 2], [1]], None),
        ([[4, 2], [1]], Batches(size=4, exact=True)),
        ([[], [1]], None),
    ],
)
def test_the_files_batch(shapes: list[list[int]], expected: Batches | None) -> None:
    assert fixed_batch(ModelSignature(inputs=[X, SCALE], outputs=[Y]), shapes) == expected


def test_inputs_of_different_fixed_batches_are_no_model() -> None:
    with pytest.raises(InvalidError, match=r"different batches: \[2, 4\]"):
        fixed_batch(ModelSignature(inputs=[X, spec("b", -1, 2)], outputs=[Y]), [[2, 2], [4, 2]])


def tensor(name: str = "", datatype: str = "FP32", shape: Sequence[int] | None = (-1, 2)) -> FileTensor:
    return FileTensor(name=name, datatype=datatype, shape=shape)


A, B = spec("a", -1, 2), spec("b", -1, 2)


@pytest.mark.parametrize(
    ("found", "places"),
    [
        ([tensor("b"), tensor("a")], [1, 0]),
        ([tensor("p"), tensor("q")], [0, 1]),
        ([tensor(), tensor()], [0, 1]),
        ([tensor(shape=None), tensor(datatype="")], [0, 1]),
    ],
)
def test_names_where_the_file_has_them_else_positions(found: list[FileTensor], places: list[int]) -> None:
    assert list(bind("input", found, [A, B], FILE)) == places


@pytest.mark.parametrize(
    ("kind", "found", "named", "words"),
    [
        ("input", [tensor("p"), tensor("q")], True, r"""m\.tflite: has no input "a", but \['p', 'q'\]"""),
        ("input", [tensor("a"), tensor("q")], False, r"""has no input "b", but \['a', 'q'\]"""),
        ("input", [tensor("a"), tensor("b"), tensor("c")], False, r"inputs the signature does not have: \['c'\]"),
        ("input", [tensor(), tensor(), tensor()], False, r"has 3 inputs, the signature says 2: \['a', 'b'\]"),
        ("output", [tensor("p")], False, "has 1 outputs, the signature says 2"),
        ("output", [tensor("p"), tensor("q"), tensor("r")], False, "has 3 outputs, the signature says 2"),
        ("output", [tensor("a"), tensor("b", "INT8")], False, 'output "b" is INT8, the signature says FP32'),
        ("output", [tensor(shape=[3, 3])] * 2, False, r'output "a" has shape \[3, 3\], the signature says \[-1, 2\]'),
        ("output", [tensor(shape=[2])] * 2, False, r"has shape \[2\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(kind: str, found: list[FileTensor], named: bool, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        bind(kind, found, [A, B], FILE, named=named)


def test_outputs_that_nobody_asks_for_are_left_in_the_file() -> None:
    assert list(bind("output", [tensor("b"), tensor("more"), tensor("a")], [A, B], FILE)) == [2, 0]


def test_an_array_is_held_against_the_file_but_for_its_batch() -> None:
    accept(np.zeros((9, 2)), [4, 2], X)
    accept(np.zeros((9, 2)), [-1, -1], X)
    for shape, taken, of in [((9, 3), [4, 2], X), ((9,), [4, 2], X), ((9,), [1], SCALE)]:
        with pytest.raises(InvalidError, match="this file takes"):
            accept(np.zeros(shape), taken, of)
