"""Tables: cells from paths, ages as kubectl shows them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import selector
from skerry.api.kinds import KINDS, KindInfo, find_kind
from skerry.api.kinds.device import Device, DeviceStatus, EngineFacts
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus
from skerry.api.meta import Condition, LabelSelector, ObjectMeta
from skerry.hub.server import fields, table

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def device(**status: object) -> Device:
    meta = ObjectMeta(name="till-7", namespace="shop", creation_timestamp=NOW - timedelta(minutes=5))
    return Device(metadata=meta, status=DeviceStatus(**status))  # type: ignore[arg-type]


def deployment(*conditions: Condition) -> ModelDeployment:
    spec = ModelDeploymentSpec(model_version="m", device_selector=LabelSelector())
    return ModelDeployment(
        metadata=ObjectMeta(name="digits"), spec=spec, status=ModelDeploymentStatus(conditions=list(conditions))
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (5 * 3600 + 720, "5h12m"),
        (9 * 3600 + 720, "9h"),
        (48 * 3600, "2d"),
        (76 * 3600, "3d4h"),
        (9 * 86400, "9d"),
        (365 * 86400, "365d"),
        (771 * 86400, "2y41d"),
        (9 * 365 * 86400, "9y"),
        (-1, "0s"),
        (-100, "<invalid>"),
    ],
)
def test_ages(seconds: int, text: str) -> None:
    assert table.age(NOW - timedelta(seconds=seconds), NOW) == text


@given(st.timedeltas(timedelta(0), timedelta(days=30000)))
def test_every_age_is_short(since: timedelta) -> None:
    assert 2 <= len(table.age(NOW - since, NOW)) <= 6


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_every_column_s_path_leads_somewhere(info: KindInfo) -> None:
    for column in info.columns:
        fields._steps(column.path)
        head = column.path.split(".")[0].partition("[")[0]
        assert head in info.type.__struct_encode_fields__
    assert fields.selectable(info)[:2] == ("metadata.name", "metadata.namespace")


def test_paths_see_defaults_lists_and_matches() -> None:
    item = device(engines=[EngineFacts(name="a"), EngineFacts(name="b")])
    assert fields.values_at(item, "status.phase") == ["Pending"]
    assert fields.values_at(item, "status.engines[].name") == ["a", "b"]
    assert fields.values_at(item, "status.lastSeen") == []
    assert fields.values_at(item, "status.workloads[].running.variant") == []
    assert fields.values_at(item, "status.nothing.there") == []

    def condition(kind: str, reason: str) -> Condition:
        return Condition(type=kind, status="True", reason=reason, message="", last_transition_time=NOW)

    wish = deployment(condition("Available", "A"), condition("Progressing", "P"))
    assert fields.values_at(wish, "status.conditions[type=Progressing].reason") == ["P"]
    with pytest.raises(ValueError, match="no step"):
        fields.values_at(item, "status.a b")


def test_rows() -> None:
    info = find_kind("devices")
    assert info is not None
    shown = table.table(info, [device()], now=NOW, metadata={"resourceVersion": "7"})
    assert len(shown["columnDefinitions"]) == len(shown["rows"][0]["cells"])
    cells = dict(zip([c["name"] for c in shown["columnDefinitions"]], shown["rows"][0]["cells"], strict=True))
    assert (cells["Name"], cells["STATUS"], cells["AGE"], cells["LAST-SEEN"]) == (
        "till-7",
        "Pending",
        "5m",
        "<unknown>",
    )
    assert (cells["MEMORY"], cells["ENGINES"]) == ("<none>", "<none>")
    assert [c["priority"] for c in shown["columnDefinitions"] if c["name"] in ("STATUS", "UID")] == [0, 1]
    assert "status" not in shown["rows"][0]["object"]
    bare = table.table(info, [device()], now=NOW, metadata={}, include="None", header=False)
    assert bare["columnDefinitions"] == []
    assert "object" not in bare["rows"][0]


@given(st.sampled_from(["metadata.name", "metadata.namespace", "status.phase"]), st.booleans(), st.text(max_size=8))
def test_field_selectors_match_or_not(path: str, equal: bool, value: str) -> None:
    item = device()
    assert fields.matches(item, [(path, equal, value)]) != fields.matches(item, [(path, not equal, value)])
    assert fields.matches(
        item, selector.parse_fields("metadata.name=till-7,status.phase!=Online", fields.selectable(KINDS[0]))
    )
