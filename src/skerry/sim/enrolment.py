"""Bulk enrolment through the hub's ordinary endpoint: every device with a key and a certificate of its own.

What a device got is kept in files, so that a fleet that is started again in the same directory is the same fleet. Must
not live here: the connection by MQTT (`link`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import ForbiddenError, IntegrityError, InvalidError, TimedOutError, UnavailableError
from skerry.api.kinds.enrollment import Endpoints, Enrollment, EnrollmentSpec, EnrollmentStatus
from skerry.api.meta import ObjectMeta
from skerry.kit.files import private_directory
from skerry.sim import draws
from skerry.sim.profiles import Profile

TIMEOUT_SECONDS = 60.0
AT_A_TIME = 16
ATTEMPTS = 5
RETRY_SECONDS = 1.0
PATH = "/apis/skerry.dev/v1alpha1/namespaces/default/enrollments"
_TOKEN = re.compile(r"skj1\.[^.\s]{1,300}\.[^.\s]{1,300}\.(?P<fingerprint>[0-9a-fA-F]{64})")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]{1,20000}-----END CERTIFICATE-----")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolled device; its key and certificate are in the file `<asked>.pem` beside it."""

    asked: str
    """The name it asked for."""
    name: str
    """The name it got."""
    uid: str
    endpoints: Endpoints
    desired_keys: dict[str, str]
    ca: str


@dataclass(frozen=True, kw_only=True)
class Office:
    """Where devices enrol, and what with."""

    hub_url: str
    tokens: Sequence[str]
    """Devices take them in turn: each token puts its own labels on its share of the fleet."""
    directory: Path
    profile: Profile
    seed: int


async def enroll_all(office: Office, names: Sequence[str], done: Callable[[], None]) -> list[Member]:
    """Enrol these devices, those with files from before excepted; `done` is called for each.

    Raises InvalidError for a token that is none, IntegrityError when another hub answers than the token is for,
    ForbiddenError (the token), UnavailableError, TimedOutError.
    """
    private_directory(office.directory)
    members = {name: known for name in names if (known := _known(office, name)) is not None}
    for _ in members:
        done()
    missing = [name for name in names if name not in members]
    if missing:
        cas = [await _pin(office.hub_url, token) for token in office.tokens]
        limits = httpx.Limits(max_connections=AT_A_TIME, max_keepalive_connections=AT_A_TIME)
        tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=cas[0])

        def took(member: Member) -> None:
            members[member.asked] = member
            done()

        async with httpx.AsyncClient(
            base_url=office.hub_url, verify=tls, timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False
        ) as client:
            await _enroll_missing(client, office, missing, cas[0], took)
    return [members[name] for name in names]


async def _enroll_missing(
    client: httpx.AsyncClient, office: Office, names: Sequence[str], ca: str, took: Callable[[Member], None]
) -> None:
    waiting = enumerate(names)

    async def work() -> None:
        for number, name in waiting:
            took(await _enroll(client, office, name, office.tokens[number % len(office.tokens)], ca))

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(AT_A_TIME, len(names))):
                tasks.create_task(work())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # one refusal stands for all


def _known(office: Office, name: str) -> Member | None:
    try:
        found = msgspec.json.decode((office.directory / f"{name}.json").read_bytes(), type=Member)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.endpoints.hub_url == office.hub_url else None


async def _enroll(client: httpx.AsyncClient, office: Office, name: str, token: str, ca: str) -> Member:
    pem, csr = await asyncio.to_thread(_make_key)
    machine = draws.traits(office.profile, office.seed, name).machine
    asked = EnrollmentSpec(device_name=name, csr=csr, facts=draws.facts(machine, name, boot_id=""))
    body = msgspec.json.encode(Enrollment(metadata=ObjectMeta(generate_name="device-"), spec=asked))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    status = await _ask(client, body, headers, name)
    if status.endpoints is None or not status.certificate:
        raise UnavailableError(status.message[:500] or "the hub's answer is incomplete", element=f'device "{name}"')
    member = Member(
        asked=name,
        name=status.device_name,
        uid=status.device_uid,
        endpoints=status.endpoints,
        desired_keys=status.desired_keys,
        ca=ca,
    )
    await asyncio.to_thread(_keep, office.directory, member, pem + status.certificate.encode())
    return member


async def _ask(client: httpx.AsyncClient, body: bytes, headers: dict[str, str], name: str) -> EnrollmentStatus:
    """Ask, a few times: the same key is the same device, whatever became of the answer."""
    for attempt in range(ATTEMPTS):
        try:
            answer = await client.post(PATH, content=body, headers=headers)
        except httpx.TimeoutException:
            cause: Exception = TimedOutError(f"no answer within {TIMEOUT_SECONDS:g} s", element=f'device "{name}"')
        except httpx.HTTPError as error:
            cause = UnavailableError(f"the hub cannot be reached: {error}", element=f'device "{name}"')
        else:
            if answer.status_code in (200, 201):
                return _read(answer.content, name)
            said = answer.text[:500]
            cause = UnavailableError(f"the hub answered {answer.status_code}: {said}", element=f'device "{name}"')
            if answer.status_code < 500 and answer.status_code != 429:
                raise ForbiddenError(f"the hub answered {answer.status_code}: {said}", element=f'device "{name}"')
        if attempt == ATTEMPTS - 1:
            raise cause
        await asyncio.sleep(RETRY_SECONDS * (attempt + 1))
    raise AssertionError  # the loop returns or raises


def _read(raw: bytes, name: str) -> EnrollmentStatus:
    try:
        return msgspec.json.decode(raw, type=Enrollment).status
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnavailableError(
            f"the hub answered something that is no Enrollment: {error}", element=f'device "{name}"'
        ) from None


async def _pin(hub_url: str, token: str) -> str:
    """Return the CA's certificate if it is the one that the token names."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise InvalidError("is not a join token", element="--token", hint="make one: skerry hub token create --uses N")
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        async with httpx.AsyncClient(verify=unverified, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            answer = await client.get(f"{hub_url}/cacerts")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"cannot be reached: {error}", element=hub_url, hint="is the hub running?") from None
    for pem in _CERTIFICATE.findall(answer.text):
        if hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == match["fingerprint"].lower():
            return str(pem) + "\n"
    raise IntegrityError("has another CA than the token names", element=hub_url, hint="the token is for another hub")


def _make_key() -> tuple[bytes, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, request.public_bytes(serialization.Encoding.PEM).decode()


def _keep(directory: Path, member: Member, pem: bytes) -> None:
    """The key first: a device without its second file is asked for anew. No fsync: these devices can be made again."""
    path = directory / f"{member.asked}.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)
    (directory / f"{member.asked}.json").write_bytes(msgspec.json.encode(member))
