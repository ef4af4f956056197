"""Objects as users write them: every mistake told at its path, defaults shown, nothing lost on the way."""

import contextlib
import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api import codec, schema
from skerry.api.errors import BadRequestError, InvalidError
from skerry.api.kinds import KINDS
from skerry.api.kinds.device import Device, DeviceStatus
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.meta import ObjectMeta

GOOD = b"""
apiVersion: skerry.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: digits
  labels: {app: digits}
spec:
  modelVersion: digits-1
  deviceSelector:
    matchExpressions: [{key: site, operator: In, values: [lab, shop]}]
  constraints: {maxLatency: 5ms, minAccuracy: 0.9, maxMemory: 64Mi, engines: [onnxruntime]}
  resources: {limits: {cpu: 2, memory: 1.5Gi}}
  strategy:
    waves: [{name: canary, count: 1}, {percent: 50}, {percent: 100}]
    gates: {accuracy: {min: 0.9}, latencyP95: {max: 20ms}}
    bakeTime: 0
"""


def good() -> dict[str, Any]:
    return codec.load_documents(GOOD)[0]


def problems(raw: dict[str, Any]) -> dict[str, InvalidError]:
    with pytest.raises(InvalidError) as caught:
        codec.validate(raw)
    return {problem.element: problem for problem in caught.value.each}


def change(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    *parents, last = path.split(".")
    place = raw
    for step in parents:
        place = place.setdefault(step, {})
    if value is ...:
        place.pop(last, None)
    else:
        place[last] = value
    return raw


def test_a_good_object_with_amounts_as_people_write_them() -> None:
    item = codec.validate(good())
    assert isinstance(item, ModelDeployment)
    assert item.spec.resources.limits.cpu == "2"
    assert item.spec.strategy.bake_time == "0s"
    half = codec.validate(change(good(), "spec.resources.limits.cpu", 0.5))
    assert isinstance(half, ModelDeployment)
    assert half.spec.resources.limits.cpu == "0.5"


@pytest.mark.parametrize(
    ("path", "value", "element", "cause", "hint"),
    [
        ("apiVersion", "v1", "apiVersion", "not known", "skerry.dev/v1alpha1"),
        ("apiVersion", ..., "apiVersion", "required", "skerry.dev/v1alpha1"),
        ("kind", "Modeldeployment", "kind", "not known", "ModelDeployment"),
        ("kind", ["x"], "kind", "not known", ""),
        ("metadata", ..., "metadata", "required", ""),
        ("metadata", [], "metadata", "a list", ""),
        ("metadata.name", ..., "metadata.name", "required", ""),
        ("metadata.name", "Digits", "metadata.name", "not a name", "a-z"),
        ("metadata.name", 5, "metadata.name", "got the number 5", "quotes"),
        ("metadata.generateName", "-x", "metadata.generateName", "cannot begin", ""),
        ("metadata.namespace", "a.b", "metadata.namespace", "not a namespace", ""),
        ("metadata.labels", {"a b": "c"}, "metadata.labels[a b]", "not a label key", ""),
        ("metadata.labels", {"a": "b c"}, "metadata.labels[a]", "not a label value", ""),
        ("metadata.labels", {"a": True}, "metadata.labels[a]", "got true", "quotes"),
        ("metadata.annotations", {"a b": "c"}, "metadata.annotations[a b]", "not an annotation key", ""),
        ("metadata.annotations", {"a": "x" * 300_000}, "metadata.annotations", "bytes", ""),
        ("metadata.finalizers", ["a b"], "metadata.finalizers[0]", "qualified name", ""),
        ("metadata.creationTimestamp", "today", "metadata.creationTimestamp", "not a time", "2026-01-31T12:00:00Z"),
        ("metadata.creationTimestamp", "2026-01-31T12:00:00", "metadata.creationTimestamp", "zone", ""),
        ("spec", ..., "spec", "required", ""),
        ("spec", "x", "spec", 'got "x"', ""),
        ("spec.model_version", "x", "spec.model_version", "not a field", "modelVersion"),
        ("spec.strategy.bakeTme", "1s", "spec.strategy.bakeTme", "not a field", "bakeTime"),
        ("spec.zzz", 1, "spec.zzz", "not a field", ""),
        ("spec.modelVersion", "Digits_1", "spec.modelVersion", "DNS subdomain", ""),
        (
            "spec.resources.limits.memory",
            "12Q",
            "spec.resources.limits.memory",
            '"12Q" is not a quantity',
            "500m, 64Mi",
        ),
        ("spec.resources.limits.memory", True, "spec.resources.limits.memory", "got true", ""),
        ("spec.constraints.maxLatency", 5, "spec.constraints.maxLatency", "got the number 5", "unit"),
        ("spec.constraints.maxLatency", "5", "spec.constraints.maxLatency", "not a duration", "300ms"),
        ("spec.constraints.minAccuracy", 90, "spec.constraints.minAccuracy", "out of range", "at most 1"),
        ("spec.constraints.minAccuracy", "0.9", "spec.constraints.minAccuracy", "expected a number", ""),
        ("spec.constraints.engines", ["onxruntime"], "spec.constraints.engines[0]", "not one of", "onnxruntime"),
        ("spec.constraints.engines", "onnxruntime", "spec.constraints.engines", "expected a list", ""),
        ("spec.serving.port", 70000, "spec.serving.port", "out of range", "at most 65535"),
        ("spec.serving.port", 1.5, "spec.serving.port", "whole number", ""),
        ("spec.serving.port", True, "spec.serving.port", "whole number", ""),
        ("spec.paused", "yes", "spec.paused", "true or false", ""),
        ("spec.runtime", "podman", "spec.runtime", "not one of auto, process", ""),
        ("spec.strategy.waves", [], "spec.strategy.waves", "at least 1", ""),
        ("spec.strategy.waves", [{"percent": 100}] * 101, "spec.strategy.waves", "at most 100", ""),
        ("spec.strategy.waves", [{}], "spec.strategy.waves[0]", "neither", "count: 1"),
        ("spec.strategy.waves", [{"count": 1, "percent": 2}], "spec.strategy.waves[0]", "both", ""),
        ("spec.strategy.waves", [{"count": 0}], "spec.strategy.waves[0].count", "out of range", ""),
        ("spec.strategy.waves", [{"percent": 50}, {"percent": 9}], "spec.strategy.waves[1].percent", "less than", ""),
        (
            "spec.strategy.waves",
            [{"count": 5}, {"percent": 9}, {"count": 4}],
            "spec.strategy.waves[2].count",
            "less",
            "",
        ),
        (
            "spec.strategy.waves",
            [{"name": "a", "count": 1}, {"name": "a", "count": 2}],
            "spec.strategy.waves[1].name",
            "earlier wave",
            "",
        ),
        ("spec.strategy.deviceTimeout", "0s", "spec.strategy.deviceTimeout", "longer than 0", "10m"),
        (
            "spec.strategy.waves",
            [{"selector": {"matchLabels": {"a": "b c"}}}],
            "spec.strategy.waves[0].selector.matchLabels[a]",
            "label value",
            "",
        ),
        ("spec.strategy.promotion", "auto", "spec.strategy.promotion", "not one of automatic, manual", "automatic"),
        ("spec.strategy.rate", {}, "spec.strategy.rate.base", "is required", ""),
        ("spec.strategy.rate", {"base": 9, "maxPerMinute": 3}, "spec.strategy.rate.base", "more than maxPer", "higher"),
        ("spec.strategy.rate", {"base": 1, "factor": 0.5}, "spec.strategy.rate.factor", "out of range", "at least 1"),
        ("spec.strategy.disruption", {}, "spec.strategy.disruption", "neither maxUnavailable nor", "maxUnavailable: 1"),
        (
            "spec.strategy.disruption",
            {"maxUnavailable": 1, "minAvailable": "50%"},
            "spec.strategy.disruption",
            "both",
            "",
        ),
        (
            "spec.strategy.disruption",
            {"maxUnavailable": "0%"},
            "spec.strategy.disruption.maxUnavailable",
            "more than 0",
            "",
        ),
        (
            "spec.strategy.disruption",
            {"minAvailable": "100%"},
            "spec.strategy.disruption.minAvailable",
            "less than 100%",
            "",
        ),
        ("spec.strategy.disruption", {"maxUnavailable": "1.5"}, "spec.strategy.disruption.maxUnavailable", "count", ""),
        ("spec.strategy.disruption", {"maxUnavailable": "7%%"}, "spec.strategy.disruption.maxUnavailable", "share", ""),
        (
            "spec.strategy.disruption",
            {"maxUnavailable": 1, "groupBy": "a b"},
            "spec.strategy.disruption.groupBy",
            "label key",
            "",
        ),
        ("spec.strategy.successThreshold", 0, "spec.strategy.successThreshold", "more than 0", "95%"),
        ("spec.strategy.failureThreshold", "100%", "spec.strategy.failureThreshold", "exceeded", ""),
        ("spec.strategy.failureThreshold", -1, "spec.strategy.failureThreshold", "count such as 5", ""),
        ("spec.strategy.gates.latencyP95", {}, "spec.strategy.gates.latencyP95", "neither max nor maxRatio", "1.1"),
        ("spec.strategy.gates.latencyP95", {"maxRatio": 0}, "spec.strategy.gates.latencyP95.maxRatio", "out of", ""),
        ("spec.strategy.gates.health", {}, "spec.strategy.gates.health", "there is none", "bakeTime"),
        ("spec.strategy.gates.errorRate", {"max": 0.1}, "spec.strategy.gates.errorRate", "there is none", "bakeTime"),
        ("spec.strategy.gates.agreement", {"min": 1, "missing": "no"}, "spec.strategy.gates.agreement.missing", "", ""),
        ("spec.strategy.gates.shadowAgreement", {"min": 1}, "spec.strategy.gates.shadowAgreement", "shadow mode", ""),
        ("spec.strategy.shadow", {"share": 0}, "spec.strategy.shadow.share", "out of range", ""),
        ("spec.strategy.shadow", {"duration": "0s"}, "spec.strategy.shadow.duration", "longer than 0", "10m"),
        ("spec.strategy.gates.latencyP95", {"max": "0"}, "spec.strategy.gates.latencyP95.max", "longer than 0", ""),
        ("spec.deviceSelector", {"matchLabels": {"a": "b c"}}, "spec.deviceSelector.matchLabels[a]", "label value", ""),
        (
            "spec.deviceSelector",
            {"matchExpressions": [{"key": "a", "operator": "In"}]},
            "spec.deviceSelector.matchExpressions[0].values",
            "at least one value",
            "",
        ),
        (
            "spec.deviceSelector",
            {"matchExpressions": [{"key": "a b", "operator": "exists"}]},
            "spec.deviceSelector.matchExpressions[0].operator",
            "not one of",
            "Exists",
        ),
    ],
)
def test_one_mistake(path: str, value: Any, element: str, cause: str, hint: str) -> None:
    found = problems(change(good(), path, value))
    assert set(found) == {element}
    assert cause in found[element].cause
    assert hint in found[element].hint


def test_all_mistakes_at_once_in_the_order_of_the_parts() -> None:
    raw = change(change(change(good(), "spec.zzz", 1), "metadata.name", "A"), "spec.serving.port", -1)
    assert list(problems(raw)) == ["metadata.name", "spec.serving.port", "spec.zzz"]


def test_mistakes_are_bounded() -> None:
    raw = change(good(), "spec.strategy.waves", [{"count": -1, **{f"x{i}": 1 for i in range(100)}}] * 100)
    assert len(problems(raw)) <= 100


def test_nulls_are_absent_as_in_kubernetes() -> None:
    raw = change(change(good(), "spec.constraints", None), "metadata.creationTimestamp", None)
    assert codec.validate(raw) == codec.validate(change(good(), "spec.constraints", ...))
    assert set(problems(change(good(), "spec.modelVersion", None))) == {"spec.modelVersion"}


def test_unknown_fields_can_be_dropped() -> None:
    assert codec.validate(change(good(), "spec.zzz", 1), unknown="drop") == codec.validate(good())


def test_unknown_fields_are_found_with_what_was_meant() -> None:
    raw = {"metadata": {"nmae": "x"}, "spec": {"strategy": {"waves": [{"Percent": 1}], "Bake_Time": "1s"}}, "sepc": {}}
    assert schema.unknown_fields(ModelDeployment, raw) == [
        ("metadata.nmae", "name"),
        ("spec.strategy.waves[0].Percent", "percent"),
        ("spec.strategy.Bake_Time", "bakeTime"),
        ("sepc", "spec"),
    ]


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(-1e9, 1e9), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=10,
)
_PATHS = """
metadata metadata.name metadata.labels metadata.annotations metadata.ownerReferences metadata.finalizers
spec spec.modelVersion spec.deviceSelector spec.deviceSelector.matchExpressions spec.constraints spec.serving
spec.resources.limits spec.strategy spec.strategy.waves spec.strategy.gates spec.strategy.bakeTime status
"""
_paths = st.sampled_from(_PATHS.split())


@given(_paths, _json)
@settings(max_examples=300)
def test_anything_anywhere_is_valid_or_told(path: str, value: Any) -> None:
    raw = change(good(), path, value)
    before = copy.deepcopy(raw)
    try:
        item = codec.validate(raw)
    except InvalidError as error:
        elements = [problem.element for problem in error.each]
    else:
        elements = ["none is wrong"]
        again = codec.validate(msgspec.json.decode(msgspec.json.encode(codec.present(item))))
        assert again == item
    assert all(elements)
    assert raw == before


@given(st.dictionaries(st.text(max_size=10), _json, max_size=5))
def test_unknown_fields_of_anything(raw: dict[str, Any]) -> None:
    known = {"metadata", "spec", "status", "apiVersion", "kind"}
    found = {path for path, _ in schema.unknown_fields(Device, raw)}
    assert {key for key in raw if key not in known} <= found


@given(st.binary(max_size=200))
def test_any_bytes_are_read_and_checked_or_refused(data: bytes) -> None:
    try:
        for raw in codec.load_documents(data):
            codec.validate(raw)
    except (BadRequestError, InvalidError):
        pass
    with contextlib.suppress(BadRequestError):
        codec.decode_json(data)


def test_what_is_shown_is_what_was_meant() -> None:
    device = Device(metadata=ObjectMeta(name="a"), status=DeviceStatus(phase="Pending"))
    shown = codec.present(device)
    assert shown["spec"] == {"cordoned": False, "link": {}}
    assert shown["status"]["phase"] == "Pending"
    assert "hardware" not in shown["status"]
    assert "lastSeen" not in shown["status"]
    assert list(shown) == ["apiVersion", "kind", "metadata", "spec", "status"]
    assert codec.read(shown, Device) == device
    assert codec.read({**shown, "newer": 1}, Device) == device
    with pytest.raises(InvalidError):
        codec.read({"spec": 1}, Device)


def test_lists_are_unfolded() -> None:
    text = GOOD + b"---\napiVersion: v1\nkind: List\nitems:\n- {kind: a}\n- {kind: List, items: [{kind: b}]}\n"
    assert [item["kind"] for item in codec.load_documents(text)] == ["ModelDeployment", "a", "b"]
    assert codec.load_documents(b'[{"kind": "a"}, {"kind": "b"}]') == [{"kind": "a"}, {"kind": "b"}]
    assert codec.load_documents(b"{kind: a}") == [{"kind": "a"}]
    for bad in (b"- 1", b"just text", b'{"items": [1], "kind": "List"}', b"{"):
        with pytest.raises(BadRequestError):
            codec.load_documents(bad, source="file.yaml")


def test_yaml_for_people() -> None:
    shared = {"a": 1}
    text = codec.to_yaml({"text": "two\nlines\n", "one": shared, "two": shared, "on": "yes"})
    assert "&" not in text
    assert "|\n" in text
    assert codec.load_documents(text.encode()) == [{"text": "two\nlines\n", "one": shared, "two": shared, "on": "yes"}]


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_names_by_kind(info: Any) -> None:
    raw = {"apiVersion": info.api_version, "kind": info.kind, "metadata": {"name": "a.b"}, "spec": {}}
    told = {problem.element for problem in _all(raw)}
    assert ("metadata.name" in told) == (info.kind in ("Device", "TrustPolicy", "Namespace"))
    nameless = {problem.element for problem in _all({**raw, "metadata": {}})}
    named_by_hub = info.kind in ("Enrollment", "JoinToken", "RegistryToken")
    assert ("metadata.name" in nameless) == (info.stored and not named_by_hub)


def _all(raw: dict[str, Any]) -> tuple[InvalidError, ...]:
    try:
        codec.validate(raw)
    except InvalidError as error:
        return error.each
    return ()


def test_a_wave_is_named_by_plain_words() -> None:
    def deployment(name: str) -> dict[str, object]:
        spec = {"modelVersion": "m-v1", "deviceSelector": {}, "strategy": {"waves": [{"name": name, "percent": 100}]}}
        return {"apiVersion": "skerry.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": spec}

    assert codec.validate(deployment("night shift-2"))
    for name in ("[bold]canary[/x]", "a\x1b[2J", "x" * 64, " a", "a\n"):
        with pytest.raises(InvalidError, match=r"spec\.strategy\.waves\[0\]\.name"):
            codec.validate(deployment(name))


@pytest.mark.parametrize(
    ("fields", "field", "cause"),
    [
        ({"schedule": "0 2 * *"}, "schedule", "has 4 fields"),
        ({"schedule": "0 2 31 2 *"}, "schedule", "never comes"),
        ({"timeZone": "Europe/Berln"}, "timeZone", "not a time zone"),
        ({"duration": "30s"}, "duration", "not between 1m and 168h"),
        ({"duration": "169h"}, "duration", "not between"),
        ({"spread": "5h"}, "spread", "longer than the window"),
    ],
)
def test_a_window_that_could_not_be_kept_is_refused(fields: dict[str, str], field: str, cause: str) -> None:
    window = {"schedule": "0 2 * * *", "duration": "4h", **fields}
    found = problems(change(good(), "spec.strategy.windows", {"switchOver": [window]}))
    assert set(found) == {f"spec.strategy.windows.switchOver[0].{field}"}
    assert cause in found[f"spec.strategy.windows.switchOver[0].{field}"].cause


def test_amounts_of_devices_may_be_written_as_numbers() -> None:
    budget = change(good(), "spec.strategy.disruption", {"groupBy": "site", "minAvailable": 2})
    item = codec.validate(change(budget, "spec.strategy.failureThreshold", 3))
    assert isinstance(item, ModelDeployment)
    assert item.spec.strategy.failure_threshold == "3"
    assert item.spec.strategy.disruption is not None
    assert item.spec.strategy.disruption.min_available == "2"
