"""What is asked about who may do what, and never kept: access reviews and rules reviews.

Source: Kubernetes API reference, `authorization.k8s.io/v1`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from skerry.api.kinds.rbac import PolicyRule
from skerry.api.meta import ObjectMeta, Struct

GROUP = "authorization.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class ResourceAttributes(Struct, frozen=True, kw_only=True):
    """A request for a resource."""

    namespace: _Text = ""
    """Empty: all of them, or an object that is in none."""
    verb: _Text = ""
    """As in rules; `*` is all of them."""
    group: _Text = ""
    version: _Text = ""
    resource: _Text = ""
    """The plural; `*` is all of them."""
    subresource: _Text = ""
    name: _Text = ""
    """Empty: a collection, or a new object."""
    field_selector: dict[str, Any] | None = None
    """Narrows a list; rules know nothing of it, so that it is not looked at."""
    label_selector: dict[str, Any] | None = None
    """Narrows a list; rules know nothing of it, so that it is not looked at."""


class NonResourceAttributes(Struct, frozen=True, kw_only=True):
    """A request for a path that is no resource's."""

    path: _Text = ""
    verb: _Text = ""
    """The HTTP method, in lower case."""


class SelfSubjectAccessReviewSpec(Struct, frozen=True, kw_only=True):
    """What I want to do; exactly one of the two."""

    resource_attributes: ResourceAttributes | None = None
    non_resource_attributes: NonResourceAttributes | None = None


class SubjectAccessReviewSpec(Struct, frozen=True, kw_only=True):
    """What somebody wants to do; exactly one of the attributes."""

    resource_attributes: ResourceAttributes | None = None
    non_resource_attributes: NonResourceAttributes | None = None
    user: _Text = ""
    groups: Annotated[list[_Text], msgspec.Meta(max_length=1024)] = []
    uid: _Text = ""
    extra: dict[str, list[_Text]] = {}


class SubjectAccessReviewStatus(Struct, frozen=True, kw_only=True):
    """The decision."""

    allowed: bool
    denied: bool = False
    """Never: rules allow, and forbid nothing."""
    reason: str = ""
    evaluation_error: str = ""


class SelfSubjectAccessReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question whether I may do something (`kubectl auth can-i`)."""

    metadata: ObjectMeta = ObjectMeta()
    spec: SelfSubjectAccessReviewSpec
    status: SubjectAccessReviewStatus = SubjectAccessReviewStatus(allowed=False)
    api_version: str = API_VERSION
    kind: Literal["SelfSubjectAccessReview"] = "SelfSubjectAccessReview"


class SubjectAccessReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question whether somebody may do something."""

    metadata: ObjectMeta = ObjectMeta()
    spec: SubjectAccessReviewSpec
    status: SubjectAccessReviewStatus = SubjectAccessReviewStatus(allowed=False)
    api_version: str = API_VERSION
    kind: Literal["SubjectAccessReview"] = "SubjectAccessReview"


class LocalSubjectAccessReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question whether somebody may do something in this namespace."""

    metadata: ObjectMeta = ObjectMeta()
    spec: SubjectAccessReviewSpec
    status: SubjectAccessReviewStatus = SubjectAccessReviewStatus(allowed=False)
    api_version: str = API_VERSION
    kind: Literal["LocalSubjectAccessReview"] = "LocalSubjectAccessReview"


class SelfSubjectRulesReviewSpec(Struct, frozen=True, kw_only=True):
    """Where."""

    namespace: _Text = ""
    """Required."""


class NonResourceRule(Struct, frozen=True, kw_only=True):
    """Verbs that may be done to paths."""

    verbs: list[str]
    non_resource_urls: list[str] = msgspec.field(default_factory=list, name="nonResourceURLs")


class ResourceRule(Struct, frozen=True, kw_only=True):
    """Verbs that may be done to resources."""

    verbs: list[str]
    api_groups: list[str] = []
    resources: list[str] = []
    resource_names: list[str] = []


class SubjectRulesReviewStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """All that is allowed there."""

    resource_rules: list[ResourceRule] = []
    non_resource_rules: list[NonResourceRule] = []
    incomplete: bool = False
    """True where somebody else decides, and only he knows all that he would allow."""
    evaluation_error: str = ""


class SelfSubjectRulesReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question what I may do in a namespace (`kubectl auth can-i --list`)."""

    metadata: ObjectMeta = ObjectMeta()
    spec: SelfSubjectRulesReviewSpec = SelfSubjectRulesReviewSpec()
    status: SubjectRulesReviewStatus = SubjectRulesReviewStatus()
    api_version: str = API_VERSION
    kind: Literal["SelfSubjectRulesReview"] = "SelfSubjectRulesReview"


def resource_rule(rule: PolicyRule) -> ResourceRule:
    """Return the part of a rule that is about resources."""
    return ResourceRule(
        verbs=rule.verbs, api_groups=rule.api_groups, resources=rule.resources, resource_names=rule.resource_names
    )
