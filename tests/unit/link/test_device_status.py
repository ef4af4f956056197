from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import DeviceFacts, DeviceStatus, Hardware, WorkloadStatus
from skerry.api.meta import Condition, find_condition
from skerry.core.messages import Reported
from skerry.hub.device_status import News, observe

NOW = datetime(2026, 5, 1, tzinfo=UTC)
LAG = timedelta(seconds=30)


def report(**fields: Any) -> Reported:
    return Reported(**{"observed_manifest_version": 0} | fields, uid="a", boot_id="b", seq=1, sent_at=NOW)


def see(status: DeviceStatus, *, now: datetime = NOW, **news: Any) -> DeviceStatus:
    return observe(status, News(**news), now=now, resolution=LAG)


reports = st.builds(
    report,
    observed_manifest_version=st.integers(0, 3),
    refused=st.sampled_from(["", "too old"]),
    facts=st.sampled_from([None, DeviceFacts(hardware=Hardware(cores=4)), DeviceFacts(agent_version="2")]),
    workloads=st.sampled_from([[], [WorkloadStatus(name="w", rollout="r", revision=1, variant="v", phase="Running")]]),
)
news = st.builds(
    News,
    report=st.none() | reports,
    online=st.none() | st.booleans(),
    why=st.sampled_from(["", "gone"]),
    last_seen=st.none() | st.integers(0, 100).map(lambda s: NOW + timedelta(seconds=s)),
)
OTHER = Condition(type="Other", status="True", reason="X", message="", last_transition_time=NOW)


@given(news, st.booleans())
def test_the_same_news_twice_change_nothing_the_second_time(heard: News, other: bool) -> None:
    status = DeviceStatus(phase="Online", conditions=[OTHER] if other else [])
    once = observe(status, heard, now=NOW, resolution=LAG)
    later = observe(once, heard, now=NOW + timedelta(hours=1), resolution=LAG)
    assert later == once
    assert (OTHER in once.conditions) == other


@given(news)
def test_facts_stay_until_new_ones_are_sent(heard: News) -> None:
    before = DeviceStatus(hardware=Hardware(arch="arm64"), boot_id="machine")
    after = observe(before, heard, now=NOW, resolution=LAG)
    if heard.report is None or heard.report.facts is None:
        assert (after.hardware, after.boot_id) == (before.hardware, before.boot_id)
    else:
        assert after.hardware == heard.report.facts.hardware


def test_last_seen_alone_is_written_in_steps() -> None:
    status = see(DeviceStatus(), last_seen=NOW)
    assert status.last_seen == NOW
    assert see(status, last_seen=NOW + LAG - timedelta(seconds=1)) is status
    assert see(status, last_seen=NOW + LAG).last_seen == NOW + LAG
    assert see(status, last_seen=NOW - LAG) is status


def test_last_seen_comes_along_with_anything_else() -> None:
    status = see(
        see(DeviceStatus(), last_seen=NOW), report=report(observed_manifest_version=2), last_seen=NOW + LAG / 2
    )
    assert status.last_seen == NOW + LAG / 2


def test_a_device_that_never_was_online_stays_pending() -> None:
    assert see(DeviceStatus(), online=False, why="gone") == DeviceStatus()
    assert see(msgspec.structs.replace(DeviceStatus(), phase="Online"), online=False, why="gone").phase == "Offline"


def test_a_condition_keeps_the_time_of_its_last_transition() -> None:
    refused = see(DeviceStatus(), report=report(refused="is older"))
    again = see(refused, report=report(refused="is much older"), now=NOW + LAG)
    accepted = see(again, report=report(observed_manifest_version=2), now=NOW + LAG)
    first, second, third = (find_condition(s.conditions, "DesiredAccepted") for s in (refused, again, accepted))
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.status, first.message, first.last_transition_time) == ("False", "is older", NOW)
    assert (second.status, second.message, second.last_transition_time) == ("False", "is much older", NOW)
    assert (third.status, third.last_transition_time) == ("True", NOW + LAG)


def awaiting(status: DeviceStatus) -> str:
    found = find_condition(status.conditions, "AwaitingReconciliation")
    return "" if found is None else found.status


def test_a_device_that_accepted_what_the_hub_does_not_know_awaits_reconciliation() -> None:
    ahead = report(observed_manifest_version=9, refused="no", refused_manifest_version=4)
    status = see(DeviceStatus(), report=ahead, desired_version=4)
    assert awaiting(status) == "True"
    condition = find_condition(status.conditions, "AwaitingReconciliation")
    assert condition is not None
    assert "accepted version 9, this hub desires version 4" in condition.message
    assert "skerry device reconcile" in condition.message
    assert see(status, report=ahead, desired_version=4) == status
    after = see(status, report=report(observed_manifest_version=10), desired_version=10)
    assert awaiting(after) == "False"
    accepted = find_condition(after.conditions, "DesiredAccepted")
    assert accepted is not None
    assert accepted.status == "True"


def test_the_same_version_with_other_content_awaits_reconciliation_too() -> None:
    contested = report(observed_manifest_version=4, refused="other content", refused_manifest_version=4)
    assert awaiting(see(DeviceStatus(), report=contested, desired_version=4)) == "True"


def test_a_hub_that_desires_nothing_knows_less_than_a_device_that_accepted_something() -> None:
    assert awaiting(see(DeviceStatus(), report=report(observed_manifest_version=1), desired_version=0)) == "True"
    assert awaiting(see(DeviceStatus(), report=report(), desired_version=0)) == ""


def test_a_stale_message_that_was_refused_is_no_news() -> None:
    late = report(observed_manifest_version=5, refused="version 3 is older than 5", refused_manifest_version=3)
    status = see(DeviceStatus(), report=late, desired_version=5)
    assert awaiting(status) == ""
    accepted = find_condition(status.conditions, "DesiredAccepted")
    assert accepted is not None
    assert accepted.status == "True"


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_who_is_behind_is_a_matter_of_versions_alone(accepted: int, refused: int, desired: int, before: bool) -> None:
    start = see(DeviceStatus(), report=report(observed_manifest_version=9), desired_version=0 if before else 9)
    status = see(
        start,
        report=report(
            observed_manifest_version=accepted, refused="x" if refused else "", refused_manifest_version=refused
        ),
        desired_version=desired,
    )
    assert (awaiting(status) == "True") == (accepted > desired or 0 < refused == desired)
