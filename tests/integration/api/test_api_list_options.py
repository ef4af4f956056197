"""What lists and watches refuse to be asked for by, in Kubernetes' words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.api.paths import path, status

from skerry.drivers.client.api import HubClient

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

MATCH = "resourceVersionMatch"
FORBIDDEN = "FieldValueForbidden"


@pytest.mark.parametrize("plural", ["devices", "pods"])
@pytest.mark.parametrize(
    ("parameters", "problems"),
    [
        ({MATCH: "Exact"}, [(MATCH, FORBIDDEN, "is forbidden unless resourceVersion is provided")]),
        (
            {MATCH: "Exact", "resourceVersion": "0"},
            [(MATCH, FORBIDDEN, '"exact" is forbidden for resourceVersion "0"')],
        ),
        (
            {MATCH: "exact", "resourceVersion": "3"},
            [(MATCH, "FieldValueInvalid", 'Unsupported value: "exact": supported values: "Exact", "NotOlderThan"')],
        ),
        (
            {MATCH: "NotOlderThan", "continue": "x"},
            [
                (MATCH, FORBIDDEN, "is forbidden unless resourceVersion is provided"),
                (MATCH, FORBIDDEN, "is forbidden when continue is provided"),
            ],
        ),
        ({"sendInitialEvents": "true"}, [("sendInitialEvents", FORBIDDEN, "is forbidden for list")]),
        (
            {"watch": "1", MATCH: "NotOlderThan"},
            [(MATCH, FORBIDDEN, "is forbidden for watch unless sendInitialEvents is provided")],
        ),
        (
            {"watch": "1", "sendInitialEvents": "true", MATCH: "Exact"},
            [(MATCH, "FieldValueInvalid", 'Unsupported value: "Exact": supported values: "NotOlderThan"')],
        ),
        (
            {"watch": "1", "sendInitialEvents": "true", MATCH: "NotOlderThan", "continue": "x"},
            [(MATCH, FORBIDDEN, "is forbidden when continue is provided")],
        ),
    ],
)
def test_options_that_do_not_go_together(
    admin: HubClient, plural: str, parameters: dict[str, str], problems: list[tuple[str, str, str]]
) -> None:
    where = path(admin.namespace, plural) if plural == "devices" else f"/api/v1/namespaces/{admin.namespace}/pods"
    body = status(admin.http.get(where, params=parameters), 422, "Invalid")
    assert body["message"].startswith("ListOptions is invalid: ")
    assert (body["details"]["group"], body["details"]["kind"]) == ("meta.k8s.io", "ListOptions")
    found = [(cause["field"], cause["reason"], cause["message"]) for cause in body["details"]["causes"]]
    assert [(field, reason) for field, reason, _ in found] == [(field, reason) for field, reason, _ in problems]
    for (_, _, message), (_, _, wanted) in zip(found, problems, strict=True):
        assert message.endswith(wanted)


def test_options_that_do(hub: Hub, admin: HubClient) -> None:
    version = hub.add_device(admin.namespace, "a").metadata.resource_version
    where = path(admin.namespace, "devices")
    for match in ("Exact", "NotOlderThan"):
        answer = admin.http.get(where, params={MATCH: match, "resourceVersion": version})
        assert len(answer.json()["items"]) == 1
    assert admin.http.get(where, params={MATCH: "NotOlderThan", "resourceVersion": "0"}).status_code == 200
    whole = {"watch": "1", "sendInitialEvents": "true", MATCH: "NotOlderThan", "timeoutSeconds": "1"}
    assert '"ADDED"' in admin.http.get(where, params=whole).text
