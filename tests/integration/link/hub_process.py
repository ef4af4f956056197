"""A hub's store, broker and gateway as a process of its own, so that a test can kill it at any moment.

Usage: hub_process.py DIRECTORY PORT ASSIGNMENTS. It prints the port, then each version once it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from skerry.api.errors import AlreadyExistsError
from skerry.api.kinds.device import Device
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.api.meta import ObjectMeta
from skerry.core import desired, messages
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt import MqttHubLink, MqttSettings
from skerry.drivers.link.tls import server_context
from skerry.drivers.store.sqlite import open_store
from skerry.hub.gateway import Gateway
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock


def assignment(record: desired.DesiredRecord) -> desired.Assignment:
    """Return a workload that differs from the one before."""
    version = record.manifest_version + 1
    workload = messages.WorkloadDesired(
        name="work",
        rollout="r",
        revision=version,
        model="m",
        model_version="m",
        version=str(version),
        variant="fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository="default/m",
        blob=Blob(digest="sha256:" + "0" * 64, size=1, media_type="application/octet-stream"),
    )
    return desired.Assignment(workload=workload, deployment_uid="d", wave=0, reason="", assigned_at=datetime.now(UTC))


async def main(directory: Path, port: int, assignments: int) -> None:
    """Run until killed."""
    clock, gateways = SystemClock(), list[Gateway]()
    tls = server_context(certificate=directory / "server.pem", key=directory / "server.pem", ca=directory / "ca.pem")
    broker = EmbeddedBroker(
        BrokerSettings(port=port),
        tls=tls,
        known=lambda uid, namespace: any(gateway.known(uid, namespace) for gateway in gateways),
    )
    async with open_store(directory / "store.db") as store, broker:
        objects = Objects(store, clock)
        client = MqttSettings(host="localhost", port=broker.port, tls=hub_context(directory))
        key = ed25519.Ed25519PrivateKey.from_private_bytes((directory / "desired.key").read_bytes())
        gateway = Gateway(objects, MqttHubLink(client), key, "key", clock)
        gateways.append(gateway)
        print("port", broker.port, flush=True)
        with contextlib.suppress(AlreadyExistsError):
            await objects.create(Device(metadata=ObjectMeta(name="a", namespace="default", uid="dev-a")))
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.run())
            empty = desired.DesiredRecord(uid="dev-a", namespace="default", device="a")
            for _ in range(assignments):
                record = await objects.change_desired(empty, lambda r: desired.assign(r, assignment(r)))
                print("assigned", record.manifest_version, flush=True)


def hub_context(directory: Path) -> ssl.SSLContext:
    """Return the hub's own client context."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.load_cert_chain(directory / "hub.pem")
    return context


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
