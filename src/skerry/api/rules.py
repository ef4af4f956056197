"""What the types cannot say: rules on single structs, run wherever such a struct stands in an object.

Lives here: names, labels, selectors, waves, durations that must not be zero, and rules on whole kinds. Must not live
here: the walk that finds the structs (`validation`), anything that needs other objects or a clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from skerry.api import amount, cron, duration, quantity, selector, standard_rules, trust_rules
from skerry.api.errors import InvalidError
from skerry.api.kinds import reported_event
from skerry.api.kinds.device import LinkPolicy
from skerry.api.kinds.enrollment import JoinTokenSpec
from skerry.api.kinds.event import Event
from skerry.api.kinds.gates import LatencyGate
from skerry.api.kinds.model_deployment import PlacementPolicy, Resources, Strategy, Wave
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.pacing import Disruption, Rate, Window
from skerry.api.kinds.rbac import ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.kinds.table import KindInfo
from skerry.api.kinds.trust_policy import TrustedIdentity, TrustPolicy, TrustRule
from skerry.api.meta import (
    LABEL_PATTERN,
    NAME_PATTERN,
    PATH_PATTERN,
    LabelSelector,
    LabelSelectorRequirement,
    ObjectMeta,
)

MAX_ANNOTATION_BYTES = 256 * 1024
MAX_NAME = 253
MAX_LABEL = 63
MAX_WINDOW_SECONDS = 7 * 24 * 3600
_NAME_HINT = "use a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
_LABEL_HINT = "use a-z, 0-9 and '-', beginning and ending with a letter or digit, at most 63 characters"
_KEY_HINT = (
    "letters, digits, '-', '_' and '.', at most 63 characters, with an optional DNS prefix as in example.com/site"
)
_VALUE_HINT = "letters, digits, '-', '_' and '.', at most 63 characters"
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")

Rule = Callable[[Any, str], Iterator[InvalidError]]
_FORMS = {
    "subdomain": (NAME_PATTERN, _NAME_HINT),
    "label": (LABEL_PATTERN, _LABEL_HINT),
    "path": (PATH_PATTERN, "use printable ASCII without spaces, '/' and '%'"),
}
_SHORT_NAMED = ("Device", "ModelDeployment")
"""A deployment's name is part of its rollouts' names, and of file names on the device."""
_NAMELESS = ("Enrollment", "JoinToken", "RegistryToken")
"""Kinds that the hub names when the request does not."""


def check_name(info: KindInfo, metadata: Mapping[str, Any]) -> Iterator[InvalidError]:
    """Yield what is wrong with an object's name; what devices use has shorter ones than the rest."""
    name, prefix = metadata.get("name") or "", metadata.get("generateName") or ""
    if not isinstance(name, str) or not isinstance(prefix, str):
        return  # said already, by its type
    if not name and not prefix and info.stored and info.kind not in _NAMELESS:
        yield InvalidError("is required", element="metadata.name", hint="give the object a name")
    limit = MAX_LABEL if info.kind in _SHORT_NAMED or info.names == "label" else MAX_NAME
    pattern, hint = _FORMS[info.names]
    if name and (len(name) > limit or not re.match(pattern, name)):
        yield InvalidError(
            f'"{name[:80]}" is not a name of at most {limit} characters', element="metadata.name", hint=hint
        )
    if prefix and (len(prefix) > limit - 8 or not re.match(pattern, f"{prefix}0")):
        yield InvalidError(
            f'"{prefix[:80]}" cannot begin a name of at most {limit} characters',
            element="metadata.generateName",
            hint=hint,
        )


def check_metadata(meta: ObjectMeta, path: str) -> Iterator[InvalidError]:
    """Yield what is wrong with namespace, labels and annotations."""
    if meta.namespace and not is_namespace(meta.namespace):
        yield InvalidError(f'"{meta.namespace[:80]}" is not a namespace', element=f"{path}.namespace", hint=_LABEL_HINT)
    yield from check_labels(meta.labels, f"{path}.labels")
    for key in meta.annotations:
        if not selector.is_label_key(key):
            yield InvalidError(
                f'"{key[:80]}" is not an annotation key', element=f"{path}.annotations[{key[:80]}]", hint=_KEY_HINT
            )
    size = sum(len(key.encode()) + len(value.encode()) for key, value in meta.annotations.items())
    if size > MAX_ANNOTATION_BYTES:
        yield InvalidError(
            f"has {size} bytes, more than the {MAX_ANNOTATION_BYTES} allowed", element=f"{path}.annotations"
        )
    for position, finalizer in enumerate(meta.finalizers):
        if not selector.is_label_key(finalizer):
            yield InvalidError(
                f'"{finalizer[:80]}" is not a qualified name', element=f"{path}.finalizers[{position}]", hint=_KEY_HINT
            )


def is_namespace(text: str) -> bool:
    """Return whether this can be a namespace: a DNS label."""
    return len(text) <= MAX_LABEL and re.match(LABEL_PATTERN, text) is not None


def is_name(text: str) -> bool:
    """Return whether this can be an object's name: a DNS subdomain."""
    return len(text) <= MAX_NAME and re.match(NAME_PATTERN, text) is not None


def is_path_segment(text: str) -> bool:
    """Return whether this can be the name of a role or a binding: anything that can be one part of a path."""
    return len(text) <= MAX_NAME and re.match(PATH_PATTERN, text) is not None


def check_labels(labels: Mapping[str, str], path: str) -> Iterator[InvalidError]:
    """Yield every label whose key or value Kubernetes would refuse."""
    for key, value in labels.items():
        element = f"{path}[{key[:80]}]"
        if not selector.is_label_key(key):
            yield InvalidError(f'"{key[:80]}" is not a label key', element=element, hint=_KEY_HINT)
        if not selector.is_label_value(value):
            yield InvalidError(f'"{value[:80]}" is not a label value', element=element, hint=_VALUE_HINT)


def check_selector(wanted: LabelSelector, path: str) -> Iterator[InvalidError]:
    """Yield what is wrong with the exact labels of a selector."""
    yield from check_labels(wanted.match_labels, f"{path}.matchLabels")


def check_requirement(wanted: LabelSelectorRequirement, path: str) -> Iterator[InvalidError]:
    """Yield what is wrong with one expression of a selector."""
    if not selector.is_label_key(wanted.key):
        yield InvalidError(f'"{wanted.key[:80]}" is not a label key', element=f"{path}.key", hint=_KEY_HINT)
    takes_values = wanted.operator in ("In", "NotIn")
    if takes_values and not wanted.values:
        yield InvalidError(f"operator {wanted.operator} needs at least one value", element=f"{path}.values")
    if not takes_values and wanted.values:
        yield InvalidError(f"operator {wanted.operator} takes no values", element=f"{path}.values")
    for position, value in enumerate(wanted.values):
        if not selector.is_label_value(value):
            yield InvalidError(
                f'"{value[:80]}" is not a label value', element=f"{path}.values[{position}]", hint=_VALUE_HINT
            )


def check_wave(wave: Wave, path: str) -> Iterator[InvalidError]:
    """Yield unless the wave has exactly one of count and percent, or a selector and at most one of them."""
    if wave.count is not None and wave.percent is not None:
        yield InvalidError(
            "has both count and percent", element=path, hint="write one of them, as in count: 1 or percent: 25"
        )
    elif wave.count is None and wave.percent is None and wave.selector is None:
        yield InvalidError(
            "has neither count nor percent", element=path, hint="write one of them, as in count: 1 or percent: 25"
        )


def check_strategy(strategy: Strategy, path: str) -> Iterator[InvalidError]:
    """Yield waves that shrink or share a name, times in which no device could make it, gates without a measurement."""
    yield from check_gates(strategy, path)
    before: dict[str, int] = {}
    names: set[str] = set()
    for position, wave in enumerate(strategy.waves):
        element = f"{path}.waves[{position}]"
        if wave.name in names:
            yield InvalidError(f'the name "{wave.name[:80]}" is used by an earlier wave', element=f"{element}.name")
        names.update({wave.name} - {""})
        for unit, value in (("count", wave.count), ("percent", wave.percent)):
            if value is None or wave.selector is not None:
                continue
            if value < before.get(unit, 0):
                yield InvalidError(
                    f"{value} is less than the {before[unit]} of a wave before it",
                    element=f"{element}.{unit}",
                    hint="waves are cumulative and must not shrink",
                )
            before[unit] = max(value, before.get(unit, 0))
    yield from check_thresholds(strategy, path)
    if duration.to_seconds(strategy.device_timeout) <= 0:
        yield InvalidError(
            "must be longer than 0", element=f"{path}.deviceTimeout", hint="no device could ever be in time; write 10m"
        )


def check_resources(resources: Resources, path: str) -> Iterator[InvalidError]:
    """Yield limits of nothing, and requests above their limits."""
    for name in ("cpu", "memory"):
        limit, request = getattr(resources.limits, name), getattr(resources.requests, name)
        if limit is not None and quantity.parse(limit) <= 0:
            yield InvalidError(
                "must be more than 0", element=f"{path}.limits.{name}", hint="leave it out for no limit at all"
            )
        elif limit is not None and request is not None and quantity.parse(request) > quantity.parse(limit):
            yield InvalidError(
                f"{request} is more than the limit {limit}",
                element=f"{path}.requests.{name}",
                hint="a request must be within its limit",
            )


def check_gates(strategy: Strategy, path: str) -> Iterator[InvalidError]:
    """Yield gates that nothing could ever be measured for."""
    gates = strategy.gates
    for name, gate in (("health", gates.health), ("errorRate", gates.error_rate)):
        if gate is not None and duration.to_seconds(strategy.bake_time) <= 0:
            yield InvalidError(
                "is measured in the bake time, and there is none",
                element=f"{path}.gates.{name}",
                hint="set bakeTime, as in 10m",
            )
    if gates.shadow_agreement is not None and strategy.shadow is None:
        yield InvalidError(
            "is measured in shadow mode, which is not asked for",
            element=f"{path}.gates.shadowAgreement",
            hint="set strategy.shadow, as in share: 0.1",
        )
    if strategy.shadow is not None and duration.to_seconds(strategy.shadow.duration) <= 0:
        yield InvalidError("must be longer than 0", element=f"{path}.shadow.duration", hint="write how long, as in 10m")


def check_placement(policy: PlacementPolicy, path: str) -> Iterator[InvalidError]:
    """Yield a time in which nothing could be measured."""
    if duration.to_seconds(policy.timeout) <= 0:
        yield InvalidError(
            "must be longer than 0", element=f"{path}.timeout", hint="write 5m, or benchmark: false to measure nothing"
        )


def check_thresholds(strategy: Strategy, path: str) -> Iterator[InvalidError]:
    """Yield thresholds that nobody need reach, or that nothing could exceed."""
    success, failure = strategy.success_threshold, strategy.failure_threshold
    if success is not None and amount.is_zero(success):
        yield InvalidError(
            "must be more than 0", element=f"{path}.successThreshold", hint="write how many must run, as in 95%"
        )
    if failure == "100%":
        yield InvalidError(
            "cannot be exceeded", element=f"{path}.failureThreshold", hint="leave it out to fail by the gates alone"
        )


def check_disruption(budget: Disruption, path: str) -> Iterator[InvalidError]:
    """Yield a group that is no label key, both bounds or none, and bounds that would never let anything move."""
    if budget.group_by and not selector.is_label_key(budget.group_by):
        yield InvalidError(f'"{budget.group_by[:80]}" is not a label key', element=f"{path}.groupBy", hint=_KEY_HINT)
    if (budget.max_unavailable is None) == (budget.min_available is None):
        none = budget.max_unavailable is None
        yield InvalidError(
            "has neither maxUnavailable nor minAvailable" if none else "has both maxUnavailable and minAvailable",
            element=path,
            hint="write one of them, as in maxUnavailable: 1 or minAvailable: 80%",
        )
    if budget.max_unavailable is not None and amount.is_zero(budget.max_unavailable):
        yield InvalidError(
            "must be more than 0", element=f"{path}.maxUnavailable", hint="nothing could ever be updated"
        )
    if budget.min_available == "100%":
        yield InvalidError(
            "must be less than 100%", element=f"{path}.minAvailable", hint="nothing could ever be updated"
        )


def check_rate(rate: Rate, path: str) -> Iterator[InvalidError]:
    """Yield a beginning above the highest rate."""
    if rate.base > rate.max_per_minute:
        yield InvalidError(
            f"{rate.base} is more than maxPerMinute ({rate.max_per_minute})",
            element=f"{path}.base",
            hint="write a higher maxPerMinute, or a lower base",
        )


def check_window(window: Window, path: str) -> Iterator[InvalidError]:
    """Yield a schedule or time zone that cannot be read, and a duration that no update, or no hub, could live with."""
    for name, parse, text in (("schedule", cron.parse, window.schedule), ("timeZone", cron.zone, window.time_zone)):
        try:
            parse(text)
        except InvalidError as error:
            yield InvalidError(error.cause, element=f"{path}.{name}", hint=error.hint)
    if not 60 <= duration.to_seconds(window.duration) <= MAX_WINDOW_SECONDS:
        yield InvalidError(
            f"{window.duration} is not between 1m and {MAX_WINDOW_SECONDS // 3600}h",
            element=f"{path}.duration",
            hint="write how long it stays open, as in 4h",
        )
    if duration.to_seconds(window.spread) > duration.to_seconds(window.duration):
        yield InvalidError("is longer than the window", element=f"{path}.spread", hint="leave devices time to begin")


def check_link(link: LinkPolicy, path: str) -> Iterator[InvalidError]:
    """Yield a bandwidth with which nothing would ever arrive."""
    if link.max_bandwidth is not None and quantity.parse(link.max_bandwidth) < 1:
        yield InvalidError(
            "must be at least 1 byte per second", element=f"{path}.maxBandwidth", hint="leave it out for no bound"
        )


def check_latency_gate(gate: LatencyGate, path: str) -> Iterator[InvalidError]:
    """Yield when no latency could pass, or any would."""
    if gate.max is None and gate.max_ratio is None:
        yield InvalidError(
            "has neither max nor maxRatio", element=path, hint="write one of them, as in max: 20ms or maxRatio: 1.1"
        )
    if gate.max is not None and duration.to_seconds(gate.max) <= 0:
        yield InvalidError("must be longer than 0", element=f"{path}.max", hint="write the highest p95, as in 20ms")


def check_join_token(spec: JoinTokenSpec, path: str) -> Iterator[InvalidError]:
    """Yield a life of zero and labels that no device could carry."""
    if duration.to_seconds(spec.ttl) <= 0:
        yield InvalidError("must be longer than 0", element=f"{path}.ttl", hint="write how long it is good, as in 1h")
    yield from check_labels(spec.labels, f"{path}.labels")


def check_registry_token(item: RegistryToken, _: str) -> Iterator[InvalidError]:
    """Yield a life of zero, and repositories that the token's namespace does not have."""
    if duration.to_seconds(item.spec.ttl) <= 0:
        yield InvalidError("must be longer than 0", element="spec.ttl", hint="write how long it is good, as in 12h")
    for index, repository in enumerate(item.spec.repositories):
        element, namespace = f"spec.repositories[{index}]", item.metadata.namespace or "default"
        if not _REPOSITORY.fullmatch(repository) or repository.split("/", 1)[0] != namespace:
            yield InvalidError(
                f'"{repository[:80]}" is not a repository of {namespace}', element=element, hint=f"as in {namespace}/x"
            )


def check_model_version(item: ModelVersion, _: str) -> Iterator[InvalidError]:
    """Yield a repository that the namespace's devices could not pull from."""
    repository = item.spec.artifact.repository
    element = "spec.artifact.repository"
    if len(repository) > 255 or not _REPOSITORY.fullmatch(repository):
        yield InvalidError(f'"{repository[:80]}" is not a repository', element=element, hint="as in default/digits")
    elif item.metadata.namespace and repository.split("/", 1)[0] != item.metadata.namespace:
        yield InvalidError(
            f'"{repository[:80]}" belongs to another namespace',
            element=element,
            hint=f"devices of {item.metadata.namespace} pull from {item.metadata.namespace}/... only",
        )


RULES: Mapping[type, Rule] = {
    ObjectMeta: check_metadata,
    LabelSelector: check_selector,
    LabelSelectorRequirement: check_requirement,
    Wave: check_wave,
    Strategy: check_strategy,
    Disruption: check_disruption,
    Rate: check_rate,
    Window: check_window,
    PlacementPolicy: check_placement,
    Resources: check_resources,
    LinkPolicy: check_link,
    LatencyGate: check_latency_gate,
    JoinTokenSpec: check_join_token,
    RegistryToken: check_registry_token,
    ModelVersion: check_model_version,
    TrustPolicy: trust_rules.check_policy,
    TrustRule: trust_rules.check_rule,
    TrustedIdentity: trust_rules.check_identity,
    PolicyRule: standard_rules.check_policy_rule,
    Role: standard_rules.check_role,
    RoleBinding: standard_rules.check_role_binding,
    ClusterRoleBinding: standard_rules.check_cluster_role_binding,
    Subject: standard_rules.check_subject,
    Event: standard_rules.check_event,
    reported_event.Event: standard_rules.check_reported_event,
}
"""The rule of each struct type that has one."""
