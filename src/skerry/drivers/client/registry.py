"""Push a model package to an OCI registry: what is there already is not sent again, and the tag comes last.

Lives here: the client's side of the OCI distribution specification's push. Must not live here: how manifests are made
(`core.manifest`), what is printed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
import msgspec

from skerry.api.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest

CHUNK_BYTES = 4 * 1024 * 1024
_RESUMES = 5  # of one blob, without a single byte getting through
_MAX_ERROR_BYTES = 64 * 1024

Progress = Callable[[str, int], None]
"""Called with a file's name and the count of bytes just sent."""


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


@dataclass(frozen=True, kw_only=True)
class _Content:
    """A blob to push: a file, or a few bytes of our own."""

    name: str
    blob: Blob
    path: Path | None = None
    raw: bytes = b""

    def open(self) -> BinaryIO:
        return self.path.open("rb") if self.path is not None else io.BytesIO(self.raw)


def push_package(
    client: httpx.Client, repository: str, package: Path, card: cards.EvaluationCard, progress: Progress
) -> PushedModel:
    """Push every variant of a package, its golden samples and its card; tag the index with the card's version.

    `client` has the registry's address as its base URL, and credentials. Nothing is sent before every file has been
    compared with the card. Raises IntegrityError (a file is not what the card says), InvalidError, ConflictError (that
    version exists and is another one), ForbiddenError, UnavailableError, StorageFullError and what else a registry
    may answer. Pushing again goes on where it stopped; the tag exists only when everything is there.
    """
    manifests.check_repository(repository)
    if not manifests.is_tag(card.version):
        raise InvalidError(
            f'version "{card.version[:128]}" cannot be a tag',
            element=cards.CARD_FILE,
            hint="letters, digits, '_', '.', '-', at most 128, beginning with a letter, a digit or '_'",
        )
    if not card.variants:
        raise InvalidError("has no variants", element=cards.CARD_FILE, hint="see why they were rejected")
    files = [_file(package, packaged.file, packaged.variant.blob) for packaged in card.variants]
    golden = _file(package, cards.GOLDEN_FILE, card.golden.blob)
    card_text = _text(cards.CARD_FILE, cards.encode(card))
    built = [manifests.build_variant(card.model, card.version, p.variant, file=p.file) for p in card.variants]
    index = manifests.build_index(card.model, card.version, built)
    registry = _Registry(client, repository, progress)
    registry.check_tag(card.version, index)
    configs = [_text(f"{b.variant.name} config", b.config) for b in built]
    registry.push_blobs([*configs, *files, _text("empty config", manifests.EMPTY_CONFIG), golden, card_text])
    attached = [manifests.build_golden(index, golden.blob), manifests.build_card(index, card_text.blob)]
    for manifest in (*(b.manifest for b in built), index, *attached):
        registry.put_manifest(manifest.digest, manifest)
    registry.check_tag(card.version, index)
    registry.put_manifest(card.version, index)
    return PushedModel(
        index=index.digest,
        manifests={b.variant.name: b.manifest.digest for b in built},
        sent=registry.sent,
        skipped=registry.skipped,
    )


class _Registry:
    """One repository of a registry, as a pusher sees it."""

    def __init__(self, client: httpx.Client, repository: str, progress: Progress) -> None:
        self._client = client
        self._repository = repository
        self._progress = progress
        self.sent = 0
        self.skipped = 0

    def check_tag(self, tag: str, index: Manifest) -> None:
        """Raise ConflictError if the tag names something else: a model version never changes."""
        answer = self._ask("GET", f"manifests/{tag}", tag, accept=404, headers={"Accept": manifests.INDEX_TYPE})
        if answer.status_code != 404 and manifests.digest_of(answer.content) != index.digest:
            raise ConflictError(
                f"exists already, with digest {manifests.digest_of(answer.content)}, not {index.digest}",
                element=f"{self._repository}:{tag}",
                hint="model versions are immutable; give the new one a version of its own",
            )

    def push_blobs(self, contents: Sequence[_Content]) -> None:
        """Send the blobs that are not there, each once."""
        done: set[str] = set()
        for content in contents:
            if content.blob.digest not in done:
                done.add(content.blob.digest)
                self._push_blob(content)

    def put_manifest(self, reference: str, manifest: Manifest) -> None:
        """Store a manifest whose blobs are there."""
        self._ask(
            "PUT",
            f"manifests/{reference}",
            f"manifest {reference}",
            content=manifest.raw,
            headers={"Content-Type": manifest.media_type},
        )

    def _push_blob(self, content: _Content) -> None:
        blob = content.blob
        if self._ask("HEAD", f"blobs/{blob.digest}", content.name, accept=404).status_code != 404:
            self.skipped += blob.size
            return
        begun = self._ask("POST", "blobs/uploads/", content.name)
        location, rest = self._location(begun), b""
        with content.open() as file:
            if blob.size <= CHUNK_BYTES:
                rest = file.read(CHUNK_BYTES)
            else:
                chunk = max(CHUNK_BYTES, _number(begun.headers.get("OCI-Chunk-Min-Length", "")))
                location = self._send_chunks(content, file, location, chunk)
        self._ask("PUT", location, content.name, content=rest, params={"digest": blob.digest})
        if rest:
            self._count(content, len(rest))

    def _send_chunks(self, content: _Content, file: BinaryIO, location: str, chunk: int) -> str:
        """Send a large blob; when a request fails, ask how far it got and go on from there."""
        offset, failures = 0, 0
        while offset < content.blob.size:
            file.seek(offset)
            piece = file.read(chunk)
            if not piece:
                raise IntegrityError("became shorter while it was sent", element=content.name)
            try:
                answer = self._send_chunk(content, location, piece, offset)
            except UnavailableError:
                if failures == _RESUMES:
                    raise
                answer = self._ask("GET", location, content.name)
            reached = _reached(answer)
            failures = 0 if reached > offset else failures + 1
            if failures > _RESUMES:
                raise UnavailableError(f"the registry takes no more than {offset} bytes of it", element=content.name)
            if reached > offset:
                self._count(content, reached - offset)
            location, offset = self._location(answer), reached
        return location

    def _send_chunk(self, content: _Content, location: str, piece: bytes, offset: int) -> httpx.Response:
        headers = {
            "Content-Range": f"{offset}-{offset + len(piece) - 1}",
            "Content-Type": "application/octet-stream",
        }
        return self._ask("PATCH", location, content.name, accept=416, content=piece, headers=headers)

    def _count(self, content: _Content, count: int) -> None:
        self.sent += count
        self._progress(content.name, count)

    def _location(self, answer: httpx.Response) -> str:
        with _translated("registry"):
            url = answer.url.join(answer.headers.get("Location", ""))
        if (url.scheme, url.netloc) != (answer.url.scheme, answer.url.netloc):
            raise UnsupportedError(f"the registry sends uploads to another host, {url.host[:200]}", element="registry")
        return str(url)

    def _ask(
        self,
        method: str,
        path: str,
        element: str,
        *,
        accept: int = 200,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        url = httpx.URL(path) if "://" in path else httpx.URL(f"/v2/{self._repository}/{path}")
        if params:
            url = url.copy_merge_params(params)
        with _translated(element):
            answer = self._client.request(method, url, content=content, headers=headers)
        if not answer.is_success and answer.status_code != accept:
            raise _refused(answer, element)
        return answer


def _file(package: Path, name: str, blob: Blob) -> _Content:
    """Return a file of the package once it has been compared with the card."""
    path = package / name
    try:
        with path.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}", element=str(path), hint="make the package again"
        ) from error
    if (digest, size) != (blob.digest, blob.size):
        raise IntegrityError(
            f"is not what the card says: {size} bytes, {digest}", element=str(path), hint="make the package again"
        )
    return _Content(name=name, blob=blob, path=path)


def _text(name: str, raw: bytes) -> _Content:
    return _Content(name=name, blob=Blob(digest=manifests.digest_of(raw), size=len(raw)), raw=raw)


def _reached(answer: httpx.Response) -> int:
    """Return the bytes of an upload that have arrived; an empty one has the range 0-0, and none of ours has one."""
    last = _number(answer.headers.get("Range", "").rpartition("-")[2])
    return last + 1 if last else 0


@contextmanager
def _translated(element: str) -> Iterator[None]:
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise UnavailableError(
            f"the registry cannot be reached: {error}", element=element, hint="is the hub running?"
        ) from error


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []


def _refused(answer: httpx.Response, element: str) -> SkerryError:
    kinds: dict[int, type[SkerryError]] = {
        400: InvalidError,
        401: UnauthorizedError,
        403: ForbiddenError,
        404: NotFoundError,
        409: ConflictError,
        413: TooLargeError,
        507: StorageFullError,
    }
    kind = kinds.get(answer.status_code, UnavailableError if answer.status_code >= 500 else BadRequestError)
    try:
        problems = msgspec.json.decode(answer.content[:_MAX_ERROR_BYTES], type=_Problems).errors
    except (msgspec.DecodeError, UnicodeDecodeError):
        problems = []
    said = "; ".join(f"{p.message or p.code}"[:500] for p in problems[:3]) or answer.reason_phrase
    if any(p.code == "DIGEST_INVALID" for p in problems):
        kind = IntegrityError
    return kind(f"the registry answers {answer.status_code}: {said}", element=element)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 18 else 0
