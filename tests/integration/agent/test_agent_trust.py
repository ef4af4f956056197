"""A device with a trust anchor against whoever owns its hub: a real engine, real servers, real signatures.

The hub of these tests has the key that signs desired states, the link and the artifacts: it is the whole hub, taken.
"""

from __future__ import annotations

import dataclasses
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import trusting
from tests.integration.agent.surroundings import KEY_ID, UID, Model, World, blob_of
from tests.trusting import NOW, Owners

from skerry.agent import facts
from skerry.agent import trust as trusted
from skerry.agent.disk import Disk
from skerry.agent.engine import Engine, Parts
from skerry.agent.servers import Servers
from skerry.api.errors import IntegrityError, InvalidError, NotFoundError
from skerry.api.kinds.device import TrustFacts, WorkloadStatus
from skerry.api.kinds.trust_policy import TrustRule
from skerry.core import anchor, messages, trust
from skerry.core.anchor import Anchored
from skerry.core.messages import DesiredState, TrustDesired, WorkloadDesired
from skerry.core.ports import Clock
from skerry.core.session import Session
from skerry.drivers.link.memory import MemoryDeviceLink
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings
from skerry.drivers.runtime.process import ProcessRuntime
from skerry.kit.clock import SystemClock


class Later:
    """A clock that is wrong."""

    def __init__(self, by: timedelta) -> None:
        self._by, self._clock = by, SystemClock()

    def now(self) -> datetime:
        return self._clock.now() + self._by

    def monotonic(self) -> float:
        return self._clock.monotonic()


class Guarded:
    """One device that has an anchor, and whoever may sign for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.owners = Owners()
        self.signer = trusting.signer()
        self.rule = TrustRule(name="all", models=["*"], keys=[trusting.pem(self.signer)])
        self.clock: Clock = SystemClock()
        trusted.write(world.disk, Anchored(namespace="default", root=anchor.write(self.owners.roots[0])))

    def engine(self) -> Engine:
        world = self.world
        kept = world.disk.read_desired()
        keys = {KEY_ID: world.hub.key.public_key()}
        accepted = None
        if kept is not None:
            accepted = trust.open_envelope(kept.envelope, DesiredState, uid=UID, keys=keys)
        own = trusted.Trust(world.disk, self.clock)
        runtime = ProcessRuntime(world.directory / "runtime")
        return Engine(
            Parts(
                disk=world.disk,
                link=MemoryDeviceLink(world.hub.carrier, UID),
                source=OciArtifactSource(world.registry.url, None, OciSettings(reserve_bytes=0)),
                servers=Servers(runtime, world.disk, world.settings.servers, check_trust=own.check_slot),
                session=Session(
                    uid=UID,
                    boot_id=secrets.token_hex(8),
                    keys=keys,
                    floor=0 if kept is None else kept.manifest_version,
                    accepted=accepted,
                ),
                clock=self.clock,
                settings=world.settings,
                facts=lambda: facts.collect(world.settings, world.directory),
                trust=own,
            )
        )

    def agent(self) -> Any:
        self.world.engine = self.engine  # type: ignore[method-assign]
        return self.world.agent()

    def sign(self, model: Model, *keys: Any) -> WorkloadDesired:
        """The workload with signatures that the registry holds."""
        card = trusting.card(model)
        files = {"model.onnx": model.model, "golden.npz": model.golden, "card.json": card}
        bundles = [trusting.bundle(key, files) for key in (keys or (self.signer,))]
        return self.attach(model, card, *bundles)

    def attach(self, model: Model, card: bytes, *bundles: bytes) -> WorkloadDesired:
        """The workload with whatever the registry holds."""
        for one in (*bundles, card):
            self.world.registry.blobs[blob_of(one).digest] = one
        return msgspec.structs.replace(
            model.desired(), signatures=[blob_of(one) for one in bundles], card=blob_of(card)
        )

    async def want(self, *wanted: WorkloadDesired, offer: TrustDesired | None = None) -> None:
        hub = self.world.hub
        hub.version += 1
        state = DesiredState(
            uid=UID, manifest_version=hub.version, issued_at=datetime.now(UTC), workloads=list(wanted), trust=offer
        )
        await hub.publish(messages.encode(trust.sign(state, hub.key, KEY_ID)))

    def told(self) -> TrustFacts:
        found = [r.facts.trust for r in self.world.hub.reports if r.facts is not None and r.facts.trust is not None]
        return found[-1] if found else TrustFacts()

    async def refused(self, rollout: str) -> WorkloadStatus:
        return await self.world.hub.status(lambda one: one.rollout == rollout and one.refusal == "Trust")


@pytest.fixture
def device(world: World) -> Guarded:
    return Guarded(world)


def fetched(world: World, model: Model) -> bool:
    digest = blob_of(model.model).digest
    return any(digest in path for path in world.registry.requests)


async def test_what_the_policy_covers_runs(device: Any, world: Any, models: Any) -> None:
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=device.owners.desired(device.owners.policy(device.rule)))
        status = await world.hub.running("digits-v1")
        assert status.refusal == ""
        await world.hub.until(lambda: device.told().policy == 1)
    assert device.told() == TrustFacts(
        anchor=1,
        policy=1,
        anchor_expires_at=NOW + timedelta(days=365),
        policy_expires_at=NOW + timedelta(days=30),
    )


async def test_who_owns_hub_and_registry_has_nothing_run_that_nobody_signed(
    device: Any, world: Any, models: Any
) -> None:
    """Unsigned, signed by the attacker, another model's signature, a subset: nothing of it is even fetched."""
    offer = device.owners.desired(device.owners.policy(device.rule))
    attacker = trusting.signer()
    v1, v2 = models["v1"], models["v2"]
    foreign = trusting.bundle(device.signer, {"model.onnx": v1.model, "golden.npz": v1.golden})
    partial = trusting.bundle(device.signer, {"model.onnx": v2.model})
    card = trusting.card(v2)
    # Everything of it was signed by the right one, as another model and as another version.
    renamed = trusting.card(dataclasses.replace(v2, version="v1"))
    other = trusting.card(v2, name="toy")
    files = {"model.onnx": v2.model, "golden.npz": v2.golden}
    signed = {one: trusting.bundle(device.signer, {**files, "card.json": one}) for one in (renamed, other)}
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=offer)
        serving = (await world.hub.running("digits-v1")).running
        tries = {
            "unsigned": (device.attach(v2, card), "found no signature that holds"),
            "cardless": (msgspec.structs.replace(device.sign(v2), card=None), "found no card"),
            "attacker": (device.sign(v2, attacker), "is made with a key that is not trusted"),
            "foreign": (device.attach(v2, card, foreign), "(1 of other files)"),
            "partial": (device.attach(v2, card, partial), "(1 of other files)"),
            "other-card": (device.attach(v2, card, signed[other]), "(1 of other files)"),
            "other-model": (device.attach(v2, other, signed[other]), "is of toy v2, not of digits v2"),
            "other-version": (device.attach(v2, renamed, signed[renamed]), "is of digits v1, not of digits v2"),
        }
        for name, (bad, words) in tries.items():
            await device.want(msgspec.structs.replace(bad, rollout=name), offer=offer)
            status = await device.refused(name)
            assert words in status.message, status.message
            assert "the device's own check (Trust) failed" in status.message
            assert status.running == serving, "what serves goes on"
    assert not fetched(world, models["v2"])


async def test_a_hub_that_strips_or_rolls_back_the_policy_changes_nothing(device: Any, world: Any, models: Any) -> None:
    """The first policy let a key sign that was stolen since; the second one does not."""
    stolen, owners = trusting.signer(), device.owners
    lax = owners.policy(TrustRule(models=["*"], keys=[trusting.pem(stolen)]))
    strict = owners.policy(device.rule)
    lies = {
        "stripped": None,
        "empty": TrustDesired(),
        "replayed": owners.desired(lax),
        "own": owners.desired(owners.policy(TrustRule(models=["*"], keys=[trusting.pem(stolen)]), by=trusting.owner())),
        "off": owners.desired(owners.policy(mode="off", by=trusting.owner())),
        "other": owners.desired(dataclasses.replace(owners, namespace="test").policy(mode="off", version=9)),
    }
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=owners.desired(strict))
        serving = (await world.hub.running("digits-v1")).running
        for name, offer in lies.items():
            await device.want(msgspec.structs.replace(device.sign(models["v2"], stolen), rollout=name), offer=offer)
            status = await device.refused(name)
            assert status.running == serving
        await device.want(offer=owners.desired(lax))
        await world.hub.until(lambda: "version 1 is older than 2" in device.told().message)
    assert device.told().policy == 2
    assert not fetched(world, models["v2"])


async def test_an_anchor_is_followed_and_old_keys_are_worth_nothing(device: Any, world: Any, models: Any) -> None:
    owners = device.owners
    before = list(owners.owners)
    old_policy_key = owners.policies[0]
    first = owners.desired(owners.policy(device.rule))
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=first)
        await world.hub.running("digits-v1")
        owners.rotate(owners=2)
        owners.rotate(policies=True)
        await device.want(device.sign(models["v1"]), offer=owners.desired(owners.policy(device.rule, version=1)))
        await world.hub.until(lambda: (device.told().anchor, device.told().policy) == (3, 1))
        # Whoever has the old policy key, one of two owners, or the owners' keys from before gets nowhere.
        one_of_two = trusting.signed(owners.root(version=4, policies=trusting.role(old_policy_key)), owners.owners[0])
        outdated = trusting.signed(owners.root(version=4, policies=trusting.role(old_policy_key)), *before)
        fork = trusting.signed(owners.root(version=2, policies=trusting.role(old_policy_key)), *before)
        lax = owners.policy(mode="off", version=7, by=old_policy_key)
        for name, roots in {
            "key": owners.roots,
            "owner": [*owners.roots, one_of_two],
            "owners": [*owners.roots, outdated],
            "fork": [owners.roots[0], fork],
        }.items():
            bad = msgspec.structs.replace(device.attach(models["v2"], trusting.card(models["v2"])), rollout=name)
            await device.want(bad, offer=owners.desired(lax, roots=roots))
            assert "found no signature" in (await device.refused(name)).message
        assert device.told().anchor == 3
    assert not fetched(world, models["v2"])


async def test_it_comes_back_after_a_reboot_and_its_word_with_it(device: Any, world: Any, models: Any) -> None:
    offer = device.owners.desired(device.owners.policy(device.rule))
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=offer)
        await world.hub.running("digits-v1")
    await stop(world)
    device.clock = Later(timedelta(days=400))  # both have expired, and there is no hub that could bring new ones
    async with device.agent():
        await world.hub.running("digits-v1")
        await device.want(msgspec.structs.replace(device.sign(models["v2"]), rollout="late"), offer=offer)
        status = await device.refused("late")
        assert "expired at" in status.message
        assert status.running is not None, "what serves goes on"
    assert not fetched(world, models["v2"])


async def test_a_clock_that_is_behind_is_no_way_around_the_beginning(device: Any, world: Any, models: Any) -> None:
    device.clock = Later(timedelta(days=-9000))
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=device.owners.desired(device.owners.policy(device.rule)))
        await world.hub.running("digits-v1")


async def test_a_server_is_not_started_by_what_is_not_trusted_any_more(device: Any, world: Any, models: Any) -> None:
    """At the next start of its server, also when the agent comes back without a hub."""
    owners = device.owners
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=owners.desired(owners.policy(device.rule)))
        await world.hub.running("digits-v1")
        denied = owners.policy(device.rule, denied=[blob_of(models["v1"].model).digest])
        await device.want(device.sign(models["v1"]), offer=owners.desired(denied))
        await world.hub.until(lambda: device.told().policy == 2)
        assert (await world.hub.running("digits-v1")).running is not None, "it is not stopped for it"
    await stop(world)
    async with device.agent():
        status = await world.hub.status(lambda one: "denied by the policy" in one.message)
        assert status.running is None
        assert await world.instances() == []


async def test_a_signature_that_is_lost_is_fetched_again(device: Any, world: Any, models: Any) -> None:
    offer, wanted = device.owners.desired(device.owners.policy(device.rule)), device.sign(models["v1"])
    async with device.agent():
        await device.want(wanted, offer=offer)
        await world.hub.running("digits-v1")
    await stop(world)
    lost = world.disk.blob(wanted.signatures[0])
    lost.unlink()
    world.hub.reports.clear()
    async with device.agent():
        await world.hub.running("digits-v1")
    assert lost.exists()


async def test_in_warning_mode_it_takes_what_is_not_covered(
    device: Any, world: Any, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with device.agent():
        warn = device.owners.policy(device.rule, mode="warn")
        await device.want(models["v1"].desired(), offer=device.owners.desired(warn))  # not even a card
        await world.hub.running("digits-v1")
    assert any(record.msg.startswith("trust.not_covered") for record in caplog.records)


@pytest.mark.parametrize("damage", ["anchor", "policy", "file"])
async def test_without_a_policy_or_with_a_damaged_anchor_nothing_is_taken(
    device: Any, world: Any, models: Any, damage: str
) -> None:
    offer = device.owners.desired(device.owners.policy(device.rule))
    if damage == "file":
        world.disk.write(trusted.FILE, b'{"namespace": "defa')
    if damage == "anchor":
        trusted.write(world.disk, Anchored(namespace="default", pin="sha256:" + "0" * 64))
    if damage == "policy":
        offer = device.owners.desired(None)
    async with device.agent():
        await device.want(device.sign(models["v1"]), offer=offer)
        words = {"file": "is damaged", "anchor": "no trust anchor", "policy": "no policy signed"}[damage]
        assert words in (await device.refused("digits-v1")).message
        await world.hub.until(lambda: words in device.told().message)
    assert not fetched(world, models["v1"])


async def test_a_device_without_an_anchor_asks_for_nothing(device: Any, world: Any, models: Any) -> None:
    world.disk.delete(trusted.FILE)
    async with device.agent():
        await device.want(models["v1"].desired(), offer=device.owners.desired(device.owners.policy(device.rule)))
        await world.hub.running("digits-v1")
        assert device.told() == TrustFacts()


# --- how it begins ------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, authority: Any) -> Disk:
    made = Disk(tmp_path / "own")
    made.write("device.pem", authority.issue(UID))
    return made


def offered(disk: Disk, offer: TrustDesired) -> Anchored:
    trusted.Trust(disk, SystemClock()).accept(offer)
    kept = trusted.read(disk)
    assert kept is not None
    return kept


def test_its_first_anchor_is_a_file_or_a_digest_that_no_hub_can_forge(disk: Disk, tmp_path: Path) -> None:
    owners, attacker = Owners(), Owners()
    owners.rotate()
    path = tmp_path / "root.json"
    path.write_text(anchor.write(owners.roots[0]))
    for word in (str(path), anchor.digest_of(owners.roots[0])):
        trusted.begin(disk, word, replace=True)
        assert "anchor" not in offered(disk, attacker.desired(attacker.policy())).policy
        assert offered(disk, attacker.desired(attacker.policy())).policy == ""
        kept = offered(disk, owners.desired(owners.policy()))
        assert (kept.root, kept.policy != "", kept.namespace) == (anchor.write(owners.roots[1]), True, "default")


def test_on_first_use_the_first_that_comes_stays(disk: Disk) -> None:
    owners, attacker = Owners(), Owners()
    trusted.begin(disk, "first-use")
    first = offered(disk, owners.desired(owners.policy()))
    assert offered(disk, attacker.desired(attacker.policy(version=9))) == first


def test_what_is_no_anchor_is_refused(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    path.write_text(anchor.write(trusting.signed(Owners().root(version=1), trusting.owner())))
    with pytest.raises(IntegrityError, match="has 0 of the 2 signatures it needs of its own owners"):
        trusted.begin(disk, str(path))
    with pytest.raises(InvalidError, match="is no digest"):
        trusted.begin(disk, "sha256:12")
    with pytest.raises(NotFoundError):
        trusted.begin(disk, str(tmp_path / "nothing"))
    assert trusted.read(disk) is None


def test_an_anchor_on_a_disk_that_is_full_is_followed_later(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = Owners()
    trusted.begin(disk, "first-use")
    own = trusted.Trust(disk, SystemClock())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(OSError, match="No space"):
            own.accept(owners.desired(owners.policy()))
    assert own.facts() == trusted.Trust(disk, SystemClock()).facts(), "nothing counts that is not on the disk"
    own.accept(owners.desired(owners.policy()))
    found = own.facts()
    assert found is not None
    assert found.anchor == 1


async def stop(world: World) -> None:
    """A reboot: the servers are gone."""
    runtime = ProcessRuntime(world.directory / "runtime")
    for one in await runtime.list():
        await runtime.stop(one, grace_seconds=2)
