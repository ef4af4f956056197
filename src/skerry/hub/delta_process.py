"""`python -m skerry.hub.delta_process`: make one delta between two model files, as a process of its own.

The hub's event loop has better things to do, and model files are content from outside: what they do to a parser happens
here, within bounds of time and memory. Must not live here: where files come from and go to (`hub.deltas`).
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from skerry.api.errors import InvalidError
from skerry.core import delta, delta_encode, weights

MAX_MEMORY_BYTES = 1024 * 1024 * 1024
"""Of the process, beside the maps of the two files."""
TOO_LARGE = 3
"""Exit code: the delta would be longer than it may be, and was given up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write a delta. Returns the exit code: 0, or TOO_LARGE."""
    parser = argparse.ArgumentParser(prog="skerry.hub.delta_process")
    for name in ("old", "new", "out"):
        parser.add_argument(name, type=Path)
    for name in ("old_digest", "new_digest", "format"):
        parser.add_argument(name)
    parser.add_argument("most", type=int, help="bytes that the delta may have")
    asked = parser.parse_args(argv)
    os.nice(10)
    with (
        asked.old.open("rb") as old_file,
        asked.new.open("rb") as new_file,
        mmap.mmap(old_file.fileno(), 0, access=mmap.ACCESS_READ) as old,
        mmap.mmap(new_file.fileno(), 0, access=mmap.ACCESS_READ) as new,
    ):
        allowed = MAX_MEMORY_BYTES + len(old) + len(new)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        header = delta.Header(
            old_digest=asked.old_digest,
            old_size=len(old),
            new_digest=asked.new_digest,
            new_size=len(new),
        )
        return _write(asked.out, header, old, new, format_=asked.format, most=asked.most)


def _write(out: Path, header: delta.Header, old: mmap.mmap, new: mmap.mmap, *, format_: str, most: int) -> int:
    written = 0
    with out.open("xb") as file:
        for piece in delta_encode.encode(header, old, new, _layout(old, format_), _layout(new, format_)):
            written += len(piece)
            if written > most:
                return TOO_LARGE
            file.write(piece)
    return 0


def _layout(content: mmap.mmap, format_: str) -> list[weights.Tensor]:
    try:
        return weights.read_layout(content, format_)
    except InvalidError:  # not what it says it is, which is the factory's business: bytes can be compared all the same
        return []


if __name__ == "__main__":
    sys.exit(main())
