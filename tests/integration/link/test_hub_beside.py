"""The hub in the broker's process: its place is one, and what was not taken is there for whoever takes it next."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skerry.api.errors import UnavailableError
from skerry.core import messages
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.local import LocalHubLink
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttHubLink

SECONDS = 10.0


def report(uid: str, seq: int) -> messages.Reported:
    return messages.decode(
        b'{"type":"Reported","uid":"%b","v":1,"bootId":"b","seq":%d,"sentAt":"2026-01-01T00:00:00Z",'
        b'"observedManifestVersion":0}' % (uid.encode(), seq),
        messages.Reported,
    )


async def reports(incoming: Any, count: int) -> list[int]:
    seen: list[int] = []
    async with asyncio.timeout(SECONDS):
        async for _, message in incoming:
            if isinstance(message, messages.Reported):
                seen.append(message.seq)
            if len(seen) == count:
                break
    return seen


async def test_what_was_not_taken_comes_again_on_the_next_connection(site: Any) -> None:
    link = LocalHubLink(site.broker)
    async with MqttDeviceLink("dev-a", site.settings(site.authority.device("dev-a"))).connect(boot_id="b") as device:
        async with link.connect() as hub:
            for seq in range(3):
                await device.send(report("dev-a", seq))
            assert await reports(hub.incoming(), 1) == [0]  # taken, and not acknowledged: the next was not asked for
        async with link.connect() as hub:
            assert await reports(hub.incoming(), 3) == [0, 1, 2]


async def test_another_hub_takes_the_place_and_gives_it_back(site: Any) -> None:
    link, other = LocalHubLink(site.broker), MqttHubLink(site.settings(site.authority.hub()))
    parted = asyncio.Event()

    async def hold() -> None:
        async with link.connect() as hub:
            listening.set()
            with pytest.raises(UnavailableError, match="taken over"):
                await anext(hub.incoming())
            with pytest.raises(UnavailableError, match="taken over"):
                await hub.publish_desired("dev-a", b"x")
        parted.set()

    listening = asyncio.Event()
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(hold())
        await listening.wait()
        async with other.connect() as hub:
            await parted.wait()
            await hub.publish_desired("dev-a", b"from the other")
        async with link.connect() as back:
            await back.publish_desired("dev-a", b"from here")


async def test_a_broker_that_is_closed_ends_it_and_takes_nobody_in(site: Any, server_tls: Any) -> None:
    broker = EmbeddedBroker(BrokerSettings(port=0), tls=server_tls, known=lambda *_: True)
    link = LocalHubLink(broker)
    with pytest.raises(UnavailableError, match="is not running"):
        async with link.connect():
            pass
    async with broker:
        stack = link.connect()
        hub = await stack.__aenter__()
    async with asyncio.timeout(SECONDS):
        with pytest.raises(UnavailableError, match="was closed"):
            await anext(hub.incoming())
        await stack.__aexit__(None, None, None)


async def test_a_burst_for_the_hub_does_not_keep_others_waiting(site: Any) -> None:
    """Between messages that lie ready the event loop has its turns."""
    link, turns = LocalHubLink(site.broker), 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    device = MqttDeviceLink("dev-a", site.settings(site.authority.device("dev-a")))
    async with device.connect(boot_id="b") as connection:
        for seq in range(200):
            await connection.send(report("dev-a", seq))
        async with link.connect() as hub:
            other = asyncio.create_task(count())
            assert await reports(hub.incoming(), 200) == list(range(200))
            other.cancel()
    assert turns >= 200 // 16 - 2  # it starts and ends in the middle
