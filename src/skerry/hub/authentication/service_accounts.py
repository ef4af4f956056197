"""Service accounts' tokens: making them, and telling whose they are.

A token is signed, not stored. It is bound to its account's uid, and the account is looked for at every use, so that a
deleted account's tokens are worth nothing from that moment on, also when another one of its name is made. Must not live
here: HTTP, claims (`core.claims`), keys (`hub.token_keys`). Source: Kubernetes, "Managing Service Accounts".
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from skerry.api.errors import ConflictError, UnauthorizedError
from skerry.api.kinds.service_account import ServiceAccount
from skerry.core import claims
from skerry.core.ports import Clock
from skerry.hub.authentication import jws
from skerry.hub.authentication.chain import Authenticated
from skerry.hub.objects import UNREADABLE, Objects
from skerry.hub.token_keys import TokenKeys

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A token, and until when it is good."""

    token: str
    expires: datetime
    life: timedelta
    token_id: str
    audiences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServiceAccountTokens:
    """The tokens of one hub; `issuer` is its URL, and the audience of its API."""

    objects: Objects
    keys: TokenKeys
    clock: Clock
    issuer: str

    async def issue(
        self, namespace: str, name: str, *, audiences: Sequence[str] = (), seconds: int | None = None, uid: str = ""
    ) -> Issued:
        """Return a new token of an account that there is; with `uid`, of that very one.

        Raises NotFoundError, InvalidError for a life or audiences out of bounds, ConflictError for another uid and for
        an account that is being deleted.
        """
        life = claims.choose_life(seconds)
        meant = claims.check_audiences(audiences, default=self.issuer)
        account = await self.objects.get(ServiceAccount, namespace, name)
        if uid and uid != account.metadata.uid:
            raise ConflictError(
                f"its uid is {account.metadata.uid}, not {uid[:80]}", element=f'serviceaccounts "{name}"'
            )
        if account.metadata.deletion_timestamp is not None:
            raise ConflictError("is being deleted", element=f'serviceaccounts "{name}"', hint="wait until it is gone")
        now, token_id, key = self.clock.now().replace(microsecond=0), str(uuid.uuid4()), self.keys.signing()
        payload = claims.service_account_claims(
            issuer=self.issuer,
            namespace=namespace,
            name=name,
            uid=account.metadata.uid,
            audiences=meant,
            now=now,
            life=life,
            token_id=token_id,
        )
        log.info(
            "service_account.token_issued account=%s/%s id=%s seconds=%d",
            namespace,
            name,
            token_id,
            life.total_seconds(),
        )
        token = jws.sign(payload, key.private, key_id=key.key_id)
        return Issued(token=token, expires=now + life, life=life, token_id=token_id, audiences=meant)

    async def authenticate(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        """Return whose token it is; None when this hub is not its issuer. Raises UnauthorizedError."""
        seen = jws.look(token)
        if seen is None or seen.issuer != self.issuer:
            return None
        key = self.keys.find(seen.key_id) if seen.algorithm == "ES256" else None
        if key is None:
            raise UnauthorizedError("its key is not known", element="bearer token", hint="make a new one")
        payload = jws.verify(token, jws.VerificationKey(key=key.private.public_key(), algorithm="ES256"))
        read = claims.read_service_account(payload, issuer=self.issuer, audiences=audiences, now=self.clock.now())
        try:
            account = await self.objects.find(ServiceAccount, read.namespace, read.name)
        except UNREADABLE as error:
            log.error("service_account.unreadable account=%s/%s cause=%s", read.namespace, read.name, error)
            account = None
        if (
            account is None or account.metadata.uid != read.uid or account.metadata.deletion_timestamp is not None
        ):  # at once: whoever deletes an account does not mean what its finalizers wait for
            raise UnauthorizedError("its service account was deleted", element="bearer token", hint="make a new one")
        return Authenticated(identity=read.identity, audiences=read.audiences)
