"""Updates under load: how many requests fail, and how long the longest one takes, while versions replace one another.

The agent's engine runs in this process, its inference servers in theirs, and the callers in one more, in a closed
loop: half of them keep their connection, half take a new one for each request. Nothing is judged, figures are printed:

    python bench/switchover.py [--updates 20] [--restarts 3] [--callers 4]
    python bench/switchover.py --ways [--updates 50]     three ways to replace a server, without agent and model
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import hashlib
import http.client
import json
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from skerry.agent import facts
from skerry.agent.disk import Disk
from skerry.agent.engine import Engine, Parts
from skerry.agent.servers import Servers
from skerry.agent.settings import AgentSettings
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import messages, trust
from skerry.core.messages import DesiredState, Reported, WorkloadDesired
from skerry.core.session import Session
from skerry.drivers.link.memory import MemoryCarrier, MemoryDeviceLink, MemoryHubLink
from skerry.drivers.runtime.process import ProcessRuntime
from skerry.kit.clock import SystemClock

UID = "bench"
PATIENCE = 60.0
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}).encode()
SPAWN = multiprocessing.get_context("spawn")


# --- callers ------------------------------------------------------------------------------------------------------


def call(port: int, count: int, running: Any, results: Any, path: str) -> None:
    """In a process of its own: so many callers until `running` is cleared."""
    found: list[tuple[int, float, list[str]]] = []

    def loop(*, keep: bool) -> None:
        answered, longest, failed = 0, 0.0, []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        while running.is_set():
            began = time.perf_counter()
            try:
                connection.request("POST", path, BODY, {} if keep else {"Connection": "close"})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise ConnectionError(str(response.status))
                answered += 1
            except (OSError, http.client.HTTPException) as error:
                failed.append(f"{type(error).__name__}: {error}")
                connection.close()
            longest = max(longest, time.perf_counter() - began)
        connection.close()
        found.append((answered, longest, failed))

    threads = [threading.Thread(target=loop, kwargs={"keep": number % 2 == 0}) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((sum(f[0] for f in found), max(f[1] for f in found), [e for f in found for e in f[2]]))


@contextlib.contextmanager
def callers(port: int, count: int, path: str) -> Iterator[Callable[[], tuple[int, float, list[str]]]]:
    """Yield what ends them and returns: answered, longest seconds, failures."""
    running, results = SPAWN.Event(), SPAWN.Queue()
    running.set()
    process = SPAWN.Process(target=call, args=(port, count, running, results, path))
    process.start()
    try:

        def end() -> tuple[int, float, list[str]]:
            running.clear()
            return results.get(timeout=2 * PATIENCE)  # type: ignore[no-any-return]

        yield end
    finally:
        running.clear()
        process.join()


# --- the agent ----------------------------------------------------------------------------------------------------


class Shelf:
    """An `ArtifactSource` in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def add(self, content: bytes) -> Blob:
        blob = Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))
        self.blobs[blob.digest] = content
        return blob

    async def fetch(self, repository: str, blob: Blob, target: Path, *, progress: Callable[[int], None]) -> None:  # noqa: ARG002
        draft = target.with_name(f".{target.name}.partial")
        draft.write_bytes(self.blobs[blob.digest])
        os.replace(draft, target)
        progress(blob.size)


def desired(shelf: Shelf, version: str, seed: int, directory: Path) -> WorkloadDesired:
    random = np.random.default_rng(seed)
    weights = random.normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    inputs = random.normal(size=(32, 64)).astype(np.float32)
    golden = directory / f"{version}.npz"
    np.savez(golden, allow_pickle=False, **{"input.x": inputs, "output.y": inputs @ weights})
    return WorkloadDesired(
        name="dense",
        rollout=f"dense-{version}",
        revision=1,
        model="dense",
        model_version=f"dense-{version}",
        version=version,
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 64])],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 10])],
        ),
        repository="default/dense",
        blob=shelf.add(model.SerializeToString()),
        golden=shelf.add(golden.read_bytes()),
    )


class Fleet:
    """A hub of one device."""

    def __init__(self, directory: Path, shelf: Shelf) -> None:
        self.disk = Disk(directory)
        self.shelf = shelf
        self.key = Ed25519PrivateKey.generate()
        self.carrier = MemoryCarrier()
        self.version = 0
        self.last: Reported | None = None
        self.news = asyncio.Event()

    async def listen(self, ready: asyncio.Event) -> None:
        async with MemoryHubLink(self.carrier).connect() as self.hub:
            ready.set()
            async for _, message in self.hub.incoming():
                if isinstance(message, Reported):
                    self.last = message
                    self.news.set()

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[None]:
        settings, keys = AgentSettings(), {"k": self.key.public_key()}
        kept = self.disk.read_desired()
        accepted = None if kept is None else trust.open_envelope(kept.envelope, DesiredState, uid=UID, keys=keys)
        parts = Parts(
            disk=self.disk,
            link=MemoryDeviceLink(self.carrier, UID),
            source=self.shelf,
            servers=Servers(ProcessRuntime(self.disk.root / "runtime"), self.disk, settings.servers),
            session=Session(uid=UID, boot_id=secrets.token_hex(8), keys=keys, floor=self.version, accepted=accepted),
            clock=SystemClock(),
            settings=settings,
            facts=lambda: facts.collect(settings, self.disk.root),
        )
        task = asyncio.create_task(Engine(parts).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def update(self, wish: WorkloadDesired) -> int:
        """Publish, wait until it runs, return its port."""
        self.version += 1
        now = datetime.datetime.now(datetime.UTC)
        state = DesiredState(uid=UID, manifest_version=self.version, issued_at=now, workloads=[wish])
        await self.hub.publish_desired(UID, messages.encode(trust.sign(state, self.key, "k")))
        async with asyncio.timeout(PATIENCE):
            while True:
                self.news.clear()
                for one in [] if self.last is None else self.last.workloads:
                    if one.phase == "Running" and one.running is not None and one.running.rollout == wish.rollout:
                        return one.running.port
                await self.news.wait()


async def updates(count: int, restarts: int, caller_count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, shelf = Path(name), Shelf()
        wishes = [desired(shelf, f"v{n}", n, directory) for n in (1, 2)]
        fleet, ready = Fleet(directory / "agent", shelf), asyncio.Event()
        listening = asyncio.create_task(fleet.listen(ready))
        await ready.wait()
        try:
            await under_load(fleet, wishes, count, restarts, caller_count)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
            runtime = ProcessRuntime(directory / "agent" / "runtime")
            for one in await runtime.list():
                await runtime.stop(one, grace_seconds=5)


async def under_load(fleet: Fleet, wishes: list[WorkloadDesired], count: int, restarts: int, caller_count: int) -> None:
    async with fleet.agent():
        port = await fleet.update(wishes[0])
        with callers(port, caller_count, "/v2/models/dense/infer") as end:
            await asyncio.sleep(3)
            quiet = await asyncio.to_thread(end)
    show("no update", quiet)
    with callers(port, caller_count, "/v2/models/dense/infer") as end:
        number, began = 0, time.perf_counter()
        for life in range(restarts + 1):  # the agent ends, and comes back, in between
            async with fleet.agent():
                for _ in range(count // (restarts + 1)):
                    number += 1
                    assert await fleet.update(wishes[number % 2]) == port
                if life == restarts:
                    seconds = time.perf_counter() - began
                    busy = await asyncio.to_thread(end)
    show(f"{number} updates, {restarts} restarts of the agent, {seconds:.0f} s", busy)


def show(name: str, found: tuple[int, float, list[str]]) -> None:
    answered, longest, failed = found
    print(f"{name:45} {answered:8} answered, {len(failed)} failed, longest {longest * 1000:.0f} ms", flush=True)
    for sentence in sorted(set(failed)):
        print(f"    {failed.count(sentence)} x {sentence}")


# --- ways to replace a server -------------------------------------------------------------------------------------


def serve_plainly(listener: socket.socket) -> None:
    """Until SIGTERM: accept, read, answer, close. Then close the listening socket, as a server does that ends."""
    listener.settimeout(0.2)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    while not ending.is_set():
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                read = b""
                while not read.endswith(BODY):
                    read += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    os._exit(0)


def start_plain(listener: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        serve_plainly(listener)
    return pid


def bound(port: int, *, shared: bool = False) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(512)
    return made


def ways(count: int, caller_count: int) -> None:
    for name, shared, keep in (
        ("one socket, shared", False, True),
        ("SO_REUSEPORT", True, False),
        ("close, then bind", False, False),
    ):
        listener = bound(0, shared=shared)
        port = listener.getsockname()[1]
        pid = start_plain(listener)
        if not keep:
            listener.close()
        with callers(port, caller_count, "/") as end:
            for _ in range(count):
                time.sleep(0.1)
                if keep or shared:
                    successor = listener if keep else bound(port, shared=True)
                    after = start_plain(successor)
                    stop_plain(pid)
                else:
                    stop_plain(pid)
                    successor = bound(port)
                    after = start_plain(successor)
                if not keep:
                    successor.close()
                pid = after
            found = end()
        stop_plain(pid)
        listener.close()
        show(f"{name}, {count} times", found)


def stop_plain(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3, help="of the agent, in between")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--ways", action="store_true")
    options = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    if options.ways:
        ways(options.updates, options.callers)
    else:
        asyncio.run(updates(options.updates, options.restarts, options.callers))


if __name__ == "__main__":
    main()
