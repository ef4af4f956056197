"""POST: new objects, and what is special about creating some kinds."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api.errors import AlreadyExistsError, BadRequestError, ForbiddenError, UnsupportedError
from skerry.api.kinds import Resource
from skerry.api.kinds.certificate_signing_request import CertificateSigningRequest
from skerry.api.kinds.enrollment import Enrollment, JoinToken
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.meta import ObjectMeta
from skerry.hub import certificate_requests, enrollment, registry_tokens
from skerry.hub.server import access, answer, escalation, owners, reviews
from skerry.hub.server.call import Call


async def create(call: Call) -> Response:
    """Store a new object. Raises InvalidError, AlreadyExistsError; ForbiddenError for kinds that only the hub makes."""
    raw = await call.read_object()
    item = call.typed({key: value for key, value in raw.items() if key != "status"})
    if call.info.made_by_hub:
        raise ForbiddenError(
            f"{call.info.plural} are made by the hub", element=call.info.plural, hint=call.info.made_by_hub
        )
    if not call.info.stored:
        return answer.respond(call, await _answered(call, item), code=201, sent=raw)
    return answer.respond(call, await store(call, owners.of_new(call, item, raw)), code=201, sent=raw)


async def store(call: Call, item: Resource) -> Resource:
    """Make the object as its kind is made; with a dry run say only what it would be. Raises AlreadyExistsError."""
    context = call.context
    if isinstance(item, CertificateSigningRequest):
        item = certificate_requests.requested(item, call.identity)
    await escalation.check(call, item)
    if call.dry_run:
        return await _dry(call, item)
    match item:
        case JoinToken():
            return await enrollment.create_token(context, item)
        case RegistryToken():
            return await registry_tokens.create_token(context, item)
        case Enrollment():
            token = access.join_token(call.request.headers.get("authorization", ""))
            return await enrollment.enroll(context, item, join_token=token, identity=call.identity)
        case _:
            return await context.objects.create(item)


async def _answered(call: Call, item: Resource) -> Resource:
    """Return a question with its answer: kinds that can only be created are asked, and never kept."""
    answered = await reviews.review(call, item)
    if answered is None:
        raise UnsupportedError("is not answered here", element=call.info.plural)
    return answered


async def _dry(call: Call, item: Resource) -> Resource:
    if isinstance(item, Enrollment):
        # Anybody may ask for one, and only the token tells whether to answer; a dry run must not use it.
        raise BadRequestError("cannot be tried without doing it", element="dryRun", hint="leave dryRun out")
    name = item.metadata.name
    if name and await call.context.objects.find(call.info.type, call.namespace, name) is not None:
        raise AlreadyExistsError(element=f'{call.info.plural} "{name}"')
    now = call.context.clock.now().replace(microsecond=0)
    generation = int(call.info.has_spec)
    meta: ObjectMeta = msgspec.structs.replace(item.metadata, generation=generation, creation_timestamp=now)
    changes: dict[str, Any] = {"metadata": meta}
    return msgspec.structs.replace(item, **changes)
