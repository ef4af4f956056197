"""Push a model package to an OCI registry: what is there already is not sent again, and the tag comes last.

Lives here: what a model version consists of, in the order in which it is sent. Must not live here: requests
(`repository`), how manifests are made (`core.manifest`), what is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from skerry.api.errors import ConflictError, IntegrityError, InvalidError
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core import sbom
from skerry.core.ports import Manifest
from skerry.drivers.client.repository import (
    CHUNK_BYTES,
    Progress,
    Repository,
    file_content,
    ignore_progress,
    text_content,
)
from skerry.drivers.client.signatures import attach
from skerry.drivers.signing.package import carried, read_signatures

__all__ = ["CHUNK_BYTES", "Progress", "PushedModel", "check_tag", "push_package"]


@dataclass(frozen=True, kw_only=True)
class PushedModel:
    """What a push did."""

    index: str
    """Digest of the image index: the model version's."""
    manifests: Mapping[str, str]
    """Variant -> digest of its manifest."""
    sent: int
    """Bytes of blobs sent."""
    skipped: int
    """Bytes of blobs that were there already."""


def push_package(
    client: httpx.Client,
    repository: str,
    package: Path,
    card: cards.EvaluationCard,
    progress: Progress = ignore_progress,
    *,
    tag: str = "",
) -> PushedModel:
    """Push every variant of a package, golden samples, card, SBOM and signatures; tag the index, by default by version.

    `client` has the registry's address as its base URL, and credentials. Nothing is sent before every file has been
    compared with the card. Raises IntegrityError (a file is not what the card says), InvalidError, ConflictError (that
    version exists and is another one), ForbiddenError, UnavailableError, StorageFullError and what else a registry
    may answer. Pushing again goes on where it stopped; the tag exists only when everything is there.
    """
    tag = tag or card.version
    if not manifests.is_tag(tag):
        raise InvalidError(
            f'version "{tag[:128]}" cannot be a tag',
            element=cards.CARD_FILE,
            hint="letters, digits, '_', '.', '-', at most 128, beginning with a letter, a digit or '_'",
        )
    if not card.variants:
        raise InvalidError("has no variants", element=cards.CARD_FILE, hint="see why they were rejected")
    place = Repository(client, repository, progress, hint="is the hub running?")
    files = [file_content(p.file, package / p.file, p.variant.blob) for p in card.variants]
    golden = file_content(cards.GOLDEN_FILE, package / cards.GOLDEN_FILE, card.golden.blob)
    card_text = text_content(cards.CARD_FILE, _card_text(package, card))
    bill = text_content(sbom.SBOM_FILE, sbom.build(card))
    signatures = read_signatures(package, carried(card, card_text.raw))
    built = [manifests.build_variant(card.model, card.version, p.variant, file=p.file) for p in card.variants]
    index = manifests.build_index(card.model, card.version, built)
    with suppress(IntegrityError):  # damaged there: what is sent now mends it, if it is the same
        check_tag(place, tag, index)
    configs = [text_content(f"{b.variant.name} config", b.config) for b in built]
    empty = text_content("empty config", manifests.EMPTY_CONFIG)
    place.push_blobs([*configs, *files, empty, golden, card_text, bill])
    attached = [
        manifests.build_golden(index, golden.blob),
        manifests.build_card(index, card_text.blob),
        manifests.build_sbom(index, bill.blob),
    ]
    for manifest in (*(b.manifest for b in built), index, *attached):
        place.put_manifest(manifest.digest, manifest)
    for signature in signatures:
        attach(place, index, signature)
    check_tag(place, tag, index)
    place.put_manifest(tag, index)
    return PushedModel(
        index=index.digest,
        manifests={b.variant.name: b.manifest.digest for b in built},
        sent=place.sent,
        skipped=place.skipped,
    )


def _card_text(package: Path, card: cards.EvaluationCard) -> bytes:
    """Return the card's own bytes, which may be signed, where the package has it; else as we write it."""
    path = package / cards.CARD_FILE
    if not path.exists():
        return cards.encode(card)
    try:
        with path.open("rb") as file:
            raw = file.read(cards.MAX_CARD_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from error
    if cards.decode(raw) != card:
        raise IntegrityError("was changed meanwhile", element=str(path), hint="push it again")
    return raw


def check_tag(place: Repository, tag: str, index: Manifest) -> None:
    """Raise ConflictError if the tag names something else: a model version never changes."""
    found = place.find_manifest(tag)
    if found is not None and found.digest != index.digest:
        raise ConflictError(
            f"exists already, with digest {found.digest}, not {index.digest}",
            element=f"{place.name}:{tag}",
            hint="model versions are immutable; give the new one a version of its own",
        )
