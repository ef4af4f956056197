"""An upload that a registry elsewhere does not take, and whose id nobody knows, is given up at once."""

import hashlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from tests.integration.registry.conftest import identified

from skerry.api.errors import UnavailableError
from skerry.core.reference import Reference
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.registry.elsewhere import ElsewhereStore
from skerry.drivers.registry.uploads import UploadSettings
from skerry.hub import deltas
from skerry.hub.server import registry

RAW = b"weights" * 1000
DIGEST = f"sha256:{hashlib.sha256(RAW).hexdigest()}"
MOST = 3


def away(spool: Path) -> ElsewhereStore:
    """A store in a registry that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    client = open_registry(host, None, plain_http=True)
    return ElsewhereStore(
        Reference(host=host, repository="models"), client, spool, UploadSettings(max_namespace_uploads=MOST)
    )


def files_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_uploads_in_one_request_leave_nothing_while_the_registry_is_away(hub: Any, tmp_path: Path) -> None:
    async def push() -> list[int]:
        store = away(tmp_path / "spool")
        context = replace(hub.context, artifacts=store)
        app = identified(Starlette(routes=registry.routes(context, registry.RegistrySettings())), "admin")
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub") as client:
                path, query = "/v2/default/digits/blobs/uploads/", {"digest": DIGEST}
                tries = [await client.post(path, params=query, content=RAW) for _ in range(MOST + 1)]
                begun = await client.post(path)
                return [answer.status_code for answer in (*tries, begun)]
        finally:
            store.close()

    assert hub.run(push()) == [*[503] * (MOST + 1), 202]
    assert [path for path in files_under(tmp_path / "spool") if path.stat().st_size >= len(RAW)] == []


async def test_deltas_leave_nothing_while_the_registry_is_away(tmp_path: Path) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield RAW

    store = away(tmp_path / "spool")
    try:
        for _ in range(MOST + 1):
            with pytest.raises(UnavailableError, match="cannot be reached"):
                await deltas._upload(store, "default/digits", DIGEST, once())
    finally:
        store.close()
    assert files_under(tmp_path / "spool") == []
