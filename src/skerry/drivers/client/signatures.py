"""Signatures in a registry: attached to a model version's index as referrers, and found there.

Must not live here: what a signature is and whether it holds (`drivers.signing`), how referrers look (`core.manifest`).
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry.api.errors import IntegrityError
from skerry.api.kinds.variants import Blob
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.drivers.client.repository import Repository, text_content
from skerry.drivers.signing.statement import MAX_BUNDLE_BYTES

_MAX_LOOKED_AT = 64
"""Referrers that claim to be signatures; whoever may push can attach any number of them."""


def attach(place: Repository, index: Manifest, raw: bytes) -> str:
    """Attach a signature to an index that is there; doing so again changes nothing. Returns the bundle's digest."""
    blob = Blob(digest=manifests.digest_of(raw), size=len(raw), media_type=manifests.SIGNATURE_TYPE)
    referrer = manifests.build_signature(index, blob)
    place.push_blobs([text_content("empty config", manifests.EMPTY_CONFIG), text_content("signature", raw)])
    place.put_manifest(referrer.digest, referrer)
    return blob.digest


def fetch(place: Repository, referrers: Sequence[manifests.Descriptor]) -> Sequence[bytes]:
    """Return the signatures among an index's referrers, each once, by digest; of the first `_MAX_LOOKED_AT` referrers.

    They may be more than a package may hold: which of them count is for the caller to say. Such as are too large to be
    any are left out. Raises IntegrityError where the registry sends something else, and what it may answer.
    """
    found: dict[str, Blob] = {}
    claiming = [one for one in referrers if one.artifact_type == manifests.SIGNATURE_TYPE]
    for one in claiming[:_MAX_LOOKED_AT]:
        blob = manifests.read_signature(place.get_manifest(one.digest))
        found |= {blob.digest: blob} if blob is not None else {}
    return [_read(place, found[digest]) for digest in sorted(found) if found[digest].size <= MAX_BUNDLE_BYTES]


def _read(place: Repository, blob: Blob) -> bytes:
    raw = b"".join(place.read_blob(blob))
    if manifests.digest_of(raw) != blob.digest:
        raise IntegrityError("the registry sent something else", element=f"signature {blob.digest}")
    return raw
