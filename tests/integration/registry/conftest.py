"""A real registry: uvicorn on loopback over a directory store. The caller's role is what the header `x-role` says."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.core.access import ANONYMOUS, Identity
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.registry.uploads import UploadSettings
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY
from skerry.hub.server import registry
from skerry.kit.clock import SystemClock

ROLES = {
    "admin": Identity(role="admin", name="ada"),
    "device": Identity(role="device", name="till-7", namespace="default"),
    "anonymous": ANONYMOUS,
}


@dataclass(frozen=True)
class Hub:
    """A running registry."""

    url: str
    root: Path

    def client(self, role: str = "admin") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"x-role": role}, timeout=30, verify=False)


def identified(app: ASGIApp, role: str) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", []))
        scope[IDENTITY] = ROLES[headers.get(b"x-role", role.encode()).decode()]
        await app(scope, receive, send)

    return wrapped


@contextmanager
def serving(root: Path, *, role: str = "anonymous", **settings: Any) -> Iterator[Hub]:
    uploads = settings.pop("uploads", None)
    tls = {name: settings.pop(name) for name in ("ssl_certfile", "ssl_keyfile") if name in settings}
    context = HubContext(
        objects=cast(Any, None),  # the registry has no use for these three
        authority=cast(Any, None),
        gateway=cast(Any, None),
        artifacts=DirectoryStore(root, uploads),
        clock=SystemClock(),
        state_dir=root,
        hub_url="",
        mqtt_host="",
        mqtt_port=0,
    )
    app = Starlette(routes=registry.routes(context, registry.RegistrySettings(**settings)))
    config = uvicorn.Config(identified(app, role), lifespan="off", ws="none", log_config=None, access_log=False, **tls)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    started: Future[Callable[[], None]] = Future()

    async def serve(listener: socket.socket) -> None:  # as Server.serve, without its rests
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        await server.startup(sockets=[listener])
        started.set_result(lambda: (loop.call_soon_threadsafe(stopping.set), None)[1])
        await stopping.wait()
        for socket_server in server.servers:
            socket_server.close()
        async with asyncio.timeout(20):
            while server.server_state.connections or server.server_state.tasks:
                for connection in list(server.server_state.connections):
                    connection.shutdown()
                await asyncio.sleep(0.001)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        stop = started.result(30)
        try:
            yield Hub(url=url, root=root)
        finally:
            stop()
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def serving_hub() -> Callable[..., AbstractContextManager[Hub]]:
    return serving


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "artifacts") as hub:
        yield hub


@pytest.fixture
def tight_hub(tmp_path: Path) -> Iterator[Hub]:
    """Small bounds: blobs of 1000 bytes, manifests of 2000, half a second of silence."""
    limits = UploadSettings(max_blob_bytes=1000, max_uploads=3)
    with serving(tmp_path / "artifacts", uploads=limits, max_manifest_bytes=2000, idle_seconds=0.5) as hub:
        yield hub


@pytest.fixture
def full_hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub whose disk has no room to spare."""
    with serving(tmp_path / "artifacts", uploads=UploadSettings(reserve_bytes=2**62)) as hub:
        yield hub


@pytest.fixture
def open_hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub that takes everybody for an admin, for clients that cannot send our header."""
    with serving(tmp_path / "artifacts", role="admin") as hub:
        yield hub
