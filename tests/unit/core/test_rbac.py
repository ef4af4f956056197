"""Rules, bindings, aggregation and escalation: tables of what Kubernetes says, and a naive model to agree with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.api.kinds.rbac import (
    AggregationRule,
    ClusterRole,
    ClusterRoleBinding,
    PolicyRule,
    Role,
    RoleBinding,
    RoleRef,
    Subject,
)
from skerry.api.meta import LabelSelector, LabelSelectorRequirement, ObjectMeta
from skerry.core import access, rbac
from skerry.core.access import Identity
from skerry.core.rbac import Attributes, Policy

ALICE = Identity(role="user", name="alice", groups=("dev",))
ROBOT = access.service_account("ci", "robot", "u1")


def rule(verbs: str, groups: str = "", resources: str = "", names: str = "", paths: str = "") -> PolicyRule:
    """A rule of words; `core` is the core group."""
    return PolicyRule(
        verbs=verbs.split(),
        api_groups=["" if group == "core" else group for group in groups.split()],
        resources=resources.split(),
        resource_names=names.split(),
        non_resource_urls=paths.split(),
    )


def meta(name: str, namespace: str = "", **labels: str) -> ObjectMeta:
    return ObjectMeta(name=name, namespace=namespace, labels=labels)


def policy(*objects: Role | ClusterRole | RoleBinding | ClusterRoleBinding) -> Policy:
    clusters = [one for one in objects if isinstance(one, ClusterRole)]

    def cluster_role(name: str) -> ClusterRole | None:
        found = next((one for one in clusters if one.metadata.name == name), None)
        return found and ClusterRole(metadata=found.metadata, rules=rbac.aggregated(found, clusters))

    return Policy(
        role=lambda namespace, name: next(
            (
                one
                for one in objects
                if isinstance(one, Role) and (one.metadata.namespace, one.metadata.name) == (namespace, name)
            ),
            None,
        ),
        cluster_role=cluster_role,
        bindings=lambda namespace: [
            one for one in objects if isinstance(one, RoleBinding) and one.metadata.namespace == namespace
        ],
        cluster_bindings=lambda _: [one for one in objects if isinstance(one, ClusterRoleBinding)],
        namespaces=lambda: sorted({one.metadata.namespace for one in objects if isinstance(one, RoleBinding)}),
    )


def may(
    identity: Identity, wanted: Attributes, *objects: Role | ClusterRole | RoleBinding | ClusterRoleBinding
) -> bool:
    return rbac.decide(identity, wanted, policy(*objects)).allowed


def device(verb: str = "get", **more: str) -> Attributes:
    return Attributes(verb=verb, group="skerry.dev", resource="devices", **more)


@pytest.mark.parametrize(
    ("given_rule", "wanted", "allowed"),
    [
        (rule("get", "skerry.dev", "devices"), device(name="x"), True),
        (rule("get", "skerry.dev", "devices"), device("list"), False),
        (rule("get", "core", "devices"), device(name="x"), False),
        (rule("get", "*", "devices"), device(name="x"), True),
        (rule("*", "skerry.dev", "devices"), device("deletecollection"), True),
        (rule("GET", "skerry.dev", "devices"), device(name="x"), False),
        (rule("get", "skerry.dev", "Devices"), device(name="x"), False),
        (rule("get", "skerry.dev", "*"), device(name="x"), True),
        (rule("get", "skerry.dev", "dev*"), device(name="x"), False),
        # subresources are resources of their own
        (rule("get", "skerry.dev", "devices"), device(name="x", subresource="log"), False),
        (rule("get", "skerry.dev", "devices/log"), device(name="x", subresource="log"), True),
        (rule("get", "skerry.dev", "devices/log"), device(name="x"), False),
        (rule("get", "skerry.dev", "*/log"), device(name="x", subresource="log"), True),
        (rule("get", "skerry.dev", "*/log"), device(name="x", subresource="status"), False),
        (rule("get", "skerry.dev", "*/log"), device(name="x"), False),
        (rule("get", "skerry.dev", "devices/*"), device(name="x", subresource="log"), False),
        (rule("get", "skerry.dev", "*"), device(name="x", subresource="log"), True),
        (rule("get", "skerry.dev", "*/"), device(name="x"), False),
        # names: no name is none of them
        (rule("get", "skerry.dev", "devices", "x y"), device(name="x"), True),
        (rule("get", "skerry.dev", "devices", "x y"), device(name="z"), False),
        (rule("list watch create", "skerry.dev", "devices", "x"), device("list"), False),
        (rule("list watch create", "skerry.dev", "devices", "x"), device("list", name="x"), True),
        (rule("deletecollection", "skerry.dev", "devices", "x"), device("deletecollection"), False),
        (rule("create", "skerry.dev", "devices", "x"), device("create"), False),
        (rule("get", "skerry.dev", "devices", "*"), device(name="x"), False),
        (rule("get", "skerry.dev", "devices", "a:b"), device(name="a:b"), True),
        # paths
        (rule("get", paths="/healthz"), Attributes(verb="get", path="/healthz"), True),
        (rule("get", paths="/healthz"), Attributes(verb="get", path="/healthz/"), False),
        (rule("get", paths="/apis/*"), Attributes(verb="get", path="/apis/x"), True),
        (rule("get", paths="/apis/*"), Attributes(verb="get", path="/apis"), False),
        (rule("get", paths="/apis*"), Attributes(verb="get", path="/apisx"), True),
        (rule("get", paths="*"), Attributes(verb="get", path="/x"), True),
        (rule("get", paths="/a*b"), Attributes(verb="get", path="/axb"), False),
        (rule("get", paths="/x"), Attributes(verb="post", path="/x"), False),
        (rule("*", paths="/x"), Attributes(verb="post", path="/x"), True),
        (rule("*", "*", "*"), Attributes(verb="get", path="/x"), False),
        (rule("*", paths="*"), device(name="x"), False),
    ],
)
def test_a_rule(given_rule: PolicyRule, wanted: Attributes, allowed: bool) -> None:
    assert rbac.allows(given_rule, wanted) is allowed


READ = rule("get list", "skerry.dev", "devices")


Binding = RoleBinding | ClusterRoleBinding
USER = Subject(kind="User", name="alice")


def bound(kind: str, name: str, *subjects: Subject, namespace: str = "", to: str = "ClusterRole") -> Binding:
    ref = RoleRef(kind=to, name=name)  # type: ignore[arg-type]
    if kind == "RoleBinding":
        return RoleBinding(metadata=meta("b", namespace), role_ref=ref, subjects=list(subjects))
    return ClusterRoleBinding(metadata=meta("b"), role_ref=ref, subjects=list(subjects))


def test_a_cluster_role_binding_is_for_everywhere_and_a_role_binding_for_its_namespace() -> None:
    reader = ClusterRole(metadata=meta("reader"), rules=[READ, rule("get", paths="/x")])
    everywhere = bound("ClusterRoleBinding", "reader", USER)
    here = bound("RoleBinding", "reader", USER, namespace="shop")
    for namespace in ("", "shop", "other"):
        assert may(ALICE, device("list", namespace=namespace), reader, everywhere)
        assert may(ALICE, device("list", namespace=namespace), reader, here) is (namespace == "shop")
    assert may(ALICE, Attributes(verb="get", path="/x"), reader, everywhere)
    assert not may(ALICE, Attributes(verb="get", path="/x"), reader, here)


def test_a_role_is_for_its_namespace_and_bound_there_alone() -> None:
    role = Role(metadata=meta("reader", "shop"), rules=[READ])
    assert may(ALICE, device(namespace="shop"), role, bound("RoleBinding", "reader", USER, namespace="shop", to="Role"))
    elsewhere = bound("RoleBinding", "reader", USER, namespace="other", to="Role")
    assert not may(ALICE, device(namespace="other"), role, elsewhere)
    assert not may(ALICE, device(namespace="shop"), role, elsewhere)
    cluster = bound("ClusterRoleBinding", "reader", USER, to="Role")
    assert not may(ALICE, device(namespace="shop"), role, cluster)


def test_a_role_and_a_cluster_role_of_one_name_are_two() -> None:
    role = Role(metadata=meta("reader", "shop"), rules=[READ])
    cluster = ClusterRole(metadata=meta("reader"), rules=[])
    assert not may(
        ALICE, device(namespace="shop"), role, cluster, bound("RoleBinding", "reader", USER, namespace="shop")
    )


def test_a_binding_to_nothing_takes_nothing_away_from_others() -> None:
    reader = ClusterRole(metadata=meta("reader"), rules=[READ])
    gone = bound("ClusterRoleBinding", "gone", USER)
    assert not may(ALICE, device(), gone, reader)
    assert may(ALICE, device(), gone, bound("ClusterRoleBinding", "reader", USER), reader)


@pytest.mark.parametrize(
    ("subject", "identity", "namespace", "applies"),
    [
        (Subject(kind="User", name="alice"), ALICE, "", True),
        (Subject(kind="User", name="Alice"), ALICE, "", False),
        (Subject(kind="User", name="*"), ALICE, "", False),
        (Subject(kind="Group", name="dev"), ALICE, "", True),
        (Subject(kind="Group", name="alice"), ALICE, "", False),
        (Subject(kind="Group", name="system:authenticated"), ALICE, "", True),
        (Subject(kind="Group", name="system:unauthenticated"), ALICE, "", False),
        (Subject(kind="Group", name="system:unauthenticated"), access.ANONYMOUS, "", True),
        (Subject(kind="User", name="system:anonymous"), access.ANONYMOUS, "", True),
        (Subject(kind="ServiceAccount", name="robot", namespace="ci"), ROBOT, "", True),
        (Subject(kind="ServiceAccount", name="robot", namespace="other"), ROBOT, "", False),
        (Subject(kind="ServiceAccount", name="robot"), ROBOT, "ci", True),
        (Subject(kind="ServiceAccount", name="robot"), ROBOT, "other", False),
        (Subject(kind="ServiceAccount", name="robot"), ROBOT, "", False),
        (Subject(kind="User", name="system:serviceaccount:ci:robot"), ROBOT, "", True),
        (Subject(kind="Group", name="system:serviceaccounts:ci"), ROBOT, "", True),
        (Subject(kind="ServiceAccount", name="alice", namespace="ci"), ALICE, "", False),
        (Subject(kind="User", name="d1"), Identity(role="device", name="d1", namespace="ci"), "", False),
    ],
)
def test_a_subject(subject: Subject, identity: Identity, namespace: str, applies: bool) -> None:
    assert rbac.applies(subject, identity, namespace=namespace) is applies
    if applies and not namespace:  # found by its keys, too
        assert rbac.subject_keys([subject]) & set(rbac.identity_keys(identity))


def test_masters_may_do_everything_without_any_role() -> None:
    odd = Attributes(verb="explode", group="x", resource="y")
    assert may(Identity(role="admin", name="ada"), odd)
    assert may(Identity(role="user", name="root", groups=("system:masters",)), odd)
    assert not may(Identity(role="user", name="system:masters"), odd)


def test_what_somebody_may_do_beyond_another_is_told_wherever_it_is() -> None:
    reader = ClusterRole(metadata=meta("reader"), rules=[READ])
    robot = Subject(kind="ServiceAccount", name="robot", namespace="ci")
    here, there = (bound("RoleBinding", "reader", USER, namespace=namespace) for namespace in ("shop", "other"))
    theirs = bound("RoleBinding", "reader", robot, namespace="shop")
    everywhere = bound("ClusterRoleBinding", "reader", USER)
    single = [rule(verb, "skerry.dev", "devices") for verb in ("get", "list")]
    assert rbac.beyond(ROBOT, ALICE, policy(reader)) == []
    assert rbac.beyond(ROBOT, ALICE, policy(reader, theirs)) == single
    assert rbac.beyond(ROBOT, ALICE, policy(reader, theirs, there)) == single
    assert rbac.beyond(ROBOT, ALICE, policy(reader, theirs, here)) == []
    assert rbac.beyond(ROBOT, ALICE, policy(reader, theirs, everywhere)) == []
    assert rbac.beyond(ALICE, ROBOT, policy(reader, theirs, everywhere)) == single
    assert rbac.beyond(ALICE, ROBOT, policy(reader, here, theirs)) == []


def test_the_reason_names_binding_and_role() -> None:
    reader = ClusterRole(metadata=meta("reader"), rules=[READ])
    given_policy = policy(reader, bound("RoleBinding", "reader", USER, namespace="shop"))
    decision = rbac.decide(ALICE, device(namespace="shop"), given_policy)
    assert decision.reason == 'RBAC: allowed by RoleBinding "b/shop" of ClusterRole "reader"'


def aggregate(name: str, *selectors: LabelSelector, rules: Sequence[PolicyRule] = (), **labels: str) -> ClusterRole:
    return ClusterRole(
        metadata=meta(name, **labels),
        rules=list(rules),
        aggregation_rule=AggregationRule(cluster_role_selectors=list(selectors)),
    )


def test_an_aggregating_role_has_the_rules_of_those_it_selects_and_of_theirs() -> None:
    wanted = LabelSelector(match_labels={"to": "view"})
    view = aggregate("view", wanted, rules=[rule("*", "*", "*")], to="edit")
    edit = aggregate("edit", LabelSelector(match_labels={"to": "edit"}), to="edit")
    one = ClusterRole(metadata=meta("one", to="view"), rules=[READ])
    two = ClusterRole(metadata=meta("two", to="edit"), rules=[rule("delete", "skerry.dev", "devices"), READ])
    roles = [view, edit, one, two]
    assert rbac.aggregated(view, roles) == [READ]
    assert rbac.aggregated(edit, roles) == [rule("delete", "skerry.dev", "devices"), READ]
    assert rbac.aggregated(one, roles) == [READ]


def test_an_aggregation_that_cannot_be_read_or_selects_nothing_gives_nothing() -> None:
    bad = LabelSelector(match_expressions=[LabelSelectorRequirement(key="to", operator="In")])
    one = ClusterRole(metadata=meta("one", to="view"), rules=[READ])
    assert rbac.aggregated(aggregate("a", bad), [one]) == []
    assert rbac.aggregated(aggregate("a"), [one]) == []
    assert rbac.aggregated(aggregate("a", LabelSelector()), [one]) == [READ]


@pytest.mark.parametrize(
    ("owned", "wanted", "covered"),
    [
        ([READ], [READ], True),
        ([READ], [rule("get", "skerry.dev", "devices", "x")], True),
        ([rule("get", "skerry.dev", "devices", "x")], [rule("get", "skerry.dev", "devices")], False),
        ([rule("get", "skerry.dev", "devices", "x y")], [rule("get", "skerry.dev", "devices", "x")], True),
        ([rule("get", "skerry.dev", "devices"), rule("list", "skerry.dev", "devices")], [READ], True),
        ([rule("get", "skerry.dev", "devices"), rule("list", "core", "devices")], [READ], False),
        ([rule("get list watch", "skerry.dev", "devices")], [rule("*", "skerry.dev", "devices")], False),
        ([rule("*", "*", "*")], [rule("*", "*", "*")], True),
        ([rule("*", "*", "*")], [rule("*", paths="*")], False),
        ([rule("*", "skerry.dev", "*")], [rule("*", "*", "*")], False),
        ([rule("get", "*", "*/log")], [rule("get", "skerry.dev", "devices/log")], True),
        ([rule("get", "*", "*/log")], [rule("get", "skerry.dev", "devices")], False),
        ([rule("get", "*", "*/log")], [rule("get", "skerry.dev", "*")], False),
        ([rule("get", paths="/a*")], [rule("get", paths="/a/b /a*")], True),
        ([rule("get", paths="/a/b")], [rule("get", paths="/a*")], False),
        ([], [], True),
        ([], [READ], False),
    ],
)
def test_what_covers_what(owned: list[PolicyRule], wanted: list[PolicyRule], covered: bool) -> None:
    assert (rbac.uncovered(owned, wanted) == []) is covered


def test_a_huge_rule_is_refused_in_no_time_and_one_that_a_single_rule_covers_is_not() -> None:
    words = [f"w{number}" for number in range(1000)]
    huge = PolicyRule(verbs=words, api_groups=words, resources=words, resource_names=words)
    with pytest.raises(InvalidError, match="more than 5000 combinations"):
        rbac.uncovered([READ], [huge])
    assert rbac.uncovered([rule("*", "*", "*")], [huge]) == []


VERBS, GROUPS, NAMES = ("get", "list"), ("", "g"), ("", "n", "m")
RESOURCES, PATHS = ("a", "b", "a/s", "b/s", "a/t"), ("/p", "/p/q", "/r")


def some(words: Iterable[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(words)), max_size=3)


rules = st.builds(
    PolicyRule,
    verbs=some((*VERBS, "*")),
    api_groups=some((*GROUPS, "*")),
    resources=some((*RESOURCES, "*", "*/s", "*/t")),
    resource_names=some(("n", "m")),
    non_resource_urls=some((*PATHS, "*", "/p*", "/p/*")),
)

REQUESTS = [
    *(
        Attributes(
            verb=verb,
            group=group,
            resource=one.split("/")[0],
            subresource=one.partition("/")[2],
            name=name,
            namespace="x",
        )
        for verb, group, one, name in itertools.product(VERBS, GROUPS, RESOURCES, NAMES)
    ),
    *(Attributes(verb=verb, path=path) for verb, path in itertools.product(VERBS, PATHS)),
]


def naive(one: PolicyRule) -> set[Attributes]:
    """All requests that a rule allows, by writing out what each of its words stands for."""
    verbs = {verb for word in one.verbs for verb in (VERBS if word == "*" else [word])}
    groups = {group for word in one.api_groups for group in (GROUPS if word == "*" else [word])}
    resources = set()
    for word in one.resources:
        if word == "*":
            resources |= set(RESOURCES)
        elif word.startswith("*/"):
            resources |= {resource for resource in RESOURCES if resource.endswith(word[1:])}
        else:
            resources.add(word)
    names = set(one.resource_names or NAMES)
    paths = set()
    for word in one.non_resource_urls:
        paths |= {path for path in PATHS if (path[: len(word) - 1] == word[:-1] if word[-1] == "*" else path == word)}
    return {
        request
        for request in REQUESTS
        if request.verb in verbs
        and (
            request.path in paths
            if request.path
            else request.group in groups and request.whole in resources and request.name in names
        )
    }


@given(rules)
@settings(max_examples=300)
def test_a_rule_allows_what_its_words_stand_for(one: PolicyRule) -> None:
    assert {request for request in REQUESTS if rbac.allows(one, request)} == naive(one)


@given(st.lists(rules, max_size=4), st.lists(rules, max_size=2))
@settings(max_examples=300)
def test_what_is_covered_allows_nothing_new(owned: list[PolicyRule], wanted: list[PolicyRule]) -> None:
    held = {request for one in owned for request in naive(one)}
    asked = {request for one in wanted for request in naive(one)}
    missing = rbac.uncovered(owned, wanted)
    if not missing:
        assert asked <= held
    assert asked - held <= {request for one in missing for request in naive(one)}
    assert rbac.uncovered([*owned, *missing], wanted) == []
    assert rbac.uncovered([rule("*", "*", "*"), rule("*", paths="*")], wanted) == []


@given(st.lists(rules, max_size=5))
def test_compacted_rules_allow_the_same(given_rules: list[PolicyRule]) -> None:
    before = {request for one in given_rules for request in naive(one)}
    assert {request for one in rbac.compact(given_rules) for request in naive(one)} == before


subjects = st.sampled_from(
    [USER, Subject(kind="User", name="bob"), Subject(kind="Group", name="dev"), Subject(kind="Group", name="ops")]
)


@given(
    st.lists(st.tuples(rules, subjects, st.sampled_from(["x", "y", ""])), max_size=4),
    st.sampled_from(REQUESTS),
)
@settings(max_examples=300)
def test_a_decision_is_that_of_all_bindings_together(
    granted: list[tuple[PolicyRule, Subject, str]], wanted: Attributes
) -> None:
    objects: list[ClusterRole | RoleBinding | ClusterRoleBinding] = []
    for number, (one, subject, namespace) in enumerate(granted):
        objects.append(ClusterRole(metadata=meta(f"r{number}"), rules=[one]))
        kind = "RoleBinding" if namespace else "ClusterRoleBinding"
        objects.append(bound(kind, f"r{number}", subject, namespace=namespace))
    expected = any(
        wanted in naive(one)
        and subject.name in ("alice", "dev")
        and (not namespace or (namespace == "x" and not wanted.path))
        for one, subject, namespace in granted
    )
    assert may(ALICE, wanted, *objects) is expected
