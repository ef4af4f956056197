"""Who somebody is, as asked over the API: TokenRequest, TokenReview, SelfSubjectReview, and keys to check tokens by.

Must not live here: how tokens are made and read (`hub.authentication`), who may ask (`access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.api import codec, validation
from skerry.api.errors import BadRequestError, InvalidError, UnauthorizedError
from skerry.api.kinds.authentication import (
    API_VERSION,
    SelfSubjectReview,
    SelfSubjectReviewStatus,
    TokenRequest,
    TokenRequestStatus,
    TokenReview,
    TokenReviewStatus,
    UserInfo,
)
from skerry.core.access import Identity
from skerry.hub.authentication.chain import Authentication
from skerry.hub.authentication.service_accounts import ServiceAccountTokens
from skerry.hub.context import HubContext
from skerry.hub.server import escalation, status
from skerry.hub.server.call import Call

CONFIGURATION_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/openid/v1/jwks"
_CORE = ""
"""The API group of service accounts."""
_CACHED = {"Cache-Control": "public, max-age=3600"}


def authentication_of(context: HubContext) -> Authentication:
    """Return every way to log in at this hub other than a certificate of its CA, in their order."""
    given = context.authentication
    own = (_tokens(context),) if _has_accounts(context) else ()
    return Authentication(requests=given.requests, tokens=(*own, *given.tokens))


def routes(context: HubContext) -> list[BaseRoute]:
    """Return the routes by which others learn to check service accounts' tokens; none where there are no accounts.

    Source: OpenID Connect Discovery.
    """
    if not _has_accounts(context):
        return []

    async def configuration(_: Request) -> Response:
        return _json(
            {
                "issuer": context.hub_url,
                "jwks_uri": f"{context.hub_url}{KEYS_PATH}",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            },
            "application/json",
        )

    async def keys(_: Request) -> Response:
        return _json({"keys": list(context.authority.token_keys.public())}, "application/jwk-set+json")

    return [Route(CONFIGURATION_PATH, configuration), Route(KEYS_PATH, keys)]


async def review(call: Call, item: TokenReview | SelfSubjectReview) -> TokenReview | SelfSubjectReview:
    """Return the question with its answer. Raises InvalidError, UnavailableError."""
    if isinstance(item, TokenReview):
        return await _reviewed(call.context, item)
    return msgspec.structs.replace(item, status=SelfSubjectReviewStatus(user_info=user_info(call.identity)))


async def create_token(call: Call) -> Response:
    """POST serviceaccounts/x/token: a new token. Raises NotFoundError, InvalidError, ConflictError, DeniedError.

    A dry run checks everything, and answers without a token.
    """
    asked = _read_request(await call.read_object())
    if asked.spec.bound_object_ref is not None:
        raise InvalidError(
            "tokens cannot be bound to objects here",
            element="spec.boundObjectRef",
            hint="a token is bound to its service account; leave it out",
        )
    await escalation.check_token(call)
    issued = await _tokens(call.context).issue(
        call.namespace,
        call.name,
        audiences=asked.spec.audiences,
        seconds=asked.spec.expiration_seconds,
        uid=asked.metadata.uid,
    )
    meta = msgspec.structs.replace(asked.metadata, name=call.name, namespace=call.namespace)
    spec = msgspec.structs.replace(
        asked.spec, audiences=list(issued.audiences), expiration_seconds=int(issued.life.total_seconds())
    )
    token = "" if call.dry_run else issued.token
    done = TokenRequestStatus(token=token, expiration_timestamp=issued.expires)
    answered = msgspec.structs.replace(asked, metadata=meta, spec=spec, status=done)
    response = status.respond(msgspec.to_builtins(answered), code=201)
    response.headers["Cache-Control"] = "no-store"
    return response


def user_info(identity: Identity) -> UserInfo:
    """Return an identity as Kubernetes' reviews show it."""
    return UserInfo(
        username=identity.username,
        uid=identity.uid,
        groups=list(identity.groups),
        extra={key: list(values) for key, values in identity.extra.items()},
    )


async def _reviewed(context: HubContext, review: TokenReview) -> TokenReview:
    """Answer whose token it is; one that is not good is an answer too. Raises UnavailableError, InvalidError."""
    if not review.spec.token:
        raise InvalidError("is required", element="spec.token")
    audiences = tuple(review.spec.audiences) or (context.hub_url,)
    try:
        found = await authentication_of(context).review(review.spec.token, audiences)
    except UnauthorizedError as error:
        done = TokenReviewStatus(error=error.cause)
    else:
        done = TokenReviewStatus(authenticated=True, user=user_info(found.identity), audiences=list(found.audiences))
    # The token goes back to whoever sent it, but nowhere else: not even an echo of it is needed.
    return msgspec.structs.replace(review, spec=msgspec.structs.replace(review.spec, token=""), status=done)


def _read_request(raw: Mapping[str, Any]) -> TokenRequest:
    for field, value in (("apiVersion", API_VERSION), ("kind", "TokenRequest")):
        if raw.get(field) != value:
            raise BadRequestError(f'"{str(raw.get(field, ""))[:80]}" is not {value}', element=field)
    cleaned, found = validation.walk(TokenRequest, {key: value for key, value in raw.items() if key != "status"})
    problems = [*found.problems, *(codec.unknown_field_problem(path, near) for path, near in found.unknown)]
    if problems:
        raise InvalidError.of(problems)
    try:
        return msgspec.convert(cleaned, TokenRequest)
    except msgspec.ValidationError as error:
        raise InvalidError(str(error)[:300], element="the body") from None


def _has_accounts(context: HubContext) -> bool:
    """Return whether service accounts are this hub's: one that is left over must not pass for another's."""
    return context.groups is None or _CORE in context.groups


def _tokens(context: HubContext) -> ServiceAccountTokens:
    return ServiceAccountTokens(
        objects=context.objects, keys=context.authority.token_keys, clock=context.clock, issuer=context.hub_url
    )


def _json(value: object, media_type: str) -> Response:
    return Response(msgspec.json.encode(value), media_type=media_type, headers=_CACHED)
