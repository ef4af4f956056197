"""What the embedded store does on this machine: writes, reads, lists, watches. Prints figures; judges nothing.

    python bench/store.py [--directory D] [--seconds 3]

The directory should be on the disk a hub would use: every write is fsynced.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from skerry.drivers.store.logstore import LogSettings, LogStore
from skerry.drivers.store.sqlite import SqliteSettings, open_store

VALUE = b"x" * 1000  # about a Device with its status


async def rate(seconds: float, writers: int, once: Callable[[int, int], Awaitable[object]]) -> float:
    """Return how often `once(writer, number)` ends in a second, with so many at it at the same time."""
    end = time.perf_counter() + seconds
    done = 0

    async def work(writer: int) -> None:
        nonlocal done
        number = 0
        while time.perf_counter() < end:
            await once(writer, number)
            number += 1
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(work(writer) for writer in range(writers)))
    return done / (time.perf_counter() - started)


def percentile(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def creating(store: LogStore) -> Callable[[int, int], Awaitable[object]]:
    return lambda writer, number: store.create(f"k/{writer:03}/{number:08}", VALUE)


async def writes(directory: Path, seconds: float) -> None:
    for batch in (LogSettings().max_batch, 1):
        for writers in (1, 50):
            path = directory / f"writes-{batch}-{writers}.db"
            async with open_store(path, SqliteSettings(log=LogSettings(max_batch=batch))) as store:
                found = await rate(seconds, writers, creating(store))
            grouped = "writes that wait share a transaction" if batch > 1 else "one transaction a write"
            print(f"create   {writers:3} writers  {found:9.0f} /s   {grouped}")


async def fill(store: LogStore, count: int) -> None:
    for start in range(0, count, 500):
        await asyncio.gather(*(store.create(f"devices/default/{n:06}", VALUE) for n in range(start, start + 500)))


async def reads(directory: Path, seconds: float, records: int) -> None:
    async with open_store(directory / "reads.db") as store:
        await fill(store, records)
        found = await rate(seconds, 1, lambda _, n: store.get(f"devices/default/{n * 7919 % records:06}"))
        print(f"get        1 reader   {found:9.0f} /s")
        found = await rate(seconds, 50, lambda _, n: store.get(f"devices/default/{n * 7919 % records:06}"))
        print(f"get       50 readers  {found:9.0f} /s")
        for label in ("no history", "each record changed 5 times"):
            samples: list[float] = []
            start, revision = "", 0
            while len(samples) < 200:
                began = time.perf_counter()
                page = await store.list("devices/default/", limit=500, start=start, revision=revision)
                samples.append((time.perf_counter() - began) * 1000)
                start, revision = (page.next_key, page.revision) if page.next_key else ("", 0)
            print(
                f"list     500 of {records}   p50 {percentile(samples, 0.5):6.2f} ms  "
                f"p99 {percentile(samples, 0.99):6.2f} ms   {label}"
            )
            if label == "no history":
                for _ in range(5):
                    page = await store.list("devices/default/")
                    for at in range(0, records, 500):
                        part = page.records[at : at + 500]
                        await asyncio.gather(*(store.update(r.key, VALUE, expected=r.revision) for r in part))
        before = await store.revision()
        began = time.perf_counter()
        await store.compact(before)
        print(f"compact  {before - records} obsolete rows in {time.perf_counter() - began:.2f} s")


async def watches(directory: Path) -> None:
    for watchers in (1, 100):
        async with open_store(directory / f"watch-{watchers}.db") as store:
            samples = await fan_out(store, watchers)
        print(
            f"watch    {watchers:3} watchers p50 {percentile(samples, 0.5):6.2f} ms  "
            f"p99 {percentile(samples, 0.99):6.2f} ms   from the write's beginning to the last watcher"
        )


async def fan_out(store: LogStore, watchers: int) -> list[float]:
    """Return, for each of many writes, the milliseconds until the last watcher had it."""
    arrived: list[float] = []
    everybody = asyncio.Semaphore(0)

    async def watch() -> None:
        async with store.watch("k/", after=0) as changes:
            async for _ in changes:
                arrived.append(time.perf_counter())
                everybody.release()

    samples: list[float] = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch()) for _ in range(watchers)]
        for number in range(200):
            began = time.perf_counter()
            await store.create(f"k/{number}", VALUE)
            for _ in range(watchers):
                await everybody.acquire()
            samples.append((max(arrived[-watchers:]) - began) * 1000)
        for task in tasks:
            task.cancel()
    return samples


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=None, help="where to put the databases (default: temporary)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--records", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=arguments.directory) as name:
        await writes(Path(name), arguments.seconds)
        await reads(Path(name), arguments.seconds, arguments.records)
        await watches(Path(name))


if __name__ == "__main__":
    asyncio.run(main())
