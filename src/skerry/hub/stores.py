"""Which store a hub keeps everything in: a file of its own, or a PostgreSQL that it shares with other hubs.

Part of the wiring that `app` does. Must not live here: what a store does, what a leader does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from skerry.api.errors import AlreadyExistsError, IntegrityError, InvalidError, NotFoundError, UnsupportedError
from skerry.api.meta import Struct
from skerry.core.ports import Store
from skerry.hub.leadership import PREFIX, Election, Fence
from skerry.hub.objects import UNREADABLE
from skerry.hub.settings import SHARED_SCHEME, check_store

if TYPE_CHECKING:
    from skerry.drivers.store.database import LogDatabase
    from skerry.hub.pki import Authority

PASSWORD = "SKERRY_STORE_PASSWORD"  # noqa: S105 - the variable's name
ADDRESS = "SKERRY_STORE"
KEY = f"{PREFIX}identity"
FILE = "hub.db"
"""In a state directory."""
_MAX_PASSWORD = 4096


@dataclass(frozen=True, kw_only=True)
class Passwords:
    """Files with passwords, where they are needed; $SKERRY_STORE_PASSWORD is for both."""

    source: Path | None = None
    target: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A store that several hubs write, and what this one needs to be one of them."""

    store: Store
    led: Store
    """The same store, for what only the leader writes."""
    election: Election
    fence: Fence


class _Identity(Struct, frozen=True, kw_only=True):
    """Whose devices these are: every hub on the store has the same keys."""

    ca_fingerprint: str
    desired_key_id: str


def address_of(named: str) -> str:
    """Return the shared store's address from the setting or the environment; empty for a file of this hub's own."""
    named = named or os.environ.get(ADDRESS, "")
    return "" if named == "sqlite" else named


@contextlib.contextmanager
def open_log(place: str, password_file: Path | None = None) -> Iterator[LogDatabase]:
    """Open a store's log without a hub: a PostgreSQL URL, or a hub's state directory, whose hub must not run.

    Raises UnavailableError, InvalidError, UnsupportedError, IntegrityError.
    """
    if place.startswith(SHARED_SCHEME):
        address, postgresql = _driver()
        with postgresql.open_database(address.read(place, password=_password(password_file))) as database:
            yield database
        return
    from skerry.drivers.store import sqlite  # noqa: PLC0415 - SQLAlchemy is not for the command line's every verb

    with sqlite.open_database(Path(place) / FILE) as database:
        yield database


def copy(source: str, target: str, *, passwords: Passwords, said: Callable[[int], None]) -> int:
    """Copy a store into an empty one, with all revisions; return the newest. Raises ConflictError and as `open_log`."""
    from skerry.drivers.store import copying  # noqa: PLC0415

    for place in (source, target):
        if place.startswith(SHARED_SCHEME):
            check_store(place)
    if not source.startswith(SHARED_SCHEME) and not (Path(source) / FILE).exists():
        raise NotFoundError(f"has no store ({FILE})", element=source, hint="name a hub's state directory")
    with open_log(source, passwords.source) as old, open_log(target, passwords.target) as new:
        return copying.copy(old, new, said=said).newest


@contextlib.asynccontextmanager
async def open_shared(url: str, password_file: Path | None = None) -> AsyncIterator[Shared]:
    """Open a PostgreSQL store. Raises UnsupportedError where its driver is not installed, InvalidError for the URL,
    UnavailableError."""
    if not url.startswith(SHARED_SCHEME):
        raise InvalidError("is no store that is known", element="--store", hint="write sqlite, or postgresql://...")
    address, postgresql = _driver()
    from skerry.drivers.store import election, shared  # noqa: PLC0415 - as its driver

    place = address.read(url, password=_password(password_file))
    async with postgresql.open_store(place) as store:
        fence = shared.Fence()
        yield Shared(
            store=store,
            led=shared.FencedStore(store, fence),
            election=election.AdvisoryElection(place, store),
            fence=fence,
        )


@contextlib.asynccontextmanager
async def open_named_store(url: str, password_file: Path | None = None) -> AsyncIterator[Store]:
    """Open a PostgreSQL store for a program that is no hub. Raises as `open_shared`."""
    async with open_shared(url, password_file) as shared:
        yield shared.store


async def check_same_keys(store: Store, authority: Authority) -> None:
    """Make sure that all hubs on a store have the same keys, the first one's. Raises IntegrityError."""
    own = _Identity(ca_fingerprint=authority.ca_fingerprint, desired_key_id=authority.desired_key_id)
    found = await store.get(KEY)
    if found is None:
        with contextlib.suppress(AlreadyExistsError):
            await store.create(KEY, msgspec.json.encode(own))
            return
        found = await store.get(KEY)
    try:
        first = None if found is None else msgspec.json.decode(found.value, type=_Identity)
    except UNREADABLE as error:
        raise IntegrityError(
            f"what it keeps of whose keys the devices know cannot be read: {error}"[:300],
            element="--store",
            hint="it is damaged: put back a backup of the database",
        ) from None
    if first != own:
        raise IntegrityError(
            "belongs to hubs with other keys",
            element="--store",
            hint="give this hub their keys with --keys-dir, or a database of its own",
        )


def _driver() -> tuple[Any, Any]:
    try:
        from skerry.drivers.store import address, postgresql  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this installation cannot use PostgreSQL (no module {error.name})",
            hint="install it with: pip install 'skerry[postgresql]'",
        ) from None
    return address, postgresql


def _password(file: Path | None) -> str:
    if file is None:
        return os.environ.get(PASSWORD, "")
    try:
        content = file.read_bytes()
        if len(content) > _MAX_PASSWORD:
            raise InvalidError("is too long for a password", element=str(file))
        return content.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"cannot be read: {error}", element=f"--store-password-file {file}") from None
