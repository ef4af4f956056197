"""The token endpoint: a registry token (as a password) against a short-lived, scoped Bearer token.

GET with Basic credentials, as containers' tools do it, or POST with a form, as OAuth 2's password grant. The user name
says nothing: the token names itself. Must not live here: how registry tokens are kept (`hub.registry_tokens`).
Source: token authentication of the distribution project; RFC 6749, section 4.3; RFC 7617.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from skerry.api.errors import BadRequestError, InvalidError, SkerryError, TooLargeError, UnauthorizedError
from skerry.core import registry_access as scopes
from skerry.hub import registry_tokens
from skerry.hub.context import HubContext
from skerry.hub.server.registry import answers, callers

log = logging.getLogger(__name__)

MAX_FORM_BYTES = 32 * 1024
MAX_HEADER_LENGTH = 8 * 1024


async def issue(context: HubContext, settings: answers.RegistrySettings, request: Request) -> Response:
    """Answer one client that logs in; errors too."""
    try:
        if request.method == "POST":
            password, wanted = await _read_form(request)
        elif request.method == "GET":
            password, wanted = _read_basic(request), scopes.parse_scopes(request.query_params.getlist("scope"))
        else:
            refusal = answers.problem(405, "UNSUPPORTED", f"{request.method} is not for this URL")
            refusal.headers["Allow"] = "GET, POST"
            return refusal
        return await _issued(context, settings, password, wanted)
    except SkerryError as error:
        # Whoever is asked for Basic credentials by the token endpoint itself knows that there is nobody else to ask.
        basic = {"WWW-Authenticate": f'Basic realm="{callers.SERVICE}"'}
        return answers.refusal(
            error, answers.Codes(invalid="UNSUPPORTED"), basic if isinstance(error, UnauthorizedError) else None
        )


async def _issued(
    context: HubContext, settings: answers.RegistrySettings, password: str, wanted: scopes.Grants
) -> Response:
    token = await registry_tokens.find(context, password)
    now = context.clock.now()
    granted = scopes.grant(
        wanted,
        namespace=token.metadata.namespace,
        repositories=token.spec.repositories,
        actions=token.spec.actions,
    )
    claims = scopes.Claims(
        subject=registry_tokens.token_id(token),
        expires=now.timestamp() + settings.bearer_seconds,
        grants={name: sorted(actions) for name, actions in granted.items()},
    )
    bearer = scopes.seal(claims, context.authority.derive_key(callers.BEARER_KEY))
    log.info("registry.token_issued subject=%s repositories=%d", claims.subject, len(claims.grants))
    response = answers.json(
        {
            "token": bearer,
            "access_token": bearer,
            "expires_in": int(settings.bearer_seconds),
            "issued_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "scope": " ".join(scopes.scope_of(name, actions) for name, actions in granted.items()),
        }
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _read_basic(request: Request) -> str:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > MAX_HEADER_LENGTH:
        raise UnauthorizedError("no user name and password were sent", element="registry", hint=registry_tokens.HINT)
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise UnauthorizedError("credentials cannot be read", element="registry", hint=registry_tokens.HINT) from None
    return text.partition(":")[2]


async def _read_form(request: Request) -> tuple[str, scopes.Grants]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_FORM_BYTES:
            raise TooLargeError(f"has more than {MAX_FORM_BYTES} bytes", element="form")
    try:
        form = parse_qs(raw.decode(), max_num_fields=64)
    except ValueError:
        raise InvalidError("cannot be read", element="form") from None
    if _first(form, "grant_type") != "password":
        raise BadRequestError("only the password grant is known here", element="grant_type")
    return _first(form, "password"), scopes.parse_scopes(form.get("scope", []))


def _first(form: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(form.get(name, [])), "")
