"""What devices may make clients believe: only what one of ours could have to say, in words that do nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import errors
from skerry.core import answers
from skerry.core.messages import CommandResult


def error(reason: str, text: str = "no") -> errors.SkerryError:
    return answers.error_of(CommandResult(uid="u", id="c", error=text, reason=reason), element="device till")


@pytest.mark.parametrize(
    "reason", ["Unauthorized", "Expired", "Conflict", "AlreadyExists", "Integrity", "", "x" * 4000]
)
def test_a_reason_that_clients_would_act_upon_is_none(reason: str) -> None:
    assert type(error(reason)) is errors.UnavailableError


@pytest.mark.parametrize("reason", ["Forbidden", "NotFound", "Unsupported", "Invalid", "TooLarge"])
def test_what_devices_have_to_say_is_said(reason: str) -> None:
    found = error(reason, "is switched off; use `allow`")
    assert type(found).__name__ == f"{reason}Error"
    assert found.sentence == "device till: is switched off; use `allow`"


def test_words_do_nothing_to_a_terminal() -> None:
    told = error("", "\x1b]0;owned\x07\x1b[2J\x1b[31mrun `x`\r\nok\u202e\x9b1m").sentence
    assert told == "device till: ?]0;owned??[2J?[31mrun `x` ok??1m"


@given(st.text(max_size=5000))
def test_any_text_becomes_a_short_line(text: str) -> None:
    told = answers.shown(text)
    assert told.isprintable()
    assert len(told) <= answers.MAX_SHOWN
    if text.isprintable() and len(text) <= answers.MAX_SHOWN:
        assert told == " ".join(text.split())


def test_a_long_one_is_cut_visibly() -> None:
    assert answers.shown("word " * 10_000).endswith("…")
    assert answers.shown(" " * 5000) == "…"
