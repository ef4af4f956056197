"""What a device waits for by policy, is held to, and makes room for: a real engine, real servers, a registry."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.agent.surroundings import KEY_ID, UID

from skerry.agent import local, policy
from skerry.agent.disk import Disk
from skerry.agent.local import Request
from skerry.agent.settings import AgentSettings, HoldSettings, NetworkSettings
from skerry.api.kinds.device import LinkPolicy, UpdateHold
from skerry.core import messages, trust
from skerry.core.messages import DesiredState, WorkloadDesired
from skerry.drivers.runtime import limits

WAIT_SECONDS = 40.0


async def want(world: Any, *wanted: WorkloadDesired, **fields: Any) -> None:
    """Desire these workloads with something of the device's own spec."""
    world.hub.version += 1
    state = DesiredState(
        uid=UID,
        manifest_version=world.hub.version,
        issued_at=datetime.now(UTC),
        workloads=list(wanted),
        **fields,
    )
    await world.hub.publish(messages.encode(trust.sign(state, world.hub.key, KEY_ID)))


def held(hours: float = 1, reason: str = "open day") -> UpdateHold:
    return UpdateHold(until=datetime.now(UTC) + timedelta(hours=hours), reason=reason)


async def test_a_hold_keeps_what_serves_while_the_next_one_is_fetched(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await want(world, models["v2"].desired(), hold=held())
        waiting = await world.hub.status(lambda one: one.waiting_for == "Hold")
        assert waiting.phase == "Installed", "fetched and laid, but not started"
        assert waiting.fetched_bytes == len(models["v2"].model) + len(models["v2"].golden)
        assert waiting.message.startswith("waits with the switch-over: updates are held by operator until ")
        assert waiting.message.endswith(": open day")
        assert waiting.running.rollout == "digits-v1"
        assert [one.holder for one in world.hub.reports[-1].holds] == ["operator"]
    async with world.agent():  # a restart does not end it
        await world.hub.status(lambda one: one.waiting_for == "Hold" and one.running is not None)
        await world.until_servers(1)
        await want(world, models["v2"].desired())
        done = await world.hub.running("digits-v2")
        assert (done.waiting_for, done.message) == ("", "")
        assert done.waited_seconds > 0
        assert world.hub.reports[-1].holds == []


async def test_an_application_holds_over_the_local_socket_and_a_removal_waits_too(world: Any, models: Any) -> None:
    path = local.path_of(HoldSettings(), world.directory)
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        request = Request(verb="hold", lasting="30m", holder="till", reason="customers")
        assert (await asyncio.to_thread(local.ask, path, request)).holds
        await world.hub.want()
        await world.hub.until(lambda: world.hub.reports[-1].observed_manifest_version == 2)
        assert [one.holder for one in world.hub.reports[-1].holds] == ["till"]
        status = await world.hub.status(lambda one: one.running is not None)
        assert status.phase == "Running", "a hold keeps what serves"
        await asyncio.to_thread(local.ask, path, Request(verb="release", holder="till"))
        await world.hub.until(lambda: not world.hub.reports[-1].workloads)
        await world.until_servers(0)


async def test_what_serves_is_brought_back_in_spite_of_a_hold(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await want(world, models["v1"].desired(), hold=held())
        await world.hub.until(lambda: world.hub.reports[-1].holds)
        await world.kill_server()
        await world.hub.status(lambda one: one.restarts == 1 and one.running is not None)


async def test_a_metered_link_is_waited_for_and_the_operators_word_lets_it_go_on(
    world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = AgentSettings(network=NetworkSettings(kind="cellular", interface="wwan0"))
    size = len(models["v1"].model) + len(models["v1"].golden)
    async with world.agent():
        await want(world, models["v1"].desired(), link=LinkPolicy(allow_metered_downloads=str(size - 1)))
        waiting = await world.hub.status(lambda one: one.waiting_for == "Link")
        assert waiting.phase == "Fetching"
        assert "wwan0 (cellular) is metered" in waiting.message
        assert world.registry.requests == []
        assert world.hub.reports[0].facts.network.metered
        await want(world, models["v1"].desired(), link=LinkPolicy(allow_metered_downloads=str(size)))
        done = await world.hub.running("digits-v1")
        assert done.waiting_for == ""


async def test_a_deployment_may_require_an_unmetered_link(world: Any, models: Any) -> None:
    strict = msgspec.structs.replace(models["v1"].desired(), require_unmetered=True)
    async with world.agent():
        await want(world, strict, link=LinkPolicy(metered=True))
        waiting = await world.hub.status(lambda one: one.waiting_for == "Link")
        assert "the deployment requires one" in waiting.message
        # The very same version, required no more: nothing begins anew, it goes on.
        await want(world, models["v1"].desired(), link=LinkPolicy(metered=True))
        await world.hub.running("digits-v1")
        # What runs is not touched when it is required again.
        await want(world, strict, link=LinkPolicy(metered=True))
        await world.hub.until(lambda: world.hub.reports[-1].observed_manifest_version == 3)
        assert world.registry.requests == world.registry.requests[:2]


async def test_a_download_is_broken_off_when_the_link_becomes_metered_and_resumed_after(
    world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.agent.work.POLL_SECONDS", 0.02)
    monkeypatch.setattr(policy, "POLL_SECONDS", 0.02)
    world.registry.hold.clear()
    async with world.agent():
        strict = msgspec.structs.replace(models["v1"].desired(), require_unmetered=True)
        await want(world, strict, link=LinkPolicy(metered=False))
        await asyncio.to_thread(world.registry.holding.wait, WAIT_SECONDS)
        await want(world, strict, link=LinkPolicy(metered=True))
        waiting = await world.hub.status(lambda one: one.waiting_for == "Link")
        assert waiting.phase == "Fetching"
        world.registry.hold.set()
        await want(world, strict, link=LinkPolicy(metered=False))
        done = await world.hub.running("digits-v1")
        assert done.fetched_bytes < 2 * (len(models["v1"].model) + len(models["v1"].golden)), "resumed, not repeated"


@pytest.mark.skipif(not limits.find().memory, reason=f"no memory limits here: {limits.find().reason}")
async def test_a_version_that_needs_more_than_its_limit_is_named_and_rolled_back(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        tight = msgspec.structs.replace(models["v2"].desired(), memory_limit_bytes=16 * 1024 * 1024)
        await world.hub.want(tight)
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert "it needed more than its memory limit of 16 MiB" in status.message
        assert status.running.rollout == "digits-v1"
        roomy = msgspec.structs.replace(
            models["v2"].desired(rollout="roomy"), memory_limit_bytes=512 * 1024 * 1024, cpu_limit_millis=800
        )
        await world.hub.want(roomy)
        assert (await world.hub.running("roomy")).restarts == 0


# --- a small disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", str(directory)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode(errors='replace').strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def padded(model: Any, size: int) -> Any:
    """The same model, so large: whatever follows a protobuf message of ONNX in an unknown field is ignored."""
    count = size - len(model.model) - 8
    varint = bytes([(count & 0x7F) | 0x80, ((count >> 7) & 0x7F) | 0x80, (count >> 14) & 0x7F])
    return dataclasses.replace(model, model=model.model + bytes([0xFA, 0x3F]) + varint + os.urandom(count))


async def test_room_is_made_first_and_what_does_not_fit_is_refused_before_its_first_byte(
    world: Any, models: Any, small_disk: Path
) -> None:
    world.disk = Disk(small_disk / "state", reserve_bytes=256 * 1024)
    v1, v2 = padded(models["v1"], 500_000), padded(models["v2"], 500_000)
    huge = padded(models["v2"], 1_200_000)
    world.registry.add(v1, v2, huge)
    async with world.agent():
        await world.hub.want(v1.desired())
        await world.hub.running("digits-v1")
        junk = world.disk.blob(msgspec.structs.replace(v1.desired().blob, digest="sha256:" + "0" * 64))
        junk.write_bytes(b"x" * 700_000)
        await world.hub.want(v2.desired())
        await world.hub.running("digits-v2")
        assert not junk.exists(), "what nobody needs made room"
        asked = len(world.registry.requests)
        await world.hub.want(huge.desired(rollout="huge"))
        status = await world.hub.status(lambda one: one.rollout == "huge" and one.phase == "Running")
        assert "do not fit" in status.message
        assert status.running.rollout == "digits-v2"
        assert len(world.registry.requests) == asked, "refused before the download"
        kept = sorted((world.disk.root / "workloads" / "digits" / "slots").iterdir())
        assert len(kept) == 2, "the version that serves, and the one before it"
        world.disk.write("probe", b"there is room for this still")
