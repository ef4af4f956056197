"""What Kubernetes refuses of its own kinds, refused here at the same path."""

from __future__ import annotations

from typing import Any

import pytest

from skerry.api import codec
from skerry.api.errors import InvalidError
from skerry.api.kinds.rbac import ClusterRole, ClusterRoleBinding
from skerry.hub import roles

RBAC = "rbac.authorization.k8s.io"


def problems(kind: str, raw: dict[str, Any], *, version: str = f"{RBAC}/v1") -> dict[str, str]:
    try:
        codec.validate({"apiVersion": version, "kind": kind, "metadata": {"name": "a", "namespace": "default"}, **raw})
    except InvalidError as error:
        return {one.element: one.cause for one in error.each}
    return {}


GOOD = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}


@pytest.mark.parametrize(
    ("kind", "rule", "element"),
    [
        ("Role", GOOD, ""),
        ("ClusterRole", {"verbs": ["get"], "nonResourceURLs": ["/healthz*"]}, ""),
        ("Role", {"verbs": ["get"], "nonResourceURLs": ["/healthz"]}, "rules[0].nonResourceURLs"),
        ("ClusterRole", {**GOOD, "nonResourceURLs": ["/healthz"]}, "rules[0].nonResourceURLs"),
        ("ClusterRole", {**GOOD, "apiGroups": []}, "rules[0].apiGroups"),
        ("Role", {**GOOD, "resources": []}, "rules[0].resources"),
        ("Role", {**GOOD, "verbs": []}, "rules[0].verbs"),
        ("Role", {"apiGroups": [""], "resources": ["pods"]}, "rules[0].verbs"),
    ],
)
def test_rules(kind: str, rule: dict[str, Any], element: str) -> None:
    assert set(problems(kind, {"rules": [rule]})) == ({element} if element else set())


ROLE = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "system:x"}
USER = {"kind": "User", "name": "alice@example.com"}
ACCOUNT = {"kind": "ServiceAccount", "name": "ci", "namespace": "a"}


@pytest.mark.parametrize(
    ("kind", "role", "subject", "element"),
    [
        ("RoleBinding", ROLE, USER, ""),
        ("RoleBinding", {**ROLE, "kind": "Role"}, {**USER, "apiGroup": RBAC}, ""),
        ("ClusterRoleBinding", ROLE, ACCOUNT, ""),
        ("ClusterRoleBinding", {**ROLE, "kind": "Role"}, USER, "roleRef.kind"),
        ("RoleBinding", {**ROLE, "name": "a/b"}, USER, "roleRef.name"),
        ("ClusterRoleBinding", {**ROLE, "name": ".."}, USER, "roleRef.name"),
        ("RoleBinding", {**ROLE, "kind": "Pod"}, USER, "roleRef.kind"),
        ("RoleBinding", {**ROLE, "apiGroup": "example.com"}, USER, "roleRef.apiGroup"),
        ("RoleBinding", ROLE, {**ACCOUNT, "namespace": ""}, "subjects[0].namespace"),
        ("RoleBinding", ROLE, {**ACCOUNT, "namespace": "A"}, "subjects[0].namespace"),
        ("RoleBinding", ROLE, {**ACCOUNT, "name": "A b"}, "subjects[0].name"),
        ("RoleBinding", ROLE, {**ACCOUNT, "apiGroup": RBAC}, "subjects[0].apiGroup"),
        ("RoleBinding", ROLE, {**USER, "kind": "Robot"}, "subjects[0].kind"),
        ("RoleBinding", ROLE, {"kind": "User"}, "subjects[0].name"),
    ],
)
def test_bindings(kind: str, role: dict[str, Any], subject: dict[str, Any], element: str) -> None:
    assert set(problems(kind, {"roleRef": role, "subjects": [subject]})) == ({element} if element else set())


def test_a_binding_needs_a_role() -> None:
    assert set(problems("RoleBinding", {})) == {"roleRef"}


@pytest.mark.parametrize(
    ("raw", "element"),
    [
        ({"involvedObject": {"kind": "Device", "name": "a", "namespace": "default"}}, ""),
        ({"involvedObject": {"kind": "ClusterRole", "name": "a"}}, ""),
        ({"involvedObject": {"kind": "Device", "name": "a", "namespace": "other"}}, "involvedObject.namespace"),
        ({"involvedObject": {}, "eventTime": "2026-01-01T00:00:00Z"}, "reportingComponent"),
        ({}, "involvedObject"),
    ],
)
def test_events(raw: dict[str, Any], element: str) -> None:
    assert set(problems("Event", raw, version="v1")) == ({element} if element else set())


@pytest.mark.parametrize(
    ("name", "good"),
    [("a:b", True), ("A_b~!$&", True), ("a/b", False), ("%", False), (".", False), ("a b", False), ("ä", False)],
)
def test_names_of_roles_are_parts_of_paths(name: str, good: bool) -> None:
    told = problems("ClusterRole", {"metadata": {"name": name}})
    assert set(told) == (set() if good else {"metadata.name"})


@pytest.mark.parametrize(
    "shipped", [*roles.CLUSTER_ROLES, *roles.CLUSTER_ROLE_BINDINGS], ids=lambda one: one.metadata.name
)
def test_what_the_hub_ships_may_be_written_back(shipped: ClusterRole | ClusterRoleBinding) -> None:
    assert codec.validate(codec.present(shipped)) == shipped
