"""Who may do what at the registry: devices what is deployed to them, tokens what they were made for, nobody nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from tests.integration.registry.conftest import workload

from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Delta, Evaluation, Golden
from skerry.api.meta import ObjectMeta
from skerry.core import manifest as manifests
from skerry.core import registry_access as scopes
from skerry.core.desired import BenchmarkRequest, DesiredRecord, request_benchmarks, withdraw
from skerry.hub.objects import DESIRED_PREFIX

REPOSITORY = "default/digits"


def blob_of(raw: bytes) -> Blob:
    return Blob(digest=f"sha256:{hashlib.sha256(raw).hexdigest()}", size=len(raw))


def push(hub: Any, raw: bytes, repository: str = REPOSITORY) -> Blob:
    blob = blob_of(raw)
    with hub.client() as admin:
        answer = admin.post(f"/v2/{repository}/blobs/uploads/", params={"digest": blob.digest}, content=raw)
        assert answer.status_code == 201, answer.text
    return blob


@pytest.fixture
def device(hub: Any) -> Iterator[httpx.Client]:
    with hub.client("device") as client:
        yield client


@pytest.fixture
def nobody(hub: Any) -> Iterator[httpx.Client]:
    with hub.client("anonymous") as client:
        yield client


def status(client: httpx.Client, blob: Blob, repository: str = REPOSITORY) -> int:
    got = client.get(f"/v2/{repository}/blobs/{blob.digest}")
    if got.status_code == 403:
        assert got.json()["errors"][0]["code"] == "DENIED"
    assert client.head(f"/v2/{repository}/blobs/{blob.digest}").status_code == got.status_code
    return got.status_code


# --- devices ---------------------------------------------------------------------------------------------------------


def test_a_device_pulls_what_is_deployed_to_it_and_nothing_else(hub: Any, device: httpx.Client) -> None:
    wanted = {name: push(hub, name.encode()) for name in ("model", "golden", "delta", "signature", "measured")}
    other, absent = push(hub, b"other"), blob_of(b"absent")
    assert {status(device, blob) for blob in (*wanted.values(), other, absent)} == {403}
    delta = Delta(blob=wanted["delta"], base=other.digest, target=wanted["model"].digest, encoding="x")
    hub.deploy(wanted["model"], golden=wanted["golden"], deltas=[delta], signatures=[wanted["signature"]])
    measured = workload(wanted["measured"], REPOSITORY, name="benchmark.1")
    request = BenchmarkRequest(
        deployment="digits",
        deployment_uid="1",
        rollout="digits-1",
        workload=measured,
        requested_at=hub.context.clock.now(),
    )
    empty = DesiredRecord(uid="till-7", namespace="default", device="till-7")
    hub.run(hub.context.objects.change_desired(empty, lambda record: request_benchmarks(record, [request])))
    assert {name: status(device, blob) for name, blob in wanted.items()} == dict.fromkeys(wanted, 200)
    assert device.get(f"/v2/{REPOSITORY}/blobs/sha256:x").status_code == 400
    assert status(device, other) == status(device, absent) == 403  # nobody is told which of them exists
    part = device.get(f"/v2/{REPOSITORY}/blobs/{wanted['model'].digest}", headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, b"od")


def test_what_another_device_has_is_not_for_this_one(hub: Any, device: httpx.Client) -> None:
    model = push(hub, b"model")
    push(hub, b"model", "default/other")
    push(hub, b"model", "lab/digits")
    hub.deploy(model, uid="till-8")
    hub.deploy(model, uid="till-9", repository="lab/digits")
    assert status(device, model) == 403
    hub.deploy(model)
    assert status(device, model) == 200
    assert status(device, model, "default/other") == 403
    assert status(device, model, "lab/digits") == 403
    with hub.client("device elsewhere") as elsewhere:
        assert status(elsewhere, model, "lab/digits") == 200
        assert status(elsewhere, model) == 403


def test_a_device_may_still_fetch_what_it_had_just_before_but_nothing_older(hub: Any, device: httpx.Client) -> None:
    first, second, third = (push(hub, name) for name in (b"first", b"second", b"third"))
    hub.deploy(first)
    hub.deploy(second)
    assert [status(device, blob) for blob in (first, second, third)] == [200, 200, 403]
    hub.deploy(second, revision=2)  # the same files: what was before them stays what it is
    assert status(device, first) == 200
    hub.deploy(third)
    assert [status(device, blob) for blob in (first, second, third)] == [403, 200, 200]
    hub.deploy(second)
    assert [status(device, blob) for blob in (first, second, third)] == [403, 200, 200]
    empty = DesiredRecord(uid="till-7", namespace="default", device="till-7")
    hub.run(hub.context.objects.change_desired(empty, lambda record: withdraw(record, "digits")))
    assert [status(device, blob) for blob in (first, second, third)] == [403, 403, 403]


def test_a_download_goes_on_while_the_next_version_is_deployed(hub: Any, device: httpx.Client) -> None:
    """A device that has half of a file and is told of another version before it has asked for the rest."""
    raw = b"0123456789" * 100_000
    first, second = push(hub, raw), push(hub, b"second")
    hub.deploy(first)
    url = f"/v2/{REPOSITORY}/blobs/{first.digest}"
    with device.stream("GET", url) as answer:
        pieces = answer.iter_bytes(10_000)
        taken = [next(pieces)]
        hub.deploy(second)
        taken += pieces
    assert b"".join(taken) == raw
    rest = device.get(url, headers={"Range": "bytes=500000-"})
    assert (rest.status_code, rest.content) == (206, raw[500_000:])


def test_a_record_that_cannot_be_read_is_a_passing_failure(hub: Any, device: httpx.Client) -> None:
    model = push(hub, b"model")
    hub.run(hub.context.objects.store.create(f"{DESIRED_PREFIX}till-7", b"{"))
    assert status(device, model) == 503  # a refusal would be final for the device


def test_a_device_reads_about_what_is_deployed_to_it_but_lists_nothing(hub: Any, device: httpx.Client) -> None:
    def put(tag: str, **changes: Any) -> str:
        config = push(hub, b"{}")
        document = {
            "schemaVersion": 2,
            "mediaType": manifests.MANIFEST_TYPE,
            "config": {"mediaType": manifests.EMPTY_TYPE, "digest": config.digest, "size": 2},
            "layers": [],
            **changes,
        }
        with hub.client() as admin:
            url = f"/v2/{REPOSITORY}/manifests/{tag}"
            answer = admin.put(url, content=json.dumps(document), headers={"Content-Type": manifests.MANIFEST_TYPE})
            assert answer.status_code == 201, answer.text
        digest: str = answer.headers["Docker-Content-Digest"]
        return digest

    mine, others = put("1.0.0", annotations={"is": "mine"}), put("2.0.0", annotations={"is": "not"})
    card, model = push(hub, b"card"), push(hub, b"model")
    layer = {"mediaType": manifests.CARD_TYPE, "digest": card.digest, "size": card.size}
    subject = {"mediaType": manifests.MANIFEST_TYPE, "digest": mine, "size": 1}
    attached = put("card", artifactType=manifests.CARD_TYPE, layers=[layer], subject=subject)
    version = ModelVersion(
        metadata=ObjectMeta(name="digits-1.0.0", namespace="default"),
        spec=ModelVersionSpec(
            model="digits",
            version="1.0.0",
            artifact=Artifact(repository=REPOSITORY, digest=mine),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
            golden=Golden(blob=card, samples=1),
        ),
    )
    hub.run(hub.context.objects.create(version))
    base = f"/v2/{REPOSITORY}"
    readable = [f"manifests/{mine}", "manifests/1.0.0", f"manifests/{attached}", f"referrers/{mine}"]
    readable.append(f"blobs/{card.digest}")
    hidden = [f"manifests/{others}", "manifests/2.0.0", f"referrers/{others}", "tags/list", "manifests/none"]
    assert {device.get(f"{base}/{path}").status_code for path in (*readable, *hidden)} == {403}
    hub.deploy(model)
    assert {path: device.get(f"{base}/{path}").status_code for path in readable} == dict.fromkeys(readable, 200)
    assert {path: device.get(f"{base}/{path}").status_code for path in hidden} == dict.fromkeys(hidden, 403)


# --- tokens ----------------------------------------------------------------------------------------------------------


def challenge(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 401, answer.text
    assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
    scheme, _, text = answer.headers["WWW-Authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def log_in(client: httpx.Client, password: str, scope: str = "", user: str = "me") -> httpx.Response:
    params = {"service": "skerry-registry", "scope": scope} if scope else {"service": "skerry-registry"}
    return client.get("/v2/token", params=params, auth=(user, password))


def bearer(client: httpx.Client, password: str, scope: str = "") -> dict[str, str]:
    answer = log_in(client, password, scope)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    said = answer.json()
    assert said["token"] == said["access_token"]
    assert said["expires_in"] >= 60
    return {"Authorization": f"Bearer {said['token']}"}


def test_a_client_follows_the_challenge(hub: Any, nobody: httpx.Client) -> None:
    blob = push(hub, b"model")
    url = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    asked = challenge(nobody.get(url))
    assert asked["realm"] == f"{hub.url}/v2/token"
    assert asked["scope"].startswith(f"repository:{REPOSITORY}:pull")
    headers = bearer(nobody, hub.make_token("pull"), asked["scope"])
    assert nobody.get(url, headers=headers).content == b"model"
    assert nobody.get("/v2/", headers=headers).status_code == 200
    assert challenge(nobody.get("/v2/"))["service"] == "skerry-registry"
    wider = challenge(nobody.post(f"/v2/{REPOSITORY}/blobs/uploads/", headers=headers))
    assert (wider["error"], wider["scope"]) == ("insufficient_scope", f"repository:{REPOSITORY}:pull,push")
    assert challenge(nobody.get(url, headers={"Authorization": "Bearer x"}))["error"] == "invalid_token"


def test_a_token_does_what_it_was_made_for(hub: Any, nobody: httpx.Client) -> None:
    blob = push(hub, b"model")
    push(hub, b"model", "lab/digits")
    push(hub, b"model", "default/other")
    everything = " ".join(
        f"repository:{name}:pull,push,delete" for name in (REPOSITORY, "default/other", "default/new", "lab/digits")
    )

    def statuses(password: str) -> list[int]:
        headers = bearer(nobody, password, everything)
        return [
            nobody.get(f"/v2/{REPOSITORY}/blobs/{blob.digest}", headers=headers).status_code,
            nobody.get(f"/v2/default/other/blobs/{blob.digest}", headers=headers).status_code,
            nobody.get(f"/v2/lab/digits/blobs/{blob.digest}", headers=headers).status_code,
            nobody.post("/v2/default/new/blobs/uploads/", headers=headers).status_code,
            nobody.delete(f"/v2/{REPOSITORY}/blobs/{blob_of(b'absent').digest}", headers=headers).status_code,
        ]

    assert statuses(hub.make_token("pull")) == [200, 200, 401, 401, 401]
    assert statuses(hub.make_token("pull", "push")) == [200, 200, 401, 202, 401]
    assert statuses(hub.make_token("pull", "push", "delete")) == [200, 200, 401, 202, 404]
    assert statuses(hub.make_token("pull", repositories=[REPOSITORY])) == [200, 401, 401, 401, 401]
    assert statuses(hub.make_token("pull", "push", "delete", namespace="lab")) == [401, 401, 200, 401, 401]


def test_a_blob_is_mounted_only_from_where_one_may_pull(hub: Any, nobody: httpx.Client) -> None:
    blob = push(hub, b"model", "lab/digits")
    push(hub, b"model", "default/one")
    scope = "repository:default/two:pull,push repository:default/one:pull repository:lab/digits:pull"
    headers = bearer(nobody, hub.make_token("pull", "push"), scope)
    for source, expected in (("lab/digits", 202), ("default/one", 201)):
        params = {"mount": blob.digest, "from": source}
        answer = nobody.post("/v2/default/two/blobs/uploads/", params=params, headers=headers)
        assert answer.status_code == expected


def test_wrong_and_expired_and_deleted_tokens_are_no_good(hub: Any, nobody: httpx.Client) -> None:
    good = hub.make_token("pull")
    name = good.split(".")[1]
    for wrong in (
        "",
        "x",
        good + "x",
        good[:-1],
        good.replace("skr1", "skr2"),
        f"skr1.default/none.{'a' * 43}",
        "\x00",
    ):
        answer = log_in(nobody, wrong)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
    assert nobody.get("/v2/token").status_code == 401
    for garbage in ("Basic", "Basic ####", "Basic " + base64.b64encode(b"\xff\xfe:x").decode(), "Digest x"):
        assert nobody.get("/v2/token", headers={"Authorization": garbage}).status_code == 401
    assert log_in(nobody, good).status_code == 200
    objects = hub.context.objects

    def expire(token: RegistryToken) -> RegistryToken:
        past = datetime.now(UTC) - timedelta(seconds=1)
        return msgspec.structs.replace(token, status=msgspec.structs.replace(token.status, expires_at=past))

    hub.run(objects.update_status(RegistryToken, *name.split("/"), expire))
    assert "expired" in log_in(nobody, good).json()["errors"][0]["message"]
    other = hub.make_token("pull")
    hub.run(objects.delete(RegistryToken, *other.split(".")[1].split("/")))
    assert log_in(nobody, other).status_code == 401


def test_a_secret_is_stored_as_a_hash_only(hub: Any) -> None:
    token = hub.make_token("pull")
    kept = hub.run(hub.context.objects.get(RegistryToken, *token.split(".")[1].split("/")))
    assert kept.status.token == ""
    assert token.split(".")[2] not in str(kept)


def test_bearer_tokens_expire_and_cannot_be_made_up(hub: Any, nobody: httpx.Client) -> None:
    blob = push(hub, b"model")
    url = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    claims = scopes.Claims(subject="default/x", expires=4e9, grants={REPOSITORY: ["pull"]})
    own = hub.context.authority.derive_key("registry bearer v1")
    assert nobody.get(url, headers={"Authorization": f"Bearer {scopes.seal(claims, own)}"}).status_code == 200
    expired = msgspec.structs.replace(claims, expires=datetime.now(UTC).timestamp() - 1)
    for wrong in (scopes.seal(claims, b"k" * 32), scopes.seal(expired, own), "x", "", "skb1.e30.e30"):
        challenge(nobody.get(url, headers={"Authorization": f"Bearer {wrong}".strip()}))
    with hub.client() as admin:  # whoever shows a token is who it says, and nobody more
        assert admin.get(url, headers={"Authorization": "Bearer x"}).status_code == 401


def test_the_password_grant_of_oauth_works_and_no_other(hub: Any, nobody: httpx.Client) -> None:
    blob = push(hub, b"model")
    form = {
        "grant_type": "password",
        "service": "skerry-registry",
        "client_id": "x",
        "username": "me",
        "password": hub.make_token("pull"),
        "scope": f"repository:{REPOSITORY}:pull,push",
    }
    answer = nobody.post("/v2/token", data=form)
    assert answer.status_code == 200, answer.text
    assert answer.json()["scope"] == f"repository:{REPOSITORY}:pull"
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert nobody.get(f"/v2/{REPOSITORY}/blobs/{blob.digest}", headers=headers).status_code == 200
    assert nobody.post("/v2/token", data={**form, "grant_type": "refresh_token"}).status_code == 400
    assert nobody.post("/v2/token", data={**form, "password": "x"}).status_code == 401
    assert nobody.post("/v2/token", content=b"x" * 40_000).status_code == 413
    assert nobody.post("/v2/token", content=b"\xff&\xff").status_code == 400
    assert nobody.delete("/v2/token").status_code == 405


def test_a_device_or_an_admin_by_certificate_needs_no_token(hub: Any) -> None:
    for role in ("admin", "device"):
        with hub.client(role) as client:
            assert client.get("/v2/").status_code == 200


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_of_whoever_began_it(hub: Any, nobody: httpx.Client) -> None:
    scope = f"repository:{REPOSITORY}:pull,push repository:default/other:pull,push"
    one, two = (bearer(nobody, hub.make_token("pull", "push"), scope) for _ in range(2))
    url = nobody.post(f"/v2/{REPOSITORY}/blobs/uploads/", headers=one).headers["Location"]
    with hub.client() as admin:
        for client, headers, place in (
            (nobody, two, url),
            (admin, {}, url),
            (nobody, one, url.replace("digits", "other")),
            (nobody, one, url[:-1] + ("0" if url[-1] != "0" else "1")),
            (nobody, one, url.rpartition(".")[0]),
        ):
            for method in ("GET", "PATCH", "PUT", "DELETE"):
                answer = client.request(
                    method, place, headers=headers, content=b"x", params={"digest": blob_of(b"x").digest}
                )
                assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")
    done = nobody.put(url, headers=one, content=b"x", params={"digest": blob_of(b"x").digest})
    assert done.status_code == 201
