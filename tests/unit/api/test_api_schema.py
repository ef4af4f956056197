"""OpenAPI schemas: complete, resolvable, described, and of the same mind as the strict check."""

from collections.abc import Iterator
from typing import Any

import pytest

from skerry.api import schema
from skerry.api.kinds import KINDS
from skerry.api.kinds.model_deployment import Strategy

COMPONENTS = schema.components()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_resolves() -> None:
    for reference in references(COMPONENTS):
        assert reference.removeprefix("#/components/schemas/") in COMPONENTS


def test_nothing_is_left_that_openapi_3_0_does_not_know() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert "anyOf" not in value
            assert value.get("type") != "null"
            assert "$ref" not in value or set(value) == {"$ref"}
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(dict(COMPONENTS))


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_each_kind_and_its_list_are_known_to_kubectl(info: Any) -> None:
    components, prefix = schema.components(info.group, info.version), schema.prefix_of(info.group, info.version)
    for name in (info.kind, f"{info.kind}List") if info.stored else (info.kind,):
        found = components[f"{prefix}{name}"]
        assert found["x-kubernetes-group-version-kind"] == [
            {"group": info.group, "version": info.version, "kind": name}
        ]
    fields = set(components[f"{prefix}{info.kind}"]["properties"])
    assert {"apiVersion", "kind", "metadata"} < fields
    assert (fields == {"apiVersion", "kind", "metadata", "spec", "status"}) == (info.has_spec and info.has_status)


def test_fields_say_what_stands_under_them() -> None:
    assert schema.field_descriptions(Strategy)["bake_time"].startswith("How long a wave must stay healthy")
    shown = COMPONENTS[f"{schema.PREFIX}Strategy"]["properties"]
    assert shown["bakeTime"]["description"].startswith("How long a wave must stay healthy")
    assert shown["bakeTime"]["default"] == "0s"
    assert shown["gates"]["description"].startswith("Conditions, measured on the devices")
    assert shown["onFailure"]["enum"] == ["pause", "rollback"]
    assert shown["onFailure"]["type"] == "string"


def test_a_class_without_source_has_no_descriptions() -> None:
    made = type("Made", (), {"__module__": "nowhere"})
    assert schema.field_descriptions(made) == {}


def test_constraints_are_shown() -> None:
    limits = COMPONENTS[f"{schema.PREFIX}ResourceList"]["properties"]["memory"]
    assert (limits["type"], limits["format"], limits["pattern"][-1]) == ("string", "quantity", "$")
    accuracy = COMPONENTS[f"{schema.PREFIX}AccuracyGate"]
    assert accuracy["required"] == ["min"]
    assert (accuracy["properties"]["min"]["minimum"], accuracy["properties"]["min"]["maximum"]) == (0, 1)
    share = COMPONENTS[f"{schema.PREFIX}Shadow"]["properties"]["share"]
    assert (share["minimum"], share["exclusiveMinimum"]) == (0, True), "kubectl reads OpenAPI 3.0"
    amount = COMPONENTS[f"{schema.PREFIX}Disruption"]["properties"]["maxUnavailable"]
    assert (amount["type"], amount["format"]) == ("string", "int-or-string")
