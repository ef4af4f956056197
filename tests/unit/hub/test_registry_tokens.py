"""Registry tokens as the hub keeps them: what makes one, and when it is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.api.kinds.registry_token import RegistryToken, RegistryTokenSpec
from skerry.api.meta import ObjectMeta
from skerry.drivers.store.sqlite import open_store
from skerry.hub import registry_tokens
from skerry.hub.context import HubContext
from skerry.hub.objects import Objects


class SetClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.at = datetime(2026, 6, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()


@asynccontextmanager
async def hub(directory: Path) -> AsyncIterator[tuple[HubContext, SetClock]]:
    clock = SetClock()
    async with open_store(directory / "hub.db") as store:
        nothing = cast(Any, None)  # of a hub's other parts
        yield (
            HubContext(
                objects=Objects(store, clock),
                artifacts=nothing,
                clock=clock,
                authority=nothing,
                gateway=nothing,
                state_dir=directory,
                hub_url="",
                mqtt_host="",
                mqtt_port=0,
            ),
            clock,
        )


def token(name: str = "", **spec: Any) -> RegistryToken:
    return RegistryToken(metadata=ObjectMeta(name=name, namespace="default"), spec=RegistryTokenSpec(**spec))


async def test_a_token_is_good_until_its_time_is_over_and_forgotten_a_week_later(tmp_path: Path) -> None:
    async with hub(tmp_path) as (context, clock):
        made = await registry_tokens.create_token(context, token("ci", ttl="1h"))
        other = await registry_tokens.create_token(context, token("night", ttl="720h"))
        assert (await registry_tokens.find(context, made.status.token)).metadata.name == "ci"
        clock.at += timedelta(hours=1)
        with pytest.raises(UnauthorizedError, match="expired"):
            await registry_tokens.find(context, made.status.token)
        await context.objects.store.create("registrytokens/default/odd", b"{")
        clock.at += timedelta(days=7)
        await registry_tokens.forget_expired(context)
        assert await context.objects.find(RegistryToken, "default", "ci") is not None  # a week is not over by now
        clock.at += timedelta(seconds=1)
        await registry_tokens.forget_expired(context)
        assert await context.objects.find(RegistryToken, "default", "ci") is None
        assert (await registry_tokens.find(context, other.status.token)).metadata.name == "night"
        assert await context.objects.store.get("registrytokens/default/odd") is not None
        with pytest.raises(UnauthorizedError):
            await registry_tokens.find(context, f"skr1.default/odd.{'a' * 43}")


@pytest.mark.parametrize("ttl", ["0s", "2161h", "100ms"])
async def test_a_life_out_of_bounds_is_refused(tmp_path: Path, ttl: str) -> None:
    async with hub(tmp_path) as (context, _):
        with pytest.raises(InvalidError, match="not between"):
            await registry_tokens.create_token(context, token(ttl=ttl))


@pytest.mark.parametrize("name", ["a.b", "A", "-a", "a" * 64])
async def test_a_name_that_the_text_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    async with hub(tmp_path) as (context, _):
        with pytest.raises(InvalidError, match="cannot name"):
            await registry_tokens.create_token(context, token(name))
