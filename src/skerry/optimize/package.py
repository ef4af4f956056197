"""The model package on disk: written beside its final place, and moved there in one step when it is complete.

Lives here: where the files go and that they are never half there. Must not live here: what is in them
(`core.card` has the card's types).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path

from skerry.api.errors import AlreadyExistsError, IntegrityError, InvalidError, NotFoundError, StorageFullError
from skerry.api.kinds.variants import Blob
from skerry.core import card as cards
from skerry.kit import files

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Draft:
    """A package that is being made, in a directory of its own; `publish` turns it into the package."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory = directory
        self._target = target

    def add(self, name: str, content: bytes) -> Blob:
        """Write one file. Raises StorageFullError."""
        files.write_atomic(self.directory / name, content)
        return Blob(digest=f"sha256:{sha256(content).hexdigest()}", size=len(content))

    def take(self, source: Path, name: str) -> Blob:
        """Copy a file in, whatever its size, and make it last. Raises StorageFullError."""
        target = self.directory / name
        try:
            shutil.copyfile(source, target)
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "free some space; nothing was changed"
                raise StorageFullError(element=str(self._target / name), hint=hint) from error
            raise
        with target.open("rb") as file:
            return Blob(digest=f"sha256:{file_digest(file, 'sha256').hexdigest()}", size=target.stat().st_size)

    def remove(self, name: str) -> None:
        """Take one file out again."""
        (self.directory / name).unlink(missing_ok=True)

    def publish(self, card: cards.EvaluationCard) -> None:
        """Write the card and put the package in its place, instead of an older one if there is one.

        Raises StorageFullError, AlreadyExistsError; whatever was there then stays.
        """
        self.add(cards.CARD_FILE, cards.encode(card))
        files.sync_directory(self.directory)
        check_target(self._target)
        if (self._target / cards.CARD_FILE).exists():
            _exchange(self.directory, self._target)  # the draft's directory now holds the older package
        else:
            os.rename(self.directory, self._target)
        files.sync_directory(self._target.parent)


@contextmanager
def draft(target: Path) -> Iterator[Draft]:
    """A draft beside its target; nothing of it stays unless it is published.

    Raises AlreadyExistsError when the target holds something else, InvalidError when nothing can be written there.
    """
    target = Path(os.path.realpath(target))
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        directory = target.with_name(f".{target.name}.{os.getpid()}.partial")
        directory.mkdir()
    except OSError as error:
        raise InvalidError(
            f"cannot be written ({error.strerror})", element=str(target), hint="choose another --out"
        ) from error
    try:
        yield Draft(directory, target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def adopt(made: Path, target: Path) -> cards.EvaluationCard:
    """Put a package that came from elsewhere into its place, if every file is what its card says; return the card.

    Raises IntegrityError, InvalidError, NotFoundError, AlreadyExistsError, StorageFullError.
    """
    try:
        card = cards.decode((made / cards.CARD_FILE).read_bytes())
        with draft(target) as new:
            wanted = {cards.GOLDEN_FILE: card.golden.blob}
            wanted |= {packaged.file: packaged.variant.blob for packaged in card.variants}
            for name, blob in wanted.items():
                if new.take(made / name, name).digest != blob.digest:
                    raise IntegrityError(element=name)
            for name in ("provenance.json", "pareto.png"):
                if (made / name).is_file():
                    new.take(made / name, name)
            new.publish(card)
    except FileNotFoundError as error:
        raise NotFoundError("is missing from the package", element=Path(error.filename).name) from None
    return card


def check_target(target: Path) -> None:
    """Raise AlreadyExistsError unless the target is free, empty or an older package."""
    hint = "choose another --out, or empty it"
    if target.is_dir():
        if any(target.iterdir()) and not (target / cards.CARD_FILE).is_file():
            raise AlreadyExistsError("holds files and is not a model package", element=str(target), hint=hint)
    elif target.exists():
        raise AlreadyExistsError("is not a directory", element=str(target), hint=hint)


def _sweep(target: Path) -> None:
    """Remove drafts whose process was killed; a package that was set aside when that happened returns."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d{{1,10}})\.partial(\.old)?")
    for path in sorted(target.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or _lives(int(match.group(1))):
            continue
        if match.group(2) and not target.exists():
            os.rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    """Tell whether another process has that id; in a container this one often has the id of a killed one."""
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _exchange(ours: Path, theirs: Path) -> None:
    """Swap two directories in one step where the kernel and the file system can, else in two."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        arguments = (_AT_FDCWD, os.fsencode(ours), _AT_FDCWD, os.fsencode(theirs), ctypes.c_uint(_RENAME_EXCHANGE))
        if rename(*arguments) == 0:
            return
    aside = ours.with_name(f"{ours.name}.old")
    os.rename(theirs, aside)
    try:
        os.rename(ours, theirs)
    except OSError:
        os.rename(aside, theirs)
        raise
    os.rename(aside, ours)
