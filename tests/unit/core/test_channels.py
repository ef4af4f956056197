"""Channels and the status that says how a command ended."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import UnavailableError
from skerry.core import channels


@given(st.integers(0, 255))
def test_an_exit_code_travels(code: int) -> None:
    message = channels.ended(code)
    assert message[0] == channels.ERROR
    assert channels.exit_code(message[1:]) == code
    status = json.loads(message[1:])
    assert (status["kind"], status["apiVersion"]) == ("Status", "v1")
    assert status["status"] == ("Failure" if code else "Success")


def test_what_could_not_be_run_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="gone"):
        channels.exit_code(channels.failed("gone")[1:])


@given(st.binary(max_size=100))
def test_no_bytes_are_an_exit_code_by_chance(raw: bytes) -> None:
    with pytest.raises(UnavailableError):
        channels.exit_code(raw)
    assert channels.parse_size(raw) is None


def test_sizes_are_those_of_a_terminal() -> None:
    assert channels.parse_size(b'{"Width":80,"Height":24}') == channels.Size(width=80, height=24)
    for wrong in (b'{"Width":0,"Height":24}', b'{"Width":80}', b'{"Width":99999,"Height":1}', b"{}", b"[]"):
        assert channels.parse_size(wrong) is None


def test_the_best_that_both_know() -> None:
    assert channels.choose([channels.V4, channels.V5], channels.COMMAND_PROTOCOLS) == channels.V5
    assert channels.choose(["channel.k8s.io", channels.V4], channels.COMMAND_PROTOCOLS) == channels.V4
    assert channels.choose(["channel.k8s.io"], channels.COMMAND_PROTOCOLS) == ""
