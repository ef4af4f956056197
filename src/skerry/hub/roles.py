"""The roles that a hub has from its start, and their repair: what is missing is put back, what was added stays.

Lives here: shipped ClusterRoles and ClusterRoleBindings. Must not live here: what a rule means (`core.rbac`). Whoever
wants one as it is gives it the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"`. Source: Kubernetes
"Using RBAC Authorization", "Default roles and role bindings", "Auto-reconciliation".
"""

from __future__ import annotations

import logging

import msgspec

from skerry.api.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError, StorageFullError
from skerry.api.kinds.rbac import (
    GROUP,
    AggregationRule,
    ClusterRole,
    ClusterRoleBinding,
    PolicyRule,
    RoleRef,
    Subject,
)
from skerry.api.meta import GROUP as SKERRY
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import rbac
from skerry.core.access import AUTHENTICATED, MASTERS, UNAUTHENTICATED
from skerry.core.rbac import Attributes
from skerry.hub.objects import UNREADABLE, Objects

log = logging.getLogger(__name__)

AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
BOOTSTRAPPING = "kubernetes.io/bootstrapping"
AGGREGATE_TO = "rbac.authorization.k8s.io/aggregate-to-"
_ATTEMPTS = 5

_READ, _WRITE = ("get", "list", "watch"), ("create", "update", "patch", "delete", "deletecollection")
_CHANGE = ("update", "patch", "delete", "deletecollection")
_CORE, _EVENTS, _METRICS = "", "events.k8s.io", "metrics.k8s.io"
_REVIEWS, _TOKENS = "authorization.k8s.io", "authentication.k8s.io"
_OPEN = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_MONITORED = ("/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/readyz", "/readyz/*")
_DISCOVERY = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")
_SHOWN = ("devices", "deviceclasses", "enrollments", "modelversions", "modeldeployments", "rollouts", "trustpolicies")
"""Kinds that everybody may read who may read anything: nothing in them opens a door."""


def _rule(group: str, resources: tuple[str, ...], verbs: tuple[str, ...], *names: str) -> PolicyRule:
    return PolicyRule(verbs=list(verbs), api_groups=[group], resources=list(resources), resource_names=list(names))


def _paths(*paths: str, verbs: tuple[str, ...] = ("get",)) -> PolicyRule:
    return PolicyRule(verbs=list(verbs), non_resource_urls=list(paths))


_VIEWER = (
    _rule(SKERRY, (*_SHOWN, *(f"{plural}/status" for plural in _SHOWN)), _READ),
    _rule(SKERRY, ("devices/log", "modeldeployments/explain"), ("get",)),
    _rule(_CORE, ("namespaces", "nodes", "pods", "pods/status", "events", "serviceaccounts"), _READ),
    _rule(_CORE, ("pods/log",), ("get",)),
    _rule(_EVENTS, ("events",), _READ),
    _rule(_METRICS, ("nodes", "pods"), _READ),
)
_OPERATOR = (
    _rule(SKERRY, ("modeldeployments",), _WRITE),
    _rule(SKERRY, ("devices", "rollouts"), _CHANGE),
    _rule(SKERRY, ("deviceclasses", "enrollments"), ("delete", "deletecollection")),
    _rule(SKERRY, ("devices/infer", "devices/reconcile"), ("create",)),
    _rule(SKERRY, ("jointokens",), (*_READ, "create", "delete", "deletecollection")),
    _rule(SKERRY, ("repositories",), ("get",)),
    _rule(_CORE, ("pods/exec", "pods/attach", "pods/portforward"), ("create",)),
)
_PUBLISHER = (
    _rule(SKERRY, ("modelversions", "modelversions/status", "trustpolicies", "trustpolicies/status"), _READ),
    _rule(SKERRY, ("modelversions",), _WRITE),
    _rule(SKERRY, ("registrytokens",), (*_READ, "create", "delete", "deletecollection")),
    _rule(SKERRY, ("repositories",), ("get", "update")),
)
_ADMIN = (
    _rule(SKERRY, ("*",), ("*",)),
    _rule(_CORE, ("serviceaccounts",), _WRITE),
    _rule(_CORE, ("serviceaccounts/token",), ("create",)),
    _rule(_CORE, ("events",), _WRITE),
    _rule(_EVENTS, ("events",), _WRITE),
    _rule(GROUP, ("roles", "rolebindings"), (*_READ, *_WRITE)),
    _rule(_REVIEWS, ("localsubjectaccessreviews",), ("create",)),
)


def _meta(name: str, *aggregated_to: str) -> ObjectMeta:
    labels = {BOOTSTRAPPING: "rbac-defaults"} | {f"{AGGREGATE_TO}{role}": "true" for role in aggregated_to}
    return ObjectMeta(name=name, labels=labels, annotations={AUTOUPDATE: "true"})


def _role(name: str, *rules: PolicyRule, to: tuple[str, ...] = ()) -> ClusterRole:
    return ClusterRole(metadata=_meta(name, *to), rules=list(rules))


def _aggregating(name: str, *, to: tuple[str, ...] = ()) -> ClusterRole:
    wanted = LabelSelector(match_labels={f"{AGGREGATE_TO}{name}": "true"})
    return ClusterRole(metadata=_meta(name, *to), aggregation_rule=AggregationRule(cluster_role_selectors=[wanted]))


def _bound(name: str, *groups: str) -> ClusterRoleBinding:
    subjects = [Subject(kind="Group", name=group, api_group="rbac.authorization.k8s.io") for group in groups]
    return ClusterRoleBinding(metadata=_meta(name), role_ref=RoleRef(kind="ClusterRole", name=name), subjects=subjects)


CLUSTER_ROLES = (
    _role("skerry-viewer", *_VIEWER, to=("view",)),
    _role("skerry-operator", *_VIEWER, *_OPERATOR, to=("edit",)),
    _role("skerry-model-publisher", *_PUBLISHER, to=("edit",)),
    _role("skerry-admin", *_VIEWER, *_OPERATOR, *_ADMIN, to=("admin",)),
    _aggregating("view", to=("edit",)),
    _aggregating("edit", to=("admin",)),
    _aggregating("admin"),
    _role("cluster-admin", *rbac.EVERYTHING),
    _role("system:discovery", _paths(*_OPEN, *_DISCOVERY)),
    _role("system:public-info-viewer", _paths(*_OPEN)),
    _role("system:monitoring", _paths(*_MONITORED)),
    _role(
        "system:basic-user",
        _rule(_REVIEWS, ("selfsubjectaccessreviews", "selfsubjectrulesreviews"), ("create",)),
        _rule(_TOKENS, ("selfsubjectreviews",), ("create",)),
    ),
    _role(
        "system:auth-delegator",
        _rule(_TOKENS, ("tokenreviews",), ("create",)),
        _rule(_REVIEWS, ("subjectaccessreviews",), ("create",)),
    ),
)
"""In the order in which they are proposed to somebody who lacks a right: the least first."""

CLUSTER_ROLE_BINDINGS = (
    _bound("cluster-admin", MASTERS),
    _bound("system:discovery", AUTHENTICATED),
    _bound("system:public-info-viewer", AUTHENTICATED, UNAUTHENTICATED),
    _bound("system:basic-user", AUTHENTICATED),
    _bound("system:monitoring", "system:monitoring"),
)


def granting(wanted: Attributes) -> str:
    """Return the least of the shipped roles that allows a request."""
    fitting = (role for role in CLUSTER_ROLES if any(rbac.allows(rule, wanted) for rule in role.rules))
    return next((role.metadata.name for role in fitting), "cluster-admin")


async def ensure(objects: Objects) -> None:
    """Make the shipped roles and bindings, and repair those that lack something. A full disk only delays that."""
    try:
        for role in CLUSTER_ROLES:
            await _ensure(objects, role)
        for binding in CLUSTER_ROLE_BINDINGS:
            await _ensure(objects, binding)
    except StorageFullError as error:
        log.warning("roles.not_repaired cause=%s", error)


def repaired_role(stored: ClusterRole, shipped: ClusterRole) -> ClusterRole:
    """Return the stored role with all that the shipped one has; more that is there stays."""
    rules, aggregation = stored.rules, stored.aggregation_rule
    if shipped.aggregation_rule is not None:
        ours = shipped.aggregation_rule.cluster_role_selectors
        theirs = aggregation.cluster_role_selectors if aggregation else []
        aggregation = AggregationRule(cluster_role_selectors=[*theirs, *(one for one in ours if one not in theirs)])
    elif aggregation is None:
        rules = [*rules, *rbac.compact(_missing(rules, shipped.rules))]
    metadata = _repaired_meta(stored.metadata, shipped.metadata)
    return msgspec.structs.replace(stored, metadata=metadata, rules=rules, aggregation_rule=aggregation)


def repaired_binding(stored: ClusterRoleBinding, shipped: ClusterRoleBinding) -> ClusterRoleBinding:
    """Return the stored binding with all subjects that the shipped one has; more that are there stay."""
    known = {(one.kind, one.name, one.namespace) for one in stored.subjects}
    missing = [one for one in shipped.subjects if (one.kind, one.name, one.namespace) not in known]
    metadata = _repaired_meta(stored.metadata, shipped.metadata)
    return msgspec.structs.replace(stored, metadata=metadata, subjects=[*stored.subjects, *missing])


def _repaired_meta(stored: ObjectMeta, shipped: ObjectMeta) -> ObjectMeta:
    labels, annotations = shipped.labels | stored.labels, shipped.annotations | stored.annotations
    return msgspec.structs.replace(stored, labels=labels, annotations=annotations)


def _missing(held: list[PolicyRule], wanted: list[PolicyRule]) -> list[PolicyRule]:
    try:
        return rbac.uncovered(held, wanted)
    except InvalidError:
        return wanted


async def _ensure(objects: Objects, shipped: ClusterRole | ClusterRoleBinding) -> None:
    kind, name = type(shipped), shipped.metadata.name
    for _ in range(_ATTEMPTS):
        try:
            await _make(objects, shipped)
        except UNREADABLE as error:
            log.error("roles.unreadable kind=%s name=%s cause=%s", kind.__name__, name, error)
        except (AlreadyExistsError, ConflictError, NotFoundError):
            continue  # another replica, or a user, is at it
        return
    log.warning("roles.not_repaired kind=%s name=%s cause=%s", kind.__name__, name, "it changes all the time")


async def _make(objects: Objects, shipped: ClusterRole | ClusterRoleBinding) -> None:
    stored = await objects.find(type(shipped), "", shipped.metadata.name)
    if stored is None:
        await objects.create(shipped)
    elif stored.metadata.annotations.get(AUTOUPDATE) == "false":
        return
    elif isinstance(stored, ClusterRole) and isinstance(shipped, ClusterRole):
        await objects.replace(repaired_role(stored, shipped))
    elif isinstance(stored, ClusterRoleBinding) and isinstance(shipped, ClusterRoleBinding):
        if stored.role_ref == shipped.role_ref:
            await objects.replace(repaired_binding(stored, shipped))
            return
        # What a binding binds cannot be changed; whoever wants another role bound takes another name, or opts out.
        await objects.delete(ClusterRoleBinding, "", shipped.metadata.name, uid=stored.metadata.uid)
        await objects.create(shipped)
