"""The older document says what the newer ones say, in the words of its own specification."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from skerry.api.kinds import KINDS
from skerry.hub.server import openapi, openapi_v2

METHODS = {"get", "put", "post", "patch", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return msgspec.json.decode(openapi_v2._made(openapi.GROUPS)[0])  # type: ignore[no-any-return]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = msgspec.json.encode(document).decode()
    wanted = set(re.findall(r'"\$ref":"([^"]+)"', text))
    assert {one.removeprefix("#/definitions/") for one in wanted} <= document["definitions"].keys()
    assert "#/components" not in text
    assert "allOf" not in text


def test_every_kind_is_there_for_clients_that_ask_by_it(document: dict[str, Any]) -> None:
    named = {
        (one["group"], one["version"], one["kind"])
        for schema in document["definitions"].values()
        for one in schema.get("x-kubernetes-group-version-kind", [])
    }
    assert named >= {(info.group, info.version, info.kind) for info in KINDS}


def test_operations_are_those_of_the_newer_documents(document: dict[str, Any]) -> None:
    newer: dict[str, Any] = {}
    for group, version in openapi.PATHS.values():
        newer |= msgspec.json.decode(openapi.document(group, version)[0])["paths"]
    assert document["paths"].keys() == newer.keys()
    for path, item in document["paths"].items():
        assert item.keys() == newer[path].keys()
        for verb in METHODS & item.keys():
            operation = item[verb]
            assert operation["operationId"] == newer[path][verb]["operationId"]
            bodies = [one for one in operation["parameters"] if one["in"] == "body"]
            assert len(bodies) == ("requestBody" in newer[path][verb]) == len(operation.get("consumes", [])[:1])
            assert all("type" in one for one in operation["parameters"] if one["in"] != "body")
            assert all({"description", "schema"} == set(one) for one in operation["responses"].values())


def test_a_cluster_s_groups_are_left_out() -> None:
    content, digest = openapi_v2._made(frozenset({"skerry.dev"}))
    assert b"rbac.authorization.k8s.io" not in content
    assert digest != openapi_v2._made(openapi.GROUPS)[1]
