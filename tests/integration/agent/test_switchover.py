"""One endpoint for the life of a workload: callers that never pause go through updates, rollbacks and kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import pytest
from tests.integration.agent.load import calling
from tests.integration.agent.test_agent_engine import port_of, predict
from tests.integration.agent.test_agent_process import is_running, version_at

SOME = 20
"""Answers that show that callers are served."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("fixed", [False, True], ids=["any port", "fixed port"])
async def test_no_request_fails_during_updates_rollbacks_and_restarts_of_the_agent(
    world: Any, models: Any, fixed: bool
) -> None:
    wanted = free_port() if fixed else 0

    async def update(version: str) -> None:
        await world.hub.want(models[version].desired(port=wanted))
        status = await world.hub.running(f"digits-{version}")
        assert port_of(status) == port
        answer = await asyncio.to_thread(predict, port, [1, 0, 0, 0])
        assert answer["model_version"] == version, "once it is told to run, it is what answers"
        await asyncio.to_thread(load.until, SOME)

    async with world.agent():
        await world.hub.want(models["v1"].desired(port=wanted))
        port = port_of(await world.hub.running("digits-v1"))
        assert port == (wanted or port)
        with calling(port) as load:
            await update("v2")
            await update("v1")
            await world.hub.want(models["wrong-golden"].desired(rollout="bad", port=wanted))
            bad = await world.hub.status(lambda one: one.rollout == "bad" and one.phase == "Running")
            assert "While Probing" in bad.message
            await asyncio.to_thread(load.until, SOME)
    with calling(port) as alone:
        await asyncio.to_thread(alone.until, SOME)
        async with world.agent():
            load = alone
            await update("v2")
            await update("v1")
        await asyncio.to_thread(alone.until, SOME)
        await world.until_servers(1)
    assert (load.failures, alone.failures) == ([], [])
    assert set(load.answered) == {"v1", "v2"}


@pytest.mark.parametrize("phase", ["Installed", "Starting", "Probing", "Running"])
def test_no_request_fails_when_the_agent_is_killed_in_mid_update(device: Any, models: Any, phase: str) -> None:
    device.accept(models["v1"].desired())
    device.start()
    port = device.wait(is_running("digits-v1"))["endpoint"]
    with calling(port, keeping=1, fresh=1) as load:
        assert device.end(signal.SIGKILL) == -9
        device.accept(models["v2"].desired())
        device.start()
        device.wait(
            lambda found: (
                found["desired"]["rollout"] == "digits-v2"
                and (found["phase"] == phase or is_running("digits-v2")(found))
            )
        )
        assert device.end(signal.SIGKILL) == -9
        load.until(SOME)
        device.log_file = device.log_file.with_name("agent-again.log")
        device.start()
        device.wait_log("link.lost")  # it has taken up what it found
        assert device.wait(is_running("digits-v2"))["endpoint"] == port
        device.wait_servers(1)
        load.until(SOME)
        assert version_at(port) == "v2"
    assert load.failures == []
    assert device.end(signal.SIGTERM) == 0


async def test_callers_wait_while_a_server_that_died_is_started_again(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
        [one] = await world.instances()
        os.kill(int(one.id.split(":")[0]), signal.SIGSTOP)  # it accepts nothing more, whatever comes
        asked = asyncio.create_task(asyncio.to_thread(predict, port, [1, 0, 0, 0]))
        os.kill(int(one.id.split(":")[0]), signal.SIGKILL)
        assert (await asked)["model_version"] == "v1"
        await world.hub.status(lambda status: status.restarts == 1 and status.phase == "Running")


async def test_an_idle_connection_holds_nothing_up(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = b"GET /v2/models/digits HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(request)
        first = await reader.readuntil(b'"outputs"')
        assert b'"v1"' in first
        assert b"Connection: close" not in first
        await world.hub.want(models["v2"].desired())
        await world.hub.running("digits-v2")
        await world.hub.want(models["v1"].desired(rollout="back"))
        await world.hub.running("back")  # two updates later the first server still sees its idle caller off
        writer.write(request)
        rest = (await reader.read()).partition(b"HTTP/1.1 200")[2]
        assert b"Connection: close" in rest
        assert b'"v1"' in rest
        writer.close()
        await writer.wait_closed()
        await world.until_servers(1)


async def test_a_fixed_port_that_is_taken_is_said_and_what_serves_goes_on(world: Any, models: Any) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        async with world.agent():
            await world.hub.want(models["v1"].desired())
            port = port_of(await world.hub.running("digits-v1"))
            with calling(port, keeping=1, fresh=1) as load:
                await world.hub.want(models["v2"].desired(rollout="moved", port=taken))
                status = await world.hub.status(lambda one: one.rollout == "moved" and one.phase == "Running")
                assert status.message.startswith("While Probing, the endpoint failed for ")
                assert f"port {taken} is taken" in status.message
                assert "set serving.port to another" in status.message
                assert port_of(status) == port
                await world.until_servers(1)
                await asyncio.to_thread(load.until, SOME)
            assert load.failures == []
            stranger.close()
            await world.hub.want(models["v2"].desired(rollout="moved-now", port=taken))
            assert port_of(await world.hub.running("moved-now")) == taken
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await world.hub.want()
            await world.until_servers(0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", taken)


async def test_a_server_that_cannot_be_talked_to_is_not_adopted(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
    [before] = await world.instances()
    [channel] = world.directory.glob("workloads/digits/slots/*/control.sock")
    assert (channel.stat().st_mode & 0o777, channel.is_socket()) == (0o600, True)
    channel.unlink()
    count = len(world.hub.reports)
    async with world.agent():
        status = await world.hub.status(lambda one: len(world.hub.reports) > count and one.phase == "Running")
        assert port_of(status) == port
        [after] = await world.instances()
        assert after.id != before.id
        assert (await asyncio.to_thread(predict, port, [1, 0, 0, 0]))["model_version"] == "v1"
