"""The embedded store beside PostgreSQL on this machine: writes, reads, a page of a long list, start-up. Judges nothing.

    python bench/store_peers.py [--postgresql URL] [--directory D] [--seconds 3] [--records 100000]

Without a URL a server is started from the binaries that are installed, with its usual settings: both fsync every
commit. Directory and server should be on the disk that hubs would use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.store import VALUE, creating, fan_out, fill, percentile, rate
from tests.postgresql import is_installed, running

from skerry.drivers.store import address, postgresql
from skerry.drivers.store.logstore import LogStore
from skerry.drivers.store.sqlite import open_store

Open = Callable[[], AbstractAsyncContextManager[LogStore]]
PREFIX = "devices/default/"


async def measure(name: str, fresh: Callable[[], Open], seconds: float, records: int) -> None:
    for writers in (1, 64):
        async with fresh()() as store:
            found = await rate(seconds, writers, creating(store))
        print(f"{name:10}  create, {writers:2} at a time      {found:9.0f} /s", flush=True)
    opening = fresh()
    async with opening() as store:
        began = time.perf_counter()
        await fill(store, records)
        print(f"{name:10}  fill with {records:<7}      {records / (time.perf_counter() - began):9.0f} /s", flush=True)
    began = time.perf_counter()
    async with opening() as store:
        print(f"{name:10}  open with {records:<7}      {(time.perf_counter() - began) * 1000:9.1f} ms")
        for readers in (1, 64):
            found = await rate(seconds, readers, lambda _, n: store.get(f"{PREFIX}{n * 7919 % records:06}"))
            print(f"{name:10}  get, {readers:2} at a time         {found:9.0f} /s", flush=True)
        samples = await pages(store, 400)
        print(
            f"{name:10}  list 500 of {records:<7}   p50 {percentile(samples, 0.5):6.2f} ms  "
            f"p99 {percentile(samples, 0.99):6.2f} ms",
            flush=True,
        )
        found = await rate(
            seconds, 64, lambda writer, n: change(store, f"{PREFIX}{(writer * 1543 + n * 64) % records:06}")
        )
        print(f"{name:10}  get and update, 64 at a time {found:5.0f} /s", flush=True)
    async with fresh()() as store:
        samples = await fan_out(store, 100)
        print(f"{name:10}  watch, 100 watchers   p50 {percentile(samples, 0.5):6.2f} ms", flush=True)


async def across(name: str, opening: Open) -> None:
    """From one hub's write to another hub's watcher."""
    async with opening() as one, opening() as other, other.watch("", after=await one.revision()) as changes:
        samples = []
        for number in range(300):
            began = time.perf_counter()
            await one.create(f"across/{number}", VALUE)
            await anext(changes)
            samples.append((time.perf_counter() - began) * 1000)
    print(
        f"{name:10}  to another hub's watcher  p50 {percentile(samples, 0.5):6.2f} ms  "
        f"p99 {percentile(samples, 0.99):6.2f} ms"
    )


async def pages(store: LogStore, count: int) -> list[float]:
    """Return the milliseconds that pages of a list took, one after the other through all of it."""
    samples: list[float] = []
    start, revision = "", 0
    while len(samples) < count:
        began = time.perf_counter()
        page = await store.list(PREFIX, limit=500, start=start, revision=revision)
        samples.append((time.perf_counter() - began) * 1000)
        start, revision = (page.next_key, page.revision) if page.next_key else ("", 0)
    return samples


async def change(store: LogStore, key: str) -> None:
    record = await store.get(key)
    if record is not None:
        await store.update(key, VALUE, expected=record.revision)


@contextlib.contextmanager
def server(url: str) -> Iterator[Callable[[], str]]:
    """Yield what makes an empty schema and returns its address."""
    if url:
        separator = "&" if "?" in url else "?"
        counted = iter(range(1000))

        def made() -> str:
            schema = f"bench_{int(time.time())}_{next(counted)}"
            with address.read(url).connect() as connection:
                connection.execute(f"CREATE SCHEMA {schema}")  # type: ignore[arg-type]
            return f"{url}{separator}options=-c%20search_path%3D{schema}"

        yield made
        return
    if not is_installed():
        raise SystemExit("needs PostgreSQL's server: install postgresql, or name one with --postgresql")
    with running(fsync=True) as own:
        yield own.new_url


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", default="", help="a server's address (default: one of its own)")
    parser.add_argument("--directory", type=Path, default=None, help="where to put the files (default: temporary)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--records", type=int, default=100_000)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=arguments.directory) as name,
        server(arguments.postgresql) as made,
    ):
        counted = iter(range(1000))

        def file() -> Open:
            path = Path(name) / f"{next(counted)}.db"
            return lambda: open_store(path)

        def schema() -> Open:
            place = address.read(made())
            return lambda: postgresql.open_store(place)

        await measure("sqlite", file, arguments.seconds, arguments.records)
        await measure("postgresql", schema, arguments.seconds, arguments.records)
        await across("postgresql", schema())


if __name__ == "__main__":
    asyncio.run(main())
