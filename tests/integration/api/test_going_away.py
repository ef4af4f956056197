"""What is being deleted proves nothing any more, however long a finalizer keeps it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.api.conftest import Hub, new_csr
from tests.integration.api.people import SKERRY

from skerry.api.errors import ForbiddenError, UnauthorizedError
from skerry.api.kinds.enrollment import Enrollment, EnrollmentSpec
from skerry.api.meta import ObjectMeta
from skerry.core.access import ANONYMOUS, Identity
from skerry.drivers.client.api import HubClient
from skerry.hub import enrollment, registry_tokens

REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
TOKEN = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
MERGE = {"content-type": "application/merge-patch+json"}


def hold_and_delete(client: httpx.Client, at: str) -> None:
    """Have it wait for a finalizer, then delete it; a finalizer alone is no deletion."""
    held = client.patch(at, json={"metadata": {"finalizers": ["example.org/wait"]}}, headers=MERGE)
    assert held.status_code == 200, held.text
    gone = client.delete(at)
    assert gone.json()["metadata"]["deletionTimestamp"], gone.text
    assert client.get(at).status_code == 200


def make(client: httpx.Client, at: str, kind: str, version: str = "skerry.dev/v1alpha1", **spec: Any) -> dict[str, Any]:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}} | ({"spec": spec} if spec else {})
    answer = client.post(at, json=document)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_service_accounts_tokens_end_with_the_wish_to_delete_it(hub: Hub, admin: HubClient, namespace: str) -> None:
    at = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    make(admin.http, at, "ServiceAccount", "v1")
    token = admin.http.post(f"{at}/x/token", json=TOKEN).json()["status"]["token"]
    with hub.stranger(headers={"Authorization": f"Bearer {token}"}) as robot:
        assert robot.post(REVIEWS, json=REVIEW).status_code == 201
        hold_and_delete(admin.http, f"{at}/x")
        assert robot.post(REVIEWS, json=REVIEW).status_code == 401
    refused = admin.http.post(f"{at}/x/token", json=TOKEN)
    assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict")
    assert "is being deleted" in refused.json()["message"]


def test_a_device_gets_no_more_certificates(hub: Hub, admin: HubClient, namespace: str) -> None:
    key = new_csr(ec.generate_private_key(ec.SECP256R1()))
    text = make(admin.http, f"{SKERRY}/namespaces/{namespace}/jointokens", "JoinToken", uses=3)["status"]["token"]

    def enroll(csr: str, join_token: str, identity: Identity = ANONYMOUS) -> Enrollment:
        asked = Enrollment(metadata=ObjectMeta(namespace=namespace), spec=EnrollmentSpec(device_name="till", csr=csr))
        return hub.call(enrollment.enroll(hub.context, asked, join_token=join_token, identity=identity))

    first = enroll(key, text).status
    hub.wait_known(first.device_uid)
    itself = Identity(role="device", name=first.device_uid, namespace=namespace)
    enroll(new_csr(ec.generate_private_key(ec.SECP256R1())), "", itself)
    hold_and_delete(admin.http, f"{SKERRY}/namespaces/{namespace}/devices/till")
    hub.wait_known(first.device_uid, known=False)
    with pytest.raises(ForbiddenError, match="was deleted from this hub"):
        enroll(key, "", itself)
    with hub.as_device(first.device_uid, namespace) as device:
        assert device.post(f"{SKERRY}/namespaces/{namespace}/enrollments", json={}).status_code == 401
    again = enroll(key, text).status
    assert again.device_uid != first.device_uid, "with a token its key is another device, as after its end"
    assert again.device_name.startswith("till-"), "the name is taken still"


@pytest.mark.parametrize("kind", ["JoinToken", "RegistryToken"])
def test_a_token_lets_nobody_in_any_more(kind: str, hub: Hub, admin: HubClient, namespace: str) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/{kind.lower()}s"
    text = make(admin.http, at, kind)["status"]["token"]

    def use() -> object:
        if kind == "RegistryToken":
            return hub.call(registry_tokens.find(hub.context, text))
        csr = new_csr(ec.generate_private_key(ec.SECP256R1()))
        asked = Enrollment(metadata=ObjectMeta(namespace=namespace), spec=EnrollmentSpec(device_name="a", csr=csr))
        return hub.call(enrollment.enroll(hub.context, asked, join_token=text, identity=ANONYMOUS))

    if kind == "RegistryToken":
        assert use()
    hold_and_delete(admin.http, f"{at}/x")
    with pytest.raises(UnauthorizedError, match="is not a token of this hub"):
        use()
