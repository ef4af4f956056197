"""The verbs over TLS against a real store: what is stored, what is refused, and how it is said."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from skerry.api import errors, patch
from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.meta import ObjectMeta
from skerry.core.messages import Command, CommandResult
from skerry.drivers.client.api import HubClient
from skerry.hub.objects import DESIRED_PREFIX

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub
from tests.integration.api.paths import Make, path, status

# --- create and get -----------------------------------------------------------------------------------------------


def test_a_created_object_comes_back_with_its_metadata_and_defaults(admin: HubClient, deployment: Make) -> None:
    made = admin.create(deployment(), ModelDeployment)
    assert (made.metadata.generation, made.metadata.namespace) == (1, admin.namespace)
    assert made.metadata.uid
    assert made.metadata.creation_timestamp is not None
    raw = admin.get_raw(ModelDeployment, "digits")
    assert raw["spec"]["serving"] == {"port": 0, "threads": 1}
    assert [wave["name"] for wave in raw["spec"]["strategy"]["waves"]] == ["canary", "all"]
    assert raw["metadata"]["resourceVersion"] == made.metadata.resource_version


def test_what_only_the_hub_sets_cannot_be_set(admin: HubClient, deployment: Make) -> None:
    raw = deployment()
    raw["metadata"] |= {"uid": "mine", "generation": 7, "creationTimestamp": "2001-01-01T00:00:00Z", "selfLink": "x"}
    raw["status"] = {"ready": 99}
    made = admin.create(raw, ModelDeployment)
    assert made.metadata.uid != "mine"
    assert made.metadata.generation == 1
    assert made.metadata.creation_timestamp is not None
    assert made.metadata.creation_timestamp.year > 2001
    assert made.status.ready == 0


def test_creating_twice_is_refused(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)
    with pytest.raises(errors.AlreadyExistsError, match="digits"):
        admin.create(deployment(), ModelDeployment)


def test_every_problem_is_told_with_its_path(admin: HubClient, deployment: Make) -> None:
    raw = deployment(
        resources={"limits": {"memory": "12Q"}}, strategy={"waves": [{"count": 1, "percent": 2}]}, pausd=True
    )
    response = admin.http.post(path(admin.namespace, "modeldeployments"), json=raw)
    body = status(response, 422, "Invalid")
    told = {cause["field"]: cause for cause in body["details"]["causes"]}
    assert set(told) == {"spec.resources.limits.memory", "spec.strategy.waves[0]", "spec.pausd"}
    assert told["spec.pausd"]["hint"] == 'did you mean "paused"?'
    assert '"12Q" is not a quantity' in told["spec.resources.limits.memory"]["message"]
    with pytest.raises(errors.InvalidError) as caught:
        admin.create(raw, ModelDeployment)
    assert {problem.element for problem in caught.value.each} == set(told)
    assert all(problem.cause for problem in caught.value.each)
    assert admin.list(ModelDeployment) == []


@pytest.mark.parametrize(
    ("content", "media", "code", "reason", "say"),
    [
        (b"{", "application/json", 400, "BadRequest", "is not JSON"),
        (b"[]", "application/json", 400, "BadRequest", "not a JSON object"),
        (b"\xff", "application/json", 400, "BadRequest", "UTF-8"),
        (b'{"a": 1, "a": 2}', "application/json", 400, "BadRequest", "twice"),
        (b"{}", "application/json", 422, "Invalid", "apiVersion"),
        (b"{}", "application/vnd.kubernetes.protobuf", 415, "UnsupportedMediaType", "content type"),
        (b"a: 1\n---\nb: 2", "application/yaml", 400, "BadRequest", "exactly one"),
        (b"[" * 100_000, "application/json", 400, "BadRequest", "deep"),
    ],
)
def test_bodies_that_are_no_object(  # noqa: PLR0917 - its cases
    admin: HubClient, content: bytes, media: str, code: int, reason: str, say: str
) -> None:
    response = admin.http.post(path(admin.namespace, "devices"), content=content, headers={"content-type": media})
    assert say in status(response, code, reason)["message"]


def test_yaml_is_taken_too(admin: HubClient) -> None:
    text = "apiVersion: skerry.dev/v1alpha1\nkind: Device\nmetadata: {name: a}\nspec: {cordoned: yes}\n"
    response = admin.http.post(
        path(admin.namespace, "devices"), content=text, headers={"content-type": "application/yaml"}
    )
    assert response.status_code == 201
    assert admin.get(Device, "a").spec.cordoned


def test_a_body_beyond_the_bound_is_refused_before_it_is_read(admin: HubClient) -> None:
    def endless() -> Any:
        for _ in range(4 * 16):
            yield b" " * 65536

    for content in (b" " * (4 * 1024 * 1024), endless()):
        response = admin.http.post(
            path(admin.namespace, "devices"), content=content, headers={"content-type": "application/json"}
        )
        status(response, 413, "RequestEntityTooLarge")


def test_an_object_that_does_not_fit_its_path_is_refused(admin: HubClient, deployment: Make) -> None:
    wrong = deployment()
    assert (
        "takes a Device"
        in status(admin.http.post(path(admin.namespace, "devices"), json=wrong), 400, "BadRequest")["message"]
    )
    wrong["metadata"]["namespace"] = "elsewhere"
    body = status(admin.http.post(path(admin.namespace, "modeldeployments"), json=wrong), 400, "BadRequest")
    assert "metadata.namespace" in body["message"]


def test_unknown_fields_are_warned_about_or_ignored_when_asked(admin: HubClient, deployment: Make) -> None:
    where = path(admin.namespace, "modeldeployments")
    warned = admin.http.post(where, json=deployment("a", extra=1), params={"fieldValidation": "Warn"})
    assert warned.status_code == 201
    assert "spec.extra" in warned.headers["warning"]
    odd = admin.http.post(where, json=deployment("d", **{"x\r\nset-cookie: a": 1}), params={"fieldValidation": "Warn"})
    assert (odd.status_code, "set-cookie" in odd.headers) == (201, False)
    ignored = admin.http.post(where, json=deployment("b", extra=1), params={"fieldValidation": "Ignore"})
    assert (ignored.status_code, ignored.headers.get("warning")) == (201, None)
    assert "extra" not in ignored.json()["spec"]
    status(
        admin.http.post(where, json=deployment("c", extra=1), params={"fieldValidation": "Maybe"}), 400, "BadRequest"
    )


def test_a_dry_run_writes_nothing(admin: HubClient, deployment: Make) -> None:
    where = path(admin.namespace, "modeldeployments")
    dry = {"dryRun": "All"}
    assert admin.http.post(where, json=deployment(), params=dry).status_code == 201
    assert admin.list(ModelDeployment) == []
    before = admin.create(deployment(), ModelDeployment)
    status(admin.http.post(where, json=deployment(), params=dry), 409, "AlreadyExists")
    one = path(admin.namespace, "modeldeployments", "digits")
    changed = admin.http.patch(
        one, json={"spec": {"paused": True}}, params=dry, headers={"content-type": "application/merge-patch+json"}
    )
    assert changed.json()["spec"]["paused"] is True
    assert changed.json()["metadata"]["generation"] == 2
    assert admin.http.delete(one, params=dry).status_code == 200
    assert admin.get(ModelDeployment, "digits") == before
    status(admin.http.post(where, json=deployment("x"), params={"dryRun": "Some"}), 400, "BadRequest")


def test_rollouts_are_made_by_the_hub_alone(hub: Hub, admin: HubClient, deployment: Make) -> None:
    template = deployment()["spec"]
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "digits-1"},
        "spec": {"deployment": "digits", "deploymentUid": "u", "revision": 1, "template": template},
    }
    with pytest.raises(errors.ForbiddenError, match="made by the hub"):
        admin.create(raw, Rollout)
    spec = admin.create(deployment(), ModelDeployment).spec
    meta = ObjectMeta(name="digits-1", namespace=admin.namespace)
    made = Rollout(metadata=meta, spec=RolloutSpec(deployment="digits", deployment_uid="u", revision=1, template=spec))
    hub.call(hub.objects.create(made))
    assert admin.get(Rollout, "digits-1").spec.template == spec


def test_a_join_token_shows_its_secret_once(admin: HubClient) -> None:
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"generateName": "token-"},
        "spec": {"ttl": "10m", "uses": 2, "labels": {"site": "lab"}},
    }
    token = admin.create(raw, JoinToken)
    assert token.status.token.startswith("skj1.")
    assert admin.get(JoinToken, token.metadata.name).status.token == ""
    for spec, field in (({"ttl": "0s"}, "spec.ttl"), ({"uses": 0}, "spec.uses"), ({"labels": {"a b": "c"}}, "a b")):
        with pytest.raises(errors.InvalidError, match=field):
            admin.create({**raw, "spec": spec}, JoinToken)


# --- update and patch ---------------------------------------------------------------------------------------------


def test_replacing_with_an_old_version_conflicts(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)
    first = admin.get_raw(ModelDeployment, "digits")
    admin.patch(ModelDeployment, "digits", {"spec": {"paused": True}})
    with pytest.raises(errors.ConflictError):
        admin.replace(first, ModelDeployment)
    first["metadata"].pop("resourceVersion")
    first["spec"]["modelVersion"] = "digits-2"
    changed = admin.replace(first, ModelDeployment)
    assert (changed.spec.model_version, changed.spec.paused, changed.metadata.generation) == ("digits-2", False, 3)


def test_an_unchanged_object_is_not_written(admin: HubClient, deployment: Make) -> None:
    made = admin.create(deployment(), ModelDeployment)
    assert admin.replace(admin.get_raw(ModelDeployment, "digits"), ModelDeployment) == made
    assert admin.patch(ModelDeployment, "digits", {"spec": {"paused": False}}) == made


def test_labels_do_not_raise_the_generation(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)
    changed = admin.patch(ModelDeployment, "digits", {"metadata": {"labels": {"a": "b"}}})
    assert (changed.metadata.labels, changed.metadata.generation) == ({"a": "b"}, 1)
    with pytest.raises(errors.InvalidError, match="not a label value"):
        admin.patch(ModelDeployment, "digits", {"metadata": {"labels": {"a": "b c"}}})


def test_an_immutable_spec_is_refused_with_the_path(admin: HubClient, model_version: Make) -> None:
    admin.create(model_version(admin.namespace), ModelVersion)
    with pytest.raises(errors.InvalidError) as caught:
        admin.patch(ModelVersion, "digits-1", {"spec": {"version": "v2", "evaluation": {"baseline": 1.0}}})
    assert [problem.element for problem in caught.value.each] == ["spec.evaluation.baseline", "spec.version"]
    assert admin.patch(ModelVersion, "digits-1", {"metadata": {"labels": {"a": "b"}}}).metadata.labels == {"a": "b"}


def test_a_model_version_of_another_namespace_s_repository_is_refused(admin: HubClient, model_version: Make) -> None:
    with pytest.raises(errors.InvalidError, match="another namespace"):
        admin.create(model_version("elsewhere"), ModelVersion)


def test_a_json_patch_applies_whole_or_not_at_all(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)
    one = path(admin.namespace, "modeldeployments", "digits")
    media = {"content-type": "application/json-patch+json"}
    good = [
        {"op": "test", "path": "/spec/modelVersion", "value": "digits-1"},
        {"op": "replace", "path": "/spec/modelVersion", "value": "digits-2"},
        {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}},
    ]
    assert admin.http.patch(one, json=good, headers=media).status_code == 200
    status(admin.http.patch(one, json=good, headers=media), 422, "Invalid")
    status(admin.http.patch(one, json={"op": "x"}, headers=media), 400, "BadRequest")
    status(admin.http.patch(one, json=[{"op": "remove", "path": "/spec"}], headers=media), 422, "Invalid")
    other = {"content-type": "application/other-patch+json"}
    refused = status(admin.http.patch(one, json={}, headers=other), 415, "UnsupportedMediaType")
    assert "merge-patch" in refused["message"]
    assert admin.get(ModelDeployment, "digits").spec.model_version == "digits-2"


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"name": "other"}}, {"metadata": {"namespace": "other"}}, {"kind": "Device"}, {"spec": None}],
)
def test_a_patch_cannot_make_it_another_object(admin: HubClient, deployment: Make, change: dict[str, Any]) -> None:
    before = admin.create(deployment(), ModelDeployment)
    with pytest.raises((errors.BadRequestError, errors.InvalidError)):
        admin.patch(ModelDeployment, "digits", change)
    assert admin.get(ModelDeployment, "digits") == before


def test_status_is_written_through_its_own_path_only(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)
    one = path(admin.namespace, "modeldeployments", "digits")
    merge = {"content-type": "application/merge-patch+json"}
    ignored = admin.http.patch(one, json={"status": {"ready": 5}}, headers=merge).json()
    assert ignored["status"]["ready"] == 0
    both = {"status": {"ready": 5}, "spec": {"paused": True}}
    written = admin.http.patch(f"{one}/status", json=both, headers=merge).json()
    assert (written["status"]["ready"], written["spec"]["paused"], written["metadata"]["generation"]) == (5, False, 1)
    written["status"]["ready"] = 6
    assert admin.http.put(f"{one}/status", json=written).json()["status"]["ready"] == 6
    status(admin.http.put(f"{one}/status", json=written), 409, "Conflict")
    assert admin.http.get(f"{one}/status").json()["status"]["ready"] == 6


def test_writers_at_the_same_time_lose_nothing(hub: Hub, admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(), ModelDeployment)

    def label(number: int) -> None:
        with hub.client(admin.namespace) as client:
            client.patch(ModelDeployment, "digits", {"metadata": {"labels": {f"l{number}": "x"}}})

    threads = [threading.Thread(target=label, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(admin.get(ModelDeployment, "digits").metadata.labels) == {"l0", "l1", "l2", "l3"}


# --- delete -------------------------------------------------------------------------------------------------------


def test_a_deleted_device_takes_its_assignments_with_it(hub: Hub, admin: HubClient) -> None:
    device = hub.add_device(admin.namespace, "till-7")
    uid = device.metadata.uid
    hub.call(hub.objects.store.create(f"{DESIRED_PREFIX}{uid}", b"{}"))
    body = admin.http.delete(path(admin.namespace, "devices", "till-7")).json()
    assert (body["status"], body["details"]["uid"]) == ("Success", uid)
    assert hub.call(hub.objects.store.get(f"{DESIRED_PREFIX}{uid}")) is None
    with pytest.raises(errors.NotFoundError):
        admin.delete(Device, "till-7")


def test_deletion_honours_its_preconditions(hub: Hub, admin: HubClient) -> None:
    device = hub.add_device(admin.namespace, "till-7")
    one = path(admin.namespace, "devices", "till-7")
    for condition in ({"uid": "other"}, {"resourceVersion": "1"}):
        response = admin.http.request("DELETE", one, json={"preconditions": condition})
        status(response, 409, "Conflict")
    good = {"uid": device.metadata.uid, "resourceVersion": device.metadata.resource_version}
    assert admin.http.request("DELETE", one, json={"preconditions": good}).status_code == 200


def test_an_object_with_finalizers_goes_when_the_last_one_is_gone(admin: HubClient, deployment: Make) -> None:
    raw = deployment()
    raw["metadata"]["finalizers"] = ["example.com/keep"]
    admin.create(raw, ModelDeployment)
    admin.delete(ModelDeployment, "digits")
    marked = admin.get(ModelDeployment, "digits")
    assert marked.metadata.deletion_timestamp is not None
    admin.patch(ModelDeployment, "digits", {"metadata": {"finalizers": None}})
    with pytest.raises(errors.NotFoundError):
        admin.get(ModelDeployment, "digits")


# --- list ---------------------------------------------------------------------------------------------------------


# --- paths, access, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "where", "code"),
    [
        ("GET", "/nope", 404),
        ("GET", "/apis/skerry.dev/v1alpha1/namespaces/default/pods", 404),
        ("GET", "/apis/skerry.dev/v1alpha1/namespaces/Default/devices", 404),
        ("GET", "/apis/skerry.dev/v1alpha1/namespaces/default/devices/a/nope", 404),
        ("POST", "/version", 405),
        ("PUT", "/apis/skerry.dev/v1alpha1/namespaces/default/devices", 405),
        ("POST", "/apis/skerry.dev/v1alpha1/namespaces/default/devices/a", 405),
        ("DELETE", "/apis/skerry.dev/v1alpha1/namespaces/default/devices/a/log", 405),
    ],
)
def test_paths_that_are_not_there(admin: HubClient, method: str, where: str, code: int) -> None:
    status(admin.http.request(method, where), code, {404: "NotFound", 405: "MethodNotAllowed"}[code])


def test_everybody_may_see_health_version_and_the_authority(hub: Hub) -> None:
    with hub.stranger() as stranger:
        for where in ("/healthz", "/livez", "/readyz"):
            assert stranger.get(where).text == "ok"
        assert stranger.get("/version").json()["major"] == "1"
        assert stranger.get("/cacerts").content == hub.context.authority.ca_pem


def test_strangers_get_nothing_else(hub: Hub, admin: HubClient) -> None:
    with hub.stranger() as stranger:
        for method, where in (
            ("GET", "/apis"),
            ("GET", "/openapi/v3"),
            ("GET", path(admin.namespace, "devices")),
            ("GET", "/nope"),
            ("POST", path(admin.namespace, "enrollments")),
            ("POST", path(admin.namespace, "jointokens")),
        ):
            status(stranger.request(method, where), 401, "Unauthorized")
        forged = {"x-remote-user": "admin", "authorization": "Bearer skj1.a.b.c"}
        status(stranger.get(path(admin.namespace, "devices"), headers=forged), 401, "Unauthorized")
        enrolling = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Enrollment", "metadata": {}}
        enrolling |= {"spec": {"deviceName": "x", "csr": "y"}}
        response = stranger.post(path(admin.namespace, "enrollments"), headers=forged, json=enrolling)
        assert response.status_code in (401, 403, 422)
        dry = stranger.post(
            path(admin.namespace, "enrollments"), headers=forged, json=enrolling, params={"dryRun": "All"}
        )
        status(dry, 400, "BadRequest")  # the token would not be asked, so nothing is told
        yaml = {**forged, "content-type": "application/yaml"}
        status(
            stranger.post(path(admin.namespace, "enrollments"), headers=yaml, content="a: 1"),
            415,
            "UnsupportedMediaType",
        )
        big = stranger.post(path(admin.namespace, "enrollments"), headers=forged, content=b" " * 300_000)
        status(big, 413, "RequestEntityTooLarge")


def test_a_device_may_only_renew(hub: Hub, admin: HubClient) -> None:
    device = hub.add_device(admin.namespace, "till-7")
    with hub.as_device(device.metadata.uid, admin.namespace) as as_device:
        assert as_device.get("/healthz").status_code == 200
        for method, where in (
            ("GET", path(admin.namespace, "devices", "till-7")),
            ("PATCH", path(admin.namespace, "devices", "till-7")),
            ("POST", path(admin.namespace, "jointokens")),
            ("GET", path(admin.namespace, "enrollments")),
            ("POST", path("other", "enrollments")),
            ("GET", "/apis"),
        ):
            status(as_device.request(method, where), 403, "Forbidden")
        newer = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Enrollment", "metadata": {}}
        newer |= {"spec": {"deviceName": "till-7", "csr": "no request", "facts": {"fieldOfANewerAgent": 1}}}
        body = status(as_device.post(path(admin.namespace, "enrollments"), json=newer), 422, "Invalid")
        assert "fieldOfANewerAgent" not in body["message"]


# --- what devices are asked ---------------------------------------------------------------------------------------


def test_logs_and_inference_reach_the_device(hub: Hub, admin: HubClient) -> None:
    device = hub.add_device(admin.namespace, "till-7")
    uid = device.metadata.uid

    def answer(command: Command) -> CommandResult:
        if command.verb == "logs":
            return CommandResult(uid=uid, id=command.id, text=f"{command.workload} last {command.tail_lines}\n")
        return CommandResult(uid=uid, id=command.id, response={"echo": command.request})

    stop = threading.Event()
    connected = threading.Event()

    async def connect() -> None:
        async with hub.answering(uid, answer):
            connected.set()
            await asyncio.get_running_loop().run_in_executor(None, stop.wait, 10)

    running = asyncio.run_coroutine_threadsafe(connect(), hub.loop)
    try:
        assert connected.wait(10)
        assert admin.log("till-7", "digits", tail_lines=7) == "digits last 7\n"
        assert admin.infer("till-7", "digits", {"inputs": [1]}) == {"echo": {"inputs": [1]}}
        bare = admin.http.get(path(admin.namespace, "devices", "till-7", "log"))
        assert bare.text == "digits last 200\n"
        assert bare.headers["content-type"].startswith("text/plain")
        with pytest.raises(errors.NotFoundError, match="it runs: digits"):
            admin.log("till-7", "other")
        with pytest.raises(errors.BadRequestError, match="tailLines"):
            admin.log("till-7", "digits", tail_lines=10**6)
    finally:
        stop.set()
        running.result(10)


def test_an_offline_device_cannot_be_asked(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    with pytest.raises(errors.UnavailableError, match="offline"):
        admin.log("till-7", "digits")
    with pytest.raises(errors.NotFoundError):
        admin.log("till-8", "digits")


def test_explanations(hub: Hub, admin: HubClient, deployment: Make) -> None:
    hub.add_device(admin.namespace, "till-7", site="lab")
    admin.create(deployment(), ModelDeployment)
    told = admin.explain("digits", "till-7")
    assert (told["deployment"], told["device"], told["selected"]) == ("digits", "till-7", True)
    with pytest.raises(errors.NotFoundError):
        admin.explain("digits", "till-8")
    with pytest.raises(errors.BadRequestError, match="device"):
        admin.explain("digits", "")


# --- apply --------------------------------------------------------------------------------------------------------


def test_apply_creates_configures_and_leaves_alone(admin: HubClient, deployment: Make) -> None:
    raw = deployment(paused=False, serving={"threads": 2})
    assert admin.apply(raw) == "created"
    assert admin.apply(raw) == "unchanged"
    admin.patch(ModelDeployment, "digits", {"metadata": {"labels": {"by": "hand"}}})
    assert admin.apply(raw) == "unchanged"
    changed = deployment(paused=True)
    assert admin.apply(changed) == "configured"
    now = admin.get(ModelDeployment, "digits")
    assert now.metadata.labels == {"by": "hand"}
    assert (now.spec.paused, now.spec.serving.threads) == (True, 1)
    assert patch.last_applied_of(admin.get_raw(ModelDeployment, "digits"))["spec"]["paused"] is True


def test_apply_in_the_namespace_of_the_file(admin: HubClient, deployment: Make) -> None:
    raw = deployment()
    raw["metadata"]["namespace"] = f"{admin.namespace}-x"
    assert admin.apply(raw) == "created"
    assert admin.list(ModelDeployment) == []
    assert len(admin.list(ModelDeployment, everywhere=True)) >= 1


def test_merge_spec_replaces_whole_fields(admin: HubClient, deployment: Make) -> None:
    admin.create(deployment(constraints={"maxLatency": "5ms", "engines": ["onnxruntime"]}), ModelDeployment)
    new = admin.get(ModelDeployment, "digits").spec.constraints.__class__(max_memory="64Mi")
    changed = admin.merge_spec(ModelDeployment, "digits", {"constraints": new, "paused": True})
    assert (changed.spec.constraints, changed.spec.paused) == (new, True)
