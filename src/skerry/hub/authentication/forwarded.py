"""Another hub's word for who asks, at the hub that leads: by its certificate, and by a seal on that one request.

Both must hold. The certificate is the one TLS verified, of the hub's own CA and in a hub's form, which nobody else is
given; the seal is by a key that only the hubs on one store have. Whoever sends the header without a hub's certificate
is who else he proves to be, or nobody. Must not live here: what is passed on, and how (`hub.forwarding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from starlette.types import Scope

from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.core import forwarding
from skerry.core.access import Identity
from skerry.core.ports import Clock
from skerry.hub.identity import PEER, PeerCertificate

ACTS_AS = "skerry.acts_as"
"""Scope key of a request that another hub passed on: whom its caller was let act as, or None."""
VIA = "skerry.via"
"""Scope key of such a request: the address of the hub that passed it on."""


@dataclass(frozen=True, kw_only=True)
class ForwardedRequests:
    """Knows the requests that other hubs pass on to this one; one of several `RequestAuthenticator`s."""

    ca: x509.Certificate
    key: bytes
    holder: str
    """By which this hub knows itself."""
    clock: Clock
    leads: Callable[[], bool]
    known: Callable[[str, str], bool]
    """Whether a device of that uid and namespace exists."""

    async def identify(self, scope: Scope) -> Identity | None:
        """Return who asked the other hub. Raises UnauthorizedError; UnavailableError when this hub does not lead."""
        peer: PeerCertificate | None = scope.get(PEER)
        said = [value for name, value in scope["headers"] if name == forwarding.HEADER.encode()]
        if peer is None or not said or not peer.is_hub(self.clock.now(), self.ca):
            return None
        if len(said) > 1:
            raise UnauthorizedError("is there more than once", element=forwarding.HEADER)
        word = forwarding.unseal(
            said[0].decode("latin-1"),
            self.key,
            to=self.holder,
            method=scope["method"],
            target=target_of(scope),
            now=self.clock.now(),
        )
        if not self.leads():
            raise UnavailableError("does not lead any more", element="this hub", hint="try again")
        caller = forwarding.identity_of(word.caller)
        if caller.role == "device" and not self.known(caller.name, caller.namespace):
            raise UnauthorizedError("does not exist any more", element="device")
        client = scope.get("client")
        scope[VIA] = client[0] if client else ""
        scope["client"] = (word.source, 0) if word.source else None
        scope[ACTS_AS] = None if word.acts_as is None else forwarding.identity_of(word.acts_as)
        return caller


def target_of(scope: Scope) -> str:
    """Return a request's path and query as they were sent."""
    query = scope.get("query_string", b"")
    raw: bytes = scope["raw_path"] + (b"?" + query if query else b"")
    return raw.decode("latin-1")
