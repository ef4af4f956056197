"""Who of a site fetches: never two that hear each other, always somebody, and whoever can takes what is there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core import peering
from skerry.core.peering import Go, Stand, Take, Told, Wait, choose

DIGEST = "sha256:" + "0" * 64
UIDS = sorted(("da", "db", "dc", "dd"), key=lambda uid: peering.rank(DIGEST, uid))
FIRST, SECOND, THIRD, LAST = UIDS


def told(**stands: Stand) -> dict[str, Told]:
    return {uid: Told(stand=stand) for uid, stand in stands.items()}


def test_what_somebody_has_is_taken_there_whatever_others_do() -> None:
    assert choose(DIGEST, SECOND, "wants", told(**{FIRST: "fetches", THIRD: "has"})) == Take((THIRD,))


def test_those_whose_hands_are_full_are_waited_for() -> None:
    both = {FIRST: Told(stand="has", busy=True), THIRD: Told(stand="has")}
    assert choose(DIGEST, SECOND, "wants", both) == Take((THIRD,))
    assert choose(DIGEST, SECOND, "claims", {FIRST: both[FIRST]}) == Wait(FIRST)


def test_many_who_take_it_do_not_all_begin_with_the_same_one() -> None:
    having = told(da="has", db="has", dc="has", dd="has")
    first = {choose(DIGEST, f"x{number}", "wants", having).peers[0] for number in range(50)}  # type: ignore[union-attr]
    assert len(first) == 4


def test_alone_it_goes_on_in_two_steps() -> None:
    assert choose(DIGEST, FIRST, "wants", {}) == Go("claims")
    assert choose(DIGEST, FIRST, "claims", told(**{SECOND: "none"})) == Go("fetches")


def test_whoever_fetches_is_waited_for() -> None:
    assert choose(DIGEST, FIRST, "wants", told(**{LAST: "fetches"})) == Wait(LAST)
    assert choose(DIGEST, FIRST, "claims", told(**{LAST: "fetches"})) == Wait(LAST)


def test_of_those_who_want_it_the_first_goes_on() -> None:
    assert choose(DIGEST, FIRST, "wants", told(**{SECOND: "wants"})) == Go("claims")
    assert choose(DIGEST, SECOND, "wants", told(**{FIRST: "wants"})) == Wait(FIRST)


def test_a_claim_stops_those_who_only_want_it() -> None:
    assert choose(DIGEST, FIRST, "wants", told(**{LAST: "claims"})) == Wait(LAST)
    assert choose(DIGEST, FIRST, "claims", told(**{LAST: "claims"})) == Go("fetches")
    assert choose(DIGEST, LAST, "claims", told(**{FIRST: "claims"})) == Wait(FIRST)


def test_its_own_word_counts_for_nothing() -> None:
    assert choose(DIGEST, FIRST, "wants", told(**{FIRST: "has"})) == Go("claims")


class Devices:
    """All devices of a site. One step is one question to one neighbour; in between, others may take any steps."""

    def __init__(self) -> None:
        self.stands: dict[str, Stand] = dict.fromkeys(UIDS, "none")
        self.heard: dict[str, dict[str, Told]] = {uid: {} for uid in UIDS}

    def step(self, uid: str) -> None:
        stand, heard = self.stands[uid], self.heard[uid]
        left = [other for other in UIDS if other != uid and other not in heard]
        if stand == "none":
            self.stands[uid] = "wants"
        elif stand != "fetches" and left:
            heard[left[0]] = Told(stand=self.stands[left[0]])
        elif stand != "fetches":
            found = choose(DIGEST, uid, stand, heard)
            self.stands[uid] = found.stand if isinstance(found, Go) else "wants"
            heard.clear()

    @property
    def fetching(self) -> int:
        return [*self.stands.values()].count("fetches")


@given(st.lists(st.integers(0, len(UIDS) - 1), min_size=1, max_size=400), st.sets(st.sampled_from(UIDS)))
@settings(max_examples=400, deadline=None)
def test_never_do_two_fetch_however_their_questions_interleave(order: list[int], late: set[str]) -> None:
    devices = Devices()
    for position, index in enumerate(order):
        if UIDS[index] not in late or position > len(order) // 2:
            devices.step(UIDS[index])
        assert devices.fetching <= 1
    for _ in range(60):  # and in the end there is one, if all go on
        for uid in UIDS:
            devices.step(uid)
    assert devices.fetching == 1
