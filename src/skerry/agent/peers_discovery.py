"""Neighbours by multicast DNS (RFC 6762, 6763): `_skerry-peer._tcp.local.`, one service a device, named by its uid,
or, where somebody else bears that name, by uid, `-` and eight characters that nobody could know before.

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
import secrets
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
LOOK_SECONDS = 30.0
"""How often it is looked whether what was announced still holds; until it is announced, every UNANNOUNCED_SECONDS."""
UNANNOUNCED_SECONDS = 0.2
REGISTER_SECONDS = 10.0
_NAME = re.compile(r"([a-z0-9]{1,40})(-[0-9a-f]{8})?")


@contextlib.asynccontextmanager
async def discovered(
    uid: str, wanted: PeerSettings, port: Callable[[], int], *, interfaces: Sequence[str] | None = None
) -> AsyncIterator[Found]:
    """Find neighbours, and announce this device where it listens, while the context lasts.

    What is announced follows the listener and the device's addresses; where that fails, it is tried again, and others
    are found all the same.

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
            found.pop(_label_of(name), None)
        elif len(resolving) < MAX_FOUND:
            task = asyncio.ensure_future(resolve(name))
            resolving.add(task)
            task.add_done_callback(resolving.discard)

    browser = AsyncServiceBrowser(dns.zeroconf, SERVICE, handlers=[changed])
    if wanted.listen:
        announcing = asyncio.ensure_future(_announced(dns, AsyncServiceInfo, uid, wanted, port))
        resolving.add(announcing)
    try:
        yield found
    finally:
        for task in resolving:
            task.cancel()
        if resolving:
            await asyncio.wait(resolving)
        await browser.async_cancel()
        await dns.async_unregister_all_services()
        await dns.async_close()


async def _announced(
    dns: Any, info: Callable[..., Any], uid: str, wanted: PeerSettings, port: Callable[[], int]
) -> None:
    """Have this device announced where it is, until cancelled."""
    label, told, failed = uid, None, 0
    while True:
        there = (port(), addresses(wanted.listen))
        if all(there) and there != told:
            service = info(
                SERVICE,
                f"{label}.{SERVICE}",
                port=there[0],
                properties={"site": wanted.site},
                server=f"skerry-{label}.local.",
                addresses=[socket.inet_pton(_family(one), one) for one in there[1]],
            )
            try:
                async with asyncio.timeout(REGISTER_SECONDS):
                    await (dns.async_register_service(service) if told is None else dns.async_update_service(service))
                told = there
            except Exception as error:  # noqa: BLE001 - zeroconf's own are of no common kind
                failed += 1
                log.warning("peers.not_announced name=%s error=%s", label, str(error) or type(error).__name__)
                if told is None:  # somebody bears the name: whoever it is, he cannot know the next one
                    label = f"{uid}-{secrets.token_hex(4)}"
        await asyncio.sleep(LOOK_SECONDS if told or failed > 1 else UNANNOUNCED_SECONDS)


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
    label = _label_of(name)
    near = [one for one in told if _is_near(one)]
    own = label.partition("-")[0] == uid
    if not label or own or (properties.get("site") or "") != site or not 0 < port < 65536 or not near:
        return
    if label in found or len(found) < MAX_FOUND:
        found[label] = (near[0], port)


def _is_near(address: str) -> bool:
    try:
        one = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (one.is_private or one.is_link_local) and not one.is_unspecified and not one.is_multicast


def _label_of(name: str) -> str:
    label = name.removesuffix(f".{SERVICE}")
    return label if label != name and _NAME.fullmatch(label) else ""


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
