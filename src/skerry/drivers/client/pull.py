"""Pull a model version from an OCI registry into a package: what pushed it can push it again, to the same digests.

Lives here: finding a model version's parts, and what proves that they belong together. Must not live here: requests
(`repository`), what is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skerry.api.errors import ConflictError, IntegrityError, InvalidError, NotFoundError, SkerryError, StorageFullError
from skerry.api.kinds.variants import Blob, Variant
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.drivers.client.repository import Repository, file_content
from skerry.drivers.client.signatures import fetch
from skerry.drivers.signing.package import carried, keep_signatures
from skerry.kit.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model version as a registry holds it."""

    index: Manifest
    model: str
    version: str
    variants: Sequence[Variant]
    """By name."""
    referrers: Sequence[manifests.Descriptor]
    """Of the index, and of the variants' manifests."""
    card: cards.EvaluationCard | None
    """None where none is attached that describes exactly these variants."""
    card_text: bytes = b""
    """The card byte for byte."""


@dataclass(frozen=True, kw_only=True)
class PulledModel:
    """What a pull did."""

    index: str
    card: cards.EvaluationCard
    files: Sequence[str]
    """Names in the package, the card's own not among them."""
    fetched: int
    """Bytes of files that came."""
    present: int
    """Bytes of files that were there already."""


def find_model(place: Repository, reference: str) -> FoundModel:
    """Read a model version's manifests. Raises NotFoundError, InvalidError for what is no model, IntegrityError."""
    index = place.get_manifest(reference)
    read = manifests.read_index(index)
    variants = [manifests.read_variant(place.get_manifest(entry.digest)) for entry in read.manifests]
    referrers = list(place.list_referrers(index.digest))
    found = [text for one in referrers if (text := _read_card(place, one, index)) is not None]
    if len(found) > 1:
        raise IntegrityError(
            f"{len(found)} evaluation cards are attached to it",
            element=f"{place.name}@{index.digest}",
            hint="remove all but one of them by digest with `skerry model rm`",
        )
    for variant in variants:
        referrers += place.list_referrers(variant.manifest or "")
    return FoundModel(
        index=index,
        model=read.model,
        version=read.version,
        variants=sorted(variants, key=lambda variant: variant.name),
        referrers=referrers,
        card=cards.decode(found[0]) if found else None,
        card_text=found[0] if found else b"",
    )


def pull_package(place: Repository, reference: str, directory: Path) -> PulledModel:
    """Bring a model version, with its signatures, into a directory as a package; goes on where it was interrupted.

    The card comes last, so a directory with one is complete. Raises IntegrityError, NotFoundError (no card, so it is no
    package), ConflictError (the directory holds another file of that name), UnavailableError, StorageFullError.
    """
    found = find_model(place, reference)
    card = found.card
    if card is None:
        raise NotFoundError(
            "has no evaluation card that describes its variants, so no package can be made of it",
            element=f"{place.name}@{found.index.digest}",
            hint="copy it with `skerry model copy`, or push it again from its package",
        )
    wanted: list[tuple[str, Blob]] = [(packaged.file, packaged.variant.blob) for packaged in card.variants]
    wanted.append((cards.GOLDEN_FILE, card.golden.blob))
    present = 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_other(directory / cards.CARD_FILE, found.card_text)
        for name, blob in wanted:
            if _is_there(name, directory / name, blob):
                present += blob.size
            else:
                place.pull_blob(name, blob, directory / name)
        keep_signatures(directory, fetch(place, found.referrers), carried(card, found.card_text))
        write_atomic(directory / cards.CARD_FILE, found.card_text)
    except OSError as error:
        kind = StorageFullError if error.errno == 28 else InvalidError
        raise kind(f"cannot be written: {error.strerror}", element=str(directory)) from error
    total = sum(blob.size for _, blob in wanted)
    return PulledModel(
        index=found.index.digest,
        card=card,
        files=[name for name, _ in wanted],
        fetched=total - present,
        present=present,
    )


def rebuild_index(card: cards.EvaluationCard) -> Manifest:
    """Return the index that pushing this card's package makes."""
    built = [manifests.build_variant(card.model, card.version, p.variant, file=p.file) for p in card.variants]
    return manifests.build_index(card.model, card.version, built)


def _read_card(place: Repository, referrer: manifests.Descriptor, index: Manifest) -> bytes | None:
    """Return the card that a referrer holds, if it is of exactly this index; what else is attached does not matter."""
    if referrer.artifact_type != manifests.CARD_TYPE:
        return None
    try:
        attached = place.get_manifest(referrer.digest)
        document = manifests.parse(attached.raw, attached.media_type)
        layer = next(iter(document.layers), None) if isinstance(document, manifests.ImageManifest) else None
        if layer is None or layer.size > cards.MAX_CARD_BYTES:
            return None
        raw = b"".join(place.read_blob(Blob(digest=layer.digest, size=layer.size)))
        if manifests.digest_of(raw) != layer.digest:
            raise IntegrityError("the registry sent something else", element=f"card {layer.digest}")
        card = cards.decode(raw)
    except (InvalidError, NotFoundError):  # or it was removed, and only a list still has it
        return None
    return raw if _is_packable(card) and rebuild_index(card).digest == index.digest else None


def _is_packable(card: cards.EvaluationCard) -> bool:
    """Whether its files can lie in one directory."""
    names = [packaged.file for packaged in card.variants]
    plain = all(name.isprintable() and len(name.encode("utf-8", "replace")) < 200 for name in names)
    return plain and len({*names, cards.CARD_FILE, cards.GOLDEN_FILE}) == len(names) + 2


def _is_there(name: str, path: Path, blob: Blob) -> bool:
    """Return whether a file is there already. Raises ConflictError where another one has its name."""
    if path.is_symlink():
        raise ConflictError("is a symbolic link", element=str(path), hint="pull into a directory of its own")
    if not path.exists():
        return False
    try:
        file_content(name, path, blob)
    except SkerryError:
        raise ConflictError(
            "is there already, and is something else", element=str(path), hint="pull into a directory of its own"
        ) from None
    return True


def _check_other(path: Path, raw: bytes) -> None:
    if path.exists() and path.read_bytes() != raw:
        raise ConflictError(
            "is the card of another model version", element=str(path), hint="pull into a directory of its own"
        )
