"""What the types of Kubernetes' own kinds cannot say: roles, bindings, events; run by `rules` wherever such one stands.

Lives here: the checks that Kubernetes makes of these kinds. Must not live here: who may write them. Source: Kubernetes
`pkg/apis/rbac/validation`, `pkg/apis/core/validation/events.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from skerry.api.errors import InvalidError
from skerry.api.kinds import rbac, reported_event
from skerry.api.kinds.event import Event
from skerry.api.kinds.rbac import ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject
from skerry.api.meta import LABEL_PATTERN, NAME_PATTERN, PATH_PATTERN

_DEFAULT_NAMESPACE = "default"


def check_policy_rule(rule: PolicyRule, path: str) -> Iterator[InvalidError]:
    """Yield a rule that is about resources and about other paths, or about neither."""
    if rule.non_resource_urls:
        if rule.api_groups or rule.resources or rule.resource_names:
            yield InvalidError(
                "rules cannot apply to both regular resources and non-resource URLs",
                element=f"{path}.nonResourceURLs",
                hint="write two rules",
            )
        return
    if not rule.api_groups:
        yield InvalidError(
            "resource rules must supply at least one api group",
            element=f"{path}.apiGroups",
            hint='write skerry.dev for our kinds, "" for the core group',
        )
    if not rule.resources:
        yield InvalidError(
            "resource rules must supply at least one resource", element=f"{path}.resources", hint="as in devices"
        )


def check_role(role: Role, _: str) -> Iterator[InvalidError]:
    """Yield rules about paths, which are in no namespace."""
    for position, rule in enumerate(role.rules):
        if rule.non_resource_urls:
            yield InvalidError(
                "namespaced rules cannot apply to non-resource URLs",
                element=f"rules[{position}].nonResourceURLs",
                hint="write a ClusterRole",
            )


def check_role_binding(binding: RoleBinding, _: str) -> Iterator[InvalidError]:
    """Yield a role whose name cannot be one."""
    yield from _check_role_name(binding)


def check_cluster_role_binding(binding: ClusterRoleBinding, _: str) -> Iterator[InvalidError]:
    """Yield a role of a namespace, which cannot be given everywhere, and a name that cannot be one."""
    if binding.role_ref.kind != "ClusterRole":
        yield InvalidError(
            f'"{binding.role_ref.kind}" is not one of ClusterRole', element="roleRef.kind", hint="bind a ClusterRole"
        )
    yield from _check_role_name(binding)


def check_subject(subject: Subject, path: str) -> Iterator[InvalidError]:
    """Yield a group that is not the kind's, and what a service account lacks."""
    if subject.kind == "ServiceAccount":
        if subject.api_group:
            yield InvalidError(f'"{subject.api_group}" is not one of ""', element=f"{path}.apiGroup")
        if not re.match(NAME_PATTERN, subject.name):
            yield InvalidError(f'"{subject.name[:80]}" is not a name', element=f"{path}.name")
        if not subject.namespace:
            yield InvalidError("is required", element=f"{path}.namespace", hint="say where the service account is")
        elif not re.match(LABEL_PATTERN, subject.namespace):
            yield InvalidError(f'"{subject.namespace[:80]}" is not a namespace', element=f"{path}.namespace")
    elif subject.api_group not in ("", rbac.GROUP):
        yield InvalidError(f'"{subject.api_group}" is not one of {rbac.GROUP}', element=f"{path}.apiGroup")


def check_event(event: Event, _: str) -> Iterator[InvalidError]:
    """Yield an event in another namespace than its object."""
    yield from _check_place(event.metadata.namespace, event.involved_object.namespace, "involvedObject.namespace")
    if event.event_time is not None and not event.reporting_component:
        yield InvalidError("is required with eventTime", element="reportingComponent", hint="say who tells of it")


def check_reported_event(event: reported_event.Event, _: str) -> Iterator[InvalidError]:
    """Yield an event in another namespace than its object."""
    yield from _check_place(event.metadata.namespace, event.regarding.namespace, "regarding.namespace")


def _check_place(here: str, there: str, element: str) -> Iterator[InvalidError]:
    if here and here != (there or _DEFAULT_NAMESPACE):
        yield InvalidError(f'"{there[:80]}" does not match the event\'s namespace "{here}"', element=element)


def _check_role_name(binding: RoleBinding | ClusterRoleBinding) -> Iterator[InvalidError]:
    if not re.match(PATH_PATTERN, binding.role_ref.name):
        yield InvalidError(
            f'"{binding.role_ref.name[:80]}" is not a role\'s name',
            element="roleRef.name",
            hint="use no spaces, '/' and '%'",
        )
