"""Models that a device keeps encrypted: nothing of them is on its disk in plain, whatever happens to it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.agent.processes import Device, private_pem
from tests.integration.agent.surroundings import Model, World, blob_of, eventually

from skerry.agent.disk import Disk
from skerry.agent.sealed import Vault
from skerry.agent.settings import AgentSettings, ProtectionSettings
from skerry.api.kinds.variants import Delta
from skerry.core import delta, delta_encode, weights
from skerry.core.manifest import digest_of
from skerry.core.messages import WorkloadDesired

WINDOW = 24


def larger(model: Model) -> Model:
    """Return the model with notes in it that are found again wherever they are in plain."""
    loaded = onnx.load_model_from_string(model.model)
    onnx.helper.set_model_props(loaded, {"notes": "".join(f"{n * n * 7919 % 100_003:06d}" for n in range(30_000))})
    return dataclasses.replace(model, model=loaded.SerializeToString())


def plaintext_in(directory: Path, *models: Model) -> list[str]:
    """The files below in which a piece of a model, or of its golden samples, can be read."""
    contents = [content for model in models for content in (model.model, model.golden)]
    pieces = {c[at : at + WINDOW] for c in contents for at in range(0, len(c) - WINDOW, 4096)}
    pieces |= {c[len(c) // 2 :][:WINDOW] for c in contents} | {c[-WINDOW:] for c in contents}
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            raw = path.read_bytes()
            found += [str(path)] if any(piece in raw for piece in pieces) else []
    return sorted(found)


def encrypted(model: Model, *deltas: Delta, **changes: Any) -> WorkloadDesired:
    wanted: WorkloadDesired = msgspec.structs.replace(
        model.desired(), protection="encrypted", deltas=list(deltas), **changes
    )
    return wanted


def offer(old: Model, new: Model, world: World) -> Delta:
    """Put a delta into the registry, and return how a device is told of it."""
    layouts = [weights.read_layout(one.model, "onnx") for one in (old, new)]
    header = delta.Header(
        old_digest=digest_of(old.model),
        old_size=len(old.model),
        new_digest=digest_of(new.model),
        new_size=len(new.model),
    )
    packed = b"".join(delta_encode.encode(header, old.model, new.model, *layouts))
    world.registry.blobs[digest_of(packed)] = packed
    return Delta(base=digest_of(old.model), target=digest_of(new.model), blob=blob_of(packed), encoding=delta.ENCODING)


@pytest.fixture
def v1(models: dict[str, Model], world: World) -> Model:
    made = larger(models["v1"])
    world.registry.add(made)
    return made


@pytest.fixture
def v2(models: dict[str, Model], world: World) -> Model:
    made = larger(models["v2"])
    world.registry.add(made)
    return made


@pytest.fixture
def identity_key(world: World) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    world.disk.write("device.pem", private_pem(key))
    return key


@pytest.fixture
def sealed(world: World, identity_key: ec.EllipticCurvePrivateKey) -> World:
    """A device that has a key."""
    return world


async def said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


def in_memory() -> list[str]:
    """The files in memory that this process has open."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [found for path in links if "memfd" in (found := os.readlink(path))]


def slot_files(world: World) -> set[str]:
    return {path.name for path in (world.directory / "workloads" / "digits" / "slots").glob("*/*")} - {"control.sock"}


async def test_installed_updated_and_restarted_nothing_of_it_is_on_the_disk(
    sealed: World, v1: Model, v2: Model
) -> None:
    way = offer(v1, v2, sealed)
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        status = await sealed.hub.running("digits-v1")
        assert status.fetched_bytes == len(v1.model) + len(v1.golden)
        assert status.measurement is not None
        assert status.measurement.accuracy == 1.0
        assert plaintext_in(sealed.directory, v1) == []
        await sealed.hub.want(encrypted(v2, way))
        status = await sealed.hub.running("digits-v2")
        assert (status.fetched_bytes, status.saved_bytes) == (
            way.blob.size + len(v2.golden),
            len(v2.model) - way.blob.size,
        )
    assert plaintext_in(sealed.directory, v1, v2) == []
    assert slot_files(sealed) == {"model.onnx.sealed", "golden.npz.sealed", "signature.json"}
    for instance in await sealed.instances():
        os.kill(int(instance.id.partition(":")[0]), signal.SIGKILL)
    sealed.registry.down = True
    sealed.disk = Disk(sealed.directory)
    async with sealed.agent() as engine:
        await sealed.until_phase(engine, "Running")
        [status] = engine.statuses()
        assert status.running is not None
        assert status.running.model_version == "digits-v2"
    assert plaintext_in(sealed.directory, v1, v2) == []


async def test_an_interrupted_download_is_sealed_too_and_goes_on_where_it_stopped(sealed: World, v1: Model) -> None:
    sealed.registry.hold.clear()
    sealed.registry.held = blob_of(v1.model).digest
    half = len(v1.model) // 2
    partial = sealed.disk.sealed.blob(blob_of(v1.model)).with_name(
        f"{sealed.disk.sealed.blob(blob_of(v1.model)).name}.partial"
    )
    chunks = half // 65536
    assert chunks >= 1, "the model is large enough to be in several chunks"
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        await sealed.hub.status(lambda one: one.phase == "Fetching")
        while not (partial.exists() and partial.stat().st_size > chunks * 65536):
            assert plaintext_in(sealed.directory, v1) == []
            await asyncio.sleep(0.01)
    assert plaintext_in(sealed.directory, v1) == []
    sealed.registry.hold.set()
    sealed.disk = Disk(sealed.directory)
    async with sealed.agent():
        status = await sealed.hub.running("digits-v1")
    assert status.fetched_bytes == len(v1.model) - chunks * 65536 + len(v1.golden)
    assert plaintext_in(sealed.directory, v1) == []


async def test_protection_that_comes_later_seals_what_is_there_and_removes_the_rest(
    sealed: World, v1: Model, v2: Model
) -> None:
    async with sealed.agent():
        await sealed.hub.want(v1.desired())
        await sealed.hub.running("digits-v1")
        await sealed.hub.want(v2.desired())
        await sealed.hub.running("digits-v2")
        assert plaintext_in(sealed.directory, v1)
        assert plaintext_in(sealed.directory, v2)
        sealed.registry.down = True
        await sealed.hub.want(encrypted(v2, rollout="protected"))
        status = await sealed.hub.running("protected")
        assert status.fetched_bytes == 0
        await sealed.until_servers(1)
    assert plaintext_in(sealed.directory, v1, v2) == []
    [state], _ = sealed.disk.read_journals()
    assert state.previous is not None, "the version before is still there to go back to"
    sealed.disk.check_slot(state.previous)


async def test_the_version_before_is_sealed_with_the_one_that_replaces_it(sealed: World, v1: Model, v2: Model) -> None:
    way = offer(v1, v2, sealed)
    async with sealed.agent():
        await sealed.hub.want(v1.desired())
        await sealed.hub.running("digits-v1")
        await sealed.hub.want(encrypted(v2, way))
        status = await sealed.hub.running("digits-v2")
        assert status.saved_bytes == len(v2.model) - way.blob.size, "a delta leads from a plain blob to a sealed one"
        await sealed.until_servers(1)
    assert plaintext_in(sealed.directory, v1, v2) == []
    [state], _ = sealed.disk.read_journals()
    assert state.previous is not None
    assert state.previous.desired.model_version == "digits-v1"
    sealed.disk.check_slot(state.previous)


async def test_protection_that_is_given_up_needs_no_download(sealed: World, v1: Model, v2: Model) -> None:
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        await sealed.hub.running("digits-v1")
        sealed.registry.down = True
        await sealed.hub.want(msgspec.structs.replace(v1.desired(), rollout="plain"))
        status = await sealed.hub.running("plain")
        assert status.fetched_bytes == 0
        sealed.registry.down = False
        assert sealed.disk.blob(blob_of(v1.model)).read_bytes() == v1.model
        way = offer(v1, v2, sealed)
        await sealed.hub.want(msgspec.structs.replace(v2.desired(), deltas=[way]))
        await sealed.hub.running("digits-v2")
        await sealed.until_servers(1)
    assert not list(sealed.directory.rglob("*.sealed"))


async def test_a_delta_leads_from_a_sealed_blob_to_a_plain_one(sealed: World, v1: Model, v2: Model) -> None:
    way = offer(v1, v2, sealed)
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        await sealed.hub.running("digits-v1")
        await sealed.hub.want(msgspec.structs.replace(v2.desired(), deltas=[way]))
        status = await sealed.hub.running("digits-v2")
    assert status.saved_bytes == len(v2.model) - way.blob.size
    assert sealed.disk.blob(blob_of(v2.model)).read_bytes() == v2.model


async def test_a_device_without_a_key_says_so_and_fetches_nothing(world: World, v1: Model) -> None:
    async with world.agent():
        await world.hub.want(encrypted(v1))
        status = await world.hub.status(lambda one: one.phase == "Failed")
    assert "this device has no key to encrypt models with" in status.message
    assert "enrol it" in status.message
    assert world.registry.requests == []
    assert plaintext_in(world.directory, v1) == []


async def test_a_key_on_a_volume_that_is_not_there_is_waited_for(
    world: World,
    v1: Model,
    tmp_path: Path,
    identity_key: ec.EllipticCurvePrivateKey,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = tmp_path / "volume" / "models.pem"
    world.settings = AgentSettings(protection=ProtectionSettings(key=str(place)))
    world.disk = Disk(world.directory, vault=Vault(world.directory, world.settings.protection))
    async with world.agent():
        await world.hub.want(encrypted(v1))
        status = await world.hub.status(lambda one: "models.pem" in one.message)
        assert "is the volume mounted" in status.message
        assert status.phase == "Fetching"
        assert plaintext_in(world.directory, v1) == []
        place.parent.mkdir()
        place.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
        await world.hub.running("digits-v1")
    assert plaintext_in(world.directory, v1) == []
    for instance in await world.instances():
        os.kill(int(instance.id.partition(":")[0]), signal.SIGKILL)
    key = place.read_bytes()
    for away in (None, private_pem(ec.generate_private_key(ec.SECP256R1()))):  # not mounted, or another one
        place.unlink() if away is None else place.write_bytes(away)
        world.disk = Disk(world.directory, vault=Vault(world.directory, world.settings.protection))
        caplog.clear()
        async with world.agent():
            await eventually(lambda: said(caplog, "protection.locked"))
            assert await world.instances() == []
    before = len(world.registry.requests)
    async with world.agent() as engine:
        place.write_bytes(key)
        await world.until_phase(engine, "Running")
        [status] = engine.statuses()
        assert (status.restarts, status.rollout) == (0, "digits-v1"), "nothing was given up for want of a key"
    assert len(world.registry.requests) == before
    world.disk.delete("device.pem")
    again = Disk(world.directory, vault=Vault(world.directory, world.settings.protection))
    assert again.sealed.has_blob(blob_of(v1.model)), "the identity key opens nothing where a file is named"


async def test_a_sealed_file_that_was_tampered_with_is_not_served_and_comes_again(sealed: World, v1: Model) -> None:
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        await sealed.hub.running("digits-v1")
    for path in sealed.directory.rglob("model.onnx.sealed"):  # a link to the cached blob: both are damaged
        with path.open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"!")
    for instance in await sealed.instances():
        os.kill(int(instance.id.partition(":")[0]), signal.SIGKILL)
    sealed.disk = Disk(sealed.directory)
    before = len(sealed.registry.requests)
    async with sealed.agent():
        await sealed.hub.until(lambda: len(sealed.registry.requests) > before)
        await sealed.hub.running("digits-v1")
        await sealed.until_servers(1)
    assert plaintext_in(sealed.directory, v1) == []


async def test_the_server_lets_go_of_the_file_in_memory_and_leaves_no_dumps(sealed: World, v1: Model) -> None:
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1))
        await sealed.hub.running("digits-v1")
        await sealed.until_servers(1)
        [instance] = await sealed.instances()
        process = Path("/proc") / instance.id.partition(":")[0]
        links = [os.readlink(path) for path in (process / "fd").iterdir()]
        assert not [link for link in links if "memfd" in link]
        assert int((process / "coredump_filter").read_text(), 16) == 0
        [core] = [line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core")]
        assert core.split()[4:6] == ["0", "0"]
        assert b"/proc/self/fd/" in (process / "cmdline").read_bytes()
        assert not in_memory()


async def test_swap_can_be_a_reason_to_refuse(
    world: World, v1: Model, identity_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.agent.memory_file.swaps", lambda: ["/dev/sda3"])
    world.disk = Disk(world.directory, vault=Vault(world.directory, ProtectionSettings(swap="refuse")))
    async with world.agent():
        await world.hub.want(encrypted(v1))
        status = await world.hub.status(lambda one: one.phase == "Failed")
    assert "memory may be written to /dev/sda3" in status.message


async def test_what_a_workload_keeps_in_plain_and_another_one_sealed_is_there_twice(sealed: World, v1: Model) -> None:
    other = msgspec.structs.replace(v1.desired(name="open"), protection="none")
    async with sealed.agent():
        await sealed.hub.want(encrypted(v1), other)
        await sealed.hub.running("digits-v1")
        await sealed.hub.running("open-v1", "open")
    assert sealed.disk.has_blob(blob_of(v1.model))
    assert sealed.disk.sealed.has_blob(blob_of(v1.model))
    assert not [path for path in plaintext_in(sealed.directory, v1) if "/digits/" in path]


def test_a_real_agent_serves_it_and_a_renewed_identity_opens_it(
    device: Device, models: dict[str, Model], make_device: Callable[[Path], Device]
) -> None:
    model = larger(models["v1"])
    device.registry.add(model)
    device.accept(encrypted(model))
    device.start()
    device.wait(lambda journal: journal.get("phase") == "Running")
    assert device.end(signal.SIGTERM) == 0
    following = ec.generate_private_key(ec.SECP256R1())
    device.disk.write("pending.key", private_pem(following))
    device.disk.vault.rewrap(following)
    device.disk.write("device.pem", device.authority.issue("d1"))  # neither: only the pending key opens it
    assert Disk(device.directory).sealed.has_blob(blob_of(model.model))
    device.disk.delete("pending.key")
    certificate = device.authority.build("d1", following).sign(device.authority.key, hashes.SHA256())
    device.disk.write("device.pem", private_pem(following) + certificate.public_bytes(serialization.Encoding.PEM))
    device.stop_servers()
    device.registry.down = True
    device.start()
    device.wait(lambda journal: journal.get("phase") == "Running" and journal.get("up"))
    assert plaintext_in(device.directory, model) == []
