"""How a device comes into the fleet: enrolment by join token, renewal by certificate.

Lives here: who gets a certificate, and what is written for it. Must not live here: certificates themselves
(`hub.pki`), tokens (`hub.join_tokens`), HTTP, the device's side.

A power cut between any two writes, and a lost answer, are repaired by the device asking again with the same key: the
token's status holds a claim (which enrollment, which uid) from the moment a use is taken until the enrollment is
recorded, and the enrollment is named after its key. So one key costs one use of a token and is one device.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
import secrets
from datetime import timedelta

import msgspec
from cryptography import x509

from skerry.api.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from skerry.api.kinds.device import Device, DeviceStatus
from skerry.api.kinds.enrollment import (
    Endpoints,
    Enrollment,
    EnrollmentSpec,
    EnrollmentStatus,
    JoinToken,
)
from skerry.api.meta import ObjectMeta
from skerry.core.access import Identity
from skerry.hub import join_tokens, pki
from skerry.hub.context import HubContext

log = logging.getLogger(__name__)

MAX_SPEC_BYTES = 128 * 1024
"""CSR and facts together, as JSON."""
MAX_CLAIMS = 256
"""Beyond it the oldest uses under way are forgotten: those devices, should they ask again, take a second use."""
RENEWAL_INTERVAL = timedelta(hours=1)
"""A key whose certificate is younger gets the same one again: no device can make the hub write as often as it likes."""

ROTATION_INTERVAL = timedelta(minutes=1)
"""A device that has just changed its key by a renewal may not change it again sooner, for the same reason."""

ENROLLMENT_ANNOTATION = "skerry.dev/enrollment"
"""On a Device: the Enrollment that its present certificate comes from."""

_UID = re.compile(r"d[a-z2-7]{20}")
_ATTEMPTS = 50
_PAGE = 500
_KNOWN_SECONDS = 2.0


create_token = join_tokens.create_token


async def enroll(context: HubContext, enrollment: Enrollment, *, join_token: str, identity: Identity) -> Enrollment:
    """Give a device its certificate: a new device by a join token, a known one by its present certificate.

    The device comes into the token's namespace. Asking again with the same key gives the same answer and takes no
    second use. Raises UnauthorizedError (no valid token), ForbiddenError (token expired or used up, device deleted),
    InvalidError for a bad request, and what the store raises.
    """
    asked = _checked(enrollment.spec)
    if join_token:
        return await _enroll_by_token(context, asked, join_token, enrollment.metadata.namespace)
    if identity.role == "device":
        return await _renew(context, asked, identity)
    raise UnauthorizedError("needs a join token", element="enrollment", hint=join_tokens.HINT)


async def _enroll_by_token(context: HubContext, asked: EnrollmentSpec, text: str, namespace: str) -> Enrollment:
    presented = join_tokens.parse(text, context.authority.ca_fingerprint)
    token = await join_tokens.find(context, presented)
    if namespace not in (presented.namespace, "", "default"):
        raise InvalidError(
            f'the join token is for namespace "{presented.namespace}"',
            element="metadata.namespace",
            hint="enrol there, or in default",
        )
    request = pki.read_request(asked.csr)
    asked = msgspec.structs.replace(asked, token_id=join_tokens.token_id(token))
    record = record_of(request)
    claim = await _claim(context, presented, record)
    if isinstance(claim, Enrollment):
        return _with_present_endpoints(context, claim)
    uid, known_as = claim
    device = await _create_device(context, asked, token, uid=uid, known_as=known_as, record=record)
    answer = await _record(context, asked, device, record)
    await join_tokens.release(context, token, record)
    await _until_known(context, uid)
    log.info("enrollment.approved device=%s uid=%s token=%s", device.metadata.name, uid, asked.token_id)
    return answer


async def _claim(context: HubContext, presented: join_tokens.Presented, record: str) -> Enrollment | tuple[str, str]:
    """Take one use of the token, unless this key took one already.

    Returns the enrollment if it is recorded; else the uid the device gets, and the name if it exists already.
    """
    async with join_tokens.lock_of(context, presented.namespace, presented.name):
        for _ in range(_ATTEMPTS):
            token = await join_tokens.find(context, presented)
            existing = await context.objects.find(Enrollment, presented.namespace, record)
            device = None if existing is None else await _device_of(context, existing)
            if existing is not None and device is not None and _answers(context, existing, join_tokens.token_id(token)):
                return existing
            known_as = "" if device is None else device.metadata.name
            claimed = token.status.claims.get(record, "")
            if claimed and (existing is None or _subject(existing) != (join_tokens.token_id(token), claimed)):
                if await _is_believed(context, token, record, claimed, device):
                    return claimed, known_as
                log.warning("enrollment.claim_not_believed token=%s uid=%s", join_tokens.token_id(token), claimed[:80])
            join_tokens.check_usable(context, token)
            uid = _new_uid() if device is None else device.metadata.uid
            claims = dict(list(token.status.claims.items())[1 - MAX_CLAIMS :]) | {record: uid}
            status = msgspec.structs.replace(token.status, used=token.status.used + 1, claims=claims)
            with contextlib.suppress(ConflictError):
                await join_tokens.write_status(context, token, status)
                return uid, known_as
    raise UnavailableError("too many devices enrol at once", element=f'join token "{presented.name}"', hint="try again")


async def _is_believed(context: HubContext, token: JoinToken, record: str, uid: str, device: Device | None) -> bool:
    """Return whether a claim may be for this uid: it is nobody's yet, or of the device that has this very key.

    Claims are the hub's own, and no client can write one; but whom it believes here, that is who somebody becomes.
    """
    if device is not None:
        return device.metadata.uid == uid
    place = context.gateway.place(uid)
    if place is None:
        return _UID.fullmatch(uid) is not None
    if place[0] != token.metadata.namespace:
        return False
    made = await context.objects.find(Device, *place)
    return (
        made is not None
        and made.metadata.uid == uid
        and made.metadata.annotations.get(ENROLLMENT_ANNOTATION, "") == record
    )


async def _create_device(
    context: HubContext, asked: EnrollmentSpec, token: JoinToken, *, uid: str, known_as: str, record: str
) -> Device:
    """Create the device under the name asked for, or with a suffix when another one has it; find it if it exists."""
    namespace = token.metadata.namespace
    suffixed = f"{asked.device_name[:57].rstrip('-')}-{uid[1:6]}"
    names = (asked.device_name, suffixed)
    for name in filter(None, (known_as, *names)):
        existing = await context.objects.find(Device, namespace, name)
        if existing is not None and existing.metadata.uid == uid:
            return existing
    facts = asked.facts
    status = DeviceStatus(
        hardware=facts.hardware,
        os=facts.os,
        engines=facts.engines,
        runtimes=facts.runtimes,
        network=facts.network,
        agent_version=facts.agent_version,
        boot_id=facts.boot_id,
    )
    for name in names:
        meta = ObjectMeta(
            name=name,
            namespace=namespace,
            uid=uid,
            labels=token.spec.labels,
            annotations={ENROLLMENT_ANNOTATION: record},
        )
        try:
            return await context.objects.create(Device(metadata=meta, status=status))
        except AlreadyExistsError:
            taken = await context.objects.find(Device, namespace, name)
            if taken is not None and taken.metadata.uid == uid:
                return taken
    raise AlreadyExistsError(element=f'devices "{asked.device_name}"', hint="give the device another name")


async def _record(context: HubContext, asked: EnrollmentSpec, device: Device, record: str) -> Enrollment:
    """Write the approved enrollment under its key's name, in place of an older one of the same key."""
    namespace, uid = device.metadata.namespace, device.metadata.uid
    certificate = context.authority.issue_device(asked.csr, uid, namespace)
    approved = Enrollment(
        metadata=ObjectMeta(name=record, namespace=namespace),
        spec=asked,
        status=EnrollmentStatus(
            phase="Approved",
            device_uid=uid,
            device_name=device.metadata.name,
            certificate=certificate.decode(),
            peer_certificate=context.authority.issue_peer(asked.csr, uid, namespace).decode(),
            ca=context.authority.ca_pem.decode(),
            desired_keys={context.authority.desired_key_id: context.authority.desired_public_pem.decode()},
            endpoints=_endpoints(context),
        ),
    )
    for _ in range(_ATTEMPTS):
        current = await context.objects.find(Enrollment, namespace, record)
        if current is not None:
            fresh = _answers(context, current, asked.token_id) and current.status.device_uid == uid
            if fresh and (asked.token_id or _is_young(context, current)):
                return _with_present_endpoints(context, current)
            with contextlib.suppress(NotFoundError, ConflictError):
                version = current.metadata.resource_version
                await context.objects.delete(Enrollment, namespace, record, resource_version=version)
        with contextlib.suppress(AlreadyExistsError):
            return await context.objects.create(approved)
    raise ConflictError(element=f'enrollments "{record}"')


async def _renew(context: HubContext, asked: EnrollmentSpec, identity: Identity) -> Enrollment:
    """Give a known device a new certificate, for its present key or for a new one."""
    record = record_of(pki.read_request(asked.csr))
    device = await _device_by_uid(context, asked, identity)
    if device is None or device.metadata.deletion_timestamp is not None:
        raise ForbiddenError(
            "was deleted from this hub", element=f"device {identity.name}", hint="enrol it again with a join token"
        )
    asked = msgspec.structs.replace(asked, device_name=device.metadata.name, token_id="")
    existing = await context.objects.find(Enrollment, device.metadata.namespace, record)
    if existing is not None and existing.status.device_uid != identity.name:
        raise InvalidError("its key is another device's", element="spec.csr", hint="make a key for this device")
    before = device.metadata.annotations.get(ENROLLMENT_ANNOTATION, "")
    if existing is None:
        await _check_rotation(context, device, before)
    answer = await _record(context, asked, device, record)
    if before != record:
        await _point_to(context, device, record)
        await _forget_enrollment(context, device, before)
    log.info("enrollment.renewed device=%s uid=%s", device.metadata.name, identity.name)
    return answer


async def _check_rotation(context: HubContext, device: Device, present: str) -> None:
    """Refuse another new key while the present one is brand-new. Raises UnavailableError."""
    held = await context.objects.find(Enrollment, device.metadata.namespace, present) if present else None
    if held is None or held.spec.token_id or held.metadata.creation_timestamp is None:
        return  # the first renewal may follow its enrolment at once
    if context.clock.now() - held.metadata.creation_timestamp < ROTATION_INTERVAL:
        raise UnavailableError(
            "its key was changed less than a minute ago",
            element=f"device {device.metadata.uid}",
            hint="ask again later",
        )


async def _point_to(context: HubContext, device: Device, record: str) -> None:
    def change(current: Device) -> Device:
        annotations = {**current.metadata.annotations, ENROLLMENT_ANNOTATION: record}
        return msgspec.structs.replace(
            current, metadata=msgspec.structs.replace(current.metadata, annotations=annotations)
        )

    with contextlib.suppress(NotFoundError):
        await context.objects.update_status(Device, device.metadata.namespace, device.metadata.name, change)


async def _forget_enrollment(context: HubContext, device: Device, name: str) -> None:
    existing = await context.objects.find(Enrollment, device.metadata.namespace, name) if name else None
    if existing is not None and existing.status.device_uid == device.metadata.uid:
        with contextlib.suppress(NotFoundError):
            await context.objects.delete(Enrollment, device.metadata.namespace, name)


async def _device_of(context: HubContext, enrollment: Enrollment) -> Device | None:
    status = enrollment.status
    device = await context.objects.find(Device, enrollment.metadata.namespace, status.device_name)
    if device is None or device.metadata.uid != status.device_uid or device.metadata.deletion_timestamp is not None:
        return None  # who is being deleted is nobody any more
    return device


async def _device_by_uid(context: HubContext, asked: EnrollmentSpec, identity: Identity) -> Device | None:
    """Return the caller's own Device: agents ask under the name the hub gave them, so that one look is enough."""
    named = await context.objects.find(Device, identity.namespace, asked.device_name)
    if named is not None and named.metadata.uid == identity.name:
        return named
    start, revision = "", 0
    while True:
        page = await context.objects.list(
            Device, identity.namespace, limit=_PAGE, start=start, revision=revision, leave_out_unreadable=True
        )
        found = next((device for device in page.items if device.metadata.uid == identity.name), None)
        if found is not None or page.next_key is None:
            return found
        start, revision = page.next_key, page.revision


async def _until_known(context: HubContext, uid: str) -> None:
    """Wait a little for the gateway to hear of the device, so that its first connection is not refused."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_KNOWN_SECONDS):
            while not context.gateway.known(uid):  # noqa: ASYNC110 - milliseconds, once in a device's life
                await asyncio.sleep(0.005)


def _answers(context: HubContext, enrollment: Enrollment, token: str) -> bool:
    """Return whether the recorded enrollment is the answer to this token: the same one, its certificate still good."""
    if enrollment.status.phase != "Approved" or (token and enrollment.spec.token_id != token):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(enrollment.status.certificate.encode())
    except ValueError:  # an admin may write anything into a status
        return False
    return context.clock.now() < certificate.not_valid_after_utc


def _is_young(context: HubContext, enrollment: Enrollment) -> bool:
    created = enrollment.metadata.creation_timestamp
    return created is not None and context.clock.now() - created < RENEWAL_INTERVAL


def _subject(enrollment: Enrollment) -> tuple[str, str]:
    return enrollment.spec.token_id, enrollment.status.device_uid


def _with_present_endpoints(context: HubContext, enrollment: Enrollment) -> Enrollment:
    status = msgspec.structs.replace(enrollment.status, endpoints=_endpoints(context))
    return msgspec.structs.replace(enrollment, status=status)


def _endpoints(context: HubContext) -> Endpoints:
    return Endpoints(mqtt_host=context.mqtt_host, mqtt_port=context.mqtt_port, hub_url=context.hub_url)


def _checked(spec: EnrollmentSpec) -> EnrollmentSpec:
    """Return the spec if it keeps every bound of its type, and the one on all of it. Raises InvalidError."""
    try:
        raw = msgspec.json.encode(spec)
        if len(raw) > MAX_SPEC_BYTES:
            raise InvalidError(f"{len(raw)} bytes are more than {MAX_SPEC_BYTES}", element="spec")
        return msgspec.json.decode(raw, type=type(spec))
    except (msgspec.MsgspecError, OverflowError, ValueError, TypeError) as error:
        raise InvalidError(str(error)[:300], element="spec") from None


def record_of(request: pki.CertificateRequest) -> str:
    """Return the name of a key's enrollment: who asks again with the same key is the same device."""
    return "e" + _base32(bytes.fromhex(request.fingerprint))


def _new_uid() -> str:
    return "d" + _base32(secrets.token_bytes(16))


def _base32(raw: bytes) -> str:
    """Return 20 characters (100 bits) that can stand in names, certificates and topics."""
    return base64.b32encode(raw).decode().lower()[:20]
