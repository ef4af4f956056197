"""Role-based access control, pure: whether rules allow a request, whose rules apply, whether some cover others.

Lives here: Kubernetes' semantics of rules, bindings, aggregation and escalation. Must not live here: where roles are
kept (`hub.authorization`), how a request is read (`hub.server.access`). Source: Kubernetes "Using RBAC Authorization".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from skerry.api import selector
from skerry.api.errors import InvalidError
from skerry.api.kinds.rbac import ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject
from skerry.core.access import MASTERS, Identity

ALL = "*"
MAX_ATOMS = 5000
"""Combinations of verb, group, resource and name that one check of escalation looks at."""
MAX_NAMESPACES = 50
"""In which somebody's rules are compared with another's."""
MAX_STEPS = 1_000_000
"""Comparisons of one rule, or of one such combination, with another one in a whole check; a second or so."""
MAX_RULES = 50_000
"""Of one identity in one place, as far as they are compared."""
_FEWER = "write fewer rules, with more words in each"
_RULE_STEPS = 10
"""What taking a rule up costs, in comparisons."""
_WORDS = 8
"""Of a long rule, that take about as long as a comparison by itself."""
_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """What a request wants: a verb on a resource, or, where `path` is given, on a path that is no resource's."""

    verb: str
    """`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a path the HTTP method."""
    group: str = ""
    """The API group; the core group is the empty text."""
    version: str = ""
    """Of the API group; no rule asks for it."""
    resource: str = ""
    """The plural."""
    subresource: str = ""
    name: str = ""
    """The object's; empty for a collection."""
    namespace: str = ""
    """Empty for what is in none, and for all namespaces together."""
    path: str = ""
    """Of a request for no resource; such a one has nothing else but the verb."""

    @property
    def is_resource(self) -> bool:
        """Whether it is for a resource."""
        return not self.path

    @property
    def whole(self) -> str:
        """The resource as rules name it: `devices`, `devices/log`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a request is allowed; `reason` is for people."""

    allowed: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """All roles and bindings, looked up and gone through as they are needed."""

    role: Callable[[str, str], Role | None]
    """By namespace and name."""
    cluster_role: Callable[[str], ClusterRole | None]
    """By name, with the rules that it aggregates."""
    bindings: Callable[[str], Iterable[RoleBinding]]
    """Of a namespace."""
    cluster_bindings: Callable[[Identity], Iterable[ClusterRoleBinding]]
    """Those that are about somebody; others among them do no harm."""
    namespaces: Callable[[], Iterable[str]]
    """All that have bindings."""


def is_master(identity: Identity) -> bool:
    """Return whether this is somebody who may do everything."""
    return identity.role == "admin" or MASTERS in identity.groups


def decide(identity: Identity, attributes: Attributes, policy: Policy) -> Decision:
    """Return whether the identity may do this, by the first rule that allows it; no rule forbids."""
    if is_master(identity):
        return Decision(allowed=True, reason=f"group {MASTERS}")
    for rules, where in _granted(identity, attributes.namespace, policy):
        if any(allows(rule, attributes) for rule in rules):
            return Decision(allowed=True, reason=f"RBAC: allowed by {where}")
    return Decision(allowed=False)


def rules_of(identity: Identity, namespace: str, policy: Policy) -> list[PolicyRule]:
    """Return all rules that hold for the identity in a namespace, or, where it is empty, everywhere."""
    if is_master(identity):
        return list(EVERYTHING)
    return [rule for rules, _ in _granted(identity, namespace, policy) for rule in rules]


@dataclass(kw_only=True, slots=True)
class Budget:
    """What a check of escalation may still cost; rules are made by those whom it is to hold off."""

    combinations: int = MAX_ATOMS
    steps: int = MAX_STEPS

    def take_combinations(self, count: int) -> None:
        """Raise InvalidError when it is used up."""
        self.combinations -= count
        if self.combinations < 0:
            raise InvalidError(
                f"have more than {MAX_ATOMS} combinations of verbs, groups, resources and names",
                element="rules",
                hint="write them as several roles",
            )

    def take_steps(self, count: int) -> None:
        """Raise InvalidError when it is used up."""
        self.steps -= count
        if self.steps < 0:
            raise InvalidError(f"take more than {MAX_STEPS} comparisons with yours", element="rules", hint=_FEWER)


EVERYTHING = (
    PolicyRule(verbs=[ALL], api_groups=[ALL], resources=[ALL]),
    PolicyRule(verbs=[ALL], non_resource_urls=[ALL]),
)


def allows(rule: PolicyRule, wanted: Attributes) -> bool:
    """Return whether one rule allows a request."""
    if ALL not in rule.verbs and wanted.verb not in rule.verbs:
        return False
    if wanted.path:
        return any(_path_matches(pattern, wanted.path) for pattern in rule.non_resource_urls)
    return (
        (ALL in rule.api_groups or wanted.group in rule.api_groups)
        and any(_resource_matches(named, wanted) for named in rule.resources)
        and (not rule.resource_names or wanted.name in rule.resource_names)
    )


def applies(subject: Subject, identity: Identity, *, namespace: str) -> bool:
    """Return whether a subject of a binding (in that namespace, if in any) is this identity."""
    match subject.kind:
        case "User":
            return identity.username == subject.name
        case "Group":
            return subject.name in identity.groups
        case "ServiceAccount":
            home = subject.namespace or namespace
            return bool(home) and identity.username == f"{_ACCOUNT}{home}:{subject.name}"


def subject_keys(subjects: Iterable[Subject]) -> set[str]:
    """Return what subjects of a binding without a namespace are found by: one of `identity_keys` of each of them."""
    keys = set()
    for subject in subjects:
        match subject.kind:
            case "User":
                keys.add(f"user {subject.name}")
            case "Group":
                keys.add(f"group {subject.name}")
            case "ServiceAccount":
                keys.add(f"user {_ACCOUNT}{subject.namespace}:{subject.name}")
    return keys


def identity_keys(identity: Identity) -> list[str]:
    """Return everything that a subject can know an identity by."""
    return [f"user {identity.username}", *(f"group {group}" for group in identity.groups)]


def rules_of_role(ref: RoleRef, namespace: str, policy: Policy) -> Sequence[PolicyRule] | None:
    """Return the rules that a binding in this namespace refers to; None where there is no such role."""
    if ref.kind == "ClusterRole":
        cluster_role = policy.cluster_role(ref.name)
        return None if cluster_role is None else cluster_role.rules
    role = policy.role(namespace, ref.name) if namespace else None
    return None if role is None else role.rules


def aggregated(role: ClusterRole, others: Iterable[ClusterRole]) -> list[PolicyRule]:
    """Return the rules of a ClusterRole: its own, or where it aggregates, those of all that it selects, each once.

    What is selected may aggregate in turn, itself even. A selector that cannot be read selects nothing.
    """
    if role.aggregation_rule is None:
        return role.rules
    known = {other.metadata.name: other for other in others}
    found: dict[bytes, PolicyRule] = {}
    seen: set[str] = {role.metadata.name}
    waiting = [role]
    while waiting:
        at = waiting.pop(0)
        for name in sorted(_selected(at, known.values()) - seen):
            seen.add(name)
            if known[name].aggregation_rule is not None:
                waiting.append(known[name])
                continue
            for rule in known[name].rules:
                found.setdefault(_key(rule), rule)
    return list(found.values())


def uncovered(
    owned: Sequence[PolicyRule], wanted: Sequence[PolicyRule], *, budget: Budget | None = None
) -> list[PolicyRule]:
    """Return what of the wanted rules goes beyond the owned ones; nothing when all is covered.

    Each combination of verb, group, resource and name must be covered by one owned rule as a whole, `*` only by `*`.
    Raises InvalidError for rules of more than `MAX_ATOMS` combinations that no single owned rule covers, and where the
    comparison would take more than `MAX_STEPS`.
    """
    left = budget or Budget()
    asked = {_key(rule): rule for rule in wanted}
    missing: list[PolicyRule] = []
    if not asked:
        return missing
    own = _Held(owned, left)
    for key, rule in asked.items():
        if not own.covers(rule, key):
            left.take_combinations(_count(rule))
            missing += [atom for atom in _atoms(rule) if not own.covers(atom)]
    return missing


def beyond(identity: Identity, other: Identity, policy: Policy) -> list[PolicyRule]:
    """Return what somebody may do, anywhere, that the other may not do there. Raises InvalidError as `uncovered`."""
    return lacking(compared(identity, other, policy))


def compared(identity: Identity, other: Identity, policy: Policy) -> list[tuple[list[PolicyRule], list[PolicyRule]]]:
    """Return what `beyond` compares: everywhere, then by namespace, what the other has and what is to be covered by it.

    It only looks the rules up. Raises InvalidError for rules of too many namespaces, and for too many.
    """
    everywhere = held(identity, "", policy)
    known, left = {id(rule) for rule in everywhere}, MAX_NAMESPACES
    pairs = [(held(other, "", policy), everywhere)]
    for namespace in policy.namespaces():
        bindings = policy.bindings(namespace)
        if any(applies(subject, identity, namespace=namespace) for one in bindings for subject in one.subjects):
            left -= 1
            if left < 0:
                raise InvalidError(f"are of more than {MAX_NAMESPACES} namespaces", element="rules")
            more = [rule for rule in held(identity, namespace, policy) if id(rule) not in known]
            pairs.append((held(other, namespace, policy), more))
    return pairs


def lacking(pairs: Iterable[tuple[Sequence[PolicyRule], Sequence[PolicyRule]]]) -> list[PolicyRule]:
    """Return what of each pair's second rules its first do not cover, all within one budget. Raises as `uncovered`."""
    budget = Budget()
    return [rule for owned, wanted in pairs for rule in uncovered(owned, wanted, budget=budget)]


def held(identity: Identity, namespace: str, policy: Policy) -> list[PolicyRule]:
    """Return all rules that hold for the identity there, those of a role once. Raises InvalidError for too many."""
    if is_master(identity):
        return list(EVERYTHING)
    roles = {id(rules): rules for rules, _ in _granted(identity, namespace, policy)}
    if sum(map(len, roles.values())) > MAX_RULES:
        raise InvalidError(f'of "{identity.username}" are more than {MAX_RULES}', element="rules", hint=_FEWER)
    return [rule for rules in roles.values() for rule in rules]


def compact(rules: Iterable[PolicyRule]) -> list[PolicyRule]:
    """Return the rules, each once, with those that differ in nothing but their verbs put together."""
    merged: dict[bytes, PolicyRule] = {}
    for rule in rules:
        key = _key(rule, verbs=False)
        before = merged.get(key)
        verbs = dict.fromkeys([*(before.verbs if before else ()), *rule.verbs])
        merged[key] = PolicyRule(
            verbs=list(verbs),
            api_groups=rule.api_groups,
            resources=rule.resources,
            resource_names=rule.resource_names,
            non_resource_urls=rule.non_resource_urls,
        )
    return list(merged.values())


def describe(rule: PolicyRule) -> str:
    """Return a rule as Kubernetes writes it in its messages."""
    parts = [
        (name, values)
        for name, values in (
            ("NonResourceURLs", rule.non_resource_urls),
            ("APIGroups", rule.api_groups),
            ("Resources", rule.resources),
            ("ResourceNames", rule.resource_names),
            ("Verbs", rule.verbs),
        )
        if values
    ]
    shown = ", ".join(f"{name}:[{', '.join(_quoted(value) for value in values)}]" for name, values in parts)
    return f"{{{shown}}}"


def _granted(identity: Identity, namespace: str, policy: Policy) -> Iterator[tuple[Sequence[PolicyRule], str]]:
    """Yield the rules of each binding that is about the identity, and the binding's name in words."""
    for everywhere in policy.cluster_bindings(identity):
        if any(applies(subject, identity, namespace="") for subject in everywhere.subjects):
            # A Role is in a namespace, and this binding is in none.
            rules = rules_of_role(everywhere.role_ref, "", policy)
            if rules is not None:
                yield rules, f'ClusterRoleBinding "{everywhere.metadata.name}" of {_role_words(everywhere.role_ref)}'
    if not namespace:
        return
    for binding in policy.bindings(namespace):
        if any(applies(subject, identity, namespace=namespace) for subject in binding.subjects):
            rules = rules_of_role(binding.role_ref, namespace, policy)
            if rules is not None:
                name = f"{binding.metadata.name}/{namespace}"
                yield rules, f'RoleBinding "{name}" of {_role_words(binding.role_ref)}'


def _role_words(ref: RoleRef) -> str:
    return f'{ref.kind} "{ref.name}"'


def _resource_matches(named: str, wanted: Attributes) -> bool:
    return named in (ALL, wanted.whole) or (bool(wanted.subresource) and named == f"*/{wanted.subresource}")


def _path_matches(pattern: str, path: str) -> bool:
    return pattern == path or (pattern.endswith(ALL) and path.startswith(pattern.rstrip(ALL)))


def _selected(role: ClusterRole, others: Iterable[ClusterRole]) -> set[str]:
    names: set[str] = set()
    selectors = role.aggregation_rule.cluster_role_selectors if role.aggregation_rule else ()
    candidates = list(others)
    for wanted in selectors:
        try:
            terms = selector.requirements(wanted)
        except InvalidError:
            continue
        names |= {other.metadata.name for other in candidates if selector.matches(terms, other.metadata.labels)}
    return names


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """A rule's words as sets: rules are compared by the thousand, and may be long."""

    verbs: frozenset[str]
    groups: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str]
    paths: frozenset[str]

    @property
    def words(self) -> int:
        """How long it is."""
        return len(self.verbs) + len(self.groups) + len(self.resources) + len(self.names)


def _span(rule: PolicyRule) -> _Span:
    return _Span(
        verbs=frozenset(rule.verbs),
        groups=frozenset(rule.api_groups),
        resources=frozenset(rule.resources),
        names=frozenset(rule.resource_names),
        paths=frozenset(rule.non_resource_urls),
    )


class _Held:
    """Rules that somebody has, as they are compared with others: each once, those that allow the most first."""

    def __init__(self, rules: Sequence[PolicyRule], budget: Budget) -> None:
        budget.take_steps(_RULE_STEPS * len(rules))
        self._budget = budget
        self._keys = {_key(rule) for rule in rules}
        spans = (_span(rule) for rule in compact(rules))
        self._spans = sorted(spans, key=lambda own: (ALL not in own.verbs) + (ALL not in own.resources))

    def covers(self, rule: PolicyRule, key: bytes = b"") -> bool:
        """Return whether a single one of the rules allows all that this one does. Raises InvalidError."""
        if key in self._keys:
            return True
        wanted = _span(rule)
        steps = 1 + wanted.words // _WORDS
        for own in self._spans:
            self._budget.take_steps(steps + len(wanted.paths) * len(own.paths) // _WORDS)
            if _covers(own, wanted):
                return True
        return False


def _covers(own: _Span, wanted: _Span) -> bool:
    return (
        (ALL in own.verbs or wanted.verbs <= own.verbs)
        and (ALL in own.groups or wanted.groups <= own.groups)
        and (ALL in own.resources or all(_resource_in(own.resources, named) for named in wanted.resources))
        and (not own.names or (bool(wanted.names) and wanted.names <= own.names))
        and all(any(_path_matches(held, path) for held in own.paths) for path in wanted.paths)
    )


def _resource_in(own: frozenset[str], wanted: str) -> bool:
    _, slash, subresource = wanted.partition("/")
    return wanted in own or (bool(slash) and f"*/{subresource}" in own)


def _axes(rule: PolicyRule) -> list[list[str]]:
    axes = (rule.verbs, rule.api_groups, rule.resources, rule.resource_names)
    return [list(dict.fromkeys(axis)) for axis in axes]


def _count(rule: PolicyRule) -> int:
    verbs, groups, resources, names = _axes(rule)
    of_resources = math.prod((len(verbs), len(groups), len(resources), max(1, len(names))))
    return of_resources + len(verbs) * len(set(rule.non_resource_urls))


def _atoms(rule: PolicyRule) -> Iterator[PolicyRule]:
    """Yield a rule's single combinations."""
    verbs, groups, resources, names = _axes(rule)
    for verb, group, resource in itertools.product(verbs, groups, resources):
        for name in names or ("",):
            yield PolicyRule(
                verbs=[verb], api_groups=[group], resources=[resource], resource_names=[name] if names else []
            )
    for verb, path in itertools.product(verbs, dict.fromkeys(rule.non_resource_urls)):
        yield PolicyRule(verbs=[verb], non_resource_urls=[path])


def _key(rule: PolicyRule, *, verbs: bool = True) -> bytes:
    return repr(
        (
            rule.verbs if verbs else (),
            rule.api_groups,
            rule.resources,
            rule.resource_names,
            rule.non_resource_urls,
        )
    ).encode()


def _quoted(value: str) -> str:
    return f'"{value}"'
