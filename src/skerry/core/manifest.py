"""A model version as OCI manifests: built byte for byte the same every time, parsed within bounds. Pure.

A model version is an image index. It lists one manifest per variant, after the CNCF ModelPack specification (v1): the
config blob describes the model in ModelPack's words, the one layer is the model file, and our own `Variant`, for which
ModelPack's closed config schema has no place, is an annotation. Golden samples and the evaluation card are manifests
whose `subject` is the index. The grammar of a registry's names is here too. Must not live here: transport, storage,
digests of files.

Source: OCI image specification 1.1 (manifest, image index, descriptor), OCI distribution specification 1.1 (names),
ModelPack model-spec v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from skerry.api.errors import IntegrityError, InvalidError
from skerry.api.kinds.variants import Blob, Variant
from skerry.api.meta import Digest, Struct
from skerry.core.card import CARD_FILE, GOLDEN_FILE, MAX_CARD_BYTES
from skerry.core.ports import Manifest
from skerry.core.sbom import SBOM_FILE

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG = b"{}"

MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
MODEL_WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
GOLDEN_TYPE = "application/vnd.skerry.golden.v1+npz"
CARD_TYPE = "application/vnd.skerry.card.v1+json"
SBOM_TYPE = "application/vnd.cyclonedx+json"
DELTA_TYPE = "application/vnd.skerry.delta.v1"
SIGNATURE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_SIGNATURE_BYTES = 1024 * 1024
DELTA_BASE_ANNOTATION = "dev.skerry.delta.from"
DELTA_TARGET_ANNOTATION = "dev.skerry.delta.to"
DELTA_ENCODING_ANNOTATION = "dev.skerry.delta.encoding"
DELTA_SIZE_ANNOTATION = "dev.skerry.delta.size"

MODEL_ANNOTATION = "dev.skerry.model"
VERSION_ANNOTATION = "dev.skerry.model.version"
VARIANT_NAME_ANNOTATION = "dev.skerry.variant"
VARIANT_ANNOTATION = "dev.skerry.variant+json"
_BUNDLE_ANNOTATIONS = {
    "dev.sigstore.bundle.content": "dsse-envelope",
    "dev.sigstore.bundle.predicateType": "https://model_signing/signature/v1.0",
}
_FILE_ANNOTATION = "org.cncf.model.filepath"
_TITLE_ANNOTATION = "org.opencontainers.image.title"

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_REPOSITORY_LENGTH = 255
MAX_ENTRIES = 1024
"""Manifests in an index, or layers in a manifest."""

MANIFEST_TYPES = frozenset({MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"})
INDEX_TYPES = frozenset({INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"})

_ShortText = Annotated[str, msgspec.Meta(max_length=255)]
_Annotations = dict[_ShortText, Annotated[str, msgspec.Meta(max_length=256 * 1024)]]
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_T = TypeVar("_T")


class Descriptor(Struct, frozen=True, kw_only=True):
    """A pointer to content: what, how large, of which type."""

    media_type: _ShortText
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    artifact_type: _ShortText = ""
    annotations: _Annotations = {}


class ImageManifest(Struct, frozen=True, kw_only=True):
    """One OCI image manifest."""

    schema_version: Literal[2]
    media_type: _ShortText = ""
    artifact_type: _ShortText = ""
    config: Descriptor
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=MAX_ENTRIES)]
    subject: Descriptor | None = None
    annotations: _Annotations = {}

    @property
    def content(self) -> Iterator[Descriptor]:
        """The blobs that have to be there."""
        return iter([self.config, *self.layers])

    @property
    def type(self) -> str:
        """What it is an artifact of (the config's type where nothing else is said)."""
        return self.artifact_type or self.config.media_type


class ImageIndex(Struct, frozen=True, kw_only=True):
    """One OCI image index."""

    schema_version: Literal[2]
    media_type: _ShortText = ""
    artifact_type: _ShortText = ""
    manifests: Annotated[list[Descriptor], msgspec.Meta(max_length=MAX_ENTRIES)]
    subject: Descriptor | None = None
    annotations: _Annotations = {}

    @property
    def content(self) -> Iterator[Descriptor]:
        """The manifests that have to be there."""
        return iter(self.manifests)

    @property
    def type(self) -> str:
        """What it is an artifact of; may be empty."""
        return self.artifact_type


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltVariant:
    """One variant, ready to be pushed: the model file itself is named by `variant.blob`."""

    variant: Variant
    config: bytes
    manifest: Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIndex:
    """A model version's index, read."""

    model: str
    version: str
    manifests: Sequence[Descriptor]


def digest_of(raw: bytes) -> str:
    """Return the digest of some bytes, as `sha256:<hex>`."""
    return f"sha256:{sha256(raw).hexdigest()}"


def is_digest(text: str) -> bool:
    """Return whether this is a digest as everything here uses it: sha256, lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def is_repository(name: str) -> bool:
    """Return whether this may name a repository."""
    return len(name) <= MAX_REPOSITORY_LENGTH and _REPOSITORY.fullmatch(name) is not None


def check_repository(name: str) -> None:
    """Refuse what is no repository's name. Raises InvalidError."""
    if not is_repository(name):
        raise InvalidError(
            "is not a repository name",
            element=f"repository {name[:80]!a}",
            hint="a-z, 0-9, single '.', '_', '-' and '/' between",
        )


def check_digest(digest: str) -> None:
    """Refuse everything but `sha256:<64 lower-case hex digits>`. Raises InvalidError."""
    if not is_digest(digest):
        raise InvalidError(
            "is not a digest", element=f"digest {digest[:80]!a}", hint="write it as sha256:<64 hex digits>"
        )


def check_reference(reference: str) -> None:
    """Refuse what is neither a tag nor a digest. Raises InvalidError."""
    if not is_digest(reference) and not is_tag(reference):
        raise InvalidError("is neither a tag nor a digest", element=f"reference {reference[:80]!a}")


def is_tag(text: str) -> bool:
    """Return whether this may be a tag."""
    return _TAG.fullmatch(text) is not None


def build_variant(model: str, version: str, variant: Variant, *, file: str) -> BuiltVariant:
    """Return the manifest and config blob of one variant. `file` is the model file's name for people."""
    variant = msgspec.structs.replace(variant, manifest=None)
    config = _encode(
        {
            "descriptor": {"name": model, "version": version},
            "config": {
                "format": variant.format,
                "precision": variant.precision.removesuffix("-dynamic"),
                "quantization": "dynamic" if variant.precision.endswith("-dynamic") else None,
            },
            "modelfs": {"type": "layers", "diffIds": [variant.blob.digest]},
        }
    )
    document = ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=MODEL_TYPE,
        config=_describe(config, MODEL_CONFIG_TYPE),
        layers=[
            Descriptor(
                media_type=MODEL_WEIGHT_TYPE,
                digest=variant.blob.digest,
                size=variant.blob.size,
                annotations={_FILE_ANNOTATION: file, _TITLE_ANNOTATION: file},
            )
        ],
        annotations={
            MODEL_ANNOTATION: model,
            VERSION_ANNOTATION: version,
            VARIANT_NAME_ANNOTATION: variant.name,
            VARIANT_ANNOTATION: msgspec.json.encode(variant, order="sorted").decode(),
        },
    )
    return BuiltVariant(variant=variant, config=config, manifest=_manifest(document, MANIFEST_TYPE))


def build_index(model: str, version: str, variants: Sequence[BuiltVariant]) -> Manifest:
    """Return the index of a model version, its variants in the order of their names."""
    entries = [
        Descriptor(
            media_type=built.manifest.media_type,
            digest=built.manifest.digest,
            size=len(built.manifest.raw),
            artifact_type=MODEL_TYPE,
            annotations={VARIANT_NAME_ANNOTATION: built.variant.name},
        )
        for built in sorted(variants, key=lambda built: built.variant.name)
    ]
    document = ImageIndex(
        schema_version=2,
        media_type=INDEX_TYPE,
        artifact_type=MODEL_TYPE,
        manifests=entries,
        annotations={MODEL_ANNOTATION: model, VERSION_ANNOTATION: version},
    )
    return _manifest(document, INDEX_TYPE)


def build_golden(index: Manifest, blob: Blob) -> Manifest:
    """Return the manifest that attaches golden samples to a model version."""
    return _build_referrer(index, GOLDEN_TYPE, blob, GOLDEN_FILE)


def build_card(index: Manifest, blob: Blob) -> Manifest:
    """Return the manifest that attaches the evaluation card to a model version."""
    return _build_referrer(index, CARD_TYPE, blob, CARD_FILE)


def build_sbom(index: Manifest, blob: Blob) -> Manifest:
    """Return the manifest that attaches the bill of materials to a model version."""
    return _build_referrer(index, SBOM_TYPE, blob, SBOM_FILE)


def build_delta(variant: Manifest, blob: Blob, *, base: str, target: str, encoding: str) -> Manifest:
    """Return the manifest that attaches a delta to the variant it leads to."""
    annotations = {
        DELTA_BASE_ANNOTATION: base,
        DELTA_TARGET_ANNOTATION: target,
        DELTA_ENCODING_ANNOTATION: encoding,
        DELTA_SIZE_ANNOTATION: str(blob.size),
    }
    return _build_referrer(variant, DELTA_TYPE, blob, "model.delta", annotations)


def build_referrers(entries: Sequence[Descriptor]) -> Manifest:
    """Return the index of what refers to a manifest, for registries that keep none; in the order of digests."""
    listed = sorted({one.digest: one for one in entries}.values(), key=lambda one: one.digest)
    return _manifest(ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=listed), INDEX_TYPE)


def describe(manifest: Manifest) -> Descriptor:
    """Return the descriptor of a manifest as a list of referrers has it. Raises InvalidError."""
    document = parse(manifest.raw, manifest.media_type)
    return Descriptor(
        media_type=manifest.media_type,
        digest=manifest.digest,
        size=len(manifest.raw),
        artifact_type=document.type,
        annotations=document.annotations,
    )


def build_signature(index: Manifest, blob: Blob) -> Manifest:
    """Return the manifest that attaches a signature (a Sigstore bundle) to a model version, as cosign attaches them.

    Without the time at which it was made, so that the same signature attached again is the same manifest. Source:
    Cosign Bundle Specification.
    """
    title = f"{blob.digest.replace(':', '-')}.sigstore.json"
    return _build_referrer(index, SIGNATURE_TYPE, blob, title, dict(_BUNDLE_ANNOTATIONS))


def read_card(referrer: Manifest) -> Blob | None:
    """Return the evaluation card that a referrer attaches; None where it attaches something else, or too much."""
    try:
        document = parse(referrer.raw, referrer.media_type)
    except InvalidError:
        return None
    if not isinstance(document, ImageManifest) or document.type != CARD_TYPE or len(document.layers) != 1:
        return None
    layer = document.layers[0]
    if not 0 < layer.size <= MAX_CARD_BYTES:
        return None
    return Blob(digest=layer.digest, size=layer.size, media_type=layer.media_type)


def read_signature(referrer: Manifest) -> Blob | None:
    """Return the bundle that a referrer attaches; None where it attaches something else, or one that is too large."""
    try:
        document = parse(referrer.raw, referrer.media_type)
    except InvalidError:
        return None
    if not isinstance(document, ImageManifest) or document.type != SIGNATURE_TYPE or len(document.layers) != 1:
        return None
    layer = document.layers[0]
    if layer.media_type != SIGNATURE_TYPE or not 0 < layer.size <= MAX_SIGNATURE_BYTES:
        return None
    return Blob(digest=layer.digest, size=layer.size, media_type=SIGNATURE_TYPE)


def parse(raw: bytes, media_type: str) -> ImageManifest | ImageIndex:
    """Parse a manifest or an index, as its media type says. Raises InvalidError, whatever the bytes."""
    if media_type in MANIFEST_TYPES:
        return _decode(raw, media_type, ImageManifest)
    if media_type in INDEX_TYPES:
        return _decode(raw, media_type, ImageIndex)
    raise InvalidError(
        f'media type "{media_type[:120]}" is not of a manifest', element="manifest", hint=f"use {MANIFEST_TYPE}"
    )


def read_index(index: Manifest) -> ModelIndex:
    """Read a model version's index. Raises InvalidError, also for an index of something else."""
    document = parse(index.raw, index.media_type)
    if not isinstance(document, ImageIndex) or document.artifact_type != MODEL_TYPE:
        raise InvalidError(f"artifact type is not {MODEL_TYPE}", element=f"index {index.digest}")
    model, version = (document.annotations.get(key, "") for key in (MODEL_ANNOTATION, VERSION_ANNOTATION))
    if not model or not version:
        raise InvalidError("does not name its model and version", element=f"index {index.digest}")
    return ModelIndex(model=model, version=version, manifests=document.manifests)


def read_variant(manifest: Manifest) -> Variant:
    """Read a variant, with its `manifest` filled in.

    Raises InvalidError for anything else than a variant's manifest, IntegrityError when the variant speaks of another
    file than the manifest holds.
    """
    element = f"manifest {manifest.digest}"
    document = parse(manifest.raw, manifest.media_type)
    if not isinstance(document, ImageManifest) or document.artifact_type != MODEL_TYPE:
        raise InvalidError(f"artifact type is not {MODEL_TYPE}", element=element)
    text = document.annotations.get(VARIANT_ANNOTATION)
    if text is None:
        raise InvalidError(f"has no annotation {VARIANT_ANNOTATION}", element=element)
    variant = _decode_json(text.encode("utf-8", "replace"), Variant, element)
    layers = [(layer.digest, layer.size) for layer in document.layers]
    if layers != [(variant.blob.digest, variant.blob.size)]:
        raise IntegrityError("its layers are not the variant's file", element=element)
    return msgspec.structs.replace(variant, manifest=manifest.digest)


def _build_referrer(
    index: Manifest, artifact_type: str, blob: Blob, title: str, annotations: dict[str, str] | None = None
) -> Manifest:
    document = ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=artifact_type,
        config=_describe(EMPTY_CONFIG, EMPTY_TYPE),
        layers=[
            Descriptor(
                media_type=artifact_type,
                digest=blob.digest,
                size=blob.size,
                annotations={_TITLE_ANNOTATION: title},
            )
        ],
        subject=Descriptor(media_type=index.media_type, digest=index.digest, size=len(index.raw)),
        annotations=annotations or {},
    )
    return _manifest(document, MANIFEST_TYPE)


def _describe(raw: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(raw), size=len(raw))


def _manifest(document: ImageManifest | ImageIndex, media_type: str) -> Manifest:
    raw = msgspec.json.encode(document, order="sorted")
    return Manifest(digest=digest_of(raw), media_type=media_type, raw=raw)


def _encode(document: dict[str, Any]) -> bytes:
    kept = {part: {k: v for k, v in fields.items() if v is not None} for part, fields in document.items()}
    return msgspec.json.encode(kept, order="sorted")


def _decode(raw: bytes, media_type: str, kind: type[_T]) -> _T:
    if len(raw) > MAX_MANIFEST_BYTES:
        raise InvalidError(f"{len(raw)} bytes are more than {MAX_MANIFEST_BYTES}", element="manifest")
    document = _decode_json(raw, kind, "manifest")
    said = getattr(document, "media_type", "")
    if said and said != media_type:
        raise InvalidError(f'says it is "{said}", but was sent as "{media_type}"', element="manifest")
    return document


def _decode_json(raw: bytes, kind: type[_T], element: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise InvalidError(str(error)[:500], element=element) from None
