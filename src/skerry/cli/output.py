"""How things are printed: tables, errors, ages, colours.

Lives here: presentation without knowledge of any verb. Output that goes to a pipe is plain.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from skerry.api import codec
from skerry.api.errors import SkerryError


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """End in silence: the reader (head, less) has what it wanted."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)


out = _Output(highlight=False, soft_wrap=True)
err = _Output(stderr=True, highlight=False, soft_wrap=True)

_COLOURS = {
    "green": {"Online", "Running", "Ready", "Succeeded", "Passed", "Approved", "Complete", "True"},
    "yellow": {
        "Pending",
        "Progressing",
        "Baking",
        "Paused",
        "Fetching",
        "Starting",
        "Probing",
        "Shadowing",
        "RollingBack",
        "Superseded",
    },
    "red": {"Offline", "Failed", "Broken", "RolledBack", "Denied", "False"},
}
_STYLES = {word: colour for colour, words in _COLOURS.items() for word in words}


def plain(text: str) -> str:
    """Return text from elsewhere with what could steer the terminal made visible.

    Devices name things and write logs; nobody's name may move the cursor or turn the direction of writing.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def say(text: str) -> None:
    """Print one line of plain text, whatever is in it."""
    out.print(plain(text), markup=False)


def cell(value: Any) -> str:
    """Return one cell's text; nothing is printed as `<none>`, as kubectl does."""
    if value is None or value == "":
        return "<none>"
    if isinstance(value, float):
        return f"{value:g}"
    return plain(str(value)).replace("\n", " ")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, header: bool = True) -> None:
    """Print a table as kubectl does: no lines, columns as wide as their content, three spaces between them.

    Nothing is cut off, in a pipe or in a narrow terminal; known states are coloured.
    """
    cells = [[cell(value) for value in row] for row in rows]
    lines = [list(columns), *cells] if header else cells
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    for number, line in enumerate(lines):
        text = Text(no_wrap=True)
        for i, (content, width) in enumerate(zip(line, widths, strict=True)):
            padding = "" if i == len(line) - 1 else " " * (width - cell_len(content) + 3)
            text.append(content, style="bold" if header and number == 0 else _STYLES.get(content, "")).append(padding)
        out.print(text)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def print_yaml(value: Any) -> None:
    """Print a value as YAML, keys in the order they have."""
    sys.stdout.write(codec.to_yaml(value))
    sys.stdout.flush()


def print_error(error: SkerryError) -> None:
    """Print an error as people read it: the sentence, then the hint on a line of its own."""
    text = f"{error.element}: {error.cause}" if error.element else error.cause
    err.print(Text.assemble(("error: ", "bold red"), plain(text)))
    if error.hint:
        err.print(Text.assemble(("hint: ", "bold"), plain(error.hint)))
