"""Named arrays in a container: an `.npz` archive, or a directory of `.npy` files.

Both are foreign: nothing in them is run, and nothing is read before its size is known to be bearable. Lives here:
containers. Must not live here: what the arrays mean (`dataset`).
"""

from __future__ import annotations

import math
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import psutil

from skerry.api.errors import InvalidError, NotFoundError, TooLargeError
from skerry.optimize.foreign import first_line

Array = npt.NDArray[Any]

MAX_BYTES = 8 * 1024**3
"""Of all arrays of one container together."""
MAX_ENTRIES = 1024

_UNREADABLE = (
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and numpy raise for damaged, encrypted or absurd archives."""
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One array that has not been read yet."""

    element: str
    """How an error names it."""
    size: int
    """Bytes of the `.npy` file, as the container states them."""
    open: Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """Arrays by name."""

    name: str
    """The file's or directory's name, as errors and provenance say it."""
    entries: Mapping[str, Entry]
    digest: Callable[[], str]
    """Reads all of it and returns its sha256, hex: of the archive, or of the sorted list of file names and digests."""


def open_container(path: Path, *, hint: str) -> Container:
    """List the arrays of an archive or a directory. Raises NotFoundError, InvalidError, TooLargeError.

    In a directory, `test/x.image.npy` is the array `test_x.image`, as it would be called in an archive.
    """
    try:
        if path.is_dir():
            container = _directory(path, hint=hint)
        elif path.is_file():
            container = _archive(path, hint=hint)
        else:
            raise NotFoundError("no such file", element=str(path), hint=hint)
    except _UNREADABLE as error:
        raise InvalidError(f"cannot be read ({first_line(error)})", element=path.name, hint=hint) from None
    if len(container.entries) > MAX_ENTRIES:
        raise TooLargeError(f"holds more than {MAX_ENTRIES} arrays", element=path.name)
    return container


def check_sizes(entries: Mapping[str, Entry]) -> None:
    """Refuse what is too large to be read into memory, before any of it is read. Raises TooLargeError."""
    most, limit = MAX_BYTES, "the limit"
    if (free := psutil.virtual_memory().available) < most:
        most, limit = free, "free memory"
    total = 0
    for entry in entries.values():
        total += entry.size
        if total > most:
            cause = f"{entry.size} bytes are too many: with the arrays before it {total}, {limit} is {most}"
            raise TooLargeError(cause, element=entry.element, hint="give fewer samples")


def read(entry: Entry, *, hint: str) -> Array:
    """Read one array: native byte order, C order, never pickled. Raises InvalidError, MemoryError."""
    try:
        with entry.open() as file:
            _check_header(file, entry)
        with entry.open() as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    except MemoryError:
        raise  # the header was held against the file's size: it is the bound that is too low, not the array too large
    except _UNREADABLE as error:
        raise InvalidError(f"cannot be read ({first_line(error)})", element=entry.element, hint=hint) from None


def _check_header(file: IO[bytes], entry: Entry) -> None:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format is not known here")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise InvalidError(
            "holds Python objects, which are never read", element=entry.element, hint="save plain numeric arrays"
        )
    if (claimed := math.prod(shape) * dtype.itemsize) > entry.size:
        raise ValueError(f"shape {list(shape)} needs {claimed} bytes, there are {entry.size}")


def _archive(path: Path, *, hint: str) -> Container:
    if not zipfile.is_zipfile(path):
        raise InvalidError("is not an .npz archive", element=path.name, hint=hint)
    entries = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, dot, _ = info.filename.rpartition(".npy")
            if dot:
                entries[name] = Entry(
                    element=f"{path.name}, array {name}", size=info.file_size, open=_member(path, info.filename)
                )
    return Container(name=path.name, entries=entries, digest=lambda: _digest(path))


def _member(path: Path, name: str) -> Callable[[], AbstractContextManager[IO[bytes]]]:
    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with zipfile.ZipFile(path) as archive, archive.open(name) as member:
            yield member

    return opened


def _directory(path: Path, *, hint: str) -> Container:
    files = {f"{file.parent.name}/{file.name}": file for file in sorted(path.glob("*/*.npy"))}
    entries = {}
    for inner, file in files.items():
        facts = file.stat()  # of what a symbolic link leads to: people link large data
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidError("is not a regular file", element=f"{path.name}, file {inner}", hint=hint)
        entries[f"{file.parent.name}_{file.name.removesuffix('.npy')}"] = Entry(
            element=f"{path.name}, file {inner}", size=facts.st_size, open=_file(file)
        )

    def digest() -> str:
        lines = [f"{_digest(file)}  {inner}\n" for inner, file in files.items()]
        return sha256(os.fsencode("".join(lines))).hexdigest()

    return Container(name=path.name, entries=entries, digest=digest)


def _file(path: Path) -> Callable[[], AbstractContextManager[IO[bytes]]]:
    return lambda: path.open("rb")


def _digest(path: Path) -> str:
    state = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()
