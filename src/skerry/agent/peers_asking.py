"""Asking one neighbour where it stands towards a blob: one HEAD over TLS, within a few seconds.

Lives here: the question, and reading the answer, every byte of which a stranger may have written. Must not live here:
what follows from it (`core.peering`), how content is fetched (`drivers.registry`).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable

from skerry.agent.peers_server import MAX_HEAD_BYTES, STAND_HEADER
from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.core.peering import STANDS, Stand, Told
from skerry.kit.hangup import abort

ASK_SECONDS = 5.0
"""From the connection's first packet to the answer's end: a neighbour is near, or no help."""
_STAND = re.compile(r"([a-z]{1,16}) ([0-9]{1,18})( busy)?")
_STANDS: dict[str, Stand] = {"none": "none", "wants": "wants", "claims": "claims", "fetches": "fetches", "has": "has"}


async def ask(
    host: str, port: int, path: str, tls: ssl.SSLContext, *, identify: Callable[[ssl.SSLObject], str]
) -> tuple[str, Told]:
    """Return who answers at an address, and what. Raises UnavailableError, UnauthorizedError from `identify`."""
    element = f"neighbour {host}:{port}"
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=MAX_HEAD_BYTES)
            try:
                uid = identify(writer.get_extra_info("ssl_object"))
                writer.write(f"HEAD {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                abort(writer.transport)
    except TimeoutError:
        raise UnavailableError(f"says nothing within {ASK_SECONDS:g} s", element=element) from None
    except UnauthorizedError:
        raise
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise UnavailableError(
            f"cannot be asked: {str(error)[:200] or type(error).__name__}", element=element
        ) from None
    return uid, read_answer(head)


def read_answer(head: bytes) -> Told:
    """Return what an answer's head tells; whatever else it is, that is nothing."""
    first, *lines = head.decode("latin-1").split("\r\n")
    told = Told(stand="none")
    for line in lines:
        name, _, value = line.partition(":")
        match = _STAND.fullmatch(value.strip())
        if name.lower() == STAND_HEADER.lower() and match is not None and match[1] in STANDS:
            told = Told(stand=_STANDS[match[1]], came=int(match[2]), busy=match[3] is not None)
    parts = first.split(" ", 2)
    code = parts[1] if len(parts) > 1 and parts[0] in ("HTTP/1.1", "HTTP/1.0") else ""
    if (told.stand == "has") != (code == "200"):
        return Told(stand="none")
    return told if code in ("200", "404") else Told(stand="none")
