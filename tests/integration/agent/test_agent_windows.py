"""Update windows on the device: a real engine, real servers, its own clock; a restart and a wrong clock included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from skerry.core.messages import WindowDesired, WindowsDesired, WorkloadDesired


def far_from_now() -> list[WindowDesired]:
    """A window that is closed for hours."""
    opens = datetime.now(UTC) + timedelta(hours=12)
    return [WindowDesired(schedule=f"{opens.minute} {opens.hour} * * *", duration_seconds=3600)]


def around_now() -> list[WindowDesired]:
    return [WindowDesired(schedule="* * * * *", duration_seconds=120)]


def within(desired: WorkloadDesired, **fields: Any) -> WorkloadDesired:
    fields = {"issued_at": datetime.now(UTC), **fields}
    return msgspec.structs.replace(desired, windows=WindowsDesired(**fields))


async def test_the_old_version_serves_until_the_window_opens_over_a_restart_too(world: Any, models: Any) -> None:
    later = within(models["v2"].desired(), switch_over=far_from_now())
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await world.hub.want(later)
        waiting = await world.hub.status(lambda one: one.waiting_for == "Window")
        assert waiting.phase == "Installed", "fetched and laid, but not started"
        assert waiting.fetched_bytes == len(models["v2"].model) + len(models["v2"].golden)
        assert waiting.message.startswith("waits with the switch-over for its window, which opens at ")
        assert waiting.running.rollout == "digits-v1"
        await world.until_servers(1)
    async with world.agent():
        await world.hub.status(lambda one: one.waiting_for == "Window" and one.running is not None)
        await world.until_servers(1)
        await world.hub.want(within(models["v2"].desired(), switch_over=around_now()))
        done = await world.hub.running("digits-v2")
        assert (done.waiting_for, done.message) == ("", "")
        assert done.waited_seconds > 0


async def test_nothing_is_fetched_before_the_download_window(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(within(models["v1"].desired(), download=far_from_now()))
        waiting = await world.hub.status(lambda one: one.waiting_for == "Window")
        assert waiting.phase == "Fetching"
        assert waiting.message.startswith("waits with the download for its window, which opens at ")
        assert world.registry.requests == []
        await world.hub.want(within(models["v1"].desired(), download=around_now(), switch_over=around_now()))
        await world.hub.running("digits-v1")


async def test_a_clock_that_is_wrong_is_not_trusted_with_windows(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        await world.hub.want(within(models["v2"].desired(), switch_over=around_now(), issued_at=tomorrow))
        waiting = await world.hub.status(lambda one: one.waiting_for == "Window")
        assert "its clock says" in waiting.message
        assert "before the assignment was made" in waiting.message
        assert waiting.running.rollout == "digits-v1"
        await world.hub.want(models["v2"].desired())
        await world.hub.running("digits-v2")
        # A return to what ran before waits for nothing, be the clock as it may.
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
