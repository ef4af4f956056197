"""What the hub's API does with few and with many devices in the store: get, list, create, patch, watch, start-up.

    python bench/api.py --sizes 1000,100000,1000000 [--directory D] [--store URL] [--watchers 1000] [--seconds 3]

For each size a hub is set up in a directory of its own, its store is filled with realistic Devices while it is down,
and it is started as a process; this process is the client, over TLS, with kept connections. A directory that was filled
before is used again, so that a million has to be made only once. Figures are printed, none is judged.

"p99" is of single requests as the client sees them. A watch's fan-out is measured from the moment a patch is sent until
the last of all watchers has read the event.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from skerry.api.kinds.device import (
    Device,
    DeviceStatus,
    EngineFacts,
    Hardware,
    LimitFacts,
    Measurement,
    Network,
    OperatingSystem,
    RunningRevision,
    WorkloadStatus,
)
from skerry.api.meta import Condition, ObjectMeta
from skerry.core.ports import Store
from skerry.drivers.client.api import load_kubeconfig
from skerry.drivers.store.sqlite import open_store
from skerry.hub import objects

PAGE = 500
START_SECONDS = 900.0
DEVICES = "/apis/skerry.dev/v1alpha1/namespaces/default/devices"
CREATED = DEVICES.replace("default/", "bench/")
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
MACHINES = (
    ("arm64", "Cortex-A72", 4, 4, "debian"),
    ("arm64", "Cortex-A76", 4, 8, "debian"),
    ("arm", "Cortex-A7", 2, 1, "alpine"),
    ("amd64", "Intel N100", 4, 16, "ubuntu"),
)


def device(number: int, now: datetime) -> Device:
    """A device as a fleet has them: with a workload that was measured, and with what its agent says of it."""
    arch, cpu, cores, gigabytes, family = MACHINES[number % len(MACHINES)]
    running = RunningRevision(
        rollout="digits-3",
        revision=3,
        model_version="digits-v3",
        variant="onnx-int8",
        port=8080,
        since=now,
        deployment_uid=f"{3:032x}",
    )
    workload = WorkloadStatus(
        name="digits",
        rollout="digits-3",
        deployment_uid=running.deployment_uid,
        revision=3,
        variant="onnx-int8",
        phase="Running",
        message="serves on port 8080",
        measurement=Measurement(
            samples=64,
            accuracy=0.98,
            agreement=1.0,
            max_abs_error=0.01,
            latency_p50_ms=1.0 + number % 17 / 10,
            latency_p95_ms=2.0 + number % 13 / 10,
            peak_memory_bytes=(50 << 20) + number % 4096,
        ),
        running=running,
        served=True,
        fetched_bytes=120_000,
        install_seconds=1.0 + number % 7 / 10,
    )
    status = DeviceStatus(
        phase="Offline",
        last_seen=now,
        hardware=Hardware(
            arch=arch,
            cpu_model=cpu,
            cores=cores,
            memory_bytes=gigabytes << 30,
            storage_bytes=32 << 30,
            storage_free_bytes=(20 << 30) - number % 65536 * 4096,
        ),
        os=OperatingSystem(family=family, version="12", kernel="6.6.20", libc="glibc 2.36", init="systemd"),
        engines=[
            EngineFacts(name="onnxruntime", version="1.24.1", precisions=["fp32", "int8"]),
            EngineFacts(name="litert", version="2.3.0"),
        ],
        runtimes=["process"],
        network=Network(kind="ethernet", interface="eth0", address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.7"),
        limits=LimitFacts(way="cgroup2", memory=True, cpu=True, reason="cgroup v2 is delegated to the agent"),
        agent_version="0.1.0",
        boot_id=f"{number:032x}",
        observed_manifest_version=3,
        workloads=[workload],
        conditions=[
            Condition(type="Ready", status="False", reason="Disconnected", message="", last_transition_time=now)
        ],
    )
    metadata = ObjectMeta(
        name=f"till-{number:07}",
        namespace="default",
        uid=f"{number:08x}-0000-4000-8000-000000000000",
        generation=1,
        creation_timestamp=now,
        labels={"site": f"store-{number % 2000}", "tier": "edge"},
    )
    return Device(metadata=metadata, status=status)


async def fill(store: Store, count: int) -> float:
    """Store devices up to that many; return the seconds it took."""
    now, began = datetime.now(UTC).replace(microsecond=0), time.perf_counter()
    present = len((await store.list("devices/default/", limit=1)).records)
    first = await _filled(store) if present else 0
    for start in range(first, count, 2000):
        made = (device(number, now) for number in range(start, min(start + 2000, count)))
        await asyncio.gather(*(store.create(key_of(item), objects.encode(item)) for item in made))
    return time.perf_counter() - began


async def _filled(store: Store) -> int:
    found, start = 0, ""
    while True:
        page = await store.list("devices/default/", limit=10_000, start=start)
        found += len(page.records)
        if page.next_key is None:
            return found
        start = page.next_key


def key_of(item: Device) -> str:
    return objects.key_of(Device, item.metadata.namespace, item.metadata.name)


@contextmanager
def running(directory: Path, store: str) -> Iterator[tuple[psutil.Process, float]]:
    """A hub as a process; and the seconds until it answered."""
    command = [sys.executable, "-m", "skerry.hub", "--state-dir", str(directory), "--log-level", "warning"]
    command += ["--api-port", "0", "--mqtt-port", "0", *(["--store", store] if store else [])]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hub:
        try:
            assert hub.stdout is not None
            if "hub at" not in hub.stdout.readline():
                raise SystemExit("the hub did not start")
            yield psutil.Process(hub.pid), time.perf_counter() - began
        finally:
            hub.kill()


class Connection:
    """One kept connection that speaks as much HTTP as this needs, at little cost of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, kind: str = "application/json", accept: str = "*/*"
    ) -> bytes:
        await self.send(method, path, body, kind=kind, accept=accept)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if head[9:10] != b"2":
            raise SystemExit(f"{method} {path}: {head[:40]!r} {answer[:500]!r}")
        return answer

    async def send(self, method: str, path: str, body: bytes, *, kind: str, accept: str) -> None:
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\naccept: {accept}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await self._writer.drain()

    async def watch(self, path: str) -> None:
        """Begin a watch; its events are then read one by one."""
        await self.send("GET", path, b"", kind="application/json", accept="application/json")
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head[9:12] == b"200", head

    async def event(self) -> bytes:
        while True:
            chunk = await self._chunk()
            if b'"BOOKMARK"' not in chunk[:30]:
                return chunk

    async def whole(self, path: str) -> int:
        """Get an answer that is sent in pieces; return how many bytes it has."""
        await self.send("GET", path, b"", kind="application/json", accept="application/json")
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b"chunked" in head, head
        size = 0
        while chunk := await self._chunk():
            size += len(chunk)
        return size

    async def _chunk(self) -> bytes:
        """A length, the bytes, an empty line."""
        size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def close(self) -> None:
        self._writer.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub:
    """Where the hub is and how to prove to it who we are."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def of(cls, kubeconfig: Path, scratch: Path) -> Hub:
        connection = load_kubeconfig(kubeconfig)
        context = ssl.create_default_context(cadata=connection.ca.decode())
        pair = scratch / "admin.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(connection.certificate + connection.key)
        context.load_cert_chain(pair)
        address = urlsplit(connection.server)
        return cls(host=address.hostname or "", port=address.port or 0, context=context)

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.context, limit=1 << 24)
        return Connection(reader, writer, f"{self.host}:{self.port}")


Once = Callable[[Connection, int], Awaitable[object]]


async def load(hub: Hub, clients: int, seconds: float, once: Once, label: str) -> None:
    """Ask again and again with so many clients; print how often in a second, and how long one takes."""
    connections = [await hub.connect() for _ in range(clients)]
    samples: list[float] = []
    end = time.perf_counter() + seconds

    async def work(connection: Connection, at: int) -> None:
        number = at
        while time.perf_counter() < end:
            began = time.perf_counter()
            await once(connection, number)
            samples.append((time.perf_counter() - began) * 1000)
            number += clients

    began = time.perf_counter()
    await asyncio.gather(*(work(connection, at) for at, connection in enumerate(connections)))
    took = time.perf_counter() - began
    for connection in connections:
        await connection.close()
    say(label, f"{len(samples) / took:8.0f} /s   {times(samples)}   {clients} at a time")


def times(samples: Sequence[float]) -> str:
    ordered = sorted(samples)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  max {ordered[-1]:7.2f} ms"


def say(label: str, figure: str) -> None:
    print(f"  {label:38} {figure}", flush=True)


async def pages(hub: Hub, seconds: float, accept: str, label: str) -> None:
    """Page through everything, again and again."""
    connection = await hub.connect()
    samples: list[float] = []
    token, end = "", time.perf_counter() + seconds
    sizes = 0
    while time.perf_counter() < end:
        began = time.perf_counter()
        answer = await connection.ask("GET", f"{DEVICES}?limit={PAGE}&continue={token}", accept=accept)
        samples.append((time.perf_counter() - began) * 1000)
        sizes += len(answer)
        token = json.loads(answer)["metadata"].get("continue", "")
    await connection.close()
    say(label, f"{sum(samples) / len(samples):8.1f} ms  {times(samples)}   {sizes // len(samples) >> 10} KiB a page")


async def at_once(hub: Hub, process: psutil.Process) -> None:
    """List everything without a limit, and ask meanwhile for something small."""
    taking, asking = await hub.connect(), await hub.connect()
    before, most = process.memory_info().rss, 0
    samples: list[float] = []
    began = time.perf_counter()
    listing = asyncio.create_task(taking.whole(DEVICES))
    while not listing.done():
        asked = time.perf_counter()
        await asking.ask("GET", f"{DEVICES}/till-0000000")
        samples.append((time.perf_counter() - asked) * 1000)
        most = max(most, process.memory_info().rss)
        await asyncio.sleep(0.005)
    took, size = time.perf_counter() - began, await listing
    await asyncio.gather(taking.close(), asking.close())
    say(
        "list without a limit",
        f"{took:8.2f} s    {size >> 20} MiB, {(most - before) >> 20} MiB more of the hub's memory",
    )
    say("... and a get meanwhile", times(samples))


async def fan_out(hub: Hub, process: psutil.Process, watchers: int, rounds: int = 20) -> None:
    """Open watches and see how long one change takes to reach all of them, and what a watch costs."""
    asking = await hub.connect()
    listed = json.loads(await asking.ask("GET", f"{DEVICES}?limit=1"))
    version, name = listed["metadata"]["resourceVersion"], listed["items"][0]["metadata"]["name"]
    before = process.memory_info().rss
    gate = asyncio.Semaphore(50)  # handshakes at a time: the listener ends those that take too long

    async def opened() -> Connection:
        async with gate:
            connection = await hub.connect()
            await connection.watch(f"{DEVICES}?watch=1&resourceVersion={version}&allowWatchBookmarks=true")
        return connection

    connections = await asyncio.gather(*(opened() for _ in range(watchers)))
    cost = (process.memory_info().rss - before) / watchers / 1024
    samples = []
    for number in range(rounds):
        waiting = [asyncio.create_task(connection.event()) for connection in connections]
        began = time.perf_counter()
        body = json.dumps({"metadata": {"annotations": {"bench": f"{time.time()} {number}"}}}).encode()
        await asking.ask("PATCH", f"{DEVICES}/{name}", body, kind="application/merge-patch+json")
        await asyncio.gather(*waiting)
        samples.append((time.perf_counter() - began) * 1000)
    for connection in (asking, *connections):
        await connection.close()
    say(f"watch, to the last of {watchers}", f"{times(samples)}   {cost:.0f} KiB of the hub's memory each")


async def measure(hub: Hub, process: psutil.Process, size: int, seconds: float, watchers: int) -> None:
    run = f"{time.time_ns():x}"

    async def get(connection: Connection, number: int) -> None:
        await connection.ask("GET", f"{DEVICES}/till-{number * 7919 % size:07}")

    async def create(connection: Connection, _: int) -> None:
        made: dict[str, Any] = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device"}
        made["metadata"] = {"generateName": "bench-", "labels": {"site": "bench"}}
        await connection.ask("POST", CREATED, json.dumps(made).encode())

    async def patch(connection: Connection, number: int) -> None:
        body = json.dumps({"metadata": {"labels": {"bench": f"{run}-{number}"}}}).encode()
        path = f"{DEVICES}/till-{number * 7919 % size:07}"
        await connection.ask("PATCH", path, body, kind="application/merge-patch+json")

    for clients in (1, 16):
        await load(hub, clients, seconds, get, "get")
    await pages(hub, seconds, "application/json", f"list, page of {PAGE}")
    await pages(hub, seconds, TABLE, f"list, page of {PAGE}, as a table")
    await at_once(hub, process)
    for clients in (1, 16):
        await load(hub, clients, seconds, patch, "patch (merge, a label)")
    await fan_out(hub, process, watchers)
    for clients in (1, 16):
        await load(hub, clients, seconds, create, "create")
    cleaner = await hub.connect()
    await cleaner.ask("DELETE", CREATED)
    await cleaner.close()


def settled(process: psutil.Process) -> tuple[float, float]:
    """Return the seconds until the hub has no more to do, and its memory in MiB then."""
    began = time.perf_counter()
    while process.cpu_percent(interval=2.0) > 10.0:
        pass
    return time.perf_counter() - began, process.memory_info().rss / 2**20


async def one_size(size: int, arguments: argparse.Namespace, directory: Path) -> None:
    print(f"{size:,} devices", flush=True)
    state = directory / f"hub-{size}"
    if not state.exists():
        with running(state, arguments.store):
            pass  # its keys are made, and its store
    if arguments.store:
        from skerry.hub.stores import open_named_store  # noqa: PLC0415 - an extra

        opened = open_named_store(arguments.store)
    else:
        opened = open_store(state / "hub.db")
    async with opened as store:
        took = await fill(store, size)
    say("filled", f"{took:8.1f} s")
    if arguments.fill_only:
        return
    with running(state, arguments.store) as (process, seconds):
        say("start to the first answer", f"{seconds:8.1f} s    {process.memory_info().rss / 2**20:.0f} MiB")
        quiet, memory = await asyncio.to_thread(settled, process)
        say("... until it has nothing more to do", f"{seconds + quiet:8.1f} s    {memory:.0f} MiB")
        with tempfile.TemporaryDirectory() as scratch:
            hub = Hub.of(state / "kubeconfig", Path(scratch))
            await measure(hub, process, size, arguments.seconds, arguments.watchers)
        say("memory at the end", f"{process.memory_info().rss / 2**20:8.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,100000")
    parser.add_argument("--directory", type=Path, default=None, help="where hubs are kept (default: temporary)")
    parser.add_argument("--store", default="", help="the hubs' --store; one size at a time then")
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--fill-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name:
        for size in (int(text) for text in arguments.sizes.split(",")):
            asyncio.run(one_size(size, arguments, arguments.directory or Path(name)))


if __name__ == "__main__":
    main()
