"""Updates by delta: what comes over the network, and what happens when the delta is not what it should be."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import msgspec
import onnx
import pytest

from skerry.agent import fetch
from skerry.agent.settings import AgentSettings, NetworkSettings
from skerry.api.errors import IntegrityError, StorageFullError, UnavailableError
from skerry.api.kinds.device import LinkPolicy
from skerry.api.kinds.variants import Blob, Delta
from skerry.core import delta, delta_encode, messages, trust, weights
from skerry.core.manifest import digest_of
from skerry.core.messages import DesiredState, WorkloadDesired

PADDING = "".join(chr(33 + index * index * 7 % 90) for index in range(30_000))


def blob(content: bytes) -> Blob:
    return Blob(digest=digest_of(content), size=len(content))


def larger(model: Any) -> Any:
    """Return the model with something in it that is worth not sending again."""
    loaded = onnx.load_model_from_string(model.model)
    onnx.helper.set_model_props(loaded, {"notes": PADDING})
    return dataclasses.replace(model, model=loaded.SerializeToString())


def between(old: bytes, new: bytes, format_: str = "") -> bytes:
    layouts = [weights.read_layout(content, format_) for content in (old, new)]
    header = delta.Header(old_digest=digest_of(old), old_size=len(old), new_digest=digest_of(new), new_size=len(new))
    return b"".join(delta_encode.encode(header, old, new, *layouts))


def offer(old: bytes, new: bytes, packed: bytes, *, encoding: str = delta.ENCODING) -> Delta:
    return Delta(base=digest_of(old), target=digest_of(new), blob=blob(packed), encoding=encoding)


@pytest.fixture
def v1(models: Any, world: Any) -> Any:
    made = larger(models["v1"])
    world.registry.add(made)
    return made


@pytest.fixture
def v2(models: Any, world: Any) -> Any:
    made = larger(models["v2"])
    world.registry.add(made)
    return made


def by(model: Any, *deltas: Delta) -> WorkloadDesired:
    wanted: WorkloadDesired = msgspec.structs.replace(model.desired(), deltas=list(deltas))
    return wanted


async def test_an_update_fetches_the_delta_alone(world: Any, v1: Any, v2: Any) -> None:
    packed = between(v1.model, v2.model)
    world.registry.blobs[digest_of(packed)] = packed
    assert len(packed) < 1000 < len(v2.model)
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        await world.hub.want(by(v2, offer(v1.model, v2.model, packed)))
        status = await world.hub.running("digits-v2")
    assert status.fetched_bytes == len(packed) + len(v2.golden)
    assert status.saved_bytes == len(v2.model) - len(packed)
    assert world.disk.blob(blob(v2.model)).read_bytes() == v2.model
    assert not world.disk.blob(blob(packed)).exists()
    assert not list(world.disk.blob(blob(v2.model)).parent.glob(".*"))


@pytest.mark.parametrize("kind", ["missing", "lies", "other target", "damaged"])
async def test_a_delta_that_is_none_costs_the_whole_and_nothing_else(world: Any, v1: Any, v2: Any, kind: str) -> None:
    packed = between(v1.model, v2.model)
    if kind == "damaged":
        packed = packed[:-20] + bytes(20)
    if kind == "other target":
        packed = between(v1.model, v2.model + b"x")
    if kind != "missing":
        world.registry.blobs[digest_of(packed)] = packed
    if kind == "lies":
        world.registry.lies[digest_of(packed)] = bytes(len(packed))
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        await world.hub.want(by(v2, offer(v1.model, v2.model, packed)))
        status = await world.hub.running("digits-v2")
    assert status.saved_bytes == 0
    assert status.fetched_bytes >= len(v2.model)
    assert world.disk.blob(blob(v2.model)).read_bytes() == v2.model


async def test_the_next_best_delta_is_tried(world: Any, v1: Any, v2: Any) -> None:
    good = between(v1.model, v2.model)
    bad = good[:-30]
    for packed in (good, bad):
        world.registry.blobs[digest_of(packed)] = packed
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        await world.hub.want(by(v2, offer(v1.model, v2.model, good), offer(v1.model, v2.model, bad)))
        status = await world.hub.running("digits-v2")
    assert status.fetched_bytes == len(good) + len(bad) + len(v2.golden)
    assert status.saved_bytes == len(v2.model) - len(good)


async def test_without_the_base_or_the_encoding_the_whole_comes(world: Any, v1: Any, v2: Any) -> None:
    packed = between(v1.model, v2.model)
    other = offer(v1.model, v2.model, packed, encoding="of-tomorrow")
    away = msgspec.structs.replace(offer(v1.model, v2.model, packed), base=digest_of(b"never here"))
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        await world.hub.want(by(v2, other, away))
        status = await world.hub.running("digits-v2")
    assert (status.fetched_bytes, status.saved_bytes) == (len(v2.model) + len(v2.golden), 0)


async def test_a_metered_link_carries_the_delta_and_no_whole_download_in_its_place(
    world: Any, v1: Any, v2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = AgentSettings(network=NetworkSettings(kind="cellular", interface="wwan0"))
    good = between(v1.model, v2.model)
    bad = good[:-30] + bytes(30)
    world.registry.blobs[digest_of(bad)] = bad
    allowed = len(bad) + len(v2.golden)

    async def want(workload: WorkloadDesired, bound: int) -> None:
        world.hub.version += 1
        state = DesiredState(
            uid="d1",
            manifest_version=world.hub.version,
            issued_at=world.clock.now(),
            workloads=[workload],
            link=LinkPolicy(allow_metered_downloads=str(bound)),
        )
        await world.hub.publish(messages.encode(trust.sign(state, world.hub.key, "k1")))

    async with world.agent():
        await want(v1.desired(), len(v1.model) + len(v1.golden))
        await world.hub.running("digits-v1")
        await want(by(v2, offer(v1.model, v2.model, bad)), allowed)
        waiting = await world.hub.status(lambda one: one.waiting_for == "Link")
        assert waiting.running is not None
        asked = [path.rsplit("/", 1)[-1] for path in world.registry.requests]
        assert digest_of(bad) in asked
        assert digest_of(v2.model) not in asked
        # A better one comes, and is allowed: it goes on by that.
        world.registry.blobs[digest_of(good)] = good
        await want(by(v2, offer(v1.model, v2.model, bad), offer(v1.model, v2.model, good)), allowed)
        status = await world.hub.running("digits-v2")
    assert status.saved_bytes == len(v2.model) - len(good)


def test_nothing_bears_the_final_name_before_its_digest_holds(world: Any) -> None:
    old, new = bytes(range(256)) * 100, bytes(reversed(range(256))) * 100
    wrong = between(old, new[:-1] + b"x")
    header = between(old, new)[: len(wrong) - len(wrong[93:])]
    packed = header + wrong[93:]
    for content in (old, packed):
        world.disk.blob(blob(content)).write_bytes(content)
    with pytest.raises(IntegrityError, match="does not lead"):
        fetch.apply(world.disk, offer(old, new, packed), blob(new), threading.Event())
    assert sorted(path.name for path in world.disk.blob(blob(new)).parent.iterdir()) == sorted(
        digest_of(content).removeprefix("sha256:") for content in (old, packed)
    )


def test_giving_up_and_a_full_disk_leave_nothing(world: Any) -> None:
    old, new = bytes(range(256)) * 100, bytes(reversed(range(256))) * 100
    packed = between(old, new)
    for content in (old, packed):
        world.disk.blob(blob(content)).write_bytes(content)
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(UnavailableError):
        fetch.apply(world.disk, offer(old, new, packed), blob(new), given_up)
    world.disk._limit = len(old) + len(packed) + 1000
    with pytest.raises(StorageFullError):
        fetch.apply(world.disk, offer(old, new, packed), blob(new), threading.Event())
    assert len(list(world.disk.blob(blob(new)).parent.iterdir())) == 2
    world.disk._limit = None
    fetch.apply(world.disk, offer(old, new, packed), blob(new), threading.Event())
    assert world.disk.blob(blob(new)).read_bytes() == new


async def test_a_delta_that_has_begun_to_come_is_not_swept_and_goes_on(world: Any, v1: Any, v2: Any) -> None:
    packed = between(v1.model, v2.model)
    world.registry.blobs[digest_of(packed)] = packed
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        world.registry.held = digest_of(packed)
        world.registry.hold.clear()
        await world.hub.want(by(v2, offer(v1.model, v2.model, packed)))
        assert await asyncio.to_thread(world.registry.holding.wait, 20)
    world.registry.hold.set()
    async with world.agent():
        status = await world.hub.running("digits-v2")
    assert status.saved_bytes == len(v2.model) - len(packed)
    assert status.fetched_bytes < len(v2.model)
