"""A mass reconnect: what is more than the hub takes at a time is sent away early, and everybody gets in in the end."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest
from tests.integration.link.conftest import Site

from skerry.api.errors import UnavailableError
from skerry.core import messages
from skerry.drivers.link.broker import BrokerSettings
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttHubLink

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SELDOM = 0.001
"""Per second: so seldom that no further one comes while a test runs."""


@pytest.fixture
def broker_settings() -> BrokerSettings:
    return BrokerSettings(port=0, unknown_grace_seconds=0.1, admissions_per_second=SELDOM, admission_burst=3)


async def test_who_is_too_many_is_sent_away_before_the_handshake_and_those_inside_go_on(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(MqttHubLink(site.settings(site.authority.hub())).connect())
        heard = hub.incoming()
        inside = [await stack.enter_async_context(device(site, uid).connect(boot_id="b")) for uid in ("dev-a", "dev-b")]
        for number in range(1, 6):
            with pytest.raises(UnavailableError) as caught:
                await stack.enter_async_context(device(site, f"late-{number}").connect(boot_id="b"))
            assert "it may be taking on many devices" in caught.value.sentence
            assert site.broker.drops.counts["busy"] == number
        await inside[0].send(
            messages.Reported(uid="dev-a", boot_id="b", seq=1, sent_at=NOW, observed_manifest_version=7)
        )
        async with asyncio.timeout(20):
            async for uid, message in heard:
                if isinstance(message, messages.Reported):
                    assert (uid, message.observed_manifest_version) == ("dev-a", 7)
                    break


async def test_the_hub_itself_does_not_wait_behind_its_devices(site: Site) -> None:
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.broker.port)
        writer.close()
        await writer.wait_closed()
        del reader
    async with MqttHubLink(site.settings(site.authority.hub())).connect():
        with pytest.raises(UnavailableError):
            async with device(site, "dev-a").connect(boot_id="b"):
                pass
    assert site.broker.drops.counts["busy"] == 1


def device(site: Site, uid: str) -> MqttDeviceLink:
    site.known.add(uid)
    return MqttDeviceLink(uid, site.settings(site.authority.device(uid)))
