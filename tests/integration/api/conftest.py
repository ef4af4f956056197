"""A real hub API for these tests: TLS listener, identities from certificates, sqlite store, gateway; only the device
link is the one in memory, with a device that answers commands."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api.kinds.device import Device, DeviceStatus, EngineFacts, Hardware, WorkloadStatus
from skerry.api.meta import ObjectMeta
from skerry.core import messages, trust
from skerry.drivers.client.api import HubClient, load_kubeconfig
from skerry.drivers.link.memory import MemoryCarrier, MemoryDeviceLink, MemoryHubLink
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import identity, kubeconfig, listener, namespaces, pki, roles
from skerry.hub.authorization import RoleAuthorizer
from skerry.hub.context import HubContext
from skerry.hub.gateway import Gateway
from skerry.hub.objects import Objects
from skerry.hub.server.app import build_app
from skerry.kit.clock import SystemClock

T = TypeVar("T")
WAIT = 10.0
BASE = "/apis/skerry.dev/v1alpha1/namespaces"


class Hub:
    """One running API and the loop it lives in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.carrier = MemoryCarrier()
        self.context: HubContext
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event
        self.url = ""

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in the hub's loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT)

    @property
    def objects(self) -> Objects:
        return self.context.objects

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def client(self, namespace: str = "default") -> HubClient:
        """A client with the admin's certificate."""
        return HubClient(load_kubeconfig(self.kubeconfig), namespace=namespace)

    def stranger(self, **options: Any) -> httpx.Client:
        """A client without any certificate."""
        connection = load_kubeconfig(self.kubeconfig)
        context = trusting(connection.ca)
        return httpx.Client(base_url=self.url, verify=context, timeout=WAIT, **options)

    def as_device(self, uid: str, namespace: str) -> httpx.Client:
        """A client with a device's certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.context.authority.issue_device(new_csr(key), uid, namespace)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self.directory / f"{uid}.pem"
        file.write_bytes(pem + certificate)
        context = trusting(self.context.authority.ca_pem)
        context.load_cert_chain(file)
        return httpx.Client(base_url=self.url, verify=context, timeout=WAIT)

    @contextlib.contextmanager
    def relay(self) -> Iterator[Relay]:
        """A way to the hub that can be cut."""
        relay = Relay(self)
        try:
            yield relay
        finally:
            relay.close()

    def add_device(self, namespace: str, name: str, **labels: str) -> Device:
        """Store a device as enrolment and its reports would have made it."""
        status = DeviceStatus(
            phase="Online",
            hardware=Hardware(arch="arm64", cores=4, memory_bytes=72 * 1024**2),
            engines=[EngineFacts(name="onnxruntime", version="1.24.1"), EngineFacts(name="litert")],
            last_seen=datetime.now(UTC),
            workloads=[
                WorkloadStatus(
                    name="digits",
                    rollout="digits-1",
                    revision=1,
                    variant="onnx-int8",
                    phase="Running",
                    message="serves",
                )
            ],
        )
        meta = ObjectMeta(name=name, namespace=namespace, labels=labels)
        return self.call(self.objects.create(Device(metadata=meta, status=status)))

    def wait_known(self, uid: str, *, known: bool = True) -> None:
        """Wait until the gateway has heard of a device, or of its end."""

        async def wait() -> None:
            async with asyncio.timeout(WAIT):
                while self.context.gateway.known(uid) is not known:  # noqa: ASYNC110 - it has no event for outsiders
                    await asyncio.sleep(0.01)

        self.call(wait())

    async def run(self, ready: Future[None], stop: asyncio.Event) -> None:
        clock = SystemClock()
        authority = pki.open_authority(self.directory / "pki", names=("127.0.0.1",), clock=clock)
        async with open_store(self.directory / "hub.db") as store:
            objects = Objects(store, clock)
            await namespaces.adopt(objects)
            link = MemoryHubLink(self.carrier)
            gateway = Gateway(objects, link, authority.desired_key, authority.desired_key_id, clock)
            sock = listener.bind("127.0.0.1", 0, purpose="API", option="")
            self.url = f"https://127.0.0.1:{sock.getsockname()[1]}"
            authorizer = RoleAuthorizer(objects)
            await roles.ensure(objects)
            self.context = HubContext(
                objects=objects,
                artifacts=DirectoryStore(self.directory / "artifacts"),
                clock=clock,
                authority=authority,
                gateway=gateway,
                state_dir=self.directory,
                hub_url=self.url,
                mqtt_host="127.0.0.1",
                mqtt_port=8883,
                authorizer=authorizer,
            )
            kubeconfig.write(self.kubeconfig, authority, self.url)
            app = identity.identify(build_app(self.context), ca_pem=authority.ca_pem, known=gateway.known, clock=clock)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(gateway.run())
                following = group.create_task(authorizer.run())
                await gateway.ready.wait()
                async with listener.serve(app, sock, authority.server_context(), listener.Limits()):
                    ready.set_result(None)
                    await stop.wait()
                running.cancel()
                following.cancel()

    @contextlib.asynccontextmanager
    async def answering(
        self, uid: str, answer: Callable[[messages.Command], messages.CommandResult]
    ) -> AsyncIterator[None]:
        """Connect a device that answers every command."""
        keys = {self.context.authority.desired_key_id: self.context.authority.desired_key.public_key()}

        async def serve() -> None:
            async with MemoryDeviceLink(self.carrier, uid).connect(boot_id="boot-1") as connection:
                async for channel, raw in connection.incoming():
                    if channel == "command":
                        command = trust.open_envelope(raw, messages.Command, uid=uid, keys=keys)
                        await connection.send(answer(command))

        task = asyncio.create_task(serve())
        try:
            async with asyncio.timeout(WAIT):
                while not self.context.gateway.online(uid):  # noqa: ASYNC110 - presence has no event for outsiders
                    await asyncio.sleep(0.01)
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


class Relay:
    """A TCP relay to the hub that can be cut and taken up again, at one address."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._target = ("127.0.0.1", int(hub.url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self._lock = threading.Lock()
        self._up = True
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def client(self, namespace: str) -> HubClient:
        connection = load_kubeconfig(self._hub.kubeconfig)
        server = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        return HubClient(dataclasses.replace(connection, server=server), namespace=namespace)

    def cut(self) -> None:
        with self._lock:
            self._up = False
            for pair in self._pairs:
                with contextlib.suppress(OSError):
                    pair.shutdown(socket.SHUT_RDWR)
            self._pairs.clear()

    def resume(self) -> None:
        with self._lock:
            self._up = True

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._up:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._pairs += [near, far]
            self._start(self._copy, near, far)
            self._start(self._copy, far, near)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def trusting(ca: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca.decode())


def new_csr(key: ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One hub for all tests here; each test has a namespace of its own."""
    hub = Hub(tmp_path_factory.mktemp("api-hub"))
    ready: Future[None] = Future()
    failed: list[BaseException] = []

    async def main() -> None:
        hub.loop, hub.stop = asyncio.get_running_loop(), asyncio.Event()
        await hub.run(ready, hub.stop)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - told by the fixture
            failed.append(error)
            if not ready.done():
                ready.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.result(WAIT)
        yield hub
    finally:
        if not failed:
            hub.loop.call_soon_threadsafe(hub.stop.set)
        thread.join(WAIT)
    assert not failed
    assert not thread.is_alive()


_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"ns-{next(_numbers)}"


@pytest.fixture
def admin(hub: Hub, namespace: str) -> Iterator[HubClient]:
    with hub.client(namespace) as client:
        yield client


@pytest.fixture
def deployment() -> Callable[..., dict[str, Any]]:
    def make(name: str = "digits", **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": name},
            "spec": {"modelVersion": "digits-1", "deviceSelector": {"matchLabels": {"site": "lab"}}, **spec},
        }

    return make


@pytest.fixture
def model_version() -> Callable[..., dict[str, Any]]:
    digest = "sha256:" + "a" * 64

    def make(namespace: str, name: str = "digits-1") -> dict[str, Any]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 64]}
        return {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "ModelVersion",
            "metadata": {"name": name},
            "spec": {
                "model": "digits",
                "version": "v1",
                "artifact": {"repository": f"{namespace}/digits", "digest": digest},
                "signature": {"inputs": [tensor], "outputs": [tensor]},
                "evaluation": {"metric": "accuracy", "baseline": 0.98, "samples": 100, "allowedDrop": 0.01},
                "golden": {"blob": {"digest": digest, "size": 10}, "samples": 8},
            },
        }

    return make


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubectl-home")


@pytest.fixture
def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "KUBECONFIG": str(hub.kubeconfig),
        "KUBECACHEDIR": str(home / "cache"),
    }


@pytest.fixture
def kubectl(environment: dict[str, str], namespace: str) -> Run:
    def run(*arguments: str, text: str | None = None, fails: bool = False) -> subprocess.CompletedProcess[str]:
        assert KUBECTL is not None
        done = subprocess.run(
            [KUBECTL, "-n", namespace, *arguments],
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode != 0) == fails, done
        return done

    return run
