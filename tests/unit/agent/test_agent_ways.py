"""A delta that could not be brought is given up for good only where it is its own fault."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.integration.agent.test_agent_peers import desired

from skerry.agent.disk import Disk
from skerry.agent.fetch import Ways
from skerry.api.errors import (
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    UnauthorizedError,
    UnreachableError,
)
from skerry.api.kinds.variants import Blob, Delta
from skerry.core import delta
from skerry.kit.clock import SystemClock

BASE, NEW = f"sha256:{'a' * 64}", Blob(digest=f"sha256:{'b' * 64}", size=1_000_000)
WAY = Delta(base=BASE, target=NEW.digest, blob=Blob(digest=f"sha256:{'c' * 64}", size=50), encoding=delta.ENCODING)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (StorageFullError(element="x"), 50),
        (UnauthorizedError("no", element="x"), 50),
        (ForbiddenError("no", element="x"), 50),
        (UnreachableError("no", element="x"), 50),
        (IntegrityError("no", element="x"), NEW.size),
        (NotFoundError("no", element="x"), NEW.size),
    ],
)
async def test_what_is_wrong_with_a_delta(tmp_path: Path, error: SkerryError, left: int) -> None:
    disk = Disk(tmp_path)
    disk.blob(Blob(digest=BASE, size=4)).write_bytes(b"base")
    ways, want = Ways(disk, SystemClock()), msgspec.structs.replace(desired(NEW), deltas=[WAY])
    assert ways.missing(want) == 50

    async def fails(_: Blob) -> bool:
        raise error

    if left == 50:
        with pytest.raises(type(error)):
            await ways.bring(want, NEW, fails)
    else:
        assert not await ways.bring(want, NEW, fails)
    assert ways.missing(want) == left
