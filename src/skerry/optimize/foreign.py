"""Errors of foreign libraries, cut down to what fits into one of our sentences."""

from __future__ import annotations

import errno
import re

_MOST = 240
_SCRATCH = re.compile(r"""/[^\s'":()\[\]]*/(\.scratch|skerry-toolchain)-[^\s'":()\[\]/]+/""")
"""Directories of a moment: their names say nothing."""
_STARVED = ("bad_alloc", "cannot allocate memory", "can't allocate memory", "failed to allocate", "out of memory")


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, shortened, with the error's type if it says nothing."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not line:
        return type(error).__name__
    return shortened(line)


def shortened(line: str) -> str:
    """Return a line without the paths of scratch directories, cut off where it is still long."""
    line = _SCRATCH.sub("", line)
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was no memory; few libraries raise MemoryError for that."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _STARVED)


def is_out_of_space(error: BaseException) -> bool:
    """Tell whether an error means that there is no room left on a disk."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def raise_if_starved(error: BaseException) -> None:
    """Raise MemoryError for an error that means that, whatever its type: it is no fault of the model."""
    if is_out_of_memory(error):
        raise MemoryError(first_line(error)) from error
