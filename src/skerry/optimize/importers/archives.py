"""Zip archives that torch will read, read as torch reads them.

torch has a reader of its own, which looks members up without regard to case and not as Python's zipfile does when a
name occurs twice. What is looked at has to be what is loaded, so an archive that the two read differently is refused.
Must not live here: what the members mean.
"""

from __future__ import annotations

import io
import zipfile
from types import TracebackType
from typing import Any, Self

from torch._C import PyTorchFileReader

from skerry.api.errors import ForbiddenError, InvalidError


class Archive:
    """The members of one archive, by their names below its only directory.

    Raises ForbiddenError, and beside it whatever zipfile and torch raise for bytes that are no archive.
    """

    def __init__(self, content: bytes, name: str, *, hint: str) -> None:
        self._name, self._hint = name, hint
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        members = self._zip.infolist()
        self.root = members[0].filename.partition("/")[0] if members else ""
        if any(info.orig_filename != info.filename or not info.filename.isascii() for info in members):
            raise self._ambiguous("holds names that torch reads differently")
        seen: set[str] = set()
        for info in members:
            if info.filename.lower() in seen:
                raise self._ambiguous(f"holds {info.filename.partition('/')[2][:80]} more than once")
            seen.add(info.filename.lower())
        self.sizes = {info.filename.partition("/")[2]: info.file_size for info in members}
        self.roots = {info.filename.partition("/")[0] for info in members}
        self._torch: Any = PyTorchFileReader(io.BytesIO(content))
        if len(self.roots) == 1 and set(self._torch.get_all_records()) != set(self.sizes):
            raise self._ambiguous("holds other members for torch than for zip's other readers")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, inner: str) -> bytes:
        """Return a member's content. Raises InvalidError without one, ForbiddenError when torch reads another."""
        try:
            content = self._zip.read(f"{self.root}/{inner}")
        except KeyError:
            raise InvalidError(f"lacks {inner}", element=self._name, hint=self._hint) from None
        if self._torch.get_record(inner) != content:
            raise self._ambiguous(f"holds another {inner[:80]} for torch than for zip's other readers")
        return content

    def _ambiguous(self, what: str) -> ForbiddenError:
        return ForbiddenError(f"{what}; it was not run", element=self._name, hint=self._hint)
