"""The connection for one conversation: WebSocket to the hub, with this device's certificate."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import quote

from skerry.api.errors import UnavailableError
from skerry.api.meta import API_VERSION
from skerry.kit import websocket_client
from skerry.kit.websocket import RefusedError
from skerry.kit.websocket_client import WebSocket

DIAL_SECONDS = 15.0


def towards(hub_url: str, tls: ssl.SSLContext) -> Callable[[str], AbstractAsyncContextManager[WebSocket]]:
    """Return what connects to a hub for a tunnel's id."""

    @asynccontextmanager
    async def dial(tunnel: str) -> AsyncIterator[WebSocket]:
        url = f"{hub_url}/apis/{API_VERSION}/tunnels/{quote(tunnel, safe='')}"
        try:
            async with websocket_client.connect(url, tls=tls, timeout_seconds=DIAL_SECONDS) as socket:
                yield socket
        except RefusedError as error:
            cause = "nobody waits for it any more" if error.status == 410 else f"the hub answered {error.status}"
            raise UnavailableError(cause, element="connection to the hub") from None

    return dial
