"""The evaluation card: what the factory writes beside the variants and `skerry model push` reads.

A model package is a directory: `card.json` (an `EvaluationCard`), `golden.npz`, and one file per variant, named in the
card. Lives here: the card's types and its codec. Must not live here: how variants are made or uploaded.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Evaluation, Golden, Rejected, SourceKind, Variant
from skerry.api.meta import Name, Struct

CARD_FILE = "card.json"
GOLDEN_FILE = "golden.npz"
MAX_CARD_BYTES = 4 * 1024 * 1024


class PackagedVariant(Struct, frozen=True, kw_only=True):
    """A variant and the file that holds it, relative to the package's directory."""

    variant: Variant
    file: str


class Provenance(Struct, frozen=True, kw_only=True):
    """What it was made from and with."""

    source_kind: SourceKind
    source_digests: dict[str, str] = {}
    """File name -> sha256 of every input: code, weights, data."""
    tools: dict[str, str] = {}
    """Tool -> version."""
    seed: int = 0


class About(Struct, frozen=True, kw_only=True):
    """What the files that a model was imported from say of it; said by its authors, checked by nobody."""

    license: str = ""
    task: str = ""
    tags: list[str] = []
    description: str = ""


class EvaluationCard(Struct, frozen=True, kw_only=True):
    """One model version as the factory made and measured it."""

    model: Name
    version: str
    signature: ModelSignature
    evaluation: Evaluation | None = None
    """How it was judged; None: it was imported without data, and nothing is known of its accuracy."""
    golden: Golden
    variants: list[PackagedVariant]
    rejected: list[Rejected] = []
    provenance: Provenance
    about: About | None = None
    schema_version: Literal[1] = 1


def encode(card: EvaluationCard) -> bytes:
    """Return the card as indented JSON with sorted keys, so that equal cards have equal digests."""
    return msgspec.json.format(msgspec.json.encode(card, order="sorted"), indent=2)


def decode(raw: bytes) -> EvaluationCard:
    """Parse a card. Raises InvalidError that names the field, whatever the bytes."""
    if len(raw) > MAX_CARD_BYTES:
        raise InvalidError(f"is larger than {MAX_CARD_BYTES} bytes", element=CARD_FILE)
    try:
        card = msgspec.json.decode(raw, type=EvaluationCard)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(
            str(error)[:500], element=CARD_FILE, hint="make the package with `skerry model optimize`"
        ) from error
    for packaged in card.variants:
        if not packaged.file or "/" in packaged.file or "\0" in packaged.file or packaged.file.startswith("."):
            raise InvalidError(f'file "{packaged.file[:200]}" must lie in the package itself', element=CARD_FILE)
    return card
