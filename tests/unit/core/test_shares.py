from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry.core.shares import OTHERS, FairQueue, Shed, has_room, in_turn

owners = st.sampled_from("abcdefgh")


@given(st.lists(owners, max_size=300), st.integers(256, 1000), owners)
def test_whoever_takes_what_they_can_leaves_room_for_another_one(asked: list[str], most: int, other: str) -> None:
    held = dict.fromkeys("abcdefgh", 0)
    for owner in [*asked, *(one for one in "abcdefgh" if one != other for _ in range(most))]:
        if owner != other and has_room(held[owner], sum(held.values()), most):
            held[owner] += 1
    total = sum(held.values())
    assert total < most
    assert has_room(0, total, most)


def test_one_alone_has_half_of_it_and_nobody_more_than_there_is() -> None:
    held = 0
    while has_room(held, held, 1000):
        held += 1
    assert held == 500
    assert has_room(0, 999, 1000)
    assert not has_room(0, 1000, 1000)


@given(st.lists(st.tuples(owners, st.integers(0, 50)), max_size=200), st.integers(1, 20))
def test_a_queue_is_bounded_loses_nothing_unsaid_and_gives_way_by_what_each_has(
    puts: list[tuple[str, int]], most: int
) -> None:
    queue = FairQueue[str, int, int](most)
    model: dict[tuple[str, int], int] = {}
    for number, (owner, key) in enumerate(puts):
        if queue.get(owner, key) is not None:
            continue
        sizes = {one: len(items) for one, items in queue.items().items()}
        gone = queue.put(owner, key, number)
        model[owner, key] = number
        if gone is not None:
            assert len(model) > most
            loser, lost, value = gone
            assert model.pop((loser, lost)) == value
            assert sizes.get(loser, 0) + (loser == owner) >= max([*sizes.values(), sizes.get(owner, 0) + 1])
        assert len(queue) == len(model) <= most
    assert {(owner, key): value for owner, items in queue.items().items() for key, value in items} == model
    for owner, key in list(model):
        assert queue.pop(owner, key) == model[owner, key]
    assert len(queue) == 0


def test_a_newcomer_finds_room_in_a_queue_that_another_one_filled() -> None:
    queue = FairQueue[str, int, str](4)
    for number in range(4):
        assert queue.put("evil", number, "x") is None
    assert queue.put("good", 0, "y") == ("evil", 3, "x")
    assert queue.put("good", 1, "y") == ("evil", 2, "x")
    assert queue.put("good", 2, "z") == ("good", 2, "z")


@given(st.dictionaries(owners, st.lists(st.integers(), max_size=5)), st.lists(owners, max_size=4))
def test_turns_take_everything_and_nobody_twice_before_all_others(
    queues: dict[str, list[int]], first: list[str]
) -> None:
    found = list(in_turn(queues, first))
    assert {owner: [item for one, item in found if one == owner] for owner in queues} == queues
    seen = dict.fromkeys(queues, 0)
    for owner, _ in found:
        seen[owner] += 1
        assert all(seen[owner] <= seen[other] + 1 or seen[other] == len(queues[other]) for other in queues)


def test_what_is_counted_has_a_bounded_number_of_names() -> None:
    shed = Shed()
    for number in range(1500):
        shed.count("events", f"ns-{number}", 2)
    assert len(shed.counts) == 1001
    assert shed.counts["events", "ns-0"] == 2
    assert shed.counts["events", OTHERS] == 1000
