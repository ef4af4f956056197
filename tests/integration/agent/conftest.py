"""The agents' fixtures; what they are made of is in `surroundings` and `processes`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from tests.integration.agent.processes import Authority, Device, certificate_builder
from tests.integration.agent.surroundings import (
    Hub,
    Model,
    Registry,
    World,
    golden_of_wrong_shape,
    make_model,
    stop_servers,
)

from skerry.agent.settings import AgentSettings


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    directory = tmp_path_factory.mktemp("models")
    v1 = make_model(directory, "v1", seed=1)
    v2 = make_model(directory, "v2", seed=2, right=0.75)
    return {
        "v1": v1,
        "v2": v2,
        "again": dataclasses.replace(v1, version="v9"),
        "no-model": dataclasses.replace(v2, version="v3", model=b"this is no model"),
        "wrong-golden": dataclasses.replace(v2, version="v4", golden=golden_of_wrong_shape(directory)),
    }


@pytest.fixture
def registry(models: dict[str, Model]) -> Iterator[Registry]:
    made = Registry()
    made.add(*models.values())
    yield made
    made.close()


@pytest.fixture
async def world(tmp_path: Path, registry: Registry) -> AsyncIterator[World]:
    """An agent's surroundings; whatever it started is stopped at the end."""
    hub = Hub(Ed25519PrivateKey.generate())
    made = World(tmp_path / "state", registry, hub, AgentSettings())
    serving = asyncio.create_task(hub.run())
    await hub.ready.wait()
    try:
        yield made
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await stop_servers(made.directory)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test hub CA")])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        certificate_builder("test hub CA", key, issuer=name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(tmp_path_factory.mktemp("authority"), key, certificate, Ed25519PrivateKey.generate())


@pytest.fixture
def make_device(authority: Authority, models: dict[str, Model]) -> Iterator[Callable[[Path], Device]]:
    with contextlib.ExitStack() as stack:

        def make(directory: Path, **fields: Any) -> Device:
            registry = Registry(authority.server_context())
            stack.callback(registry.close)
            registry.add(*models.values())
            made = Device(directory, authority, registry, **fields)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def device(tmp_path: Path, make_device: Callable[[Path], Device]) -> Device:
    return make_device(tmp_path / "state")
