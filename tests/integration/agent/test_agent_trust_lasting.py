"""A device with a trust anchor in service: what it took goes on, and comes back, whatever changes around it.

Anchors set later, policies and keys that change, signatures that come later, certificates that end, clocks that are
wrong, models that are kept encrypted.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tests import trusting
from tests.integration.agent.surroundings import KEY_ID, UID, Model, World, eventually
from tests.integration.agent.test_agent_trust import Guarded, Later, stop
from tests.unit.signing.bundles import Party, authority, holder

from skerry.agent import trust as trusted
from skerry.api.errors import UnavailableError
from skerry.api.kinds.trust_policy import TrustedIdentity, TrustRule
from skerry.core import anchor, messages, trust
from skerry.core.anchor import Anchored
from skerry.core.messages import DesiredState, WorkloadDesired
from skerry.drivers.link.memory import MemoryDeviceLink
from skerry.kit.clock import SystemClock


@pytest.fixture
def device(world: World) -> Guarded:
    return Guarded(world)


async def back_alone(device: Guarded, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, with neither hub nor registry, that version serves."""
    world = device.world
    await stop(world)
    world.registry.down = True

    def away(*_: object, **__: object) -> None:
        raise UnavailableError("nobody is there", element="link")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryDeviceLink, "connect", away)
        async with device.agent() as engine:
            await world.until_phase(engine, "Running")
            [status] = engine.statuses()
    world.registry.down = False
    assert status.running is not None
    assert status.running.model_version == f"digits-{version}", status.message


# --- encrypted ----------------------------------------------------------------------------------------------------


async def test_an_encrypted_model_is_taken_by_its_signatures_and_comes_back(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card is no secret: it is judged before anybody asks for the key."""
    world.disk.write("device.pem", private_key())
    wanted = msgspec.structs.replace(device.sign(models["v1"]), protection="encrypted")
    async with device.agent():
        await device.want(wanted, offer=device.owners.desired(device.owners.policy(device.rule)))
        await world.hub.running("digits-v1")
        assert world.disk.blob(wanted.card).exists()
        assert not world.disk.blob(wanted.blob).exists(), "the model is nowhere in plain"
    await back_alone(device, "v1", monkeypatch)
    assert world.disk.blob(wanted.card).exists()


# --- an anchor for a device in service ------------------------------------------------------------------------------


async def test_an_anchor_set_on_a_device_in_service_judges_what_serves(device: Any, world: Any, models: Any) -> None:
    """Signatures were not fetched while nobody asked for them; the hub only says again what it said before."""
    owners, wanted = device.owners, device.sign(models["v1"])
    offer = owners.desired(owners.policy(device.rule))
    world.disk.delete(trusted.FILE)
    async with device.agent():
        await device.want(wanted, offer=offer)
        await world.hub.running("digits-v1")
    await stop(world)
    trusted.write(world.disk, Anchored(namespace="default", root=anchor.write(owners.roots[0])))
    world.hub.reports.clear()
    async with device.agent():
        await world.hub.running("digits-v1")
        await world.hub.until(lambda: device.told().policy == 1)
    assert world.disk.blob(wanted.signatures[0]).exists()


async def test_what_the_hub_says_again_counts_for_an_anchor_that_is_newer(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full at the start, so that the policy that came with the last desired state could not be kept."""
    owners, wanted = device.owners, device.sign(models["v1"])
    offer = owners.desired(owners.policy(device.rule))
    async with device.agent():
        await device.want(wanted, offer=offer)
        await world.hub.running("digits-v1")
    await stop(world)
    world.hub.reports.clear()
    trusted.write(world.disk, Anchored(namespace="default", root=anchor.write(owners.roots[0])))
    write = world.disk.write

    def full(name: str, *rest: Any, **how: Any) -> None:
        if name == trusted.FILE:
            raise OSError(28, "No space left on device")
        write(name, *rest, **how)

    async with device.agent():
        with monkeypatch.context() as patch:
            patch.setattr(world.disk, "write", full)
            await world.hub.status(lambda one: "no policy signed" in one.message)
        state = DesiredState(
            uid=UID,
            manifest_version=world.hub.version,
            issued_at=datetime.now(UTC),
            workloads=[wanted],
            trust=offer,
        )
        await world.hub.publish(messages.encode(trust.sign(state, world.hub.key, KEY_ID)))
        await world.hub.running("digits-v1")


async def test_an_anchor_set_anew_brings_back_what_serves(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said to do when `trust.json` is damaged; without a hub, too, by what it said last."""
    owners = device.owners
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=owners.desired(owners.policy(device.rule)))
        await world.hub.running("digits-v1")
    trusted.write(world.disk, Anchored(namespace="default", root=anchor.write(owners.roots[0])))
    await back_alone(device, "v1", monkeypatch)


async def test_a_damaged_file_costs_no_version(device: Any, world: Any, models: Any) -> None:
    """The version before is no better off, so the newer one keeps its place and comes back."""
    owners = device.owners
    offer = owners.desired(owners.policy(device.rule))
    async with device.agent():
        for version in ("v1", "v2"):
            await device.want(device.sign(models[version]), offer=offer)
            await world.hub.running(f"digits-{version}")
    await stop(world)
    kept = trusted.read(world.disk)
    world.disk.write(trusted.FILE, b"{")
    async with device.agent() as engine:
        await world.hub.status(lambda one: "is damaged" in one.message and one.running is None)
        [status] = engine.statuses()
        assert status.restarts == 0, "no server was started"
    trusted.write(world.disk, kept)
    world.hub.reports.clear()
    async with device.agent():
        await world.hub.running("digits-v2")


# --- what changes ---------------------------------------------------------------------------------------------------


async def test_a_root_without_a_policy_takes_nothing_down_and_lets_nothing_in(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = device.owners
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=owners.desired(owners.policy(device.rule)))
        await world.hub.running("digits-v1")
        owners.rotate(policies=True)
        await device.want(device.sign(models["v2"]), offer=owners.desired(None))
        assert "no policy signed" in (await device.refused("digits-v2")).message
    await back_alone(device, "v1", monkeypatch)
    # The refusal was for want of a policy: with one, the same wish is taken.
    async with device.agent():
        await device.want(device.sign(models["v2"]), offer=owners.desired(owners.policy(device.rule, version=1)))
        await world.hub.running("digits-v2")
    kept = trusted.read(world.disk)
    assert kept is not None
    assert kept.former == "", "what the old keys signed counts no more"


async def test_what_was_refused_for_an_expired_policy_is_taken_by_the_next(
    device: Any, world: Any, models: Any
) -> None:
    owners, wanted = device.owners, device.sign(models["v2"])
    now = datetime.now(UTC)
    async with device.agent():
        old = owners.policy(device.rule, issued_at=now - timedelta(days=9), expires_at=now - timedelta(hours=1))
        await device.want(wanted, offer=owners.desired(old))
        assert "expired at" in (await device.refused("digits-v2")).message
        await device.want(wanted, offer=owners.desired(owners.policy(device.rule)))
        await world.hub.running("digits-v2")


async def test_signatures_that_come_later_are_fetched_while_it_serves(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signer's key changes: what serves is signed by the new one, then the policy names that alone."""
    owners, model, new = device.owners, models["v1"], trusting.signer()
    card = trusting.card(model)
    files = {"model.onnx": model.model, "golden.npz": model.golden, "card.json": card}
    first, second = (trusting.bundle(key, files) for key in (device.signer, new))
    rule = TrustRule(name="all", models=["*"], keys=[trusting.pem(new)])
    async with device.agent():
        await device.want(device.attach(model, card, first), offer=owners.desired(owners.policy(device.rule)))
        serving = (await world.hub.running("digits-v1")).running
        later = msgspec.structs.replace(device.attach(model, card, first, second), rollout="later", revision=2)
        world.registry.down = True
        await device.want(later, offer=owners.desired(owners.policy(device.rule, rule)))
        status = await world.hub.running("later")
        assert (status.running.port, status.restarts) == (serving.port, 0)
    await back_alone(device, "v1", monkeypatch)  # the old ones are here, the new ones are not
    async with device.agent():
        await device.want(later, offer=owners.desired(owners.policy(rule)))
        await world.hub.running("later")

        async def came() -> bool:
            journals, _ = world.disk.read_journals()
            return journals[0].current is not None and journals[0].current.kept is None

        await eventually(came)
    assert world.disk.blob(later.signatures[1]).exists()
    await back_alone(device, "v1", monkeypatch)


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [365, -3650], ids=["later", "earlier"])
async def test_the_end_of_a_certificate_takes_nothing_down(
    device: Any, world: Any, models: Any, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Whether it has ended or the clock is wrong; nor does the newer version lose its place."""
    root = authority("root", days=(-10, 400))
    name = x509.SubjectAlternativeName([x509.RFC822Name("ada@example.org")])
    ada = holder("Ada", root, (name, False), days=(-10, 90))
    owners, identity = device.owners, TrustedIdentity(identity="ada@example.org")
    rule = TrustRule(name="all", models=["*"], keys=[trusting.pem(device.signer)], identities=[identity])
    pem = root.certificate.public_bytes(serialization.Encoding.PEM).decode()
    started = ada.certificate.not_valid_before_utc
    policy = owners.policy(rule, authorities=[pem], issued_at=started - timedelta(days=1))
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=owners.desired(policy))
        await world.hub.running("digits-v1")
        wanted = certified(device, models["v2"], ada)
        await device.want(wanted, offer=owners.desired(policy))
        await world.hub.running("digits-v2")
    device.clock = Later(timedelta(days=days))
    await back_alone(device, "v2", monkeypatch)
    # But the policy that counts now decides: who is not in there any more is not believed.
    device.clock = SystemClock()
    async with device.agent():
        await device.want(wanted, offer=owners.desired(owners.policy(device.rule)))
        await world.hub.until(lambda: device.told().policy == 2)
    await back_alone(device, "v1", monkeypatch)


def certified(device: Guarded, model: Model, who: Party) -> WorkloadDesired:
    """Sign by a certificate."""
    card = trusting.card(model)
    files = {"model.onnx": model.model, "golden.npz": model.golden, "card.json": card}
    document = json.loads(trusting.bundle(who.key, files))
    der = base64.b64encode(who.certificate.public_bytes(serialization.Encoding.DER)).decode()
    chain = {"x509CertificateChain": {"certificates": [{"rawBytes": der}]}, "tlogEntries": []}
    return device.attach(model, card, json.dumps({**document, "verificationMaterial": chain}).encode())


def private_key() -> bytes:
    return trusting.signer().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
