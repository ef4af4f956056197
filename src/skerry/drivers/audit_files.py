"""The audit log's files: `audit-<number of the first entry>.jsonl` in one directory, one entry a line.

Lives here: names, order, and lines read one by one within bounds. Must not live here: the chain (`core.audit`),
writing and mending (`hub.audit.log`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_LINE = 1024 * 1024
"""Bytes; entries are bounded far below it."""
BULK = "bulk"
"""The directory below the log's own that has the log's second part."""
_NAME = re.compile(r"audit-([0-9]{20})\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One file of the log."""

    first: int
    """The number of its first entry."""
    path: Path


def path_of(directory: Path, first: int) -> Path:
    """Return the path of the file that begins with that entry."""
    return directory / f"audit-{first:020d}.jsonl"


def segments(directory: Path) -> list[Segment]:
    """Return the log's files, oldest first. Raises OSError."""
    found = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted(
        (Segment(first=int(match[1]), path=path) for match, path in found if match), key=lambda segment: segment.first
    )


def lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield what is left of a file line by line, with whether its line break is there; it is taken off.

    A line of more than MAX_LINE bytes, which is none of ours, comes in pieces without one.
    """
    while line := file.readline(MAX_LINE + 1):
        whole = line.endswith(b"\n")
        yield (line[:-1] if whole else line), whole
