"""Files of a model: read within bounds, and their digests."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from skerry.api.errors import InvalidError, NotFoundError, TooLargeError

MAX_BYTES = 2**31 - 1
"""Of one model file: protobuf's limit for one message, which most formats share."""
MAX_FILES = 10_000
_CHUNK = 1 << 20


def read(path: Path, *, hint: str, most: int = MAX_BYTES) -> bytes:
    """Read one file. Raises NotFoundError, TooLargeError."""
    check(path, hint=hint, most=most)
    return path.read_bytes()


def check(path: Path, *, hint: str, most: int = MAX_BYTES) -> None:
    """Refuse what is not there or too large. Raises NotFoundError, TooLargeError."""
    if not path.is_file():
        raise NotFoundError("no such file", element=str(path), hint=hint)
    if path.stat().st_size > most:
        raise TooLargeError(f"{path.stat().st_size} bytes are more than {most}", element=path.name)


def digest(path: Path) -> str:
    """Return the sha256 of a file, hex."""
    state = sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def tree_digests(directory: Path) -> dict[str, str]:
    """Return file name -> sha256 of all files below a directory. Raises InvalidError for links out of it."""
    root = directory.resolve()
    digests: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(root):
            raise InvalidError("leads out of the directory", element=str(path.relative_to(directory)))
        if len(digests) == MAX_FILES:
            raise TooLargeError(f"holds more than {MAX_FILES} files", element=directory.name)
        digests[f"{directory.name}/{path.relative_to(directory)}"] = digest(path)
    return digests
