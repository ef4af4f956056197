"""Deltas that a registry does not send: tried a few times, then the next best way, as far as the link allows it."""

from __future__ import annotations

import dataclasses
import http.server
from collections.abc import Callable
from typing import Any

import msgspec
import onnx
import pytest

from skerry.agent import fetch
from skerry.agent.fetch import Ways
from skerry.agent.settings import AgentSettings, NetworkSettings
from skerry.api.errors import UnavailableError, UnreachableError
from skerry.api.kinds.device import LinkPolicy
from skerry.api.kinds.variants import Blob, Delta
from skerry.core import delta, delta_encode, messages, trust, weights
from skerry.core.manifest import digest_of
from skerry.core.messages import DesiredState, WorkloadDesired

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def padded(model: Any) -> Any:
    loaded = onnx.load_model_from_string(model.model)
    onnx.helper.set_model_props(loaded, {"notes": "".join(chr(33 + n * n * 7 % 90) for n in range(30_000))})
    return dataclasses.replace(model, model=loaded.SerializeToString())


def between(old: bytes, new: bytes) -> bytes:
    layouts = [weights.read_layout(content, "onnx") for content in (old, new)]
    header = delta.Header(old_digest=digest_of(old), old_size=len(old), new_digest=digest_of(new), new_size=len(new))
    return b"".join(delta_encode.encode(header, old, new, *layouts))


class Update:
    """v1 is installed and v2 comes with a delta."""

    def __init__(self, world: Any, models: Any) -> None:
        self.v1, self.v2 = padded(models["v1"]), padded(models["v2"])
        self.packed = between(self.v1.model, self.v2.model)
        self.world = world
        world.registry.add(self.v1, self.v2)
        world.registry.blobs[digest_of(self.packed)] = self.packed

    def way(self) -> Delta:
        blob = Blob(digest=digest_of(self.packed), size=len(self.packed))
        old, new = digest_of(self.v1.model), digest_of(self.v2.model)
        return Delta(base=old, target=new, blob=blob, encoding=delta.ENCODING)

    def desired(self) -> WorkloadDesired:
        wanted: WorkloadDesired = msgspec.structs.replace(self.v2.desired(), deltas=[self.way()])
        return wanted

    def answer_delta(self, status: int) -> list[int]:
        """Have the registry answer so where the delta is asked for; returns a list that grows with each such answer."""
        registry, asked = self.world.registry, []
        ordinary: Answer = registry.answer

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            if not handler.path.endswith(digest_of(self.packed)):
                ordinary(handler)
                return
            asked.append(status)
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        registry.answer = answer
        return asked


@pytest.fixture
def update(world: Any, models: Any) -> Update:
    return Update(world, models)


async def test_a_delta_that_never_comes_is_tried_a_few_times_and_then_the_whole_comes(
    world: Any, update: Update
) -> None:
    asked = update.answer_delta(503)
    async with world.agent():
        await world.hub.want(update.v1.desired())
        await world.hub.running("digits-v1")
        await world.hub.want(update.desired())
        status = await world.hub.running("digits-v2")
    assert len(asked) == fetch.MAX_TRIES
    assert (status.fetched_bytes, status.saved_bytes) == (len(update.v2.model) + len(update.v2.golden), 0)


async def test_on_a_metered_link_it_waits_and_says_so_and_the_delta_is_tried_again(
    world: Any, update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "REST_SECONDS", 12.0)
    world.settings = AgentSettings(network=NetworkSettings(kind="cellular", interface="wwan0"))
    asked = update.answer_delta(500)
    allowed = len(update.packed) + len(update.v2.golden)

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
        await want(update.v1.desired(), len(update.v1.model) + len(update.v1.golden))
        await world.hub.running("digits-v1")
        await want(update.desired(), allowed)
        waiting = await world.hub.status(lambda one: one.waiting_for == "Link")
        assert "waits for an unmetered link" in waiting.message
        assert len(asked) == fetch.MAX_TRIES
        assert digest_of(update.v2.model) not in [path.rsplit("/", 1)[-1] for path in world.registry.requests]
        del world.registry.answer  # the registry is itself again
        status = await world.hub.running("digits-v2")
    assert status.saved_bytes == len(update.v2.model) - len(update.packed)


@pytest.fixture
def based(world: Any, update: Update) -> Ways:
    """A device with the delta's base."""
    blob = Blob(digest=digest_of(update.v1.model), size=len(update.v1.model))
    world.disk.blob(blob).write_bytes(update.v1.model)
    return Ways(world.disk, world.clock)


async def bring(ways: Ways, update: Update, error: Exception, tries: int) -> list[Blob]:
    """Return what was asked for."""
    asked: list[Blob] = []

    async def fetch_one(blob: Blob) -> bool:
        asked.append(blob)
        raise error

    for _ in range(tries):
        with pytest.raises(UnavailableError):
            await ways.bring(update.desired(), update.desired().blob, fetch_one)
    return asked


async def test_a_network_that_is_away_says_nothing_of_the_delta(based: Ways, update: Update) -> None:
    asked = await bring(based, update, UnreachableError(), 4 * fetch.MAX_TRIES)
    assert {blob.digest for blob in asked} == {digest_of(update.packed)}


async def test_a_delta_that_comes_bit_by_bit_is_not_given_up(based: Ways, update: Update, world: Any) -> None:
    partial = world.disk.blob(update.way().blob).with_suffix(".partial")
    for size in range(1, 4 * fetch.MAX_TRIES):

        async def fetch_one(blob: Blob, size: int = size) -> bool:
            partial.write_bytes(bytes(size))
            raise UnavailableError(element=blob.digest)

        with pytest.raises(UnavailableError):
            await based.bring(update.desired(), update.desired().blob, fetch_one)
    assert based.missing(update.desired()) == len(update.packed) - size + len(update.v2.golden)
