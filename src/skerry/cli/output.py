"""How things are printed: tables, errors, ages, colours.

Lives here: presentation without knowledge of any verb. Output that goes to a pipe is plain.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
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
        "RollingBack",
        "Superseded",
    },
    "red": {"Offline", "Failed", "Broken", "RolledBack", "Denied", "False"},
}
_STYLES = {word: colour for colour, words in _COLOURS.items() for word in words}


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table as kubectl prints it: no lines, three spaces between columns; known states are coloured."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in map(cell, row)))
    return table


def cell(value: Any) -> str:
    """Return one cell's text; nothing is printed as `<none>`, as kubectl does."""
    if value is None or value == "":
        return "<none>"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, header: bool = True) -> None:
    """Print a table at its natural width; terminals wrap it, pipes get it whole."""
    table = plain_table(columns, rows)
    table.show_header = header
    width = out.measure(table).maximum if out.is_terminal else 10_000
    out.print(table, width=max(width, out.width) if out.is_terminal else width, crop=False, no_wrap=True)


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
