"""What one check of escalation may cost: who is held off by it makes the rules on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.api.kinds.rbac import ClusterRole, PolicyRule, RoleBinding, RoleRef, Subject
from skerry.api.meta import ObjectMeta
from skerry.core import rbac
from skerry.core.access import Identity, service_account
from skerry.core.rbac import Budget, Policy

ALICE = Identity(role="user", name="alice")
ROBOT = service_account("shop", "robot", "")
DEVICES = PolicyRule(verbs=["get"], api_groups=["skerry.dev"], resources=["devices"])


def named(*names: str, verb: str = "get") -> PolicyRule:
    return PolicyRule(verbs=[verb], api_groups=["skerry.dev"], resources=["devices"], resource_names=list(names))


def many(prefix: str, count: int) -> list[PolicyRule]:
    return [named(f"{prefix}{number}") for number in range(count)]


def policy(*bound: tuple[Subject, str, Sequence[PolicyRule]]) -> Policy:
    roles = {
        str(number): ClusterRole(metadata=ObjectMeta(name=str(number)), rules=list(rules))
        for number, (_, _, rules) in enumerate(bound)
    }
    bindings: dict[str, list[RoleBinding]] = {}
    for number, (subject, namespace, _) in enumerate(bound):
        ref = RoleRef(kind="ClusterRole", name=str(number))
        meta = ObjectMeta(name=f"b{number}", namespace=namespace)
        bindings.setdefault(namespace, []).append(RoleBinding(metadata=meta, role_ref=ref, subjects=[subject]))
    return Policy(
        role=lambda *_: None,
        cluster_role=roles.get,
        bindings=lambda namespace: bindings.get(namespace, ()),
        cluster_bindings=lambda _: (),
        namespaces=lambda: list(bindings),
    )


def test_covered_rules_cost_what_they_are_compared_with_and_no_more_than_there_is() -> None:
    junk = [*many("x", 1500), DEVICES]
    assert rbac.uncovered(junk, many("y", 10)) == []
    with pytest.raises(InvalidError, match="take more than 1000000 comparisons with yours; write fewer rules"):
        rbac.uncovered(junk, many("y", 1024))


def test_the_same_rule_again_costs_nothing() -> None:
    budget = Budget()
    assert rbac.uncovered([*many("x", 1500), DEVICES], [named("y")] * 5000, budget=budget) == []
    assert budget.steps > rbac.MAX_STEPS - 50_000
    mine = many("x", 2000)
    assert rbac.uncovered(mine, mine) == [], "one's own rules can be given on, however many there are"
    everything = PolicyRule(verbs=["*"], api_groups=["*"], resources=["*"])
    assert rbac.uncovered([*mine, everything], many("y", 2000)) == [], "what allows the most is looked at first"


def test_long_rules_cost_more_than_short_ones() -> None:
    words = [f"w{number}" for number in range(4000)]
    long = [PolicyRule(verbs=["get"], non_resource_urls=words[: 2000 + number]) for number in range(1, 20)]
    with pytest.raises(InvalidError, match="comparisons"):
        rbac.uncovered([PolicyRule(verbs=["get"], non_resource_urls=["/", *words])], long)


def test_combinations_are_counted_over_all_rules_together() -> None:
    words = [f"w{number}" for number in range(60)]
    wanted = [PolicyRule(verbs=words, api_groups=[group], resources=words) for group in ("a", "b")]
    assert len(rbac.uncovered([], wanted[:1])) == 3600
    with pytest.raises(InvalidError, match="more than 5000 combinations"):
        rbac.uncovered([], wanted)


def test_all_namespaces_of_a_comparison_share_one_budget() -> None:
    alice, robot = Subject(kind="User", name="alice"), Subject(kind="ServiceAccount", name="robot", namespace="shop")
    places = [f"ns-{number}" for number in range(10)]
    given_policy = policy(
        *((alice, place, [*many(f"{place}x", 800), DEVICES]) for place in places),
        *((robot, place, many(f"{place}y", 400)) for place in places),
    )
    assert rbac.beyond(ROBOT, ALICE, policy((alice, "a", [DEVICES]), (robot, "a", many("y", 400)))) == []
    with pytest.raises(InvalidError, match="comparisons"):
        rbac.beyond(ROBOT, ALICE, given_policy)


def test_more_rules_than_can_be_compared_are_refused_and_one_role_counts_once() -> None:
    alice, shared = Subject(kind="User", name="alice"), many("x", 1000)
    given_policy = policy(*((alice, "shop", many(f"{number}-", 1000)) for number in range(51)))
    with pytest.raises(InvalidError, match='of "alice" are more than 50000'):
        rbac.held(ALICE, "shop", given_policy)
    again = policy((alice, "shop", shared))
    repeated = Policy(
        role=again.role,
        cluster_role=again.cluster_role,
        bindings=lambda namespace: [*again.bindings(namespace)] * 100,
        cluster_bindings=again.cluster_bindings,
        namespaces=again.namespaces,
    )
    assert rbac.held(ALICE, "shop", repeated) == shared


some = st.lists(st.builds(named, st.sampled_from("abc"), verb=st.sampled_from(["get", "list"])), max_size=6)


@given(some, some)
def test_what_is_missing_does_not_depend_on_repetition_or_order(
    owned: list[PolicyRule], wanted: list[PolicyRule]
) -> None:
    missing = rbac.uncovered(owned, wanted)
    again = rbac.uncovered(list(reversed(owned)) * 2, wanted * 3)
    assert missing == again
    assert [one for one in wanted if one not in missing] == [one for one in wanted if one in owned]
