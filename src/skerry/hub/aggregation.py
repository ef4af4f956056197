"""A hub behind a front proxy, as a Kubernetes cluster's aggregated API server: how its parts are put together.

Lives here: which settings ask for it, the proxies that are trusted, in TLS and behind it, and what such a hub brings
to authentication and authorization. Must not live here: what any of the parts does (`hub.authentication.front_proxy`,
`hub.authentication.delegated`, `hub.delegation`, `hub.cluster`).
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from starlette.types import Scope

from skerry.api.errors import InvalidError
from skerry.core.access import Identity
from skerry.core.ports import Clock
from skerry.hub import cluster as clusters
from skerry.hub import delegation, pod
from skerry.hub.authentication import front_proxy
from skerry.hub.authentication.chain import Authentication
from skerry.hub.authentication.delegated import TokenReviews
from skerry.hub.authentication.front_proxy import FrontProxies, RequestHeaders
from skerry.hub.authorization import Authorizer
from skerry.hub.identity import PEER, PeerCertificate
from skerry.hub.pki import Authority
from skerry.hub.settings import HubSettings

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]
MAX_HEADERS = 1000
"""Of one request: a proxy sends a line for each group of a user, and some have hundreds."""
MAX_HEAD_BYTES = 256 * 1024


class TrustedProxies:
    """Who may speak for others. A `RequestAuthenticator`, and what teaches TLS to let the proxies in.

    TLS accepts certificates of every CA that it was taught; what one of them is good for is decided with each request.
    So a CA that is replaced loses its meaning at once, on open connections too.
    """

    def __init__(self, ca: x509.Certificate, clock: Clock) -> None:
        self._ca, self._clock = ca, clock
        self._proxies: FrontProxies | None = None
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()

    def accept(self, settings: RequestHeaders) -> None:
        """Trust these from now on. Raises InvalidError for a CA from which the hub's own could not be told."""
        if front_proxy.shares_key(settings.authorities, self._ca):
            raise InvalidError(
                "is the hub's own CA, so that every device could speak for everybody",
                element="front proxy's CA",
                hint="give the front proxy a CA of its own",
            )
        if self._proxies is None:
            self._proxies = FrontProxies(settings=settings)
        else:
            self._proxies.replace(settings)
        for context in self._contexts:
            self._teach(context)

    def prepare(self, context: ssl.SSLContext) -> None:
        """Have a listener's context let the proxies in, now and after the next change."""
        # Clusters live for long: their CAs may lack what today's strict reading of RFC 5280 asks for, and may be
        # intermediate ones. The hub's own certificates are held against its CA with each request all the same.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._contexts.add(context)
        self._teach(context)

    async def identify(self, scope: Scope) -> Identity | None:
        """Return for whom a proxy speaks. Raises UnauthorizedError."""
        peer: PeerCertificate | None = scope.get(PEER)
        if peer is None or self._proxies is None or peer.is_issued_by(self._ca):
            return None
        return self._proxies.authenticate(peer.der, scope["headers"], self._clock.now())

    def _teach(self, context: ssl.SSLContext) -> None:
        if self._proxies is not None:
            context.load_verify_locations(cadata=self._proxies.settings.authorities_pem)


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """What a hub behind a front proxy brings; of a hub that is behind none, nothing."""

    authentication: Authentication = field(default_factory=Authentication)
    authorizer: Authorizer | None = None
    """Instead of the hub's own rules."""
    proxies: TrustedProxies | None = None
    delegated: bool = False
    """Whether the cluster says who its users are and what they may."""
    work: tuple[Work, ...] = ()
    """What has to run, for ever."""
    pod: Callable[[Callable[[], bool]], Work] | None = None
    """Makes what labels this hub's pod, of a function that says whether it leads."""

    def prepare(self, context: ssl.SSLContext) -> None:
        """Have a listener's context let the proxies in, where there are any."""
        if self.proxies is not None:
            self.proxies.prepare(context)


@contextlib.asynccontextmanager
async def open_aggregation(settings: HubSettings, authority: Authority, clock: Clock) -> AsyncIterator[Aggregation]:
    """Read how the front proxy is known and open the way to the cluster, as far as the settings ask for it.

    Raises InvalidError, ForbiddenError, UnavailableError when that cannot be had.
    """
    _check(settings)
    named = settings.requestheader_client_ca_file
    if named is None and not settings.delegated:
        yield Aggregation()
        return
    proxies = TrustedProxies(x509.load_pem_x509_certificate(authority.ca_pem), clock)
    if named is not None:
        proxies.accept(
            delegation.of_files(
                named,
                allowed_names=settings.requestheader_allowed_names,
                username_headers=settings.requestheader_username_headers,
                uid_headers=settings.requestheader_uid_headers,
                group_headers=settings.requestheader_group_headers,
                extra_headers_prefixes=settings.requestheader_extra_headers_prefix,
            )
        )
    if not settings.delegated:
        yield Aggregation(authentication=Authentication(requests=(proxies,)), proxies=proxies)
        return
    async with clusters.Cluster(clusters.in_cluster(settings.cluster_credentials)) as cluster:
        work: list[Work] = []
        if named is None:
            config = delegation.ProxyConfig(cluster=cluster, accept=proxies.accept)
            await config.read_first()
            work.append(config.run)
        yield Aggregation(
            authentication=Authentication(requests=(proxies,), tokens=(TokenReviews(cluster),)),
            authorizer=delegation.ClusterAuthorizer(cluster),
            proxies=proxies,
            delegated=True,
            work=tuple(work),
            pod=_labelling(settings, cluster),
        )


def _labelling(settings: HubSettings, cluster: clusters.Cluster) -> Callable[[Callable[[], bool]], Work] | None:
    if not settings.leader_pod:
        return None
    namespace = pod.read_namespace(settings.cluster_credentials)
    return lambda leads: pod.PodRole(cluster, namespace=namespace, name=settings.leader_pod, leads=leads).run


def _check(settings: HubSettings) -> None:
    if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
        raise InvalidError("--tls-cert-file and --tls-key-file go together", element="--tls-cert-file")
    if settings.leader_pod and not settings.delegated:
        raise InvalidError("is for a hub in a cluster", element="--leader-pod", hint="add --delegated")
    if settings.delegated and settings.oidc_issuer_url:
        raise InvalidError(
            "with --delegated the cluster says who its users are",
            element="--oidc-issuer-url",
            hint="set the issuer up in the cluster's API server",
        )
    others = (
        settings.requestheader_allowed_names,
        settings.requestheader_username_headers,
        settings.requestheader_uid_headers,
        settings.requestheader_group_headers,
        settings.requestheader_extra_headers_prefix,
    )
    if settings.requestheader_client_ca_file is None and any(others):
        raise InvalidError(
            "is needed by the other --requestheader options",
            element="--requestheader-client-ca-file",
            hint="name the CA of the front proxy's client certificate",
        )
