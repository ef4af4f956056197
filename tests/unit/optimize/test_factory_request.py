"""What is asked is checked before any work begins, with the option as the element."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.optimize.request import Request


def request(**changes: Any) -> Request:
    given_options: dict[str, Any] = {
        "torch": "model.py:build_model",
        "weights": Path("w.pt"),
        "data": Path("data.npz"),
        "out": Path("out"),
        "name": "digits",
        "version": "v1",
    }
    return Request(**(given_options | changes))


@pytest.mark.parametrize("name", ["digits", "a", "face-id", "v1.2.3", "a--b", "0"])
def test_names_that_are_good_everywhere(name: str) -> None:
    assert request(name=name, version=name).name == name


@pytest.mark.parametrize(
    "name", ["", "Digits", "-a", "a-", "a..b", "a.-b", "a/b", "../a", "a_b", "a b", "x" * 129, "a\n"]
)
@pytest.mark.parametrize(("field", "option"), [("name", "--name"), ("version", "--model-version")])
def test_names_that_are_not(name: str, field: str, option: str) -> None:
    with pytest.raises(InvalidError, match=option):
        request(**{field: name})


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"variants": ()}, "--variants"),
        ({"variants": ("fp32", "int4")}, "--variants"),
        ({"metric": "mood"}, "--metric"),
        ({"allowed_drop": -0.1}, "--allowed-drop"),
        ({"allowed_drop": float("nan")}, "--allowed-drop"),
        ({"golden": 0}, "--golden"),
        ({"golden": 10**6}, "--golden"),
        ({"runs": 0}, "--runs"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(InvalidError, match=option):
        request(**changes)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_any_share_is_an_allowed_drop(share: float) -> None:
    assert request(allowed_drop=share).allowed_drop == share
