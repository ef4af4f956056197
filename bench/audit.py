"""What the audit log costs: entries a second, a write to the API with it and without, and reading it. Prints figures.

    python bench/audit.py [--directory D] [--seconds 3]

The directory should be on the disk a hub would use: every entry is fsynced. What creates is a hub's application in this
process, on an embedded store, without TLS or sockets: what is compared is the work behind them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import httpx

from skerry.api.audit import AuditEvent, ObjectReference, ResponseStatus, User
from skerry.core.access import Identity
from skerry.core.audit_query import Question
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import pki
from skerry.hub.audit import reading
from skerry.hub.audit.log import AuditSettings, open_log
from skerry.hub.audit.ranked import RankedLog, open_ranked_log
from skerry.hub.audit.reading import Place
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY
from skerry.hub.objects import Objects
from skerry.hub.server.app import build_app
from skerry.kit.clock import SystemClock

CLOCK = SystemClock()
DEVICES = "/apis/skerry.dev/v1alpha1/namespaces/default/devices"


def entry(number: int) -> AuditEvent:
    now = CLOCK.now()
    return AuditEvent(
        audit_id=f"{number:036}",
        stage="ResponseComplete",
        request_uri=f"{DEVICES}/till-{number}?fieldManager=kubectl-client-side-apply",
        verb="patch",
        user=User(username="admin", groups=["skerry:admins", "system:authenticated"]),
        source_ips=["127.0.0.1"],
        user_agent="kubectl/v1.32.4 (linux/amd64) kubernetes/4cb5f07",
        object_ref=ObjectReference(resource="devices", namespace="default", name=f"till-{number}"),
        response_status=ResponseStatus(code=200),
        request_received_timestamp=now,
        stage_timestamp=now,
    )


async def times(seconds: float, workers: int, once: Callable[[int], Awaitable[object]]) -> tuple[float, float, float]:
    """Return how often a second `once` ends with so many at it, and its median and p99 in milliseconds."""
    end, took = time.perf_counter() + seconds, list[float]()

    async def work(worker: int) -> None:
        number = worker * 10_000_000
        while time.perf_counter() < end:
            began = time.perf_counter()
            await once(number)
            took.append(time.perf_counter() - began)
            number += 1

    started = time.perf_counter()
    await asyncio.gather(*(work(worker) for worker in range(workers)))
    ordered = sorted(took)
    middle, late = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return len(took) / (time.perf_counter() - started), middle * 1000, late * 1000


@contextlib.asynccontextmanager
async def api(directory: Path, audit: RankedLog | None) -> AsyncIterator[httpx.AsyncClient]:
    async with open_store(directory / "hub.db") as store:
        context = HubContext(
            objects=Objects(store, CLOCK),
            artifacts=DirectoryStore(directory / "artifacts"),
            clock=CLOCK,
            authority=pki.open_authority(directory / "pki", names=(), clock=CLOCK),
            gateway=cast("Any", None),  # not asked
            state_dir=directory,
            hub_url="https://h:1",
            mqtt_host="h",
            mqtt_port=1,
            audit=audit,
        )
        app = build_app(context)

        async def as_admin(scope: Any, receive: Any, send: Any) -> None:
            scope[IDENTITY] = Identity(role="admin", name="admin")
            await app(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(as_admin), base_url="http://hub") as client:
            yield client


async def creating(client: httpx.AsyncClient, number: int) -> None:
    body = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device", "metadata": {"name": f"till-{number}"}}
    answer = await client.post(DEVICES, json=body)
    assert answer.status_code == 201, answer.text


def show(what: str, workers: int, found: tuple[float, float, float]) -> None:
    print(f"{what:32} {workers:3} at once  {found[0]:8.0f} /s   median {found[1]:6.2f} ms   p99 {found[2]:6.2f} ms")


async def main(directory: Path, seconds: float) -> None:
    async with open_log(directory / "log", AuditSettings(), CLOCK) as log:
        for workers in (1, 16, 128):
            show("entry", workers, await times(seconds, workers, lambda number: log.append(entry(number))))
    for workers in (1, 16):
        for recorded in (False, True):
            place = directory / f"api-{workers}-{recorded}"
            place.mkdir()
            async with contextlib.AsyncExitStack() as stack:
                kept = (
                    await stack.enter_async_context(open_ranked_log(place / "a", AuditSettings(), CLOCK))
                    if recorded
                    else None
                )
                client = await stack.enter_async_context(api(place, kept))
                found = await times(seconds, workers, lambda number, client=client: creating(client, number))  # type: ignore[misc]
            show(f"create {'recorded' if recorded else 'not recorded'}", workers, found)
    began, count, at = time.perf_counter(), 0, Place()
    while True:
        page = reading.read_page(directory / "log", Question(verb="delete"), at, limit=1000)
        at, count = page.next, count + 1
        if page.at_end:
            break
    size = sum(path.stat().st_size for path in (directory / "log").glob("*.jsonl"))
    took = time.perf_counter() - began
    print(f"search of everything             {size / 2**20:6.0f} MiB in {took:.2f} s, {count} pages")
    began = time.perf_counter()
    async with open_log(directory / "log", AuditSettings(), CLOCK):
        print(f"opening it                       {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as made:
        asyncio.run(main(Path(made), given.seconds))
