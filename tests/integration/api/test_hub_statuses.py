"""Statuses that the hub believes: whoever could write one could be any device, or let in what no policy covers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.api.conftest import Hub, new_csr
from tests.integration.api.people import SKERRY, People

from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken
from skerry.drivers.client.api import HubClient
from skerry.hub import enrollment, pki

HUBS_OWN = ("enrollments", "jointokens", "modelversions", "registrytokens", "trustpolicies")
MERGE = "application/merge-patch+json"
PATCHES = {
    MERGE: {"status": {}},
    "application/strategic-merge-patch+json": {"status": {}},
    "application/json-patch+json": [{"op": "replace", "path": "/status", "value": {}}],
    "application/apply-patch+yaml": {"status": {}},
}


@pytest.fixture
def people(hub: Hub) -> Iterator[People]:
    people = People(hub)
    yield people
    people.close()


@pytest.fixture
def mallory(people: People, namespace: str) -> httpx.Client:
    """A namespace's own admin, by the strongest of the shipped roles that are for namespaces."""
    people.bind("mallory", namespace, "ClusterRole", "skerry-admin", called="mallory")
    return people.user("mallory")


def make_token(client: httpx.Client, namespace: str) -> dict[str, Any]:
    document = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
    answer = client.post(f"{SKERRY}/namespaces/{namespace}/jointokens", json=document)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def enroll(hub: Hub, token: dict[str, Any], csr: str, name: str) -> dict[str, Any]:
    spec = {"csr": csr, "deviceName": name}
    document = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Enrollment", "metadata": {}, "spec": spec}
    bearer = {"Authorization": f"Bearer {token['status']['token']}"}
    with hub.stranger(headers=bearer) as client:
        answer = client.post(f"{SKERRY}/namespaces/default/enrollments", json=document)
    assert answer.status_code == 201, answer.text
    status: dict[str, Any] = answer.json()["status"]
    return status


@pytest.mark.parametrize("plural", HUBS_OWN)
def test_nobody_writes_a_status_that_the_hub_believes(
    plural: str, mallory: httpx.Client, people: People, namespace: str
) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/{plural}/x/status"
    for client in (mallory, people.admin):
        answers = [client.put(at, json={"metadata": {"name": "x"}, "status": {}})]
        answers += [
            client.patch(at, json=body, params={"fieldManager": "m"}, headers={"content-type": kind})
            for kind, body in PATCHES.items()
        ]
        assert [answer.status_code for answer in answers] == [405] * 5
        assert {answer.json()["reason"] for answer in answers} == {"MethodNotAllowed"}
        assert client.get(at).status_code == 404, "it can be read, where it is"
    resources = people.admin.get(SKERRY).json()["resources"]
    assert [one["verbs"] for one in resources if one["name"] == f"{plural}/status"] == [["get"]]
    paths = people.admin.get("/openapi/v3/apis/skerry.dev/v1alpha1").json()["paths"]
    shown = paths[f"{SKERRY}/namespaces/{{namespace}}/{plural}/{{name}}/status"]
    assert {"get", "put", "patch"} & shown.keys() == {"get"}


def test_the_admin_of_one_namespace_gets_no_certificate_of_anothers_device(
    hub: Hub, mallory: httpx.Client, people: People, namespace: str
) -> None:
    victim = enroll(
        hub, make_token(people.admin, f"{namespace}-prod"), new_csr(ec.generate_private_key(ec.SECP256R1())), "v"
    )
    token, csr = make_token(mallory, namespace), new_csr(ec.generate_private_key(ec.SECP256R1()))
    claims = {"claims": {enrollment.record_of(pki.read_request(csr)): victim["deviceUid"]}}
    at = f"{SKERRY}/namespaces/{namespace}/jointokens/{token['metadata']['name']}"
    for path in (at, f"{at}/status"):
        mallory.patch(path, json={"status": claims}, headers={"content-type": MERGE})
    got = enroll(hub, token, csr, "evil")
    assert got["deviceUid"] != victim["deviceUid"]
    assert hub.call(hub.objects.get(Device, namespace, "evil")).metadata.uid == got["deviceUid"]


def test_a_claim_of_another_device_is_not_believed_wherever_it_comes_from(
    hub: Hub, admin: HubClient, people: People, namespace: str, replace_status: Callable[..., None]
) -> None:
    """As if somebody had written into the store: a claim is for a uid that is nobody's, or this very key's."""
    prod = f"{namespace}-prod"
    keys = [new_csr(ec.generate_private_key(ec.SECP256R1())) for _ in range(3)]
    victim = enroll(hub, make_token(people.admin, prod), keys[0], "victim")
    neighbour = enroll(hub, make_token(people.admin, namespace), keys[1], "neighbour")
    for number, uid in enumerate((victim["deviceUid"], neighbour["deviceUid"], "../x", "d1")):
        token = make_token(people.admin, namespace)
        csr = new_csr(ec.generate_private_key(ec.SECP256R1()))
        replace_status(token["metadata"]["name"], {enrollment.record_of(pki.read_request(csr)): uid})
        got = enroll(hub, token, csr, f"other-{number}")
        assert got["deviceUid"] != uid
        stored = hub.call(hub.objects.get(JoinToken, namespace, token["metadata"]["name"]))
        assert (stored.status.used, stored.status.claims) == (1, {}), "it takes a use like any other"
    assert hub.context.gateway.known(victim["deviceUid"], prod)
    assert hub.context.gateway.known(neighbour["deviceUid"], namespace)


def test_a_certificate_is_good_in_its_devices_namespace_alone(hub: Hub, namespace: str) -> None:
    device = hub.add_device(namespace, "till")
    uid = device.metadata.uid
    hub.wait_known(uid)
    answers = []
    for where in (namespace, "elsewhere"):
        with hub.as_device(uid, where) as client:
            answers.append(client.post(f"{SKERRY}/namespaces/{where}/enrollments", json={}).status_code)
    assert answers == [422, 401], "known, and asking for nothing; and nobody"
    assert hub.context.gateway.known(uid)
    assert not hub.context.gateway.known(uid, "elsewhere")
    assert not hub.context.gateway.known(uid, "")


@pytest.fixture
def replace_status(hub: Hub, namespace: str) -> Callable[..., None]:
    """Write claims into a token where no client can."""

    def write(name: str, claims: dict[str, str]) -> None:
        def change(token: JoinToken) -> JoinToken:
            return msgspec.structs.replace(token, status=msgspec.structs.replace(token.status, claims=claims))

        hub.call(hub.objects.update_status(JoinToken, namespace, name, change))

    return write
