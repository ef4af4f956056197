"""What simulated devices need of a model's artifacts: its evaluation card, from the hub's registry, once a version.

The device that asks first fetches through the registry with its certificate, as real ones do, but only the card: the
model files' bytes are of no use here. Must not live here: what a device measures (`draws`).
Source: OCI distribution specification 1.1 (pull, referrers).
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from skerry.api.errors import InvalidError, NotFoundError, TimedOutError, UnavailableError
from skerry.api.kinds.variants import Variant
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core.messages import WorkloadDesired
from skerry.core.ports import Manifest

TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A variant as the factory measured it, and how many golden samples there are."""

    variant: Variant
    samples: int


class _Referrers(msgspec.Struct):
    manifests: list[manifests.Descriptor] = []


class Catalogue:
    """Cards by repository and version; one request at a time for each, the others wait for its answer."""

    def __init__(self, hub_url: str, ca: str, directory: Path) -> None:
        self._hub_url = hub_url
        self._ca = ca
        self._directory = directory  # of the devices' certificates, `<name>.pem`
        self._cards: dict[tuple[str, str], cards.EvaluationCard] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def find(self, desired: WorkloadDesired, device: str) -> Found:
        """Return the variant that is wanted of a device, to which the registry shows what is deployed to it.

        Raises NotFoundError when the registry or the card does not have it, InvalidError, UnavailableError,
        TimedOutError.
        """
        key = (desired.repository, desired.version)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._cards:
                tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=self._ca)
                tls.load_cert_chain(self._directory / f"{device}.pem")
                async with httpx.AsyncClient(
                    base_url=self._hub_url, verify=tls, timeout=TIMEOUT_SECONDS, trust_env=False
                ) as client:
                    self._cards[key] = await _read_card(client, *key)
        card = self._cards[key]
        for packaged in card.variants:
            if packaged.variant.blob.digest == desired.blob.digest:
                return Found(variant=packaged.variant, samples=card.golden.samples)
        raise NotFoundError(
            f"the card of version {desired.version} has no variant with {desired.blob.digest}",
            element=desired.repository,
        )


async def _read_card(client: httpx.AsyncClient, repository: str, version: str) -> cards.EvaluationCard:
    index = await _get(client, f"/v2/{repository}/manifests/{version}", manifests.INDEX_TYPE)
    digest = manifests.digest_of(index)
    raw = await _get(client, f"/v2/{repository}/referrers/{digest}")
    try:
        referrers = msgspec.json.decode(raw, type=_Referrers).manifests
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"is no list of referrers: {error}", element=digest) from None
    named = next((one.digest for one in referrers if one.artifact_type == manifests.CARD_TYPE), None)
    if named is None:
        raise NotFoundError("has no evaluation card", element=f"{repository}:{version}")
    raw = await _get(client, f"/v2/{repository}/manifests/{named}", manifests.MANIFEST_TYPE)
    manifest = Manifest(digest=named, media_type=manifests.MANIFEST_TYPE, raw=raw)
    document = manifests.parse(manifest.raw, manifest.media_type)
    blob = next(document.content if isinstance(document, manifests.ImageIndex) else iter(document.layers), None)
    if blob is None:
        raise InvalidError("holds no card", element=named)
    return cards.decode(await _get(client, f"/v2/{repository}/blobs/{blob.digest}"))


async def _get(client: httpx.AsyncClient, path: str, accept: str = "*/*") -> bytes:
    try:
        answer = await client.get(path, headers={"Accept": accept})
    except httpx.TimeoutException:
        raise TimedOutError(f"no answer within {TIMEOUT_SECONDS:g} s", element="registry") from None
    except httpx.HTTPError as error:
        raise UnavailableError(f"cannot be reached: {error}", element="registry") from None
    if answer.status_code == 404:
        raise NotFoundError(element=path)
    if answer.status_code != 200:
        raise UnavailableError(f"answered {answer.status_code}", element=path)
    return answer.content
