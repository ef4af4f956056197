"""The served OpenAPI document: tools that make clients, docs and fuzzers from it need it whole."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from skerry.api import schema
from skerry.api.kinds import KindInfo
from skerry.api.kinds.pictures import Picture
from skerry.hub.server import openapi

METHODS = ("get", "put", "post", "patch", "delete")


@pytest.fixture(scope="module", params=list(openapi.PATHS.values()), ids=list(openapi.PATHS))
def group(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def document(group: tuple[str, str]) -> dict[str, Any]:
    return msgspec.json.decode(openapi.document(*group)[0])  # type: ignore[no-any-return]


def test_every_part_of_a_path_is_a_parameter(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        named = {one["name"] for one in item.get("parameters", []) if one["in"] == "path" and one["required"]}
        assert named == set(re.findall(r"{(\w+)}", path)), path


def _operations(info: KindInfo | Picture) -> int:
    verbs = [verb for verb in info.verbs if verb != "watch"]
    shown = info.status_verbs if isinstance(info, KindInfo) else {"get", "update", "patch"} & {*verbs}
    status = len(shown) if info.has_status else 0
    return len(verbs) + status + (info.namespaced and "list" in verbs)


def test_operations_have_names_of_their_own(document: dict[str, Any], group: tuple[str, str]) -> None:
    names = [item[verb]["operationId"] for item in document["paths"].values() for verb in METHODS if verb in item]
    assert len(names) == len(set(names))
    assert len(names) == sum(_operations(info) for info in schema.DOCUMENTED if (info.group, info.version) == group)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = msgspec.json.encode(document).decode()
    wanted = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text))
    assert wanted
    assert wanted <= document["components"]["schemas"].keys()
