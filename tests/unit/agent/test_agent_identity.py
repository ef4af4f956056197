"""Who the device is: read strictly, keys without a key library, renewal in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.agent import app, identity, renewal
from skerry.agent.disk import AcceptedDesired, Disk
from skerry.agent.identity import Identity
from skerry.agent.settings import HubSettings
from skerry.api.errors import InvalidError, NotFoundError
from skerry.api.kinds.enrollment import Endpoints
from skerry.core import messages, trust
from skerry.core.messages import DesiredState

START = datetime(2026, 1, 1, tzinfo=UTC)


def made(**fields: object) -> Identity:
    known = Identity(
        uid="d1",
        name="till-1",
        endpoints=Endpoints(mqtt_host="hub", mqtt_port=8883, hub_url="https://hub:7443"),
        ca="",
        desired_keys={},
        not_before=START,
        not_after=START + timedelta(days=90),
    )
    return msgspec.structs.replace(known, **fields)  # type: ignore[arg-type]


def pem(key: object) -> str:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def test_an_identity_comes_back(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with pytest.raises(NotFoundError, match="not enrolled"):
        identity.load(disk)
    identity.save(disk, made(), pem=b"key")
    assert identity.load(disk) == made()
    disk.write(identity.FILE, b'{"uid": 1}')
    with pytest.raises(InvalidError, match="damaged"):
        identity.load(disk)


def test_signing_keys_are_read_as_they_are_written() -> None:
    key = Ed25519PrivateKey.generate()
    found = identity.verifying_keys(made(desired_keys={"k": pem(key.public_key())}))
    found["k"].verify(key.sign(b"data"), b"data")
    with pytest.raises(InvalidSignature):
        found["k"].verify(key.sign(b"data"), b"other")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100))
def test_other_keys_are_refused(text: str) -> None:
    other = pem(ec.generate_private_key(ec.SECP256R1()).public_key())
    for bad in (text, other, f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----"):
        with pytest.raises(InvalidError, match="not an Ed25519 public key"):
            identity.verifying_keys(made(desired_keys={"k": bad}))


def test_settings_change_the_way_to_the_hub() -> None:
    assert identity.endpoints(made(), HubSettings()) == made().endpoints
    found = identity.endpoints(made(), HubSettings(mqtt_port=1, url="https://gateway"))
    assert (found.mqtt_host, found.mqtt_port, found.hub_url) == ("hub", 1, "https://gateway")


@given(st.text(max_size=30), st.integers(1, 400))
def test_renewal_is_due_in_the_second_half_and_before_two_thirds(uid: str, days: int) -> None:
    life = timedelta(days=days)
    due = renewal.due_at(made(uid=uid, not_after=START + life))
    assert START + life * 0.5 <= due < START + life * 2 / 3


def test_a_floor_binds_the_uid_that_accepted_it_and_no_other(tmp_path: Path) -> None:
    disk, key = Disk(tmp_path), Ed25519PrivateKey.generate()
    known = made(desired_keys={"k": pem(key.public_key())})
    keys = identity.verifying_keys(known)
    state = DesiredState(uid="d1", manifest_version=7, issued_at=START)
    envelope = messages.encode(trust.sign(state, key, "k"))
    disk.write_desired(AcceptedDesired(manifest_version=7, envelope=envelope, uid="d1"))
    assert app._read_accepted(disk, known, keys) == (7, state)
    assert app._read_accepted(disk, made(uid="d2"), keys) == (0, None)
    disk.write_desired(AcceptedDesired(manifest_version=7, envelope=b"damaged", uid="d1"))
    assert app._read_accepted(disk, known, keys) == (7, None)
    disk.write_desired(AcceptedDesired(manifest_version=7, envelope=envelope))
    assert app._read_accepted(disk, made(uid="d2"), keys) == (7, None), "nobody's: it binds"
