"""Who of a site's devices brings a blob over the thin line: a decision each of them takes by itself. Pure.

Each device stands somewhere towards a blob, and tells its neighbours when they ask:

    none     it has nothing to do with it
    wants    it is going to need it, and asks around
    claims   it found nobody ahead of it, and asks once more
    fetches  it brings it over the line now
    has      it has it, verified, and gives it away

The rule, for a device that asked all others after it took up its own stand:

- somebody has it: take it there
- somebody fetches it, or claims it while this one only wants it: wait
- somebody else wants or claims it too, and ranks before this one (by a hash of blob and device): wait
- else go on: from `wants` to `claims`, from `claims` to `fetches`

Of two devices that hear each other at most one comes to `fetches`: it claimed before it asked for the last time, so the
other, had it been ahead by then, was heard, and if it came later, heard of the claim. A device that is not heard counts
for nothing, so nobody waits for the dead; how long one waits for the living is the caller's to bound.
Lives here: stands, ranks, the rule. Must not live here: asking, time, trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

Stand = Literal["none", "wants", "claims", "fetches", "has"]
STANDS: frozenset[str] = frozenset(get_args(Stand))


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What one neighbour said of a blob."""

    stand: Stand
    came: int = 0
    """Bytes that have come to it, where it fetches."""
    busy: bool = False
    """It has the blob, and gives it to as many as it can already."""


@dataclass(frozen=True, slots=True)
class Take:
    """Take it from one of these, the best first."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else is ahead: ask again in a while."""

    peer: str


@dataclass(frozen=True, slots=True)
class Go:
    """Nobody is ahead: take up this stand, and ask again unless it is `fetches`."""

    stand: Stand


def rank(digest: str, uid: str) -> bytes:
    """Return a device's place towards a blob; the lowest goes first. Another blob, another order: work is spread."""
    return sha256(f"{digest} {uid}".encode()).digest()


def choose(digest: str, uid: str, stand: Stand, told: Mapping[str, Told]) -> Take | Wait | Go:
    """Say what the device `uid` that wants or claims a blob does next, by what its neighbours (by uid) told."""
    others = {peer: one for peer, one in told.items() if peer != uid}
    having = [peer for peer, one in others.items() if one.stand == "has"]
    free = [peer for peer in having if not others[peer].busy]
    if free:  # each begins with another, so that many who take it at once do not all ask the same one
        return Take(tuple(sorted(free, key=lambda peer: rank(f"{digest} {uid}", peer))))
    mine = rank(digest, uid)
    over = ("fetches",) if stand == "claims" else ("fetches", "claims")
    ahead = [
        peer
        for peer, one in others.items()
        if one.stand in over or (one.stand in ("wants", "claims") and rank(digest, peer) < mine)
    ]
    if having or ahead:
        return Wait(min(having or ahead, key=lambda peer: (others[peer].stand != "fetches", rank(digest, peer))))
    return Go("fetches" if stand == "claims" else "claims")
