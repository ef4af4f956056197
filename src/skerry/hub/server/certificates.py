"""PUT certificatesigningrequests/x/approval: approving and denying, which also signs.

Must not live here: what a decision may change (`hub.certificate_requests`).
"""

from __future__ import annotations

from typing import cast

from starlette.responses import Response

from skerry.api.errors import BadRequestError
from skerry.api.kinds import Resource
from skerry.api.kinds.certificate_signing_request import GROUP, VERSION, CertificateSigningRequest
from skerry.hub import certificate_requests
from skerry.hub.authorization import Attributes
from skerry.hub.server import access, answer, update
from skerry.hub.server.call import Call, precondition


async def approve(call: Call) -> Response:
    """Write the decision, and with an approval the certificate.

    Raises NotFoundError, InvalidError, ConflictError, ForbiddenError for whoever may not approve for this signer.
    """
    raw = await call.read_object()
    wanted = call.typed(raw)
    if not isinstance(wanted, CertificateSigningRequest):
        raise BadRequestError("is no CertificateSigningRequest", element="the body")
    found = await call.context.objects.get(CertificateSigningRequest, call.namespace, call.name)
    await _check_may_approve(call, found.spec.signer_name)
    conditions = wanted.status.conditions

    def make(current: Resource) -> Resource:
        item = cast(CertificateSigningRequest, current)
        authority = None if call.dry_run else call.context.authority
        return certificate_requests.decided(authority, item, conditions, now=call.context.clock.now())

    changed = await update.rewrite(
        call, make, uid=precondition(raw, "uid"), revision=precondition(raw, "resourceVersion"), status=True
    )
    return answer.respond(call, changed, sent=raw)


async def _check_may_approve(call: Call, signer: str) -> None:
    """Return when the caller may approve for this signer, by its name or all of its domain. Raises DeniedError."""
    wanted = [
        Attributes(verb="approve", group=GROUP, version=VERSION, resource="signers", name=name)
        for name in (signer, f"{signer.partition('/')[0]}/*")
    ]
    if not (await call.context.authorizer.authorize(call.identity, wanted[1])).allowed:
        await access.check(call.context.authorizer, call.identity, wanted[0])
