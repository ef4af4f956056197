"""Which signatures are attached to a model version: what devices are told of, verified by nobody here.

Must not live here: whether a signature holds (`drivers.signing`), and who may sign.
"""

from __future__ import annotations

from skerry.api.kinds.variants import Blob
from skerry.core import manifest
from skerry.core.messages import MAX_SIGNATURES
from skerry.core.ports import ArtifactStore


async def find_card(artifacts: ArtifactStore, repository: str, index: str) -> Blob | None:
    """Return the evaluation card attached to an index, the first by digest; None where there is none.

    Raises what the registry does.
    """
    referrers = await artifacts.list_referrers(repository, index)
    found = [blob for one in referrers if (blob := manifest.read_card(one)) is not None]
    return min(found, key=lambda blob: blob.digest, default=None)


async def find(artifacts: ArtifactStore, repository: str, index: str) -> list[Blob]:
    """Return the bundles attached to an index, by digest and at most `MAX_SIGNATURES`, each once.

    Raises what the registry does.
    """
    referrers = await artifacts.list_referrers(repository, index)
    found = {blob.digest: blob for one in referrers if (blob := manifest.read_signature(one)) is not None}
    return [found[digest] for digest in sorted(found)][:MAX_SIGNATURES]
