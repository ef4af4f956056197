"""A hub inside a Kubernetes cluster lets the cluster say who may do what, and whose word its API server's proxy is.

Lives here: authorization by SubjectAccessReview, and the ConfigMap that says how the front proxy is known. Must not
live here: the requests themselves (`hub.cluster`), what the proxy's headers mean (`hub.authentication.front_proxy`).
Source: Kubernetes API reference, authorization.k8s.io/v1 SubjectAccessReview; "Set up an Extension API Server".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from skerry.api.errors import ForbiddenError, InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.core.access import Identity
from skerry.hub.authentication import front_proxy
from skerry.hub.authentication.front_proxy import RequestHeaders
from skerry.hub.authorization import Attributes, Decision
from skerry.hub.cluster import Cluster
from skerry.kit.expiring import Expiring

log = logging.getLogger(__name__)

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
CONFIG_MAP = "extension-apiserver-authentication"
MASTERS = "system:masters"
"""May everything, unasked: so it is in every Kubernetes API server, and the proxy polls in this group's name."""

ALLOWED_SECONDS = 10.0
DENIED_SECONDS = 10.0
"""How long a decision counts; a role that was taken away is felt this much later. Kubernetes' servers do the same."""
MAX_KEPT = 8192
MAX_ASKING = 16
"""Reviews at the same time."""
WAIT_SECONDS = 10.0
"""For one's turn and the answer."""
WATCH_SECONDS = 290
FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
START_SECONDS = 30.0
"""For the cluster to answer at the hub's start."""
_MAX_REASON = 1000


class _ReviewStatus(msgspec.Struct, rename="camel"):
    allowed: bool = False
    denied: bool = False
    reason: str = ""
    evaluation_error: str = ""


class _Review(msgspec.Struct):
    status: _ReviewStatus


class _ConfigMapMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _ConfigMap(msgspec.Struct):
    metadata: _ConfigMapMeta = msgspec.field(default_factory=_ConfigMapMeta)
    data: dict[str, str] = {}


class ClusterAuthorizer:
    """Asks the cluster for each request, and keeps the answer for a moment. An `Authorizer`.

    Without an answer there is no decision: UnavailableError, and the request is refused.
    """

    def __init__(self, cluster: Cluster, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._known: Expiring[bytes, Decision] = Expiring(MAX_KEPT, monotonic)
        self._turns = asyncio.Semaphore(MAX_ASKING)

    async def authorize(self, identity: Identity, attributes: Attributes) -> Decision:
        """Return the cluster's decision. Raises UnavailableError."""
        if identity.role == "admin" or (identity.role == "user" and MASTERS in identity.groups):
            return Decision(allowed=True)
        if identity.role != "user":  # devices have their own way, and nobody is not to be asked about
            return Decision(allowed=False, reason="only users of the cluster may")
        body = msgspec.json.encode(review(identity, attributes), order="deterministic")
        key = sha256(body).digest()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if (found := self._known.get(key)) is None:
                    async with self._turns:
                        # Whoever waited may find that somebody has asked the same in the meantime.
                        found = self._known.get(key) or (await self._ask(key, body),)
        except TimeoutError:
            raise UnavailableError("the cluster is asked too much at once", element="authorization") from None
        return found[0]

    async def _ask(self, key: bytes, body: bytes) -> Decision:
        try:
            answer = await self._cluster.post(REVIEWS, msgspec.Raw(body))
            status = msgspec.convert(answer, _Review).status
        except msgspec.ValidationError as error:
            raise UnavailableError(f"the cluster answered no review ({error})", element="authorization") from None
        except (ForbiddenError, NotFoundError, UnavailableError) as error:
            log.error("delegation.review_failed cause=%s", error)
            raise UnavailableError(
                f"the cluster cannot say whether this is allowed: {error.cause}",
                element="authorization",
                hint=error.hint,
            ) from None
        if status.evaluation_error:
            log.warning("delegation.evaluation_error cause=%r", status.evaluation_error[:_MAX_REASON])
        decision = Decision(allowed=status.allowed and not status.denied, reason=status.reason[:_MAX_REASON])
        self._known.put(key, decision, ALLOWED_SECONDS if decision.allowed else DENIED_SECONDS)
        return decision


def review(identity: Identity, attributes: Attributes) -> dict[str, Any]:
    """Return the SubjectAccessReview of a request."""
    if attributes.is_resource:
        names = ("verb", "group", "version", "resource", "subresource", "name", "namespace")
        resource = {name: value for name in names if (value := getattr(attributes, name))}
        asked: dict[str, Any] = {"resourceAttributes": resource}
    else:
        asked = {"nonResourceAttributes": {"path": attributes.path, "verb": attributes.verb}}
    spec: dict[str, Any] = {**asked, "user": identity.username, "groups": list(identity.groups)}
    if identity.uid:
        spec["uid"] = identity.uid
    if identity.extra:
        spec["extra"] = {key: list(values) for key, values in identity.extra.items()}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


@dataclass(kw_only=True)
class ProxyConfig:
    """How the cluster's front proxy is known: read from its ConfigMap, and followed.

    `accept` is handed each new state, before it counts, and may refuse it by raising InvalidError.
    """

    cluster: Cluster
    accept: Callable[[RequestHeaders], None]
    _seen: dict[str, str] | None = None

    async def read_first(self, *, seconds: float = START_SECONDS) -> None:
        """Read it for the start, trying for a while. Raises UnavailableError, ForbiddenError, InvalidError."""
        delay, end = FIRST_RETRY_SECONDS, asyncio.get_running_loop().time() + seconds
        while True:
            try:
                self._take(await self._get())
                return
            except UnavailableError as error:
                if asyncio.get_running_loop().time() + delay >= end:
                    raise
                log.warning("delegation.waiting cause=%s", error)
            except NotFoundError:
                raise InvalidError(
                    "is not there, so the cluster's proxy cannot be told from anybody else",
                    element=f"ConfigMap kube-system/{CONFIG_MAP}",
                    hint="start the cluster's kube-apiserver with --requestheader-client-ca-file",
                ) from None
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_SECONDS)

    async def run(self) -> None:
        """Follow it, for ever. What cannot be read or used is logged, and the state before it goes on to count."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                current = await self._get()
                self._take_or_keep(current)
                delay = FIRST_RETRY_SECONDS
                await self._watch(current.metadata.resource_version)
            except SkerryError as error:
                log.warning("delegation.config_unreachable cause=%s", error)
                delay = min(delay * 2, MAX_RETRY_SECONDS)
            await asyncio.sleep(delay)

    async def _get(self) -> _ConfigMap:
        return _config_map(await self.cluster.get(f"{CONFIG_MAPS}/{CONFIG_MAP}"))

    async def _watch(self, revision: str) -> None:
        params = {"fieldSelector": f"metadata.name={CONFIG_MAP}", "resourceVersion": revision}
        async with self.cluster.watch(CONFIG_MAPS, params, seconds=WATCH_SECONDS) as events:
            async for event in events:
                kind = event.get("type") if isinstance(event, dict) else None
                if kind not in ("ADDED", "MODIFIED"):
                    # It was deleted, and counts until there is another; or the watch came too late: read again.
                    raise UnavailableError("the watch ended", element=f"ConfigMap kube-system/{CONFIG_MAP}")
                self._take_or_keep(_config_map(event.get("object")))

    def _take_or_keep(self, found: _ConfigMap) -> None:
        try:
            self._take(found)
        except InvalidError as error:
            log.error("delegation.config_refused cause=%s", error)

    def _take(self, found: _ConfigMap) -> None:
        if found.data == self._seen:
            return
        self.accept(front_proxy.read_config_map(found.data, element=f"ConfigMap kube-system/{CONFIG_MAP}"))
        if self._seen is not None:
            log.info("delegation.config_changed")
        self._seen = found.data


def of_files(
    ca_file: Path,
    *,
    allowed_names: Sequence[str],
    username_headers: Sequence[str],
    uid_headers: Sequence[str],
    group_headers: Sequence[str],
    extra_headers_prefixes: Sequence[str],
) -> RequestHeaders:
    """Return how a front proxy is known that the command line names. Raises InvalidError."""
    try:
        pem = ca_file.read_bytes()
    except OSError as error:
        raise InvalidError(f"cannot be read ({error.strerror})", element=str(ca_file)) from None
    kept = RequestHeaders(authorities=front_proxy.read_authorities(pem, element=str(ca_file)))
    return RequestHeaders(
        authorities=kept.authorities,
        allowed_names=tuple(allowed_names),
        username_headers=tuple(username_headers) or kept.username_headers,
        uid_headers=tuple(uid_headers) or kept.uid_headers,
        group_headers=tuple(group_headers) or kept.group_headers,
        extra_headers_prefixes=tuple(extra_headers_prefixes) or kept.extra_headers_prefixes,
    )


def _config_map(raw: Any) -> _ConfigMap:
    try:
        return msgspec.convert(raw, _ConfigMap)
    except msgspec.ValidationError as error:
        raise UnavailableError(f"is no ConfigMap ({error})", element=f"ConfigMap kube-system/{CONFIG_MAP}") from None
