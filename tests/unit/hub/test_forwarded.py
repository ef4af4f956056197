"""Whose word counts for who asks: a hub's, by its certificate and its seal, and nobody else's."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.hub.conftest import new_csr

from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.core import forwarding
from skerry.core.access import Identity
from skerry.core.forwarding import Word
from skerry.hub import pki
from skerry.hub.authentication.forwarded import ACTS_AS, VIA, ForwardedRequests
from skerry.hub.identity import PEER, PeerCertificate
from skerry.kit.clock import SystemClock

PATH = "/api/v1/namespaces/default/pods/digits.till-1/log"
ANNA = Identity(role="user", name="anna", groups=("ops",))
DEVICE = Identity(role="device", name="uid-1", namespace="default")


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(file.read_text())


def requests(authority: pki.Authority, *, leads: bool = True, known: bool = True) -> ForwardedRequests:
    return ForwardedRequests(
        ca=x509.load_pem_x509_certificate(authority.ca_pem),
        key=authority.derive_key(forwarding.PURPOSE),
        holder="leader",
        clock=SystemClock(),
        leads=lambda: leads,
        known=lambda *_: known,
    )


def scope(authority: pki.Authority, certificate: bytes | None, caller: Identity = ANNA, **changed: Any) -> Any:
    word = Word(
        to="leader",
        method="GET",
        target=f"{PATH}?tailLines=3",
        at=SystemClock().now(),
        caller=forwarding.person_of(caller),
        source="192.0.2.7",
    )
    text = forwarding.seal(word, authority.derive_key(forwarding.PURPOSE))
    return {
        "type": "http",
        "method": "GET",
        "raw_path": PATH.encode(),
        "query_string": b"tailLines=3",
        "client": ("10.0.0.2", 4711),
        "headers": [(forwarding.HEADER.encode(), text.encode())],
        PEER: None if certificate is None else PeerCertificate(certificate),
        **changed,
    }


async def test_a_hub_s_word_is_who_asks_and_from_where(live_authority: pki.Authority) -> None:
    asked = scope(live_authority, der(live_authority.hub_certificate_file))
    assert await requests(live_authority).identify(asked) == ANNA
    assert (asked["client"][0], asked[VIA], asked[ACTS_AS]) == ("192.0.2.7", "10.0.0.2", None)


async def test_nobody_else_is_read_even_with_a_good_seal(live_authority: pki.Authority, tmp_path: Path) -> None:
    stranger = pki.open_authority(tmp_path / "pki", names=(), clock=SystemClock())
    device = live_authority.issue_device(new_csr(ec.generate_private_key(ec.SECP256R1())), "uid-1", "default")
    for certificate in (
        None,
        der(live_authority.admin_certificate_file),
        der(live_authority.server_certificate_file),
        der(stranger.hub_certificate_file),
        ssl.PEM_cert_to_DER_cert(device.decode()),
        b"no certificate",
    ):
        asked = scope(live_authority, certificate)
        assert await requests(live_authority).identify(asked) is None
        assert ACTS_AS not in asked
        assert asked["client"][0] == "10.0.0.2"
    without = scope(live_authority, der(live_authority.hub_certificate_file), headers=[])
    assert await requests(live_authority).identify(without) is None


async def test_a_hub_s_certificate_without_a_seal_for_this_is_refused(live_authority: pki.Authority) -> None:
    certificate = der(live_authority.hub_certificate_file)
    for changed in ({"query_string": b"tailLines=4"}, {"method": "POST"}, {"raw_path": b"/api/v1/nodes"}):
        with pytest.raises(UnauthorizedError, match="another request"):
            await requests(live_authority).identify(scope(live_authority, certificate, **changed))
    twice = scope(live_authority, certificate)
    twice["headers"] *= 2
    with pytest.raises(UnauthorizedError, match="more than once"):
        await requests(live_authority).identify(twice)


async def test_a_hub_that_leads_no_more_and_a_device_that_is_gone_are_told(live_authority: pki.Authority) -> None:
    certificate = der(live_authority.hub_certificate_file)
    with pytest.raises(UnavailableError, match="does not lead"):
        await requests(live_authority, leads=False).identify(scope(live_authority, certificate))
    assert await requests(live_authority).identify(scope(live_authority, certificate, DEVICE)) == DEVICE
    with pytest.raises(UnauthorizedError, match="does not exist"):
        await requests(live_authority, known=False).identify(scope(live_authority, certificate, DEVICE))
