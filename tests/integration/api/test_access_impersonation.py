"""Acting as others by headers: who may, as whom, and what makes no sense."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.integration.api.conftest import Hub
from tests.integration.api.people import SKERRY, People, rule

_numbers = itertools.count(1)
REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.fixture(scope="module")
def people(hub: Hub) -> Iterator[People]:
    made = People(hub)
    yield made
    made.close()


@pytest.fixture
def carol() -> str:
    return f"carol-{next(_numbers)}"


def who(client: httpx.Client, headers: list[tuple[str, str]]) -> dict[str, Any]:
    """Whom the hub takes the caller for."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = client.post(REVIEWS, json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["status"]["userInfo"]
    return found


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("Impersonate-User", "x")], {"username": "x", "groups": ["system:authenticated"]}),
        (
            [
                ("impersonate-user", "x"),
                ("Impersonate-Group", "a"),
                ("Impersonate-Group", "b"),
                ("Impersonate-Uid", "7"),
            ],
            {"username": "x", "groups": ["a", "b", "system:authenticated"], "uid": "7"},
        ),
        (
            [("Impersonate-User", "x"), ("Impersonate-Extra-Scopes", "v"), ("Impersonate-Extra-acme.com%2Fp", "w")],
            {"username": "x", "groups": ["system:authenticated"], "extra": {"scopes": ["v"], "acme.com/p": ["w"]}},
        ),
        (
            [("Impersonate-User", "system:serviceaccount:ci:robot")],
            {
                "username": "system:serviceaccount:ci:robot",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"],
            },
        ),
    ],
)
def test_an_admin_is_taken_for_whom_he_names(
    people: People, headers: list[tuple[str, str]], expected: dict[str, Any]
) -> None:
    assert who(people.admin, headers) == expected


def test_an_admin_who_acts_as_somebody_has_his_rights_alone(people: People, namespace: str, carol: str) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    for name in (carol, "admin", "system:masters", "system:admin"):
        assert people.admin.get(at, headers={"Impersonate-User": name}).status_code == 403, name
    people.grant(carol, namespace, rule(["list"], ["devices"]))
    assert people.admin.get(at, headers={"Impersonate-User": carol}).status_code == 200
    everything = [("Impersonate-User", carol), ("Impersonate-Group", "system:masters")]
    assert people.admin.get(f"{SKERRY}/devices", headers=everything).status_code == 200
    # nobody is somebody, too: he may see what is open, and nothing else
    nobody = {"Impersonate-User": "system:anonymous"}
    assert people.admin.get("/version", headers=nobody).status_code == 200
    assert people.admin.get(at, headers=nobody).status_code == 401
    # the registry knows him as well
    assert people.admin.get(f"/v2/{namespace}/m/tags/list", headers={"Impersonate-User": carol}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        [("Impersonate-Group", "a")],
        [("Impersonate-Uid", "7")],
        [("Impersonate-Extra-a", "b")],
        [("Impersonate-User", "")],
        [("Impersonate-User", "x"), ("Impersonate-User", "y")],
        [("Impersonate-User", "x"), ("Impersonate-Group", "")],
        [("Impersonate-User", "x"), ("Impersonate-Uid", "1"), ("Impersonate-Uid", "2")],
        [("Impersonate-User", "x" * 600)],
        [("Impersonate-Nonsense", "x")],
    ],
)
def test_headers_that_make_no_sense_are_refused(people: People, headers: list[tuple[str, str]]) -> None:
    answer = people.admin.get("/version", headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")


def test_strangers_and_devices_act_as_nobody_else(people: People, hub: Hub, namespace: str) -> None:
    headers = {"Impersonate-User": "admin", "Impersonate-Group": "system:masters"}
    device = hub.add_device(namespace, "till-1")
    with hub.stranger() as stranger, hub.as_device(device.metadata.uid, namespace) as owned:
        for client in (stranger, owned):
            for path in ("/version", f"{SKERRY}/devices", "/v2/"):
                answer = client.get(path, headers=headers)
                assert answer.status_code in (401, 403), path
                assert answer.json()["reason"] in ("Unauthorized", "Forbidden")


def test_each_part_takes_its_own_right(people: People, namespace: str, carol: str) -> None:
    client = people.user(carol)
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    tokens = "authentication.k8s.io"
    people.grant("eve", namespace, rule(["list"], ["devices"]))
    people.grant(
        carol,
        "",
        rule(["impersonate"], ["users"], "eve", group=""),
        rule(["impersonate"], ["groups"], "ops", group=""),
        rule(["impersonate"], ["userextras/scopes"], "v", group=tokens),
        rule(["impersonate"], ["uids"], "7", group=tokens),
        name=f"acts-{carol}",
    )
    eve = ("Impersonate-User", "eve")
    for more in ([], [("Impersonate-Group", "ops")], [("Impersonate-Uid", "7")], [("Impersonate-Extra-scopes", "v")]):
        assert client.get(at, headers=[eve, *more]).status_code == 200, more
    for more in (
        [("Impersonate-Group", "system:masters")],
        [("Impersonate-Group", "ops"), ("Impersonate-Group", "system:masters")],
        [("Impersonate-Uid", "8")],
        [("Impersonate-Extra-scopes", "w")],
        [("Impersonate-Extra-other", "v")],
    ):
        refused = client.get(at, headers=[eve, *more])
        assert refused.status_code == 403, more
        assert "cannot impersonate resource" in refused.json()["message"]
    account = f"system:serviceaccount:{namespace}:robot"
    assert client.get(at, headers={"Impersonate-User": account}).status_code == 403
    people.grant(carol, namespace, rule(["impersonate"], ["serviceaccounts"], "robot", group=""), name="acts-here")
    assert 'cannot list resource "devices"' in client.get(at, headers={"Impersonate-User": account}).json()["message"]
    other = "system:serviceaccount:default:robot"
    assert "cannot impersonate" in client.get(at, headers={"Impersonate-User": other}).json()["message"]
