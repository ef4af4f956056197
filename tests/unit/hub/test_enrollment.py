from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import AlreadyExistsError, ForbiddenError, InvalidError, UnauthorizedError, UnavailableError
from skerry.api.kinds.device import Device, DeviceFacts, Hardware
from skerry.api.kinds.enrollment import Enrollment, EnrollmentSpec, JoinToken, JoinTokenSpec
from skerry.api.meta import ObjectMeta
from skerry.core.access import ANONYMOUS, Identity
from skerry.core.ports import Record
from skerry.drivers.link.memory import MemoryCarrier, MemoryHubLink
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import enrollment, join_tokens, pki
from skerry.hub.context import HubContext
from skerry.hub.gateway import Gateway
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock


class Ahead(SystemClock):
    offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset


class Hub:
    def __init__(self, context: HubContext, clock: Ahead) -> None:
        self.context, self.clock = context, clock

    async def token(self, *, uses: int = 1, ttl: str = "1h", namespace: str = "default", **labels: str) -> str:
        spec = JoinTokenSpec(uses=uses, ttl=ttl, labels=labels)
        wanted = JoinToken(metadata=ObjectMeta(generate_name="t-", namespace=namespace), spec=spec)
        return (await enrollment.create_token(self.context, wanted)).status.token

    async def enroll(
        self, token: str, key: ec.EllipticCurvePrivateKey | None = None, name: str = "till", **more: Any
    ) -> Enrollment:
        return await enrollment.enroll(self.context, request(key, name, **more), join_token=token, identity=ANONYMOUS)

    async def renew(self, uid: str, key: ec.EllipticCurvePrivateKey, namespace: str = "default") -> Enrollment:
        identity = Identity(role="device", name=uid, namespace=namespace)
        return await enrollment.enroll(self.context, request(key), join_token="", identity=identity)

    async def devices(self) -> list[Device]:
        return (await self.context.objects.list(Device)).items

    async def enrollments(self) -> list[Enrollment]:
        return (await self.context.objects.list(Enrollment)).items

    async def only_token(self) -> JoinToken:
        (token,) = (await self.context.objects.list(JoinToken)).items
        return token


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request(
    key: ec.EllipticCurvePrivateKey | None = None, name: str = "till", namespace: str = "default", **more: Any
) -> Enrollment:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key or new_key(), hashes.SHA256())
    text = csr.public_bytes(serialization.Encoding.PEM).decode()
    spec = EnrollmentSpec(**({"device_name": name, "csr": text} | more))
    return Enrollment(metadata=ObjectMeta(namespace=namespace), spec=spec)


@pytest.fixture
async def hub(tmp_path: Path, live_authority: pki.Authority) -> AsyncIterator[Hub]:
    clock = Ahead()
    authority = pki.open_authority(live_authority.ca_file.parent, names=(), clock=clock)
    async with open_store(tmp_path / "hub.db") as store, asyncio.TaskGroup() as group:
        objects = Objects(store, clock)
        gateway = Gateway(
            objects, MemoryHubLink(MemoryCarrier()), authority.desired_key, authority.desired_key_id, clock
        )
        running = group.create_task(gateway.run())
        context = HubContext(
            objects=objects,
            artifacts=DirectoryStore(tmp_path / "artifacts"),
            clock=clock,
            authority=authority,
            gateway=gateway,
            state_dir=tmp_path,
            hub_url="https://hub.example:7443",
            mqtt_host="hub.example",
            mqtt_port=8883,
        )
        yield Hub(context, clock)
        running.cancel()


async def test_a_token_lets_one_device_in_with_everything_it_needs(hub: Hub) -> None:
    key, text = new_key(), await hub.token(site="lab")
    facts = DeviceFacts(hostname="h", agent_version="1", hardware=Hardware(arch="arm64", cores=4))
    answer = await hub.enroll(text, key, "till-7", facts=facts)
    (device,) = await hub.devices()
    assert device.metadata.name == answer.status.device_name == "till-7"
    assert device.metadata.labels == {"site": "lab"}
    assert device.status.hardware == facts.hardware
    assert device.status.phase == "Pending"
    assert device.metadata.uid == answer.status.device_uid
    assert len(device.metadata.uid) == 21
    certificate = x509.load_pem_x509_certificate(answer.status.certificate.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(answer.status.ca.encode()))
    assert certificate.subject.rfc4514_string() == f"CN={device.metadata.uid},OU=default,O=skerry:devices"
    assert certificate.public_key() == key.public_key()
    assert answer.status.phase == "Approved"
    assert answer.status.desired_keys == {
        hub.context.authority.desired_key_id: hub.context.authority.desired_public_pem.decode()
    }
    assert answer.status.endpoints is not None
    assert answer.status.endpoints.hub_url == "https://hub.example:7443"
    assert (answer.status.endpoints.mqtt_host, answer.status.endpoints.mqtt_port) == ("hub.example", 8883)
    (stored,) = await hub.enrollments()
    assert stored == answer
    token = await hub.only_token()
    assert (token.status.used, token.status.claims) == (1, {})
    assert hub.context.gateway.known(device.metadata.uid)  # when the answer goes out, the device may connect


async def test_the_secret_is_in_the_answer_to_its_creation_only(hub: Hub) -> None:
    text = await hub.token()
    version, name, secret, fingerprint = text.split(".")
    assert version == "skj1"
    assert fingerprint == hub.context.authority.ca_fingerprint
    record = await hub.context.objects.store.get(f"jointokens/default/{name}")
    assert isinstance(record, Record)
    assert secret.encode() not in record.value
    assert text.encode() not in record.value


async def test_asking_again_gives_the_same_answer_and_takes_no_second_use(hub: Hub) -> None:
    key, text = new_key(), await hub.token(uses=1)
    first = await hub.enroll(text, key)
    hub.clock.offset = timedelta(hours=2)  # the answer was lost, and the token expired meanwhile
    assert await hub.enroll(text, key) == first
    assert len(await hub.devices()) == len(await hub.enrollments()) == 1
    assert (await hub.only_token()).status.used == 1


async def test_the_same_key_asking_many_times_at_once_is_one_device(hub: Hub) -> None:
    key, text = new_key(), await hub.token(uses=1)
    answers = await asyncio.gather(*(hub.enroll(text, key) for _ in range(8)))
    assert {a.status.device_uid for a in answers} == {(await hub.devices())[0].metadata.uid}
    assert len(await hub.devices()) == len(await hub.enrollments()) == 1
    assert (await hub.only_token()).status.used == 1


async def test_of_n_devices_with_n_minus_one_uses_exactly_one_is_refused(hub: Hub) -> None:
    count = 12
    text = await hub.token(uses=count - 1)
    results = await asyncio.gather(*(hub.enroll(text) for _ in range(count)), return_exceptions=True)
    refused = [r for r in results if isinstance(r, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], ForbiddenError)
    assert "is used up (it was good 11 times); make a new one with `skerry hub token create`" in str(refused[0])
    devices = await hub.devices()
    assert len({d.metadata.uid for d in devices}) == len({d.metadata.name for d in devices}) == count - 1
    token = await hub.only_token()
    assert (token.status.used, token.status.claims) == (count - 1, {})


class CutError(Exception):
    pass


class CutStore:
    """The real store, until the n-th write: then the power is gone, before or after it reached the disk."""

    def __init__(self, store: Any, writes: int, reached: bool) -> None:
        self._store, self._left, self._reached = store, writes, reached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _write(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._reached:
            raise CutError
        result = await getattr(self._store, name)(*args, **kwargs)
        if self._left == 0:
            raise CutError
        return result

    async def create(self, *args: Any, **kwargs: Any) -> Any:
        return await self._write("create", *args, **kwargs)

    async def update(self, *args: Any, **kwargs: Any) -> Any:
        return await self._write("update", *args, **kwargs)

    async def delete(self, *args: Any, **kwargs: Any) -> Any:
        return await self._write("delete", *args, **kwargs)


def cutting(hub: Hub, writes: int, reached: bool) -> Hub:
    objects = Objects(cast("Any", CutStore(hub.context.objects.store, writes, reached)), hub.clock)
    return Hub(dataclasses.replace(hub.context, objects=objects), hub.clock)


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("writes", [1, 2, 3, 4])
@pytest.mark.parametrize("name_taken", [False, True])
async def test_a_power_cut_at_any_write_of_an_enrolment_is_repaired_by_asking_again(
    hub: Hub, writes: int, reached: bool, name_taken: bool
) -> None:
    if name_taken:
        await hub.context.objects.create(Device(metadata=ObjectMeta(name="till", namespace="default")))
    others = 1 if name_taken else 0
    key, text = new_key(), await hub.token(uses=1)
    with pytest.raises(CutError):
        await cutting(hub, writes + (1 if name_taken and writes > 1 else 0), reached).enroll(text, key)
    answer = await hub.enroll(text, key)
    devices = [d for d in await hub.devices() if d.metadata.uid == answer.status.device_uid]
    assert len(devices) == 1
    assert len(await hub.devices()) == 1 + others
    assert len(await hub.enrollments()) == 1
    assert (await hub.only_token()).status.used == 1
    with pytest.raises(ForbiddenError, match="is used up"):
        await hub.enroll(text)


async def test_an_expired_token_says_so(hub: Hub) -> None:
    text = await hub.token(ttl="10m")
    hub.clock.offset = timedelta(minutes=10)
    with pytest.raises(ForbiddenError, match=r'^join token "t-[0-9a-f]{8}": expired at .* UTC; make a new one with'):
        await hub.enroll(text)
    assert await hub.devices() == []


async def test_a_token_that_was_deleted_or_has_another_secret_is_refused_alike(hub: Hub) -> None:
    text = await hub.token()
    version, name, _, fingerprint = text.split(".")
    sentences = set()
    for forged in (f"{version}.{name}.{'A' * 43}.{fingerprint}", f"{version}.t-00000000.{'A' * 43}.{fingerprint}"):
        with pytest.raises(UnauthorizedError) as caught:
            await hub.enroll(forged)
        sentences.add(caught.value.sentence.replace(name, "ID").replace("t-00000000", "ID"))
    assert sentences == {'join token "ID": is not a token of this hub; make a new one with `skerry hub token create`'}
    await hub.context.objects.delete(JoinToken, "default", name)
    with pytest.raises(UnauthorizedError, match="is not a token of this hub"):
        await hub.enroll(text)


async def test_a_token_of_another_hub_is_told_apart(hub: Hub) -> None:
    text = await hub.token()
    with pytest.raises(UnauthorizedError, match="is of another hub, or this hub was set up anew"):
        await hub.enroll(text[:-64] + "0" * 64)


async def test_without_a_token_and_certificate_nobody_comes_in(hub: Hub) -> None:
    for identity in (ANONYMOUS, Identity(role="admin", name="ada")):
        with pytest.raises(UnauthorizedError, match="needs a join token"):
            await enrollment.enroll(hub.context, request(), join_token="", identity=identity)


@given(st.text(max_size=200) | st.from_regex(r"skj1\.[a-z/.]{0,9}\.[A-Za-z0-9_-]{43}\.[0-9a-f]{64}", fullmatch=True))
def test_any_text_as_a_token_is_refused_cleanly(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        join_tokens.parse(text, "f" * 64)


def test_a_very_long_token_is_refused() -> None:
    with pytest.raises(UnauthorizedError, match="cannot be read"):
        join_tokens.parse(f"skj1.{'a' * 5000}.{'A' * 43}.{'f' * 64}", "f" * 64)


async def test_names_that_are_taken_get_a_short_suffix(hub: Hub) -> None:
    text = await hub.token(uses=3)
    long = "a" * 63
    names = [(await hub.enroll(text, name=name)).status.device_name for name in ("till", "till", long)]
    assert names[0] == "till"
    assert names[1].startswith("till-")
    assert len(names[1]) == len("till-") + 5
    assert names[2] == long
    assert len((await hub.enroll(await hub.token(), name=long)).status.device_name) == 63


async def test_the_device_comes_into_the_tokens_namespace(hub: Hub) -> None:
    text = await hub.token(namespace="factory")
    assert text.split(".")[1].startswith("factory/t-")
    answer = await hub.enroll(text)
    (device,) = await hub.devices()
    assert device.metadata.namespace == answer.metadata.namespace == "factory"
    certificate = x509.load_pem_x509_certificate(answer.status.certificate.encode())
    assert "OU=factory" in certificate.subject.rfc4514_string()
    with pytest.raises(InvalidError, match='the join token is for namespace "factory"'):
        await enrollment.enroll(hub.context, request(namespace="other"), join_token=text, identity=ANONYMOUS)


async def test_a_device_renews_with_its_certificate_for_the_same_or_a_new_key(hub: Hub) -> None:
    old, new = new_key(), new_key()
    first = await hub.enroll(await hub.token(), old)
    uid = first.status.device_uid
    assert (await hub.renew(uid, old)).status.certificate == first.status.certificate  # hardly older: the same again
    hub.clock.offset = timedelta(days=60)
    second = await hub.renew(uid, old)
    assert second.status.device_uid == uid
    assert second.status.certificate != first.status.certificate
    hub.clock.offset += timedelta(minutes=2)
    third = await hub.renew(uid, new)
    certificate = x509.load_pem_x509_certificate(third.status.certificate.encode())
    assert certificate.public_key() == new.public_key()
    assert certificate.not_valid_after_utc > hub.clock.now() + timedelta(days=89)
    assert [d.metadata.uid for d in await hub.devices()] == [uid]
    assert [e.metadata.name for e in await hub.enrollments()] == [third.metadata.name]  # the old key's is forgotten
    assert (await hub.devices())[0].metadata.annotations == {enrollment.ENROLLMENT_ANNOTATION: third.metadata.name}


async def test_a_device_cannot_make_the_hub_sign_as_often_as_it_likes(hub: Hub) -> None:
    uid = (await hub.enroll(await hub.token(), new_key())).status.device_uid
    changed = new_key()
    renewed = await hub.renew(uid, changed)  # the first may follow at once
    before = await hub.context.objects.store.revision()
    for _ in range(5):
        with pytest.raises(UnavailableError, match="less than a minute ago; ask again later"):
            await hub.renew(uid, new_key())
        assert (await hub.renew(uid, changed)).status.certificate == renewed.status.certificate  # a lost answer
    assert await hub.context.objects.store.revision() == before
    hub.clock.offset += timedelta(minutes=2)
    assert (await hub.renew(uid, new_key())).status.certificate != renewed.status.certificate


async def test_a_deleted_device_cannot_renew_and_its_key_needs_a_new_use(hub: Hub) -> None:
    key, text = new_key(), await hub.token(uses=2)
    uid = (await hub.enroll(text, key)).status.device_uid
    await hub.context.objects.delete(Device, "default", "till")
    with pytest.raises(ForbiddenError, match="was deleted from this hub; enrol it again with a join token"):
        await hub.renew(uid, key)
    again = await hub.enroll(text, key)
    assert again.status.device_uid != uid
    assert again.status.device_name == "till"
    assert (await hub.only_token()).status.used == 2
    await hub.context.objects.delete(Device, "default", "till")
    with pytest.raises(ForbiddenError, match="is used up"):
        await hub.enroll(text, key)


async def test_a_device_cannot_take_another_devices_key_or_namespace(hub: Hub) -> None:
    key, text = new_key(), await hub.token(uses=2)
    await hub.enroll(text, key, "a")
    other = await hub.enroll(text, name="b")
    with pytest.raises(InvalidError, match="its key is another device's"):
        await hub.renew(other.status.device_uid, key)
    with pytest.raises(ForbiddenError, match="was deleted"):
        await hub.renew(other.status.device_uid, new_key(), namespace="factory")


async def test_a_device_whose_certificate_ran_out_comes_back_as_itself_with_a_new_token(hub: Hub) -> None:
    key = new_key()
    first = await hub.enroll(await hub.token(), key)
    hub.clock.offset = timedelta(days=91)
    second_token = await hub.token()
    second = await hub.enroll(second_token, key, name="renamed")
    assert second.status.device_uid == first.status.device_uid
    assert second.status.device_name == "till"
    assert second.status.certificate != first.status.certificate
    assert await hub.enroll(second_token, key) == second
    assert len(await hub.devices()) == len(await hub.enrollments()) == 1


@pytest.mark.parametrize("writes", [1, 2, 3, 4])
@pytest.mark.parametrize("reached", [False, True])
async def test_a_power_cut_while_a_known_device_enrols_again_is_repaired(hub: Hub, writes: int, reached: bool) -> None:
    key = new_key()
    first = await hub.enroll(await hub.token(), key)
    hub.clock.offset = timedelta(days=91)
    text = await hub.token(uses=1)
    with pytest.raises(CutError):
        await cutting(hub, writes, reached).enroll(text, key)
    assert (await hub.enroll(text, key)).status.device_uid in {d.metadata.uid for d in await hub.devices()}
    used = [t.status for t in (await hub.context.objects.list(JoinToken)).items]
    assert [status.used for status in used] == [1, 1]
    assert len(await hub.devices()) == 1, first


@pytest.mark.parametrize(
    ("change", "element"),
    [
        ({"csr": "rubbish"}, r"spec\.csr"),
        ({"csr": "x" * 20_000}, "spec"),
        ({"device_name": "Not A Name"}, "spec"),
        ({"device_name": "a" * 64}, "spec"),
        ({"facts": DeviceFacts(runtimes=["x" * 1000] * 200)}, "spec"),
        ({"facts": DeviceFacts(hardware=Hardware(cores=10**5000))}, "spec"),
        ({"facts": DeviceFacts(hardware=Hardware(cores=cast("int", "many")))}, "spec"),
    ],
)
async def test_requests_out_of_bounds_are_refused_before_anything_is_written(
    hub: Hub, change: dict[str, Any], element: str
) -> None:
    text = await hub.token()
    revision = await hub.context.objects.store.revision()
    with pytest.raises(InvalidError, match=f"^{element}"):
        await hub.enroll(text, **change)
    assert await hub.context.objects.store.revision() == revision


@pytest.mark.parametrize(
    ("spec", "meta", "element"),
    [
        ({"ttl": "0s"}, {}, r"spec\.ttl: 0s is not between 1s and 720h; try 1h"),
        ({"ttl": "721h"}, {}, r"spec\.ttl"),
        ({"labels": {"bad key": "x"}}, {}, "bad key"),
        ({"labels": {"site": "bad value"}}, {}, "bad value"),
        ({"labels": {f"k{n}": "v" for n in range(65)}}, {}, r"spec\.labels: more than 64 labels"),
        ({}, {"name": "with.dot"}, r"metadata\.name"),
        ({}, {"name": "a" * 64}, r"metadata\.name"),
        ({}, {"generate_name": "x" * 60}, r"metadata\.name"),
    ],
)
async def test_tokens_out_of_bounds_are_refused(
    hub: Hub, spec: dict[str, Any], meta: dict[str, Any], element: str
) -> None:
    wanted = JoinToken(metadata=ObjectMeta(namespace="default", **meta), spec=JoinTokenSpec(**spec))
    with pytest.raises(InvalidError, match=element):
        await enrollment.create_token(hub.context, wanted)
    assert (await hub.context.objects.list(JoinToken)).items == []


async def test_a_token_is_its_spec_only_whatever_status_was_sent(hub: Hub) -> None:
    wanted = JoinToken(metadata=ObjectMeta(name="mine", namespace="default"))
    forged = msgspec.structs.replace(wanted, status=msgspec.structs.replace(wanted.status, used=-5, hash="00"))
    created = await enrollment.create_token(hub.context, forged)
    assert (created.status.used, len(created.status.hash)) == (0, 64)
    with pytest.raises(AlreadyExistsError):
        await enrollment.create_token(hub.context, wanted)


async def test_tokens_are_forgotten_a_week_after_they_expired(hub: Hub) -> None:
    await hub.token(ttl="1h")
    hub.clock.offset = timedelta(days=6)
    await hub.token(ttl="30h")
    await join_tokens.forget_expired(hub.context)
    assert len((await hub.context.objects.list(JoinToken)).items) == 2
    hub.clock.offset = timedelta(days=8)
    await join_tokens.forget_expired(hub.context)
    assert (await hub.only_token()).spec.ttl == "30h"
