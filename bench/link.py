"""Measure the device link on the embedded broker: latency both ways, connecting, and reports per second.

Hub, broker and device share one process, the device over TLS on loopback; the hub beside its broker, as it runs, and as
a client by MQTT and TLS. Usage: python bench/link.py
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.core.messages import FromDevice, Online, Reported
from skerry.core.ports import HubLink
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.local import LocalHubLink
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttHubLink, MqttSettings
from skerry.hub import pki
from skerry.kit.clock import SystemClock

ROUNDS = 500
CONNECTS = 50
BURST = 3000


def report(seq: int) -> Reported:
    """Return a small report."""
    return Reported(uid="dev", boot_id="1", seq=seq, sent_at=datetime.now(UTC), observed_manifest_version=0)


def device_context(authority: pki.Authority, directory: Path) -> ssl.SSLContext:
    """Return the context of an enrolled device."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    file = directory / "device.pem"
    file.write_bytes(
        authority.issue_device(request.public_bytes(serialization.Encoding.PEM), "dev", "default")
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    context.load_cert_chain(file)
    return context


def show(name: str, seconds: list[float]) -> None:
    """Print a distribution."""
    cuts = statistics.quantiles(seconds, n=20)
    print(f"{name:28} p50 {cuts[9] * 1e3:7.2f} ms   p95 {cuts[18] * 1e3:7.2f} ms   max {max(seconds) * 1e3:7.2f} ms")


async def main() -> None:
    """Run all measurements."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = pki.open_authority(directory / "pki", names=[], clock=SystemClock())
        tls = authority.server_context(client_certificate=ssl.CERT_REQUIRED)
        async with EmbeddedBroker(BrokerSettings(port=0), tls=tls, known=lambda *_: True) as broker:
            hub_settings = MqttSettings(host="127.0.0.1", port=broker.port, tls=authority.hub_client_context())
            device_settings = MqttSettings(host="127.0.0.1", port=broker.port, tls=device_context(authority, directory))
            hubs: dict[str, HubLink] = {"beside": LocalHubLink(broker), "by MQTT": MqttHubLink(hub_settings)}
            for how, hub in hubs.items():
                print(f"the hub {how}")
                await measure(hub, MqttDeviceLink("dev", device_settings))


async def measure(hub_link: HubLink, device_link: MqttDeviceLink) -> None:
    """Measure over one pair of links."""
    async with hub_link.connect() as hub:
        up = hub.incoming()
        connects = []
        for _ in range(CONNECTS):
            began = time.perf_counter()
            async with device_link.connect(boot_id="1"):
                connects.append(time.perf_counter() - began)
            await present(up, online=False)
        show("connect, subscribe, announce", connects)
        async with device_link.connect(boot_id="1") as device:
            await present(up, online=True)
            down, desired, reported = device.incoming(), [], []
            for seq in range(ROUNDS):
                began = time.perf_counter()
                await hub.publish_desired("dev", b"x" * 2000)
                await anext(down)
                desired.append(time.perf_counter() - began)
                began = time.perf_counter()
                await device.send(report(seq))
                await anext(up)
                reported.append(time.perf_counter() - began)
            show("desired state, hub to device", desired)
            show("report, device to hub", reported)
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for seq in range(BURST):
                    group.create_task(device.send(report(ROUNDS + seq)))
                for _ in range(BURST):
                    await anext(up)
            print(f"{'reports per second':28} {BURST / (time.perf_counter() - began):11.0f}")


async def present(up: AsyncIterator[tuple[str, FromDevice]], *, online: bool) -> None:
    """Wait until the hub has heard it; what is retained comes again at the start."""
    async for _, message in up:
        if isinstance(message, Online) and message.online == online:
            return


if __name__ == "__main__":
    asyncio.run(main())
