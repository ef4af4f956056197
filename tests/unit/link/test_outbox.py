from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.drivers.link.outbox import OVERHEAD_BYTES, Message, Outbox
from skerry.drivers.link.packets import Publish


def message(payload: bytes = b"", qos: int = 1) -> Message:
    return Message(topic="t", payload=payload, qos=qos)


def outbox(messages: int = 4, window: int = 2) -> Outbox:
    return Outbox(max_bytes=messages * OVERHEAD_BYTES, window=window)


async def soon(awaitable: asyncio.Future[Publish] | asyncio.Task[None]) -> bool:
    """Let everything run that can, and tell whether this is done."""
    for _ in range(5):
        await asyncio.sleep(0)
    return awaitable.done()


async def test_the_window_bounds_what_is_unacknowledged() -> None:
    box = outbox()
    for _ in range(3):
        assert box.offer(message())
    first, second = await box.next(), await box.next()
    third = asyncio.ensure_future(box.next())
    assert not await soon(third)
    box.acknowledge(second.packet_id)
    assert await soon(third)
    assert len({first.packet_id, second.packet_id, third.result().packet_id}) == 3
    assert len(box) == 2


async def test_the_budget_counts_until_the_acknowledgement() -> None:
    box = outbox(messages=2)
    assert box.offer(message())
    assert box.offer(message())
    sent = await box.next()
    assert not box.offer(message())
    box.acknowledge(sent.packet_id)
    box.acknowledge(sent.packet_id)
    box.acknowledge(999)
    assert box.offer(message())
    assert not box.offer(message())


async def test_qos_0_needs_no_acknowledgement() -> None:
    box = outbox(messages=1, window=0)
    for _ in range(3):
        assert box.offer(message(qos=0))
        assert (await box.next()).packet_id == 0


async def test_those_who_wait_for_room_go_in_order_and_may_give_up() -> None:
    box = outbox(messages=1)
    box.force(message(b""))
    waiting = [asyncio.ensure_future(box.put(message(qos=0))) for _ in range(3)]
    assert not await soon(waiting[0])
    assert not box.offer(message())
    waiting[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]
    box.acknowledge((await box.next()).packet_id)
    assert await soon(waiting[0])
    assert not waiting[2].done()
    await box.next()
    assert await soon(waiting[2])


async def test_giving_up_in_the_moment_of_the_grant_gives_the_room_back() -> None:
    box = outbox(messages=1)
    box.force(message())
    sent = await box.next()
    waiting = asyncio.ensure_future(box.put(message()))
    assert not await soon(waiting)
    box.acknowledge(sent.packet_id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(box) == 0
    assert box.offer(message())


async def test_what_was_not_acknowledged_comes_first_after_a_reconnect() -> None:
    box = outbox(messages=8, window=3)
    for text in (b"1", b"2", b"3", b"4"):
        box.force(message(text))
    sent = [await box.next() for _ in range(3)]
    box.acknowledge(sent[1].packet_id)
    box.rewind()
    assert [(await box.next()).payload for _ in range(3)] == [b"1", b"3", b"4"]


@given(st.lists(st.sampled_from(["offer", "next", "acknowledge", "rewind"]), max_size=60))
def test_nothing_is_lost_doubled_or_reordered(steps: list[str]) -> None:
    async def play() -> None:
        box, queued, unacknowledged, number = outbox(messages=4, window=2), list[bytes](), dict[int, bytes](), 0
        for step in steps:
            if step == "offer":
                number += 1
                if box.offer(Message(topic="t", payload=b"", qos=1, retain=bool(number % 2))):
                    queued.append(bytes([number % 2]))
            elif step == "next" and queued and len(unacknowledged) < 2:
                sent = await box.next()
                assert bytes([sent.retain]) == queued[0]
                assert sent.packet_id not in unacknowledged
                unacknowledged[sent.packet_id] = queued.pop(0)
            elif step == "acknowledge" and unacknowledged:
                packet_id = next(iter(unacknowledged))
                del unacknowledged[packet_id]
                box.acknowledge(packet_id)
            elif step == "rewind":
                box.rewind()
                queued = [*unacknowledged.values(), *queued]
                unacknowledged.clear()
            assert len(box) == len(queued) + len(unacknowledged) <= 4

    asyncio.run(play())
