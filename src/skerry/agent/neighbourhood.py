"""What makes this device one of its neighbours: its certificates as TLS, who they may be, how they are fetched from.

Lives here: putting that together for `peers`, from what is on the disk. Must not live here: anything done with it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

from skerry.agent import identity, peers_tls
from skerry.agent.disk import Disk
from skerry.agent.identity import Identity
from skerry.agent.peers import Address, Found, Neighbourhood
from skerry.agent.settings import AgentSettings, PeerSettings
from skerry.api import quantity
from skerry.api.errors import InvalidError, SkerryError, UnauthorizedError
from skerry.core.ports import ArtifactSource
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings

log = logging.getLogger(__name__)

IDLE_SECONDS = 15.0
"""A neighbour that says nothing for so long is no help; the hub is given longer."""


def open_neighbourhood(disk: Disk, settings: AgentSettings, known: Identity) -> Neighbourhood | None:
    """Return what the settings want of neighbours; None where they want nothing, or this device cannot be one."""
    wanted = settings.peers
    if not (wanted.listen or wanted.neighbours or wanted.discover):
        return None
    if not known.namespace:
        log.error("peers.no_certificate hint=%s", "run `skerry agent renew`, then start the agent again")
        return None
    try:
        asking = peers_tls.asking(disk, known)
        serving = peers_tls.serving(disk, known) if wanted.listen and peers_tls.has_certificate(disk) else None
    except SkerryError as error:
        log.error("peers.not_used error=%s", error)
        return None
    reserve = quantity.to_bytes(settings.storage.reserve)

    def source(address: Address, uid: str) -> ArtifactSource:
        return OciArtifactSource(
            f"https://{_host(address[0])}:{address[1]}",
            asking,
            OciSettings(reserve_bytes=reserve, idle_seconds=IDLE_SECONDS, may_lie=True),
            accept=partial(_accept, known, uid),
        )

    return Neighbourhood(
        uid=known.uid,
        asking=asking,
        serving=serving,
        server_uid=lambda tls: peers_tls.server_uid(tls.getpeercert(), known),
        client_uid=lambda tls: peers_tls.client_uid(tls.getpeercert(), known),
        source=source,
        discovery=partial(_discovery, known.uid) if _can_discover() else None,
    )


def renewed(disk: Disk, hood: Neighbourhood) -> None:
    """Show the present certificates from the next connection on. Raises InvalidError."""
    identity.load_certificate(disk, hood.asking)
    if hood.serving is not None:
        try:
            hood.serving.load_cert_chain(disk.root / peers_tls.PEER_PEM_FILE)
        except OSError as error:  # SSLError is one
            raise InvalidError(f"cannot be used: {error}", element=str(disk.root / peers_tls.PEER_PEM_FILE)) from None


def _accept(known: Identity, expected: str, line: socket.socket) -> None:
    certificate = line.getpeercert() if isinstance(line, ssl.SSLSocket) else None
    if peers_tls.server_uid(certificate, known) != expected:
        raise UnauthorizedError("is another device than was asked", element=f"neighbour {expected}")


def _can_discover() -> bool:
    from importlib.util import find_spec  # noqa: PLC0415 - for this moment

    return find_spec("zeroconf") is not None


def _discovery(
    uid: str, wanted: PeerSettings, port: Callable[[], int]
) -> contextlib.AbstractAsyncContextManager[Found]:
    from skerry.agent import peers_discovery  # noqa: PLC0415 - only where it is wanted

    return peers_discovery.discovered(uid, wanted, port)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
