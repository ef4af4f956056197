"""Role, ClusterRole and their bindings: who may do what, in Kubernetes' own types (`rbac.authorization.k8s.io/v1`).

Lives here: the types. Must not live here: what a rule allows (`core.rbac`), which roles the hub ships (`hub.roles`).
Source: Kubernetes API reference, "RBAC authorization".
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.meta import LabelSelector, ObjectMeta, Struct

GROUP = "rbac.authorization.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

_Word = Annotated[str, msgspec.Meta(max_length=512)]
_Words = Annotated[list[_Word], msgspec.Meta(max_length=1024)]
_SubjectName = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class PolicyRule(Struct, frozen=True, kw_only=True):
    """Verbs that may be done to resources, or to paths that are no resource's; never to both by one rule."""

    verbs: Annotated[list[_Word], msgspec.Meta(min_length=1, max_length=1024)]
    """`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, others by name; `*` is all."""
    api_groups: _Words = []
    """API groups of the resources; the core group is the empty text, `*` is all."""
    resources: _Words = []
    """Plurals, and subresources as in `devices/log`; `*/log` is that of any resource, `*` is all."""
    resource_names: _Words = []
    """Names of the objects meant; empty means all, and what has no name (a new object) is among those alone."""
    non_resource_urls: _Words = msgspec.field(default_factory=list, name="nonResourceURLs")
    """Paths that are no resource's, in ClusterRoles only; a `*` at the end is any rest."""


class AggregationRule(Struct, frozen=True, kw_only=True):
    """Whose rules a ClusterRole takes together."""

    cluster_role_selectors: Annotated[list[LabelSelector], msgspec.Meta(max_length=64)] = []
    """The ClusterRoles that match any of these."""


class RoleRef(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The role that is bound; cannot be changed."""

    kind: Literal["Role", "ClusterRole"]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    api_group: Literal["", "rbac.authorization.k8s.io"] = "rbac.authorization.k8s.io"


class Subject(Struct, frozen=True, kw_only=True):
    """Whom a role is bound to."""

    kind: Literal["User", "Group", "ServiceAccount"]
    name: _SubjectName
    api_group: Literal["", "rbac.authorization.k8s.io"] = ""
    """Empty for a ServiceAccount."""
    namespace: Annotated[str, msgspec.Meta(max_length=63)] = ""
    """Of a ServiceAccount, and of nobody else."""


class Role(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Rules within one namespace."""

    metadata: ObjectMeta
    rules: Annotated[list[PolicyRule], msgspec.Meta(max_length=1024)] = []
    api_version: str = API_VERSION
    kind: Literal["Role"] = "Role"


class ClusterRole(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Rules for all namespaces, for what is in none, and, bound by a RoleBinding, for one namespace."""

    metadata: ObjectMeta
    rules: Annotated[list[PolicyRule], msgspec.Meta(max_length=1024)] = []
    aggregation_rule: AggregationRule | None = None
    """Where it is given, the hub fills `rules` with those of the roles that match, and what was written there goes."""
    api_version: str = API_VERSION
    kind: Literal["ClusterRole"] = "ClusterRole"


class RoleBinding(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Gives subjects the rules of a Role of this namespace, or of a ClusterRole within this namespace."""

    metadata: ObjectMeta
    role_ref: RoleRef
    subjects: Annotated[list[Subject], msgspec.Meta(max_length=4096)] = []
    api_version: str = API_VERSION
    kind: Literal["RoleBinding"] = "RoleBinding"


class ClusterRoleBinding(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Gives subjects the rules of a ClusterRole everywhere."""

    metadata: ObjectMeta
    role_ref: RoleRef
    subjects: Annotated[list[Subject], msgspec.Meta(max_length=4096)] = []
    api_version: str = API_VERSION
    kind: Literal["ClusterRoleBinding"] = "ClusterRoleBinding"
