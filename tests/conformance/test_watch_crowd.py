"""Many watchers at once, and one among them that does not read: each sees every event once, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlsplit

from tests.conformance.objects import device
from tests.conformance.program import GROUP, WAIT, HubProgram

WATCHERS = 40
CHANGES = 60
PADDING = "x" * 150_000
"""So that all events together are more than sockets hold."""
MERGE = {"content-type": "application/merge-patch+json"}


async def watch(hub: HubProgram, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a watch and return when the hub has answered its head."""
    address = urlsplit(hub.connection.server)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=hub.context(), limit=1 << 22)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: hub\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return reader, writer


async def revisions(reader: asyncio.StreamReader, count: int) -> list[int]:
    """Read so many events of a chunked answer."""
    found: list[int] = []
    while len(found) < count:
        size = int((await reader.readuntil(b"\r\n")).strip(), 16)
        chunk = await reader.readexactly(size + 2)
        found.append(int(json.loads(chunk)["object"]["metadata"]["resourceVersion"]))
    return found


def test_a_crowd_and_one_that_does_not_read(hub: HubProgram, namespace: str) -> None:
    where = f"{GROUP}/namespaces/{namespace}/devices"
    with hub.client() as client:
        start = client.post(where, json=device("a")).json()["metadata"]["resourceVersion"]

        async def crowd() -> list[int]:
            path = f"{where}?watch=1&resourceVersion={start}"
            gate = asyncio.Semaphore(20)

            async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                async with gate:
                    return await watch(hub, path)

            async with asyncio.timeout(WAIT):
                idle = await opened()
                idle[0]._transport.pause_reading()  # type: ignore[attr-defined] # it takes nothing from here on
                others = await asyncio.gather(*(opened() for _ in range(WATCHERS)))
                reading = [asyncio.create_task(revisions(reader, CHANGES)) for reader, _ in others]
                written = await asyncio.to_thread(change)
                seen = await asyncio.gather(*reading)
                for _, writer in (idle, *others):
                    writer.transport.abort()
            assert all(one == written for one in seen)
            return written

        def change() -> list[int]:
            made = []
            for number in range(CHANGES):
                body = {"metadata": {"annotations": {"number": str(number), "padding": PADDING}}}
                made.append(
                    int(client.patch(f"{where}/a", json=body, headers=MERGE).json()["metadata"]["resourceVersion"])
                )
            return made

        written = asyncio.run(crowd())
        assert written == sorted(set(written))
        assert client.get(f"{where}/a").status_code == 200
