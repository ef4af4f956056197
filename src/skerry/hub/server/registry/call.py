"""One request to the registry, as its endpoints see it.

Must not live here: routing, who may call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from skerry.api.errors import TimedOutError
from skerry.hub.server.registry.callers import Caller


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request of somebody who may make it, about a repository whose name is one."""

    request: Request
    name: str
    """The repository."""
    caller: Caller

    @property
    def is_head(self) -> bool:
        """Headers alone are wanted."""
        return self.request.method == "HEAD"

    def part(self, name: str) -> str:
        """Return a part of the path."""
        value: str = self.request.path_params[name]
        return value

    def query(self, name: str) -> str:
        """Return a query parameter, or ""."""
        return self.request.query_params.get(name, "")

    def header(self, name: str) -> str:
        """Return a header, or ""."""
        return self.request.headers.get(name, "").strip()

    async def body(self, idle_seconds: float) -> AsyncIterator[bytes]:
        """Yield what is sent. Raises TimedOutError when the sender falls silent."""
        async with aclosing(self.request.stream()) as stream:
            while True:
                try:
                    async with asyncio.timeout(idle_seconds):
                        chunk = await anext(stream)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise TimedOutError(
                        f"the sender sent nothing for {idle_seconds:g} s", element="request body"
                    ) from None
                if chunk:
                    yield chunk


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]
