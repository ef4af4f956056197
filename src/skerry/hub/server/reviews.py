"""Answers to `authorization.k8s.io/v1`: may I, may they, and what may I do here (`kubectl auth can-i`).

Nothing of it is stored. Must not live here: the decision (`hub.authorization`), who somebody is (`authentication`).
Source: Kubernetes API reference.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.kinds import Resource
from skerry.api.kinds.authentication import SelfSubjectReview, TokenReview
from skerry.api.kinds.authorization import (
    LocalSubjectAccessReview,
    NonResourceAttributes,
    NonResourceRule,
    ResourceAttributes,
    SelfSubjectAccessReview,
    SelfSubjectRulesReview,
    SubjectAccessReview,
    SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
    SubjectRulesReviewStatus,
    resource_rule,
)
from skerry.core import rbac
from skerry.core.access import ANONYMOUS, ANONYMOUS_USER, Identity
from skerry.core.rbac import Attributes
from skerry.hub.authorization import RoleAuthorizer
from skerry.hub.server import authentication
from skerry.hub.server.call import Call

Review = SelfSubjectAccessReview | SubjectAccessReview | LocalSubjectAccessReview | SelfSubjectRulesReview


async def review(call: Call, item: Resource) -> Resource | None:
    """Return the review with its answer; None for what is none. Raises InvalidError, UnavailableError."""
    match item:
        case SelfSubjectAccessReview(spec=spec):
            return await _decided(call, item, call.identity, spec.resource_attributes, spec.non_resource_attributes)
        case LocalSubjectAccessReview(spec=spec):
            _check_local(call, spec)
            return await _decided(call, item, _who(spec), spec.resource_attributes, None)
        case SubjectAccessReview(spec=spec):
            return await _decided(call, item, _who(spec), spec.resource_attributes, spec.non_resource_attributes)
        case SelfSubjectRulesReview():
            return await _listed(call, item)
        case TokenReview() | SelfSubjectReview():
            return await authentication.review(call, item)
        case _:
            return None


async def _decided(
    call: Call,
    item: SelfSubjectAccessReview | SubjectAccessReview | LocalSubjectAccessReview,
    identity: Identity,
    resource: ResourceAttributes | None,
    path: NonResourceAttributes | None,
) -> Resource:
    decision = await call.context.authorizer.authorize(identity, _attributes(resource, path))
    status = SubjectAccessReviewStatus(allowed=decision.allowed, reason=decision.reason)
    return _with_status(item, status)


async def _listed(call: Call, item: SelfSubjectRulesReview) -> Resource:
    namespace = item.spec.namespace
    if not namespace:
        raise InvalidError("is required", element="spec.namespace", hint="name the namespace that is meant")
    authorizer = call.context.authorizer
    if not isinstance(authorizer, RoleAuthorizer):
        incomplete = "whoever decides cannot tell all that he would allow"
        return _with_status(item, SubjectRulesReviewStatus(incomplete=True, evaluation_error=incomplete))
    rules = rbac.rules_of(call.identity, namespace, await authorizer.policy())
    status = SubjectRulesReviewStatus(
        resource_rules=[resource_rule(rule) for rule in rules if rule.resources],
        non_resource_rules=[
            NonResourceRule(verbs=rule.verbs, non_resource_urls=rule.non_resource_urls)
            for rule in rules
            if rule.non_resource_urls
        ],
    )
    return _with_status(item, status)


def _attributes(resource: ResourceAttributes | None, path: NonResourceAttributes | None) -> Attributes:
    if (resource is None) == (path is None):
        raise InvalidError(
            "must have exactly one of resourceAttributes and nonResourceAttributes",
            element="spec",
            hint="leave one out",
        )
    if resource is not None:
        return Attributes(
            verb=resource.verb,
            group=resource.group,
            version=resource.version,
            resource=resource.resource,
            subresource=resource.subresource,
            name=resource.name,
            namespace=resource.namespace,
        )
    assert path is not None  # one of the two is
    return Attributes(verb=path.verb, path=path.path or "/")


def _who(spec: SubjectAccessReviewSpec) -> Identity:
    """Return the identity that is asked about; somebody who has a name has logged in."""
    if not spec.user and not spec.groups:
        raise InvalidError("at least one of user and groups is required", element="spec.user")
    if spec.user == ANONYMOUS_USER:
        return ANONYMOUS
    extra = {key: tuple(values) for key, values in spec.extra.items()}
    return Identity(role="user", name=spec.user, uid=spec.uid, groups=tuple(spec.groups), extra=extra)


def _check_local(call: Call, spec: SubjectAccessReviewSpec) -> None:
    if spec.resource_attributes is None or spec.non_resource_attributes is not None:
        raise InvalidError("is what this review is about", element="spec.resourceAttributes")
    if spec.resource_attributes.namespace != call.namespace:
        raise InvalidError(f'must be "{call.namespace}", as in the path', element="spec.resourceAttributes.namespace")


def _with_status(item: Resource, status: Any) -> Resource:
    changes: dict[str, Any] = {"status": status}
    return msgspec.structs.replace(item, **changes)
