"""Rules by the thousand, made by those whom the check of escalation is to hold off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.api.conftest import Hub
from tests.integration.api.people import People, document, place, rule


@pytest.fixture
def people(hub: Hub) -> Iterator[People]:
    people = People(hub)
    yield people
    people.close()


def named(prefix: str, count: int) -> list[dict[str, Any]]:
    return [rule(["get"], ["devices"], f"{prefix}{number}") for number in range(count)]


def test_a_check_that_would_take_too_long_is_refused_in_words(people: People, namespace: str) -> None:
    writes = rule(["create", "update"], ["roles"], group="rbac.authorization.k8s.io")
    for number in range(2):
        people.grant("carol", namespace, *named(f"x{number}-", 1000), name=f"junk-{number}")
    people.grant("carol", namespace, rule(["get"], ["devices"]), writes, name="own")
    carol = people.user("carol")
    for rules, code in ((named("y", 50), 201), (named("x0-", 1000), 201), (named("y", 1000), 403)):
        made = document("Role", f"made-{len(rules)}-{rules[0]['resourceNames'][0]}", rules=rules)
        answer = carol.post(place("Role", namespace), json=made)
        assert answer.status_code == code, answer.text[:500]
    assert "the rules take more than 1000000 comparisons with yours" in answer.json()["message"]
    assert answer.json()["reason"] == "Forbidden"
