"""A real registry: uvicorn on loopback over a directory store, with a hub's own keys and store of objects.

The owner of a client certificate is who the header `x-role` says.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.kinds.registry_token import RegistryToken, RegistryTokenSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.api.meta import ObjectMeta
from skerry.core.access import ANONYMOUS, Identity
from skerry.core.desired import Assignment, DesiredRecord, assign
from skerry.core.messages import WorkloadDesired
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.registry.uploads import UploadSettings
from skerry.drivers.store.sqlite import open_store
from skerry.hub import pki, registry_tokens
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY
from skerry.hub.objects import Objects
from skerry.hub.server import registry
from skerry.kit.clock import SystemClock

T = TypeVar("T")

ROLES = {
    "admin": Identity(role="admin", name="ada"),
    "device": Identity(role="device", name="till-7", namespace="default"),
    "other device": Identity(role="device", name="till-8", namespace="default"),
    "device elsewhere": Identity(role="device", name="till-9", namespace="lab"),
    "other admin": Identity(role="admin", name="bob"),
    "anonymous": ANONYMOUS,
}


@dataclass(frozen=True)
class Hub:
    """A running registry; `root` is where it keeps artifacts."""

    url: str
    root: Path
    context: HubContext
    loop: asyncio.AbstractEventLoop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the hub's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def make_token(self, *actions: str, namespace: str = "default", **spec: Any) -> str:
        """Make a registry token, as `skerry registry token` does."""
        item = RegistryToken(
            metadata=ObjectMeta(namespace=namespace),
            spec=RegistryTokenSpec(actions=list(actions) or ["pull"], **spec),
        )
        return self.run(registry_tokens.create_token(self.context, item)).status.token

    def deploy(self, blob: Blob, *, uid: str = "till-7", repository: str = "default/digits", **more: Any) -> None:
        """Desire a blob of a device, as a rollout does."""
        namespace = repository.partition("/")[0]
        assignment = Assignment(
            workload=workload(blob, repository, **more),
            deployment_uid="1",
            wave=0,
            reason="",
            assigned_at=self.context.clock.now(),
        )
        empty = DesiredRecord(uid=uid, namespace=namespace, device=uid)
        self.run(self.context.objects.change_desired(empty, lambda record: assign(record, assignment)))

    def client(self, role: str = "admin") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"x-role": role}, timeout=30, verify=False)


def workload(blob: Blob, repository: str, **more: Any) -> WorkloadDesired:
    fields: dict[str, Any] = {
        "name": "digits",
        "rollout": "digits-1",
        "revision": 1,
        "model": "digits",
        "model_version": "digits-1.0.0",
        "version": "1.0.0",
        "variant": "onnx-fp32",
        "format": "onnx",
        "needs": Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        "signature": ModelSignature(inputs=[], outputs=[]),
    }
    return WorkloadDesired(**(fields | more), repository=repository, blob=blob)


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
    started: Future[tuple[Callable[[], None], HubContext, asyncio.AbstractEventLoop]] = Future()

    async def serve(listener: socket.socket) -> None:  # as Server.serve, without its rests
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        async with open_store(root.parent / "hub.db") as store:
            context = make_context(root, uploads, Objects(store, SystemClock()))
            app = Starlette(routes=registry.routes(context, registry.RegistrySettings(**settings)))
            config = uvicorn.Config(
                identified(app, role), lifespan="off", ws="none", log_config=None, access_log=False, **tls
            )
            server = uvicorn.Server(config)
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup(sockets=[listener])
            started.set_result((lambda: (loop.call_soon_threadsafe(stopping.set), None)[1], context, loop))
            await stopping.wait()
            for socket_server in server.servers:
                socket_server.close()
            async with asyncio.timeout(20):
                while server.server_state.connections or server.server_state.tasks:
                    for connection in list(server.server_state.connections):
                        connection.shutdown()
                    await asyncio.sleep(0.001)

    def work(listener: socket.socket) -> None:
        try:
            asyncio.run(serve(listener))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the hub's own listener does
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=work, args=(listener,))
        thread.start()
        stop, context, loop = started.result(30)
        try:
            yield Hub(url=url, root=root, context=context, loop=loop)
        finally:
            stop()
            thread.join(30)
            assert not thread.is_alive()


def make_context(root: Path, uploads: UploadSettings | None, objects: Objects) -> HubContext:
    clock = SystemClock()
    return HubContext(
        objects=objects,
        authority=pki.open_authority(
            root.parent / "pki", names=("127.0.0.1",), clock=clock, device_life=timedelta(days=1), may_create=True
        ),
        gateway=cast(Any, None),  # the registry has no use for it
        artifacts=DirectoryStore(root, uploads),
        clock=clock,
        state_dir=root,
        hub_url="https://hub.example",
        mqtt_host="",
        mqtt_port=0,
    )


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


@pytest.fixture
def tls_hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub behind TLS with its own certificate, where clients without a certificate have to log in."""
    authority = make_context(tmp_path / "artifacts", None, cast(Any, None)).authority
    files = {"ssl_certfile": authority.server_certificate_file, "ssl_keyfile": authority.server_key_file}
    with serving(tmp_path / "artifacts", **files) as hub:
        yield hub
