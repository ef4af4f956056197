"""Which signatures are attached to a model version: what devices are told of.

Whoever may push can attach any number of them, and devices are told of few. So which ones those are is no matter of
chance: first those that the caller knows to be of use, one of each signer, then those that were told before.

Must not live here: whether a signature holds (`drivers.signing`), and who may sign.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.trust_policy import TrustTerms
from skerry.api.kinds.variants import Blob
from skerry.core import manifest, trust_policy
from skerry.core.messages import MAX_SIGNATURES
from skerry.core.ports import ArtifactStore
from skerry.drivers.signing import bundle, policy

MAX_LOOKED_AT = 64
"""Of those that were not told before, in one look, chosen at random: each has its turn, however many there are."""


async def find_card(artifacts: ArtifactStore, repository: str, index: str) -> Blob | None:
    """Return the evaluation card attached to an index, the first by digest; None where there is none.

    Raises what the registry does.
    """
    referrers = await artifacts.list_referrers(repository, index)
    found = [blob for one in referrers if (blob := manifest.read_card(one)) is not None]
    return min(found, key=lambda blob: blob.digest, default=None)


async def find(
    artifacts: ArtifactStore,
    repository: str,
    index: str,
    *,
    known: Sequence[Blob] = (),
    signer_of: Callable[[bytes], str] | None = None,
) -> list[Blob]:
    """Return the bundles attached to an index, in the order of their digests and at most `MAX_SIGNATURES`, each once.

    Where there are more: first those of which `signer_of` says whose they are (empty: nobody's who matters), one of
    each signer; then those `known` from before. Raises what the registry does.
    """
    referrers = await artifacts.list_referrers(repository, index)
    found = {blob.digest: blob for one in referrers if (blob := manifest.read_signature(one)) is not None}
    if len(found) <= MAX_SIGNATURES:
        return [found[digest] for digest in sorted(found)]
    before = [blob.digest for blob in known if blob.digest in found]
    others = sorted(set(found) - set(before))
    signers: dict[str, str] = {}
    if signer_of is not None:
        for digest in [*before, *random.sample(others, min(len(others), MAX_LOOKED_AT))]:
            signer = await _signer(artifacts, repository, found[digest], signer_of)
            if signer:
                signers.setdefault(signer, digest)
    chosen = dict.fromkeys([*signers.values(), *before, *others])
    return [found[digest] for digest in sorted(list(chosen)[:MAX_SIGNATURES])]


def wanted_signer(
    terms: TrustTerms, model: str, needed: Collection[str], now: datetime
) -> Callable[[bytes], str] | None:
    """Return for `find` what tells which of the signers that a policy wants made a bundle, over all that is needed.

    None where the policy wants nobody, or its keys cannot be used.
    """
    rule = trust_policy.rule_of(terms, model)
    if rule is None or terms.mode == "off":
        return None
    try:
        keys, authorities = policy.load(terms)
    except SkerryError:  # the policy's condition says so
        return None

    def signer(raw: bytes) -> str:
        found = bundle.verify(raw, keys=keys, authorities=authorities, now=now)
        counts = set(needed) <= set(found.files.values()) and trust_policy.matched(rule, found.signers) > 0
        return found.signers[0].key if counts else ""

    return signer


async def _signer(artifacts: ArtifactStore, repository: str, blob: Blob, signer_of: Callable[[bytes], str]) -> str:
    try:
        return signer_of(await read(artifacts, repository, blob))
    except (SkerryError, OSError):  # one that cannot be read is of no use
        return ""


async def read(artifacts: ArtifactStore, repository: str, blob: Blob, *, most: int = bundle.MAX_BUNDLE_BYTES) -> bytes:
    """Return the bytes of a small blob. Raises InvalidError for one of more than `most`, and what the registry does."""
    if blob.size > most:
        raise InvalidError(f"{blob.size} bytes are more than {most}", element=blob.digest)
    return b"".join([chunk async for chunk in artifacts.read_blob(repository, blob.digest, length=blob.size)])
