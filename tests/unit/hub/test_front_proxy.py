"""Whom a front proxy speaks for: pure, with real certificates of several CAs."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.authentication import front_proxy
from skerry.hub.authentication.front_proxy import FrontProxies, RequestHeaders

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ALICE = ((b"x-remote-user", b"alice"),)


class Ca:
    """A CA, self-signed or not."""

    def __init__(self, common: str = "front-proxy-ca", *, until: datetime = NOW + timedelta(days=365)) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        self.certificate = self.sign(self.name, self.key, ca=True, until=until)

    def sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
        until: datetime = NOW + timedelta(days=30),
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=10))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def client(self, common: str = "front-proxy-client", **more: Any) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        return self.sign(subject, ec.generate_private_key(ec.SECP256R1()), **more).public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


CA = Ca()
SETTINGS = RequestHeaders(authorities=(CA.certificate,), allowed_names=("front-proxy-client",))
PROXY = CA.client()


def ask(der: bytes, *headers: tuple[bytes, bytes], settings: RequestHeaders = SETTINGS) -> Identity | None:
    return FrontProxies(settings=settings).authenticate(der, headers, NOW)


def test_the_proxys_word_counts() -> None:
    found = ask(
        PROXY,
        *ALICE,
        (b"x-remote-uid", b"42"),
        (b"x-remote-group", b"dev"),
        (b"x-remote-group", b"system:masters"),
        (b"x-remote-extra-example.com%2fscopes", b"one"),
        (b"x-remote-extra-example.com%2fscopes", b"two"),
    )
    assert found is not None
    assert (found.role, found.name, found.uid) == ("user", "alice", "42")
    assert found.groups == ("dev", "system:masters", "system:authenticated")
    assert found.extra == {"example.com/scopes": ("one", "two")}


def test_headers_are_known_in_any_case() -> None:
    assert ask(PROXY, (b"X-REMOTE-User", b"alice"), (b"X-Remote-GROUP", b"dev")) == ask(
        PROXY, *ALICE, (b"x-remote-group", b"dev")
    )


@pytest.mark.parametrize(
    "header",
    [b"x_remote_user", b"x-remote_user", b"x-remote-user-", b"remote-user", b"x-forwarded-user", b"x-remote-use"],
)
def test_names_that_only_look_like_the_headers_say_nothing(header: bytes) -> None:
    assert ask(PROXY, (header, b"alice")) is None


def test_a_user_who_is_named_twice_is_refused() -> None:
    """Whichever of them counted, a client might have written it."""
    with pytest.raises(UnauthorizedError, match="more than once"):
        ask(PROXY, *ALICE, (b"X-Remote-User", b"root"))
    with pytest.raises(UnauthorizedError, match="more than once"):
        ask(PROXY, *ALICE, (b"x-remote-uid", b"1"), (b"x-remote-uid", b"2"))


def test_a_certificate_without_headers_is_nobody() -> None:
    assert ask(PROXY) is None
    assert ask(PROXY, (b"x-remote-user", b""), (b"x-remote-group", b"system:masters")) is None
    assert ask(PROXY, (b"x-remote-group", b"system:masters")) is None


def test_a_proxy_may_say_that_it_does_not_know_who_asks() -> None:
    assert ask(PROXY, (b"x-remote-user", b"system:anonymous"), (b"x-remote-group", b"system:masters")) is ANONYMOUS


def test_a_name_that_is_not_allowed_is_refused_and_none_allowed_means_all() -> None:
    other = CA.client("kube-scheduler")
    with pytest.raises(UnauthorizedError, match=r'"kube-scheduler" may not speak'):
        ask(other, *ALICE)
    assert ask(other) is None
    anybody = RequestHeaders(authorities=(CA.certificate,))
    found = ask(other, *ALICE, settings=anybody)
    assert found is not None
    assert found.name == "alice"


def test_a_certificate_of_another_ca_is_no_proxy_whatever_it_says() -> None:
    impostor = Ca()  # the same names, another key
    assert impostor.name == CA.name
    assert ask(impostor.client(), *ALICE) is None
    assert ask(b"", *ALICE) is None
    assert ask(b"\x30\x03\x02\x01\x01", *ALICE) is None


def test_a_certificate_that_the_proxy_signed_is_no_proxy() -> None:
    """A leaf has no say, even if its CA forgot to say so."""
    leaf = Ca("front-proxy-client")
    leaf.certificate = CA.sign(leaf.name, leaf.key)
    assert ask(leaf.client(), *ALICE) is None


def test_nothing_outlives_its_time() -> None:
    short = CA.client(until=NOW + timedelta(minutes=1))
    proxies = FrontProxies(settings=SETTINGS)
    assert proxies.authenticate(short, ALICE, NOW) is not None
    assert proxies.authenticate(short, ALICE, NOW + timedelta(minutes=2)) is None
    old = Ca(until=NOW - timedelta(seconds=1))
    assert ask(old.client(), *ALICE, settings=RequestHeaders(authorities=(old.certificate,))) is None


def test_a_ca_that_ends_takes_its_proxies_with_it() -> None:
    ending = Ca(until=NOW + timedelta(minutes=1))
    proxies = FrontProxies(settings=RequestHeaders(authorities=(ending.certificate,)))
    certificate = ending.client()
    assert proxies.is_proxy(certificate, NOW)
    assert not proxies.is_proxy(certificate, NOW + timedelta(minutes=2))


def test_settings_that_are_replaced_count_at_once() -> None:
    proxies, new = FrontProxies(settings=SETTINGS), Ca()
    assert proxies.is_proxy(PROXY, NOW)
    proxies.replace(RequestHeaders(authorities=(new.certificate,)))
    assert not proxies.is_proxy(PROXY, NOW)
    assert proxies.is_proxy(new.client(), NOW)


def test_the_hubs_own_names_are_out_of_reach() -> None:
    found = ask(PROXY, *ALICE, (b"x-remote-group", b"skerry:admins"), (b"x-remote-group", b"SKERRY:Admins"))
    assert found is not None
    assert found.role == "user"
    assert found.groups == ("system:authenticated",)
    with pytest.raises(UnauthorizedError, match="kept for the hub"):
        ask(PROXY, (b"x-remote-user", b"skerry:device:default:x"))


@pytest.mark.parametrize("value", [b"a\xff", b"a\x00b", b"a\nb", b"x" * 2000])
def test_values_that_cannot_be_names_are_refused(value: bytes) -> None:
    for header in (b"x-remote-user", b"x-remote-group", b"x-remote-extra-a"):
        with pytest.raises(UnauthorizedError):
            ask(PROXY, *(ALICE if header != b"x-remote-user" else ()), (header, value))


def test_groups_and_extra_values_are_bounded() -> None:
    many = [(b"x-remote-group", b"g%d" % number) for number in range(front_proxy.MAX_GROUPS + 1)]
    assert ask(PROXY, *ALICE, *many[:-1]) is not None
    with pytest.raises(UnauthorizedError, match="groups"):
        ask(PROXY, *ALICE, *many)
    with pytest.raises(UnauthorizedError, match="extra values"):
        ask(PROXY, *ALICE, *[(b"x-remote-extra-a", b"v")] * (front_proxy.MAX_EXTRA + 1))


NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40)
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).map(str.lower)


@given(NAMES, st.lists(NAMES, max_size=5), st.dictionaries(KEYS, st.lists(NAMES, min_size=1, max_size=3), max_size=3))
def test_what_a_proxy_says_arrives_as_it_was(name: str, groups: list[str], extra: dict[str, list[str]]) -> None:
    """As Kubernetes' API server writes the headers: values in UTF-8, extra keys escaped."""
    said: list[tuple[bytes, bytes]] = [(b"X-Remote-User", name.encode())]
    said += [(b"X-Remote-Group", group.encode()) for group in groups]
    for key, values in extra.items():
        escaped = "".join(letter if letter.isalnum() else f"%{ord(letter):02X}" for letter in key)
        said += [(f"X-Remote-Extra-{escaped}".encode(), value.encode()) for value in values]
    if name.lower().startswith("skerry:"):
        return
    found = front_proxy.read_user(SETTINGS, said)
    assert found is not None
    if name == "system:anonymous":
        assert found is ANONYMOUS
        return
    own = [group for group in dict.fromkeys(groups) if not group.lower().startswith("skerry:")]
    assert (found.name, list(found.groups)) == (name, list(dict.fromkeys([*own, "system:authenticated"])))
    assert found.extra == {key: tuple(values) for key, values in extra.items()}


@given(st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), max_size=6))
def test_any_headers_are_read_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    said = [(b"x-remote-" + name, value) for name, value in headers]
    for each in (headers, said, [(b"x-remote-user", value) for _, value in headers]):
        try:
            found = front_proxy.read_user(SETTINGS, each)
        except UnauthorizedError:
            continue
        assert found is None or found.role in ("user", "anonymous")


def config(**entries: str) -> dict[str, str]:
    return {f"requestheader-{name.replace('_', '-')}": value for name, value in entries.items()}


def test_the_clusters_config_map_is_read_as_kubeadm_writes_it() -> None:
    data = config(
        client_ca_file=CA.pem,
        allowed_names='["front-proxy-client"]',
        username_headers='["X-Remote-User"]',
        group_headers='["X-Remote-Group"]',
        extra_headers_prefix='["X-Remote-Extra-"]',
    )
    found = front_proxy.read_config_map({**data, "client-ca-file": "anything"}, element="ConfigMap")
    assert found == SETTINGS
    assert found.uid_headers == ("X-Remote-Uid",)  # older clusters do not say


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has no requestheader-client-ca-file"),
        (config(client_ca_file=" \n"), "has no requestheader-client-ca-file"),
        (config(client_ca_file="nonsense"), "no bundle of certificates"),
        (config(client_ca_file="x" * 300_000), "longer than"),
        (config(client_ca_file=CA.pem, allowed_names="front-proxy-client"), "not a JSON list"),
        (config(client_ca_file=CA.pem, allowed_names='[""]'), "empty name"),
        (config(client_ca_file=CA.pem, group_headers='{"a": 1}'), "not a JSON list"),
        (config(client_ca_file=CA.pem * 65), "more than 64"),
    ],
)
def test_a_config_map_that_cannot_be_believed_is_refused(data: dict[str, str], said: str) -> None:
    """An empty CA or an empty name would open the hub to everybody."""
    with pytest.raises(InvalidError, match=said) as raised:
        front_proxy.read_config_map(data, element="ConfigMap x")
    assert raised.value.element.startswith("ConfigMap x")


@given(st.dictionaries(st.sampled_from(list(config(client_ca_file="", allowed_names="", uid_headers=""))), st.text()))
def test_any_config_map_is_read_or_refused(data: dict[str, str]) -> None:
    with contextlib.suppress(InvalidError):
        found = front_proxy.read_config_map({**data, **config(client_ca_file=CA.pem)}, element="ConfigMap")
        assert all(found.username_headers)


def test_a_shared_key_is_noticed() -> None:
    same = Ca("another name")
    same.key = CA.key
    assert front_proxy.shares_key((Ca().certificate, CA.certificate), same.sign(same.name, CA.key, ca=True))
    assert not front_proxy.shares_key((Ca().certificate,), CA.certificate)


def test_json_lists_of_names_are_stripped() -> None:
    data = config(client_ca_file=CA.pem, username_headers=json.dumps([" X-User ", "X-Other"]))
    settings = front_proxy.read_config_map(data, element="ConfigMap")
    assert settings.username_headers == ("X-User", "X-Other")
    assert front_proxy.read_user(settings, [(b"x-other", b"bob"), (b"x-user", b"alice")]) == Identity(
        role="user", name="alice"
    )
