from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core import messages
from skerry.drivers.link import inbox, topics

ONLINE = messages.encode(messages.Online(uid="a", online=True))


def drops() -> inbox.Drops:
    return inbox.Drops(logging.Logger("test"))


@given(st.sampled_from(topics.CHANNELS), st.binary(max_size=300))
def test_any_bytes_are_a_message_or_counted(channel: topics.Channel, raw: bytes) -> None:
    counted = drops()
    message = inbox.accept("a", channel, raw, counted)
    assert (message is not None) + sum(counted.counts.values()) == (1 if raw else 0)


@pytest.mark.parametrize(
    ("uid", "channel", "raw"),
    [
        ("b", "online", ONLINE),
        ("a", "reported", ONLINE),
        ("a", "telemetry", ONLINE),
        ("a", "desired", ONLINE),
        ("a", "online", ONLINE.replace(b'"v":1', b'"v":2') if b'"v":1' in ONLINE else b'{"v":2}'),
        ("a", "online", b'{"type":"Online","uid":"a","online":true,"bootId":"' + b"x" * 5000 + b'"}'),
        ("a", "online", b"[" * 4000),
    ],
)
def test_what_is_not_from_the_device_or_not_for_the_topic_is_dropped(
    uid: str, channel: topics.Channel, raw: bytes
) -> None:
    counted = drops()
    assert inbox.accept(uid, channel, raw, counted) is None
    assert sum(counted.counts.values()) == 1


def test_drops_are_logged_once_per_reason_and_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    counted = inbox.Drops(logging.getLogger("test.drops"), monotonic=lambda: now)
    for _ in range(50):
        counted.add("x", source="a" * 500)
        counted.add("y", source="b")
    assert [record.getMessage().split()[1] for record in caplog.records] == ["reason=x", "reason=y"]
    now += inbox.LOG_INTERVAL_SECONDS
    counted.add("x", source="c")
    assert "total=51" in caplog.records[-1].getMessage()
    assert max(len(record.getMessage()) for record in caplog.records) < 400
