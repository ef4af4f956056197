"""Neighbours by multicast DNS (RFC 6762, 6763): `_skerry-peer._tcp.local.`, one service a device, named by its uid.

What multicast says is anybody's word: it is bounded, only addresses of the local network are taken, and a neighbour is
one only once its certificate has said so. Needs `zeroconf` (`skerry[peers]`), which is imported here and nowhere else.
Lives here: announcing and finding. Must not live here: what is asked of those that were found (`peers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from skerry.agent.peers import Address, Found
from skerry.agent.settings import PeerSettings
from skerry.api.errors import UnsupportedError

log = logging.getLogger(__name__)

SERVICE = "_skerry-peer._tcp.local."
MAX_FOUND = 256
RESOLVE_MILLISECONDS = 3000
LISTEN_SECONDS = 10.0
"""How long the listener may take to have a port, before this device goes unannounced."""
_UID = re.compile(r"[a-z0-9]{1,40}")


@contextlib.asynccontextmanager
async def discovered(
    uid: str, wanted: PeerSettings, port: Callable[[], int], *, interfaces: Sequence[str] | None = None
) -> AsyncIterator[Found]:
    """Find neighbours, and announce this device where it listens, while the context lasts.

    Raises UnsupportedError where zeroconf is not installed, OSError where there is no multicast.
    """
    try:
        from zeroconf import InterfaceChoice, ServiceStateChange  # noqa: PLC0415 - an extra
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf  # noqa: PLC0415
    except ImportError:
        raise UnsupportedError("needs zeroconf", element="peers.discover", hint="install skerry[peers]") from None
    found: dict[str, Address] = {}
    dns = AsyncZeroconf(interfaces=list(interfaces) if interfaces is not None else InterfaceChoice.Default)
    resolving: set[asyncio.Task[None]] = set()

    async def resolve(name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if await info.async_request(dns.zeroconf, RESOLVE_MILLISECONDS):
            take(
                found, name, info.parsed_addresses(), info.port or 0, info.decoded_properties, uid=uid, site=wanted.site
            )

    def changed(*, name: str, state_change: ServiceStateChange, **_: Any) -> None:
        if state_change is ServiceStateChange.Removed:
            found.pop(_uid_of(name), None)
        elif len(resolving) < MAX_FOUND:
            task = asyncio.ensure_future(resolve(name))
            resolving.add(task)
            task.add_done_callback(resolving.discard)

    browser = AsyncServiceBrowser(dns.zeroconf, SERVICE, handlers=[changed])
    try:
        if wanted.listen:
            await _announce(dns, AsyncServiceInfo, uid, wanted, port)
        yield found
    finally:
        for task in resolving:
            task.cancel()
        await browser.async_cancel()
        await dns.async_unregister_all_services()
        await dns.async_close()


async def _announce(
    dns: Any, info: Callable[..., Any], uid: str, wanted: PeerSettings, port: Callable[[], int]
) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LISTEN_SECONDS):
            while not port():  # noqa: ASYNC110 - once in the agent's life, for the listener beside it
                await asyncio.sleep(0.05)
    if not port():
        log.warning("peers.not_announced error=%s", "it does not listen")
        return
    await dns.async_register_service(
        info(
            SERVICE,
            f"{uid}.{SERVICE}",
            port=port(),
            properties={"site": wanted.site},
            server=f"skerry-{uid}.local.",
            addresses=[socket.inet_pton(_family(one), one) for one in addresses(wanted.listen)],
        )
    )


def addresses(listen: str) -> list[str]:
    """Return the addresses that this device announces: the one it listens on, or all of its own where that is any."""
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_unspecified:
            return [host]
    import psutil  # noqa: PLC0415 - for this moment

    found = [one.address for listed in psutil.net_if_addrs().values() for one in listed if one.family == socket.AF_INET]
    return [one for one in found if not ipaddress.ip_address(one).is_loopback]


def take(
    found: dict[str, Address],
    name: str,
    told: Sequence[str],
    port: int,
    properties: dict[str, str | None],
    *,
    uid: str,
    site: str,
) -> None:
    """Note a neighbour that was announced, if it is of this site, of this network and not this device itself."""
    other = _uid_of(name)
    near = [one for one in told if _is_near(one)]
    if not other or other == uid or (properties.get("site") or "") != site or not 0 < port < 65536 or not near:
        return
    if other in found or len(found) < MAX_FOUND:
        found[other] = (near[0], port)


def _is_near(address: str) -> bool:
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (one.is_private or one.is_link_local) and not one.is_unspecified and not one.is_multicast


def _uid_of(name: str) -> str:
    uid = name.removesuffix(f".{SERVICE}")
    return uid if uid != name and _UID.fullmatch(uid) else ""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
