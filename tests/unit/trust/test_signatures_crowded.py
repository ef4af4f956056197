"""Whoever may push attaches signatures that are none: the one that counts is told to devices all the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

from tests import trusting
from tests.trusting import NOW

from skerry.api.errors import NotFoundError
from skerry.api.kinds.trust_policy import TrustRule, TrustTerms
from skerry.api.kinds.variants import Blob
from skerry.core import manifest
from skerry.core.messages import MAX_SIGNATURES
from skerry.core.ports import Manifest
from skerry.hub import signatures

INDEX = Manifest(raw=b"{}", media_type=manifest.INDEX_TYPE, digest=manifest.digest_of(b"{}"))
FILES = {"model.onnx": b"model", "golden.npz": b"golden"}
NEEDED = [manifest.digest_of(raw) for raw in FILES.values()]
ANNA, BEN, OTHER = trusting.signer(), trusting.signer(), trusting.signer()
TERMS = TrustTerms(rules=[TrustRule(models=["dig*"], keys=[trusting.pem(ANNA), trusting.pem(BEN)], threshold=2)])


class Registry:
    """Attached to one index: whatever is in `raws`."""

    def __init__(self, *raws: bytes) -> None:
        self.raws = {manifest.digest_of(raw): raw for raw in raws}
        self.reads = 0

    async def list_referrers(self, *_: str) -> list[Manifest]:
        return [
            manifest.build_signature(INDEX, Blob(digest=digest, size=len(raw), media_type=manifest.SIGNATURE_TYPE))
            for digest, raw in self.raws.items()
        ]

    async def read_blob(self, _: str, digest: str, **__: Any) -> AsyncIterator[bytes]:
        self.reads += 1
        if self.raws[digest] == b"lost":
            raise NotFoundError(element=digest)
        yield self.raws[digest]


def junk(below: bytes, count: int) -> list[bytes]:
    """So many that come before a good one by their digests."""
    found: list[bytes] = []
    while len(found) < count:
        raw = os.urandom(16)
        if hashlib.sha256(raw).digest() < hashlib.sha256(below).digest():
            found.append(raw)
    return found


async def told(registry: Registry, *known: bytes, terms: TrustTerms | None = TERMS) -> set[str]:
    signer_of = None if terms is None else signatures.wanted_signer(terms, "digits", NEEDED, NOW)
    blobs = [Blob(digest=manifest.digest_of(raw), size=len(raw)) for raw in known]
    artifacts: Any = registry
    found = await signatures.find(artifacts, "default/digits", INDEX.digest, known=blobs, signer_of=signer_of)
    assert [blob.digest for blob in found] == sorted({blob.digest for blob in found})
    assert len(found) <= MAX_SIGNATURES
    return {blob.digest for blob in found}


def digests(*raws: bytes) -> set[str]:
    return {manifest.digest_of(raw) for raw in raws}


async def test_what_the_policy_asks_for_comes_before_what_is_none() -> None:
    """Also before good signatures of other files, by somebody else, and many by one and the same signer."""
    good = [trusting.bundle(key, FILES) for key in (ANNA, BEN)]
    others = [trusting.bundle(ANNA, {"model.onnx": b"other", "golden.npz": b"golden"}) for _ in range(8)]
    strangers = [trusting.bundle(OTHER, FILES) for _ in range(8)]
    again = [trusting.bundle(ANNA, FILES) for _ in range(8)]
    everything = [*junk(good[0], 8), *junk(good[1], 8), b"lost", *others, *strangers, *again, *good]
    found = await told(Registry(*everything))
    assert digests(good[1]) < found
    assert found & digests(good[0], *again)


async def test_what_was_told_before_stays_where_nobody_says_what_counts() -> None:
    good = trusting.bundle(ANNA, FILES)
    crowd = Registry(*junk(good, 20), good)
    for terms in (None, TrustTerms(), TrustTerms(mode="off", rules=TERMS.rules)):
        assert digests(good) < await told(crowd, good, terms=terms)
    assert crowd.reads == 0, "nothing is read for it"


async def test_each_has_its_turn_however_many_there_are_and_a_look_has_an_end() -> None:
    good = trusting.bundle(ANNA, FILES)
    crowd = Registry(*junk(good, 3 * signatures.MAX_LOOKED_AT), good)
    looks = 0
    while not digests(good) < await told(crowd):
        looks += 1
        assert crowd.reads == looks * signatures.MAX_LOOKED_AT
        assert looks < 200, "a chance of one to 10^26"
    assert digests(good) < await told(crowd, good), "and stays, for it is looked at each time from now on"


async def test_few_are_told_of_as_they_are() -> None:
    some = Registry(b"a", b"b", trusting.bundle(ANNA, FILES))
    assert await told(some) == set(some.raws)
    assert some.reads == 0
