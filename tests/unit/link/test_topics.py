from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drivers.link import topics
from skerry.drivers.link.topics import Peer

uids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", fullmatch=True)
channels = st.sampled_from(topics.CHANNELS)
DEVICE = Peer(role="device", name="a")
HUB = Peer(role="hub", name="hub")


@given(uids, channels)
def test_a_topic_says_whose_it_is(uid: str, channel: topics.Channel) -> None:
    assert topics.parse(topics.topic(uid, channel)) == (uid, channel)


@given(st.text())
def test_what_parses_is_a_topic_of_ours_and_nothing_else(name: str) -> None:
    for text in (name, f"skerry/v1/d/{name}", f"skerry/v1/d/{name}/online"):
        parsed = topics.parse(text)
        assert parsed is None or topics.topic(*parsed) == text


@pytest.mark.parametrize("uid", ["", "+", "#", "a/b", "-a", "a\n", "a b", "é", "a" * 129, "$SYS", "\x00"])
def test_what_could_be_mistaken_for_more_than_one_device_is_no_uid(uid: str) -> None:
    assert not topics.is_uid(uid)
    assert topics.parse(f"skerry/v1/d/{uid}/online") is None


@given(uids, channels, st.booleans(), st.integers(0, 5 * 1024 * 1024))
def test_a_device_publishes_only_its_own_reports(uid: str, channel: topics.Channel, retain: bool, size: int) -> None:
    allowed = not topics.refuse_publish(DEVICE, topics.topic(uid, channel), size=size, retain=retain)
    assert allowed == (
        uid == DEVICE.name
        and channel in ("reported", "telemetry", "online")
        and (channel == "online" or not retain)
        and size <= topics.MAX_BYTES[channel]
    )


@given(uids, channels, st.booleans(), st.integers(0, 5 * 1024 * 1024))
def test_a_hub_publishes_to_devices_and_clears_presence(
    uid: str, channel: topics.Channel, retain: bool, size: int
) -> None:
    allowed = not topics.refuse_publish(HUB, topics.topic(uid, channel), size=size, retain=retain)
    expected = {"desired": retain, "command": not retain, "online": retain and not size}.get(channel, False)
    assert allowed == (expected and size <= topics.MAX_BYTES[channel])


@given(st.text() | st.builds(topics.topic, uids, channels) | st.sampled_from(list(topics.HUB_FILTERS)))
def test_a_device_subscribes_to_its_own_two_topics_exactly(pattern: str) -> None:
    own = {"skerry/v1/d/a/desired", "skerry/v1/d/a/command"}
    assert (not topics.refuse_subscribe(DEVICE, pattern)) == (pattern in own)
    assert (not topics.refuse_subscribe(HUB, pattern)) == (pattern in topics.HUB_FILTERS)


@given(uids, channels, st.integers(0, 10_000))
def test_a_last_will_is_a_devices_own_presence(uid: str, channel: topics.Channel, size: int) -> None:
    name = topics.topic(uid, channel)
    assert (not topics.refuse_will(DEVICE, name, size=size)) == (name == "skerry/v1/d/a/online" and size <= 4096)
    assert topics.refuse_will(HUB, name, size=size)
