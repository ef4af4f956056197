"""What the command line prints: whole tables, and nothing that steers the terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.cli import output

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m"


def test_a_table_is_printed_whole_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "MESSAGE"), [("till-7", "x" * 500), ("a", None)])
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "NAME     MESSAGE"
    assert second == "till-7   " + "x" * 500
    assert third == "a        <none>"


def test_what_devices_say_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME",), [(HOSTILE,)])
    output.say(HOSTILE)
    output.print_error(InvalidError(HOSTILE, element=HOSTILE, hint=HOSTILE))
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert "owned" in text
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e"}


@given(st.text())
def test_plain_text_stays_what_it_is_and_the_rest_becomes_visible(text: str) -> None:
    shown = output.plain(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert output.plain(shown) == shown
    if text.isprintable():
        assert shown == text
