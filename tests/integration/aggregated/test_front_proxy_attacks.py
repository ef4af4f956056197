"""Who is believed to speak for others: the proxy, and nobody else, whatever their certificates and headers say."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.aggregated.certificates import Ca
from tests.integration.aggregated.cluster import REVIEWS, Cluster
from tests.integration.aggregated.conftest import ALICE, API, HubProcess
from tests.integration.aggregated.proxy import AGGREGATOR, Connector, headers_of

from skerry.hub import pki
from skerry.kit.clock import SystemClock

PATH = f"{API}/namespaces/default/devices"
MASTER = headers_of(*AGGREGATOR)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    shared_cluster.allows = lambda spec: spec["user"] == "alice"
    shared_cluster.requests.clear()
    yield shared_cluster
    shared_cluster.allows = lambda _: False


@pytest.fixture
def proxy(hub: HubProcess, cluster: Cluster) -> Connector:
    return hub.as_(cluster.proxy_certificate)


class HubsOwn(Ca):
    """The hub's own CA, as somebody has it who holds its key."""

    def __init__(self, hub: HubProcess, directory: Path) -> None:
        authority = pki.open_authority(hub.state_dir / "pki", names=(), clock=SystemClock(), may_create=False)
        key = serialization.load_pem_private_key((hub.state_dir / "pki" / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.directory, self.key = directory, key
        self.certificate = authority._ca
        self.name = self.certificate.subject


def handshake_fails(connector: Connector) -> bool:
    """Whether the hub ends the connection instead of answering."""
    with contextlib.closing(connector.connect()) as connection:
        try:
            connection.request("GET", "/livez")
            connection.getresponse()
        except (TimeoutError, ssl.SSLError, ConnectionError):
            return True
    return False


def test_the_proxy_speaks_for_the_user_it_names(proxy: Connector, cluster: Cluster) -> None:
    code, _, found = proxy.ask("GET", PATH, ALICE)
    assert (code, found["kind"]) == (200, "DeviceList")
    (spec,) = cluster.asked(REVIEWS)
    assert (spec["user"], spec["groups"]) == ("alice", ["dev", "system:authenticated"])
    code, _, refused = proxy.ask("GET", PATH, headers_of("bob"))
    assert code == 403
    assert 'User "bob" cannot list resource "devices" in API group "skerry.dev"' in refused["message"]


@pytest.mark.parametrize("headers", [ALICE, MASTER, headers_of("skerry:admins", ("skerry:admins", "system:masters"))])
def test_headers_without_a_certificate_say_nothing(
    hub: HubProcess, cluster: Cluster, headers: list[tuple[str, str]]
) -> None:
    code, _, refused = hub.as_(None).ask("GET", PATH, headers)
    assert (code, refused["reason"]) == (401, "Unauthorized")
    assert cluster.asked(REVIEWS) == []


def test_headers_with_the_hubs_own_certificates_say_nothing(hub: HubProcess, cluster: Cluster, tmp_path: Path) -> None:
    """The admin stays the admin and a device a device; a user of the hub's CA is none of the cluster's."""
    assert hub.as_admin.ask("GET", PATH, headers_of("nobody"))[0] == 200
    own = HubsOwn(hub, tmp_path)
    for common, organisation in (
        ("front-proxy-client", ""),
        ("alice", "dev"),
        ("front-proxy-client", "system:masters"),
    ):
        connector = hub.as_(own.issue(common, organisation=organisation))
        for headers in ((), ALICE, MASTER):
            assert connector.ask("GET", PATH, headers)[0] == 401, (common, headers)
    assert cluster.asked(REVIEWS) == []


@pytest.mark.parametrize(
    ("common", "organisation"),
    [
        ("admin", "skerry:admins"),
        ("admin", "system:masters"),
        ("uid-1", "skerry:devices"),
        ("front-proxy-client", "skerry:admins"),
    ],
)
def test_what_the_proxys_ca_says_in_a_subject_is_nothing_to_the_hub(
    hub: HubProcess, cluster: Cluster, common: str, organisation: str
) -> None:
    connector = hub.as_(cluster.proxy_ca.issue(common, organisation=organisation, file="subject"))
    assert connector.ask("GET", PATH)[0] == 401


def test_a_certificate_of_the_proxys_ca_for_another_name_may_not_speak(hub: HubProcess, cluster: Cluster) -> None:
    connector = hub.as_(cluster.proxy_ca.issue("kube-scheduler"))
    code, _, refused = connector.ask("GET", PATH, MASTER)
    assert code == 401
    assert 'a client certificate for "kube-scheduler" may not speak for others' in refused["message"]
    assert connector.ask("GET", "/livez")[0] == 200


def test_a_certificate_of_a_ca_of_the_same_name_ends_the_handshake(hub: HubProcess, tmp_path: Path) -> None:
    impostor = Ca(tmp_path, "front-proxy-ca")
    assert handshake_fails(hub.as_(impostor.issue("front-proxy-client")))


def test_an_expired_proxy_certificate_ends_the_handshake(hub: HubProcess, cluster: Cluster) -> None:
    expired = cluster.proxy_ca.issue("front-proxy-client", life=-timedelta(seconds=5), file="expired")
    assert handshake_fails(hub.as_(expired))
    assert not handshake_fails(hub.as_(cluster.proxy_certificate))


def test_a_server_certificate_of_the_proxys_ca_is_no_clients(hub: HubProcess, cluster: Cluster) -> None:
    assert handshake_fails(hub.as_(cluster.proxy_ca.issue("front-proxy-client", server=True, file="server")))


@pytest.mark.parametrize(
    "name", ["X_Remote_User", "X-Remote_User", "X-Remote-Users", "X-Forwarded-User", "Remote-User"]
)
def test_names_that_look_like_the_header_say_nothing(proxy: Connector, cluster: Cluster, name: str) -> None:
    assert proxy.ask("GET", PATH, [(name, "alice")])[0] == 401
    assert cluster.asked(REVIEWS) == []


def test_the_headers_are_known_in_any_case(proxy: Connector, cluster: Cluster) -> None:
    assert proxy.ask("GET", PATH, [("x-ReMoTe-uSeR", "alice"), ("X-REMOTE-GROUP", "dev")])[0] == 200


def test_two_users_in_one_request_are_none(proxy: Connector, cluster: Cluster) -> None:
    for second in ("X-Remote-User", "x-remote-user"):
        code, _, refused = proxy.ask("GET", PATH, [("X-Remote-User", "alice"), (second, "root")])
        assert code == 401
        assert "more than once" in refused["message"]
    assert cluster.asked(REVIEWS) == []


def test_the_proxy_cannot_make_admins_of_the_hub(proxy: Connector, cluster: Cluster) -> None:
    assert proxy.ask("GET", PATH, headers_of("mallory", ("skerry:admins",)))[0] == 403
    (spec,) = cluster.asked(REVIEWS)
    assert spec["groups"] == ["system:authenticated"]
    assert proxy.ask("GET", PATH, headers_of("skerry:device:default:uid"))[0] == 401


def test_a_user_with_hundreds_of_groups_is_served(proxy: Connector, cluster: Cluster) -> None:
    groups = tuple(f"cn=group-{number},ou=unit,dc=example,dc=org" for number in range(400))
    assert proxy.ask("GET", PATH, headers_of("alice", groups))[0] == 200
    assert len(cluster.asked(REVIEWS)[-1]["groups"]) == 401


def test_somebody_the_proxy_does_not_know_is_nobody(proxy: Connector, cluster: Cluster) -> None:
    anonymous = headers_of("system:anonymous", ("system:unauthenticated",))
    assert proxy.ask("GET", PATH, anonymous)[0] == 401
    assert proxy.ask("GET", "/readyz", anonymous)[0] == 200


def test_a_proxy_that_names_nobody_is_nobody(proxy: Connector, cluster: Cluster) -> None:
    assert proxy.ask("GET", PATH)[0] == 401
    assert proxy.ask("GET", PATH, [("X-Remote-Group", "system:masters")])[0] == 401
