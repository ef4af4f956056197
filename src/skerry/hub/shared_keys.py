"""The keys that all hubs on one store have: the CA and the key of desired states, in a directory or a mounted secret.

Each hub takes a copy into its own state directory, where `pki` finds it, and issues its own certificates there. The
first hub of all makes the keys, and leaves them for the others. Must not live here: making keys (`pki`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from skerry.api.errors import IntegrityError, SkerryError, StorageFullError, UnavailableError
from skerry.core.ports import Clock
from skerry.hub.pki import Authority
from skerry.hub.token_keys import TokenKeys
from skerry.kit import files

log = logging.getLogger(__name__)

NAMES = ("ca.key", "desired.key", "ca.crt")
"""In this order: once the last one is there, all are."""
_LAST = NAMES[-1]


def open_with(
    keys: Path, own: Path, opening: Callable[[bool], Authority], *, clock: Clock, may_create: bool
) -> Authority:
    """Open the authority in the directory `own` with the keys of the directory `keys`.

    `opening(may_create)` opens it there; service accounts' tokens are signed by keys in `keys` too. Only where the
    store is empty keys are made, and left in `keys`. Raises IntegrityError when this hub has others already,
    UnavailableError for a directory that cannot be used.
    """
    with _explained(keys):
        if (keys / _LAST).exists():
            _take(keys, own)
            return _sharing_tokens(keys, opening(False), clock)
        files.private_directory(keys)
    with _lock(keys):
        with _explained(keys):
            if (keys / _LAST).exists():  # another hub was first
                _take(keys, own)
                may_create = False
        authority = opening(may_create)
        with _explained(keys):
            if not (keys / _LAST).exists():
                for name in NAMES:
                    files.write_atomic(keys / name, (own / name).read_bytes(), mode=0o600)
        return _sharing_tokens(keys, authority, clock)


def _sharing_tokens(keys: Path, authority: Authority, clock: Clock) -> Authority:
    """Have all hubs sign and verify tokens by the same keys, where there is a place for new ones."""
    if os.access(keys, os.W_OK):
        authority.token_keys = TokenKeys(keys / "tokens", clock)
    else:
        log.warning("keys.tokens_not_shared directory=%s hint=%r", keys, "it cannot be written to")
    return authority


def _take(keys: Path, own: Path) -> None:
    files.private_directory(own)
    for name in NAMES:
        content, place = (keys / name).read_bytes(), own / name
        if not place.exists():
            files.write_atomic(place, content, mode=0o600)
        elif place.read_bytes() != content:
            raise IntegrityError(
                f"is another one than in {keys}",
                element=str(place),
                hint="this hub was set up by itself; give it an empty state directory",
            )


@contextlib.contextmanager
def _lock(keys: Path) -> Iterator[None]:
    """Let one hub at a time make keys here."""
    with _explained(keys):
        descriptor = os.open(keys / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with _explained(keys):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(keys: Path) -> Iterator[None]:
    try:
        yield
    except SkerryError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFullError if full else UnavailableError)(
            f"cannot be used ({error.strerror or error})", element=f"keys directory {keys}"
        ) from None
