"""What agents of the tests have around them: models that really run, a registry that can misbehave, a hub's key."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import http.server
import os
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from skerry.agent import facts
from skerry.agent.disk import Disk
from skerry.agent.engine import Engine, Parts
from skerry.agent.servers import Servers
from skerry.agent.settings import AgentSettings
from skerry.api.kinds.device import WorkloadStatus
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import messages, trust
from skerry.core.messages import DesiredState, Reported, ServingDesired, WorkloadDesired
from skerry.core.ports import Clock, HubConnection, Instance
from skerry.core.session import Session
from skerry.drivers.link.memory import MemoryCarrier, MemoryDeviceLink, MemoryHubLink
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings
from skerry.drivers.runtime.process import ProcessRuntime
from skerry.kit.clock import SystemClock

UID = "d1"
KEY_ID = "k1"
PATIENCE = 40.0
"""Seconds; a bound on waiting, not a claim about speed."""
CLASSES = 3


@dataclass(frozen=True)
class Model:
    """One version of a tiny model: scores = x @ weights, with golden samples of its own."""

    version: str
    model: bytes
    golden: bytes
    signature: ModelSignature

    def desired(self, *, name: str = "digits", rollout: str = "", port: int = 0) -> WorkloadDesired:
        return WorkloadDesired(
            name=name,
            rollout=rollout or f"{name}-{self.version}",
            revision=1,
            model="digits",
            model_version=f"digits-{self.version}",
            version=self.version,
            variant="onnx-fp32",
            format="onnx",
            needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
            signature=self.signature,
            repository="default/digits",
            blob=blob_of(self.model),
            golden=blob_of(self.golden),
            serving=ServingDesired(port=port),
        )


def blob_of(content: bytes) -> Blob:
    return Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))


def make_model(directory: Path, version: str, *, seed: int, right: float = 1.0, samples: int = 20) -> Model:
    """`right` is the share of the labels that the model's answers meet."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(4, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    inputs = random.normal(size=(samples, 4)).astype(np.float32)
    outputs = inputs @ weights
    labels = outputs.argmax(axis=1)
    wrong = round(samples * (1 - right))
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    path = directory / f"{version}.npz"
    np.savez(path, **{"input.x": inputs, "output.scores": outputs, "labels": labels.astype(np.int64)})
    signature = ModelSignature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 4])],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, CLASSES])],
    )
    return Model(version, model.SerializeToString(), path.read_bytes(), signature)


def golden_of_wrong_shape(directory: Path) -> bytes:
    path = directory / "wrong.npz"
    np.savez(path, **{"input.x": np.zeros((2, 4), np.float32), "output.scores": np.zeros((2, 7), np.float32)})
    return path.read_bytes()


class Registry:
    """Blobs over HTTP, as an OCI registry serves them; told to, it is down, lies, or stops in the middle."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.lies: dict[str, bytes] = {}
        self.down = False
        self.hold = threading.Event()
        """Cleared: half of each blob, or of the one that is `held`, is sent, then nothing more until it is set."""
        self.held = ""
        self.hold.set()
        self.holding = threading.Event()
        self.requests: list[str] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                registry.requests.append(self.path)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, object]:
                connection, address = super().get_request()
                if tls is not None:
                    connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return connection, address

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that was killed is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        digest = handler.path.rsplit("/", 1)[-1]
        content = self.lies.get(digest, self.blobs.get(digest))
        if self.down or content is None:
            handler.send_response(503 if self.down else 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        whole, start = len(content), 0
        wanted = handler.headers.get("Range", "")
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            content = content[start:]
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        half = len(content) // 2
        handler.wfile.write(content[:half])
        handler.wfile.flush()
        if not self.hold.is_set() and self.held in ("", digest):
            self.holding.set()
            self.hold.wait(PATIENCE)
        handler.wfile.write(content[half:])

    def add(self, *models: Model) -> None:
        for model in models:
            for content in (model.model, model.golden):
                self.blobs[blob_of(content).digest] = content

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Hub:
    """The hub's end of a link: signs desired states and commands, keeps what the device reports."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.version = 0
        self.reports: list[Reported] = []
        self.results: list[messages.CommandResult] = []
        self.telemetry: list[messages.Telemetry] = []
        self.heard: list[str] = []
        """The types of all messages, in order."""
        self.carrier = MemoryCarrier()
        self.connection: HubConnection | None = None
        self.ready = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self) -> None:
        async with MemoryHubLink(self.carrier).connect() as self.connection:
            self.ready.set()
            async for _, message in self.connection.incoming():
                async with self._news:
                    self.heard.append(type(message).__name__)
                    if isinstance(message, Reported):
                        self.reports.append(message)
                    elif isinstance(message, messages.CommandResult):
                        self.results.append(message)
                    elif isinstance(message, messages.Telemetry):
                        self.telemetry.append(message)
                    self._news.notify_all()

    def sign(self, *wanted: WorkloadDesired, version: int = 0, key: Ed25519PrivateKey | None = None) -> bytes:
        self.version = version or self.version + 1
        state = DesiredState(
            uid=UID,
            manifest_version=self.version,
            issued_at=datetime.datetime.now(datetime.UTC),
            workloads=list(wanted),
        )
        return messages.encode(trust.sign(state, key or self.key, KEY_ID))

    async def want(self, *wanted: WorkloadDesired) -> None:
        await self.publish(self.sign(*wanted))

    async def publish(self, envelope: bytes) -> None:
        assert self.connection is not None
        await self.connection.publish_desired(UID, envelope)

    async def ask(self, verb: str, workload: str = "digits", **fields: object) -> messages.CommandResult:
        command = messages.Command(
            uid=UID,
            id=secrets.token_hex(8),
            expires_at=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30),
            verb=verb,  # type: ignore[arg-type]
            workload=workload,
            **fields,  # type: ignore[arg-type]
        )
        assert self.connection is not None
        await self.connection.send_command(UID, messages.encode(trust.sign(command, self.key, KEY_ID)))
        await self.until(lambda: any(r.id == command.id for r in self.results))
        return next(r for r in self.results if r.id == command.id)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: bool(condition()))

    async def status(self, condition: Callable[[WorkloadStatus], object], name: str = "digits") -> WorkloadStatus:
        """Wait for a report whose workload meets the condition."""
        await self.until(lambda: any(condition(one) for one in self._last(name)))
        return self._last(name)[0]

    async def running(self, rollout: str, name: str = "digits") -> WorkloadStatus:
        return await self.status(
            lambda one: one.phase == "Running" and one.running is not None and one.running.rollout == rollout, name
        )

    def _last(self, name: str) -> list[WorkloadStatus]:
        return [one for one in self.reports[-1].workloads if one.name == name] if self.reports else []


@dataclass
class World:
    """One device with its disk, its hub and its registry."""

    directory: Path
    registry: Registry
    hub: Hub
    settings: AgentSettings
    limit_bytes: int | None = None
    clock: Clock = field(default_factory=SystemClock)
    disk: Disk = field(init=False)

    def __post_init__(self) -> None:
        self.disk = Disk(self.directory, limit_bytes=self.limit_bytes)

    def engine(self) -> Engine:
        kept = self.disk.read_desired()
        keys = {KEY_ID: self.hub.key.public_key()}
        accepted = None
        if kept is not None:
            accepted = trust.open_envelope(kept.envelope, DesiredState, uid=UID, keys=keys)
        return Engine(
            Parts(
                disk=self.disk,
                link=MemoryDeviceLink(self.hub.carrier, UID),
                source=OciArtifactSource(self.registry.url, None, OciSettings(reserve_bytes=0)),
                servers=Servers(ProcessRuntime(self.directory / "runtime"), self.disk, self.settings.servers),
                session=Session(
                    uid=UID,
                    boot_id=secrets.token_hex(8),
                    keys=keys,
                    floor=0 if kept is None else kept.manifest_version,
                    accepted=accepted,
                    commands=self.disk.read_commands(),
                ),
                clock=self.clock,
                settings=self.settings,
                facts=lambda: facts.collect(self.settings, self.directory),
            )
        )

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Engine]:
        """Run an agent until the context ends; its servers go on."""
        engine = self.engine()
        task = asyncio.create_task(engine.run())
        try:
            yield engine
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def instances(self) -> list[Instance]:
        return list(await ProcessRuntime(self.directory / "runtime").list())

    async def until_servers(self, count: int) -> None:
        await eventually(lambda: self._count(count))

    async def until_phase(self, engine: Engine, phase: str) -> None:
        """Wait without a hub that could tell."""

        async def reached() -> bool:
            return [one.phase for one in engine.statuses()] == [phase]

        await eventually(reached)

    async def _count(self, count: int) -> bool:
        return len(await self.instances()) == count

    async def kill_server(self) -> None:
        [one] = await self.instances()
        os.kill(int(one.id.split(":")[0]), signal.SIGKILL)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds: for what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - processes and files have no event to wait for
            await asyncio.sleep(0.02)


async def stop_servers(directory: Path) -> None:
    runtime = ProcessRuntime(directory / "runtime")
    for one in await runtime.list():
        await runtime.stop(one, grace_seconds=2)
