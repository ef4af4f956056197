"""How things are printed: tables, errors, ages, colours.

Lives here: presentation without knowledge of any verb. Output that goes to a pipe is plain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from skerry.api import codec
from skerry.api.errors import SkerryError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

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


def cell(value: Any) -> str:
    """Return one cell's text; nothing is printed as `<none>`, as kubectl does."""
    if value is None or value == "":
        return "<none>"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


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
    err.print(Text.assemble(("error: ", "bold red"), text))
    if error.hint:
        err.print(Text.assemble(("hint: ", "bold"), error.hint))
