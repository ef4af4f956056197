"""A device is who its uid and its namespace say together, and nobody once it is being deleted."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.link.test_gateway import Hub, drain, until

from skerry.api.errors import UnavailableError
from skerry.api.kinds.device import Device
from skerry.api.meta import ObjectMeta
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings
from skerry.hub import removal
from skerry.kit.clock import SystemClock


@pytest.fixture
def hub(authority: Any, server_tls: ssl.SSLContext, tmp_path: Path) -> Hub:
    return Hub(authority, server_tls, tmp_path / "store.db")


def link(hub: Hub, uid: str, namespace: str) -> MqttDeviceLink:
    tls = hub.authority.device(uid, namespace)
    return MqttDeviceLink(uid, MqttSettings(host="localhost", port=hub.port, tls=tls, connect_timeout_seconds=5))


async def test_the_certificate_of_another_namespace_is_nobodys(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        for namespace in ("elsewhere", ""):
            with pytest.raises(UnavailableError, match="Not authorized"):
                async with link(hub, "dev-a", namespace).connect(boot_id="b1"):
                    pass
        async with link(hub, "dev-a", "default").connect(boot_id="b1"):
            await until(lambda: running.gateway.online("dev-a"))


async def test_a_uid_stays_whose_it_is(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """However the second Device came into the store: it is served as nobody."""
    async with hub.running() as running:
        await running.enrol("dev-a")
        taken = ObjectMeta(name="taken", namespace="elsewhere", uid="dev-a")
        await running.objects.create(Device(metadata=taken))
        await running.enrol("dev-b")  # the watch has passed it
        assert running.gateway.place("dev-a") == ("default", "name-of-dev-a")
        assert not running.gateway.known("dev-a", "elsewhere")
        await running.objects.delete(Device, "elsewhere", "taken")
        await running.enrol("dev-c")
        assert running.gateway.known("dev-a", "default"), "the other one's end is not its own"
    assert "gateway.uid_taken uid=dev-a by=elsewhere/taken" in caplog.text


async def test_a_device_is_nobody_from_the_moment_its_deletion_was_asked_for(hub: Hub) -> None:
    clock = SystemClock()
    async with hub.running() as running:
        await running.enrol("dev-a")
        await running.enrol("dev-b")

        def hold(device: Device) -> Device:
            metadata = msgspec.structs.replace(device.metadata, finalizers=["example.org/wait"])
            return msgspec.structs.replace(device, metadata=metadata)

        for name in ("name-of-dev-a", "name-of-dev-b"):
            await running.objects.update_status(Device, "default", name, hold)
        await running.assign("dev-a")
        async with link(hub, "dev-a", "default").connect(boot_id="b1") as connection:
            await until(lambda: running.gateway.online("dev-a"))
            mark = lambda device: removal.marked(device, clock.now())  # noqa: E731
            await running.objects.update_status(Device, "default", "name-of-dev-a", mark)
            with pytest.raises(UnavailableError):
                await drain(connection)
        assert not running.gateway.known("dev-a")
        assert running.gateway.known("dev-b"), "a finalizer alone means nothing"
        with pytest.raises(UnavailableError, match="Not authorized"):
            async with link(hub, "dev-a", "default").connect(boot_id="b2"):
                pass
    async with hub.running() as again:
        await until(lambda: again.gateway.known("dev-b"))
        assert not again.gateway.known("dev-a")
