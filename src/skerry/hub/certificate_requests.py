"""Users' certificates: what may be asked for, what a decision may change, and what is signed.

The hub signs for one signer, `kubernetes.io/kube-apiserver-client`, in the very write that approves: there is no time
between the two in which power could be cut. Must not live here: who may approve (`hub.server.certificates`), X.509
(`hub.pki`). Source: Kubernetes documentation, "Certificates and Certificate Signing Requests".
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from skerry.api.errors import ConflictError, InvalidError, NotFoundError
from skerry.api.kinds.certificate_signing_request import (
    CertificateSigningRequest,
    CertificateSigningRequestCondition,
    CertificateSigningRequestStatus,
)
from skerry.core.access import Identity
from skerry.hub import pki
from skerry.hub.context import HubContext
from skerry.hub.objects import UNREADABLE, decode, prefix_of

log = logging.getLogger(__name__)

SIGNER = "kubernetes.io/kube-apiserver-client"
DEFAULT_LIFE = timedelta(hours=24)
MAX_LIFE = timedelta(days=30)
"""A certificate cannot be taken back, so it is short; what is asked for beyond it is made shorter."""
DECIDED_FOR = timedelta(hours=1)
PENDING_FOR = timedelta(hours=24)
"""How long requests are kept; the certificate in one is nobody's secret, but nobody's to collect either."""

_CLIENT = "client auth"
_USAGES = frozenset({"digital signature", "key encipherment", _CLIENT})
_DECISIONS = ("Approved", "Denied")


def requested(item: CertificateSigningRequest, identity: Identity) -> CertificateSigningRequest:
    """Return a new request as it is stored: checked, and with the name of who really asks.

    Raises InvalidError; ForbiddenError for a subject that only the hub gives.
    """
    spec = item.spec
    if spec.signer_name != SIGNER:
        raise InvalidError(
            f'nobody here signs for "{spec.signer_name[:80]}"', element="spec.signerName", hint=f"write {SIGNER}"
        )
    unknown = [usage for usage in spec.usages if usage not in _USAGES]
    if _CLIENT not in spec.usages or unknown:
        raise InvalidError(
            f"{', '.join(unknown)[:80] or 'nothing'} is not what this signer signs for"
            if unknown
            else f'must have "{_CLIENT}"',
            element="spec.usages",
            hint=f"any of: {', '.join(sorted(_USAGES))}",
        )
    pki.read_user(_pem(item))
    spec = msgspec.structs.replace(
        spec,
        username=identity.username,
        uid=identity.uid,
        groups=list(identity.groups),
        extra={key: list(values) for key, values in identity.extra.items()},
    )
    return msgspec.structs.replace(item, spec=spec, status=CertificateSigningRequestStatus())


def decided(
    authority: pki.Authority | None,
    current: CertificateSigningRequest,
    wanted: Sequence[CertificateSigningRequestCondition],
    *,
    now: datetime,
) -> CertificateSigningRequest:
    """Return the request with these conditions; signed, if they approve it, it is not signed yet, and there is a CA.

    Without one nothing is signed, which is for dry runs.

    Raises InvalidError for conditions that no decision can make: both at once, twice, or one taken back.
    """
    _check_conditions(current.status.conditions, wanted)
    moment = now.replace(microsecond=0)
    conditions = [_dated(condition, current.status.conditions, moment) for condition in wanted]
    status = msgspec.structs.replace(current.status, conditions=conditions)
    if authority and _has(wanted, "Approved") and not _has(wanted, "Failed") and not status.certificate:
        status = _signed(authority, current, status)
    return msgspec.structs.replace(current, status=status)


def is_over(item: CertificateSigningRequest, now: datetime) -> bool:
    """Return whether a request has been kept long enough."""
    created = item.metadata.creation_timestamp or now
    dates = [one.last_transition_time for one in item.status.conditions if one.last_transition_time is not None]
    return now - max(dates, default=created) > (DECIDED_FOR if dates else PENDING_FOR)


async def forget_old(context: HubContext) -> None:
    """Delete requests that were decided an hour ago, or not within a day; one that cannot be read stays."""
    now = context.clock.now()
    for record in (await context.objects.store.list(prefix_of(CertificateSigningRequest))).records:
        try:
            item = decode(CertificateSigningRequest, record)
        except UNREADABLE as error:
            log.error("certificate_request.unreadable key=%s cause=%s", record.key, error)
            continue
        if is_over(item, now):
            meta = item.metadata
            with suppress(NotFoundError, ConflictError):
                await context.objects.delete(
                    CertificateSigningRequest, meta.namespace, meta.name, resource_version=meta.resource_version
                )


def _signed(
    authority: pki.Authority, item: CertificateSigningRequest, status: CertificateSigningRequestStatus
) -> CertificateSigningRequestStatus:
    asked = item.spec.expiration_seconds
    life = DEFAULT_LIFE if asked is None else min(timedelta(seconds=asked), MAX_LIFE)
    certificate = authority.issue_user(_pem(item), life)
    log.info("certificate_request.signed request=%s seconds=%d", item.metadata.name, life.total_seconds())
    return msgspec.structs.replace(status, certificate=base64.b64encode(certificate).decode())


def _pem(item: CertificateSigningRequest) -> bytes:
    try:
        return base64.b64decode(item.spec.request, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("is not base64", element="spec.request") from None


def _check_conditions(
    before: Sequence[CertificateSigningRequestCondition], wanted: Sequence[CertificateSigningRequestCondition]
) -> None:
    element, kinds = "status.conditions", [condition.type for condition in wanted]
    if len(set(kinds)) != len(kinds):
        raise InvalidError("has a type twice", element=element)
    if any(kind not in (*_DECISIONS, "Failed") for kind in kinds) or any(c.status != "True" for c in wanted):
        raise InvalidError("may be Approved, Denied or Failed, each True", element=element)
    if all(kind in kinds for kind in _DECISIONS):
        raise InvalidError("Approved and Denied exclude each other", element=element)
    if any(condition.type not in kinds for condition in before):
        raise InvalidError("a decision cannot be taken back", element=element, hint="make a new request")


def _dated(
    condition: CertificateSigningRequestCondition,
    before: Sequence[CertificateSigningRequestCondition],
    now: datetime,
) -> CertificateSigningRequestCondition:
    """Return the condition with the hub's own times; one that was there keeps when it came."""
    old = next((one for one in before if one.type == condition.type), None)
    came = old.last_transition_time if old is not None and old.last_transition_time is not None else now
    updated = condition.last_update_time or now
    return msgspec.structs.replace(condition, last_update_time=updated, last_transition_time=came)


def _has(conditions: Sequence[CertificateSigningRequestCondition], kind: str) -> bool:
    return any(condition.type == kind for condition in conditions)
