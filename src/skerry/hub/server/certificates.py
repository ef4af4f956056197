"""PUT and PATCH of certificatesigningrequests/x/approval: approving and denying, which also signs.

Must not live here: what a decision may change (`hub.certificate_requests`).
"""

from __future__ import annotations

import functools

from starlette.responses import Response

from skerry.api.errors import BadRequestError
from skerry.api.kinds import Resource
from skerry.api.kinds.certificate_signing_request import GROUP, VERSION, CertificateSigningRequest
from skerry.hub import certificate_requests
from skerry.hub.authorization import Attributes
from skerry.hub.server import access, answer, patch, update
from skerry.hub.server.call import Call, precondition


async def approve(call: Call) -> Response:
    """Write the decision, and with an approval the certificate.

    Raises NotFoundError, InvalidError, ConflictError, ForbiddenError for whoever may not approve for this signer.
    """
    raw = await call.read_object()
    wanted = call.typed(raw)
    await _check_may_approve(call)

    def make(current: Resource) -> Resource:
        return _decided(call, current, wanted)

    changed = await update.rewrite(
        call, make, uid=precondition(raw, "uid"), revision=precondition(raw, "resourceVersion"), status=True
    )
    return answer.respond(call, changed, sent=raw)


async def patch_approval(call: Call) -> Response:
    """Write the decision as a patch says it. Raises as `approve`, BadRequestError, UnsupportedError."""
    await _check_may_approve(call)
    return await patch.change_parts(call, functools.partial(_decided, call), status=True)


def _decided(call: Call, current: Resource, wanted: Resource) -> Resource:
    if not isinstance(current, CertificateSigningRequest) or not isinstance(wanted, CertificateSigningRequest):
        raise BadRequestError("is no CertificateSigningRequest", element="the body")
    authority = None if call.dry_run else call.context.authority
    return certificate_requests.decided(authority, current, wanted.status.conditions, now=call.context.clock.now())


async def _check_may_approve(call: Call) -> None:
    """Return when the caller may approve for the request's signer, by its name or all of its domain.

    Raises DeniedError, NotFoundError.
    """
    found = await call.context.objects.get(CertificateSigningRequest, call.namespace, call.name)
    signer = found.spec.signer_name
    wanted = [
        Attributes(verb="approve", group=GROUP, version=VERSION, resource="signers", name=name)
        for name in (signer, f"{signer.partition('/')[0]}/*")
    ]
    if not (await call.context.authorizer.authorize(call.identity, wanted[1])).allowed:
        await access.check(call.context.authorizer, call.identity, wanted[0])
