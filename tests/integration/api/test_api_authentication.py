"""Users, service accounts and their tokens against a running hub: made, used, refused, taken back."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.integration.api.conftest import WAIT, trusting
from tests.integration.api.kubectl import KUBECTL, Run
from tests.integration.api.people import People, rule

from skerry.core import access, claims
from skerry.hub.authentication import jws

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER = "kubernetes.io/kube-apiserver-client"
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@pytest.fixture
def people(hub: Hub) -> Iterator[People]:
    made = People(hub)
    yield made
    made.close()


@pytest.fixture
def admin_http(people: People) -> httpx.Client:
    return people.admin


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def account_path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/serviceaccounts" + (f"/{name}" if name else "")


def make_account(http: httpx.Client, namespace: str, name: str = "ci") -> None:
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    assert http.post(account_path(namespace), json=body).status_code == 201


def ask_token(http: httpx.Client, namespace: str, name: str = "ci", **spec: Any) -> httpx.Response:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return http.post(f"{account_path(namespace, name)}/token", json=body)


def token_of(http: httpx.Client, namespace: str, name: str = "ci", **spec: Any) -> str:
    answer = ask_token(http, namespace, name, **spec)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["status"]["token"])


def whoami(http: httpx.Client, **headers: str) -> httpx.Response:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    return http.post(WHOAMI, json=body, headers=headers)


def name_of(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    return str(answer.json()["status"]["userInfo"]["username"])


def test_an_account_s_token_is_the_account_until_it_is_deleted(
    hub: Hub, namespace: str, admin_http: httpx.Client
) -> None:
    make_account(admin_http, namespace)
    token = token_of(admin_http, namespace)
    with hub.stranger() as stranger:
        answer = whoami(stranger, **bearer(token))
        assert name_of(answer) == f"system:serviceaccount:{namespace}:ci"
        found = answer.json()["status"]["userInfo"]
        assert found["groups"] == [
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        ]
        assert found["extra"][claims.CREDENTIAL_ID][0].startswith("JTI=")
        assert stranger.get("/api", headers=bearer(token)).status_code == 200  # system:discovery is for all who log in
        assert stranger.get(account_path(namespace), headers=bearer(token)).status_code == 403
        assert admin_http.delete(account_path(namespace, "ci")).status_code == 200
        assert whoami(stranger, **bearer(token)).status_code == 401
        make_account(admin_http, namespace)
        again = whoami(stranger, **bearer(token))
        assert again.status_code == 401
        assert "service account was deleted" in again.json()["message"]
        assert name_of(whoami(stranger, **bearer(token_of(admin_http, namespace))))


def test_who_presents_a_token_is_never_nobody(hub: Hub, namespace: str, admin_http: httpx.Client) -> None:
    make_account(admin_http, namespace)
    good = token_of(admin_http, namespace)
    head, body, _ = good.split(".")
    other = jws.sign(base64.urlsafe_b64decode(body + "=="), ec.generate_private_key(ec.SECP256R1()), key_id="x")
    bad = [
        "rubbish",
        "",
        "a.b.c",
        "é",
        "x" * 40_000,
        good[:-3],
        f"{head}.{body}.",
        other,
        f"{jwt.encode({'iss': hub.url}, None, 'none')}",
        token_of(admin_http, namespace, audiences=["somebody-else"]),
    ]
    with hub.stranger() as stranger:
        for path in ("/healthz", "/version", "/api", account_path(namespace), "/apis/skerry.dev/v1alpha1/devices"):
            for token in bad:
                refused = stranger.get(path, headers={"Authorization": f"Bearer {token}".strip().encode()})
                assert (refused.status_code, refused.json()["reason"]) == (401, "Unauthorized"), (path, token)
                assert not token or token not in refused.text
        assert stranger.get("/healthz").status_code == 200


def test_a_certificate_goes_before_a_token(namespace: str, admin_http: httpx.Client) -> None:
    make_account(admin_http, namespace)
    assert name_of(whoami(admin_http, **bearer(token_of(admin_http, namespace)))) == "admin"
    assert name_of(whoami(admin_http, **bearer("rubbish"))) == "admin"


def test_tokens_are_bounded_and_shown_once(hub: Hub, namespace: str, admin_http: httpx.Client) -> None:
    assert ask_token(admin_http, namespace).status_code == 404
    make_account(admin_http, namespace)
    answer = ask_token(admin_http, namespace, expirationSeconds=10**12)
    assert answer.json()["spec"]["expirationSeconds"] == claims.MAX_LIFE.total_seconds()
    assert answer.headers["cache-control"] == "no-store"
    assert ask_token(admin_http, namespace).json()["spec"] == {"audiences": [hub.url], "expirationSeconds": 3600}
    refusals: list[dict[str, Any]] = [
        {"expirationSeconds": 599},
        {"expirationSeconds": -1},
        {"expirationSeconds": "x"},
        {"audiences": ["a"] * 33},
        {"audiences": [""]},
        {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "x"}},
        {"unheard": 1},
    ]
    for spec in refusals:
        assert ask_token(admin_http, namespace, **spec).status_code == 422, spec
    body = {"apiVersion": "v1", "kind": "TokenRequest", "spec": {}}
    assert admin_http.post(f"{account_path(namespace, 'ci')}/token", json=body).status_code == 400
    dry = admin_http.post(
        f"{account_path(namespace, 'ci')}/token?dryRun=All",
        json={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    assert dry.status_code == 201
    assert dry.json()["status"]["token"] == ""


def test_to_make_a_token_is_a_right_of_its_own(namespace: str, people: People) -> None:
    make_account(people.admin, namespace)
    people.grant("tess", namespace, rule(["*"], ["serviceaccounts"], group=""), name="accounts")
    assert ask_token(people.user("tess"), namespace).status_code == 403
    people.grant("tess", namespace, rule(["create"], ["serviceaccounts/token"], group=""), name="tokens")
    assert ask_token(people.user("tess"), namespace).status_code == 201


def test_token_reviews(hub: Hub, namespace: str, people: People) -> None:
    make_account(people.admin, namespace)

    def review(**spec: Any) -> dict[str, Any]:
        answer = people.admin.post(
            REVIEWS, json={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        )
        assert answer.status_code == 201, answer.text
        assert "token" not in answer.json()["spec"] or not answer.json()["spec"]["token"]
        status: dict[str, Any] = answer.json()["status"]
        return status

    token = token_of(people.admin, namespace, audiences=["vault", "other"])
    assert not review(token=token).get("authenticated")
    assert not review(token=token, audiences=["nobody"]).get("authenticated")
    good = review(token=token, audiences=["vault", "x"])
    assert (good["authenticated"], good["audiences"]) == (True, ["vault"])
    assert good["user"]["username"] == f"system:serviceaccount:{namespace}:ci"
    bad = review(token="rubbish")
    assert not bad.get("authenticated")
    assert bad["error"]
    assert "rubbish" not in json.dumps(bad)
    stranger = people.user("sam")
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    assert stranger.post(REVIEWS, json=body).status_code == 403


def test_others_can_check_tokens_by_the_published_keys(hub: Hub, namespace: str, admin_http: httpx.Client) -> None:
    make_account(admin_http, namespace)
    token = token_of(admin_http, namespace, audiences=["vault"])
    with hub.stranger() as stranger:
        configuration = stranger.get("/.well-known/openid-configuration").json()
        assert configuration["issuer"] == hub.url
        keys = stranger.get(configuration["jwks_uri"])
    assert keys.headers["content-type"] == "application/jwk-set+json"
    key = jwt.PyJWKSet.from_dict(keys.json())[jwt.get_unverified_header(token)["kid"]]
    read = jwt.decode(token, key, algorithms=["ES256"], audience="vault", issuer=configuration["issuer"])
    assert read["sub"] == f"system:serviceaccount:{namespace}:ci"


def test_join_tokens_and_the_registry_keep_their_ways(hub: Hub, namespace: str, admin_http: httpx.Client) -> None:
    make_account(admin_http, namespace)
    with hub.stranger() as stranger:
        enrolment = f"/apis/skerry.dev/v1alpha1/namespaces/{namespace}/enrollments"
        body = {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "Enrollment",
            "metadata": {},
            "spec": {"deviceName": "d", "csr": "x"},
        }
        refused = stranger.post(enrolment, json=body, headers=bearer("skj1.x.y.z"))
        assert refused.status_code == 401
        assert "join token" in refused.json()["message"]
        assert stranger.get(enrolment, headers=bearer("skj1.x.y.z")).status_code == 401
        registry = stranger.get("/v2/", headers=bearer("rubbish"))
        assert registry.status_code == 401
        assert registry.json()["errors"][0]["code"] == "UNAUTHORIZED"


def csr(name: str, *groups: str, key: ec.EllipticCurvePrivateKey | None = None) -> str:
    subject = [
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    signed = request.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return base64.b64encode(signed.public_bytes(serialization.Encoding.PEM)).decode()


def request_for(name: str, request: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": request, "signerName": SIGNER, "usages": ["client auth"], **spec},
    }


def decide(http: httpx.Client, item: dict[str, Any], kind: str = "Approved", query: str = "") -> httpx.Response:
    conditions = [{"type": kind, "status": "True", "reason": "Test", "message": "a test's"}]
    changed = {**item, "status": {"conditions": [*item.get("status", {}).get("conditions", []), *conditions]}}
    return http.put(f"{REQUESTS}/{item['metadata']['name']}/approval{query}", json=changed)


def test_a_certificate_is_signed_in_the_moment_of_its_approval(hub: Hub, namespace: str, people: People) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    asked = request_for(f"{namespace}-a", csr("ada", "dev", "ops", key=key), expirationSeconds=600, username="root")
    made = people.admin.post(REQUESTS, json=asked)
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["username"] == "admin"
    dry = decide(people.admin, made.json(), query="?dryRun=All")
    assert dry.status_code == 200, dry.text
    assert "certificate" not in dry.json()["status"]
    done = decide(people.admin, made.json())
    assert done.status_code == 200, done.text
    pem = base64.b64decode(done.json()["status"]["certificate"])
    certificate = x509.load_pem_x509_certificate(pem)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=1, minutes=10)
    file = hub.directory / f"{namespace}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + pem)
    context = trusting(hub.context.authority.ca_pem)
    context.load_cert_chain(file)
    with httpx.Client(base_url=hub.url, verify=context, timeout=WAIT) as ada:
        answer = whoami(ada)
        assert name_of(answer) == "ada"
        assert answer.json()["status"]["userInfo"]["groups"] == ["dev", "ops", "system:authenticated"]
    assert decide(people.admin, done.json(), "Denied").status_code == 422
    taken_back = {**done.json(), "status": {"conditions": []}}
    assert people.admin.put(f"{REQUESTS}/{namespace}-a/approval", json=taken_back).status_code == 422


def test_decisions_may_be_patched(namespace: str, people: People) -> None:
    name = f"{namespace}-p"
    path = f"{REQUESTS}/{name}/approval"
    assert people.admin.post(REQUESTS, json=request_for(name, csr("pia"))).status_code == 201
    change = {"status": {"conditions": [{"type": "Approved", "status": "True"}]}, "spec": {"username": "root"}}

    def patch(http: httpx.Client, kind: str, content: Any) -> httpx.Response:
        return http.patch(path, json=content, headers={"Content-Type": f"application/{kind}"})

    applied = {**request_for(name, csr("pia")), **change}
    assert patch(people.admin, "apply-patch+yaml", applied).status_code == 415
    user = f"pat-{namespace}"
    resources = ["certificatesigningrequests/approval"]
    people.grant(user, "", rule(["*"], resources, group="certificates.k8s.io"), name=f"patch-{namespace}")
    assert patch(people.user(user), "merge-patch+json", change).status_code == 403
    assert patch(people.admin, "merge-patch+json", {"status": {"conditions": [{"type": "Signed"}]}}).status_code == 422
    assert "certificate" not in people.admin.get(path).json()["status"]
    done = patch(people.admin, "merge-patch+json", change)
    assert done.status_code == 200, done.text
    assert done.json()["status"]["certificate"]
    assert done.json()["spec"]["username"] == "admin"
    back = [{"op": "replace", "path": "/status/conditions", "value": []}]
    assert patch(people.admin, "json-patch+json", back).status_code == 422
    forged = [{"op": "replace", "path": "/status/certificate", "value": "eA=="}]
    assert patch(people.admin, "json-patch+json", forged).json()["status"] == done.json()["status"]


def test_a_denied_request_is_never_signed(namespace: str, people: People) -> None:
    made = people.admin.post(REQUESTS, json=request_for(f"{namespace}-d", csr("dan"))).json()
    denied = decide(people.admin, made, "Denied")
    assert denied.status_code == 200
    assert "certificate" not in denied.json()["status"]
    assert decide(people.admin, denied.json()).status_code == 422


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"request": csr("root", "skerry:admins")}, 403),
        ({"request": csr("root", "system:masters")}, 403),
        ({"request": csr("root", "System:Masters")}, 403),
        ({"request": csr("x", "skerry:devices")}, 403),
        ({"request": csr("x", "skerry:hubs")}, 403),
        ({"request": csr("system:serviceaccount:default:ci")}, 403),
        ({"request": csr("system:admin", "dev")}, 403),
        ({"request": csr("skerry-hub")}, 403),
        ({"request": csr("admin", "dev")}, 403),
        ({"request": csr("ADMIN")}, 403),
        ({"request": csr("skerry:device:default:d1")}, 403),
        ({"request": csr(" skerry:admins")}, 422),
        ({"request": csr("ada", *(f"g{n}" for n in range(access.MAX_GROUPS + 1)))}, 422),
        ({"request": csr("x", key=ec.generate_private_key(ec.SECP521R1()))}, 422),  # type: ignore[arg-type]
        ({"request": "*"}, 422),
        ({"request": base64.b64encode(b"rubbish").decode()}, 422),
        ({"request": ""}, 422),
        ({"signerName": "example.org/other"}, 422),
        ({"usages": ["server auth", "client auth"]}, 422),
        ({"usages": []}, 422),
        ({"expirationSeconds": 599}, 422),
    ],
)
def test_what_nobody_may_ask_for(namespace: str, people: People, changes: dict[str, Any], code: int) -> None:
    asked = {**request_for(f"{namespace}-x", csr("ada")), "status": {"certificate": "eA=="}}
    asked["spec"] = {**asked["spec"], **changes}
    answer = people.admin.post(REQUESTS, json=asked)
    assert (answer.status_code, answer.json()["kind"]) == (code, "Status"), answer.text
    assert people.admin.get(f"{REQUESTS}/{namespace}-x").status_code == 404


def test_approving_takes_the_right_to_approve_for_the_signer(namespace: str, people: People) -> None:
    group = "certificates.k8s.io"
    resources = ["certificatesigningrequests", "certificatesigningrequests/approval"]
    user = f"boss-{namespace}"
    people.grant(user, "", rule(["*"], resources, group=group), name=f"requests-{namespace}")
    boss = people.user(user)
    made = boss.post(REQUESTS, json=request_for(f"{namespace}-b", csr("bob")))
    assert made.status_code == 201, made.text
    assert made.json()["spec"]["username"] == user
    assert made.json()["spec"]["groups"] == ["system:authenticated"]
    assert decide(boss, made.json()).status_code == 403
    signing = {**made.json(), "status": {"certificate": "eA=="}}
    assert boss.put(f"{REQUESTS}/{namespace}-b/status", json=signing).status_code in (403, 405)
    assert people.admin.put(f"{REQUESTS}/{namespace}-b/status", json=signing).status_code == 405
    people.grant(user, "", rule(["approve"], ["signers"], SIGNER, group=group), name=f"approve-{namespace}")
    assert decide(boss, made.json()).status_code == 200


# --- kubectl and skerry -----------------------------------------------------------------------------------------------


@needs_kubectl
def test_kubectl_approves_and_makes_tokens(kubectl: Run, namespace: str) -> None:
    assert "admin" in kubectl("auth", "whoami").stdout
    manifest = json.dumps(request_for(f"{namespace}-k", csr("kim", "dev")))
    kubectl("create", "-f", "-", text=manifest)
    assert "Pending" in kubectl("get", "csr", f"{namespace}-k").stdout
    assert "approved" in kubectl("certificate", "approve", f"{namespace}-k").stdout
    assert "Approved,Issued" in kubectl("get", "csr", f"{namespace}-k").stdout
    pem = kubectl("get", "csr", f"{namespace}-k", "-o", "jsonpath={.status.certificate}").stdout
    assert x509.load_pem_x509_certificate(base64.b64decode(pem))
    kubectl("create", "-f", "-", text=manifest.replace("-k", "-n"))
    assert "denied" in kubectl("certificate", "deny", f"{namespace}-n").stdout
    assert "Denied" in kubectl("get", "csr", f"{namespace}-n").stdout
    assert "requesting user" in kubectl("describe", "csr", f"{namespace}-k").stdout.lower()
    kubectl("create", "serviceaccount", "ci")
    token = kubectl("create", "token", "ci", "--duration", "10m").stdout.strip()
    assert token.count(".") == 2
    assert "10 minutes" in kubectl("create", "token", "ci", "--duration", "9m", fails=True).stderr
    listed = kubectl("api-resources", "--api-group", "authentication.k8s.io").stdout
    assert {"selfsubjectreviews", "tokenreviews"} <= set(listed.split())


def skerry(hub: Hub, home: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "skerry.cli", *arguments],
        env={**os.environ, "SKERRY_KUBECONFIG": str(hub.kubeconfig), "HOME": str(home), "KUBECONFIG": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done
    return done


def config_of(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(file.read_text())
    return read


@needs_kubectl
def test_skerry_writes_kubeconfigs_that_kubectl_takes(hub: Hub, namespace: str, people: People, tmp_path: Path) -> None:
    make_account(people.admin, namespace)

    def who(file: Path, *options: str) -> str:
        assert KUBECTL is not None
        done = subprocess.run(
            [KUBECTL, "--kubeconfig", file, *options, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    alice, both = tmp_path / "alice", tmp_path / "both"
    said = skerry(
        hub, tmp_path, "kubeconfig", "--user", "alice", "--group", "dev", "--duration", "1h", "-o", str(alice)
    )
    assert "good until" in said.stderr
    assert stat.S_IMODE(alice.stat().st_mode) == 0o600
    assert who(alice) == "alice"
    before = alice.read_bytes()
    refused = skerry(hub, tmp_path, "kubeconfig", "--user", "alice", "-o", str(alice), fails=True)
    assert "--merge" in refused.stderr
    assert alice.read_bytes() == before
    skerry(hub, tmp_path, "kubeconfig", "-o", str(both), "--merge")
    name = f"{namespace}/ci"
    skerry(hub, tmp_path, "kubeconfig", "--service-account", name, "-o", str(both), "--merge", "--context", "robot")
    assert who(both) == "admin"
    assert who(both, "--context", "robot") == f"system:serviceaccount:{namespace}:ci"
    assert config_of(both)["contexts"][1]["context"]["namespace"] == namespace
    assert not list(tmp_path.glob("*.lock"))
    shown = skerry(hub, tmp_path, "kubeconfig")
    assert yaml.safe_load(shown.stdout)["current-context"] == "skerry"
    skerry(hub, tmp_path, "kubeconfig", "--merge")
    assert who(tmp_path / ".kube/config") == "admin"
    long = skerry(hub, tmp_path, "kubeconfig", "--user", "al", "--duration", "9000h")
    assert "no more than" in long.stderr
    refused = skerry(hub, tmp_path, "kubeconfig", "--user", "root", "--group", "system:masters", fails=True)
    assert "reserved" in refused.stderr
