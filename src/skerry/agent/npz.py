"""Golden samples without NumPy: reads `.npz` (a zip of `.npy`) one sample at a time, whatever its size.

Lives here: the two formats, with bounds on everything, since a model's author is not the device's owner. Must not live
here: what the arrays mean.
Source: NumPy's NPY format, versions 1 to 3 (`numpy.lib.format`); APPNOTE.TXT for zip, which the standard library reads.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from skerry.api.errors import InvalidError

MAX_MEMBERS = 64
MAX_HEADER = 64 * 1024
MAX_DIMENSIONS = 16
MAX_SAMPLE_BYTES = 64 * 1024 * 1024
"""One sample of one tensor."""

DATATYPES = {
    "|b1": ("BOOL", 1),
    "|u1": ("UINT8", 1),
    "|i1": ("INT8", 1),
    "<u2": ("UINT16", 2),
    "<i2": ("INT16", 2),
    "<f2": ("FP16", 2),
    "<u4": ("UINT32", 4),
    "<i4": ("INT32", 4),
    "<f4": ("FP32", 4),
    "<u8": ("UINT64", 8),
    "<i8": ("INT64", 8),
    "<f8": ("FP64", 8),
}
"""NumPy type -> (Open Inference Protocol datatype, bytes of one element)."""

_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<descr>[^']{1,16})',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[0-9, ]*)\),?\s*\}\s*"
)


@dataclass(frozen=True, slots=True)
class Array:
    """One array of the file, its samples along the first axis still unread."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """Of one sample: without the first axis."""
    samples: int
    sample_bytes: int
    _file: IO[bytes]

    def read(self) -> bytes:
        """Return the next sample's bytes, little-endian, in row order. Raises InvalidError when the file ends."""
        try:
            raw = self._file.read(self.sample_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InvalidError(f"cannot be read: {error}", element=self.name) from None
        if len(raw) != self.sample_bytes:
            raise InvalidError("ends before its last sample", element=self.name)
        return raw


@contextmanager
def open_npz(path: Path) -> Iterator[dict[str, Array]]:
    """Open a `.npz` and yield its arrays by name. Raises InvalidError for anything else, naming what is wrong."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise InvalidError(f"holds more than {MAX_MEMBERS} arrays", element=path.name)
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read_header(name, stack.enter_context(archive.open(member)), member.file_size)
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
        ) as error:
            raise InvalidError(f"is not an .npz file: {error}", element=path.name) from None
        yield arrays


def _read_header(name: str, file: IO[bytes], size: int) -> Array:
    magic = file.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise InvalidError("is not an .npy array", element=name[:200])
    width = 2 if magic[6] == 1 else 4
    (length,) = struct.unpack("<H" if width == 2 else "<I", file.read(width).ljust(width, b"\xff"))
    if length > MAX_HEADER:
        raise InvalidError(f"has a header of more than {MAX_HEADER} bytes", element=name[:200])
    match = _HEADER.fullmatch(file.read(length).decode("latin-1"))
    if match is None or match["descr"] not in DATATYPES:
        kind = f' of type "{match["descr"]}"' if match else ""
        raise InvalidError(f"is not a plain array of numbers{kind}", element=name[:200])
    shape = tuple(int(number) for number in match["shape"].replace(" ", "").split(",") if number)
    if match["fortran"] == "True" and len(shape) > 1:
        raise InvalidError(
            "is in column order", element=name[:200], hint="save it in row order (numpy.ascontiguousarray)"
        )
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise InvalidError(f"has {len(shape)} dimensions, not 1 to {MAX_DIMENSIONS}", element=name[:200])
    datatype, width_of_element = DATATYPES[match["descr"]]
    sample_bytes = math.prod(shape[1:]) * width_of_element
    if sample_bytes > MAX_SAMPLE_BYTES:
        raise InvalidError(f"has samples of more than {MAX_SAMPLE_BYTES} bytes", element=name[:200])
    if size != 8 + width + length + shape[0] * sample_bytes:
        raise InvalidError("is not as long as its header says", element=name[:200])
    return Array(name=name, datatype=datatype, shape=shape[1:], samples=shape[0], sample_bytes=sample_bytes, _file=file)
