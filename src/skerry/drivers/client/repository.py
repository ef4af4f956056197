"""One repository of an OCI registry, as a client uses it: the hub's own registry or any other.

Lives here: the distribution specification's requests, resumed and verified, and a registry's errors turned into ours.
Must not live here: what manifests mean (`core.manifest`), what a model version is made of (`registry`, `pull`, `copy`).

Source: OCI distribution specification 1.1 (pull, push, content discovery, content management; the referrers tag for
registries without that API).
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx
import msgspec

from skerry.api.errors import (
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.core import manifest as manifests
from skerry.core import reference as references
from skerry.core.ports import Manifest
from skerry.drivers.client.registry_auth import LIMIT, RegistryAuth
from skerry.drivers.client.registry_http import IDLE_SECONDS, refused
from skerry.kit.files import sync_directory

CHUNK_BYTES = 4 * 1024 * 1024
MAX_TAGS = 100_000
MAX_REFERRERS = 1024
MAX_PAGES = 1024
"""Of one list: a registry that always has one more is not believed."""
SETTLE_SECONDS = 1800.0
"""How long an upload that has arrived may take to become a blob; the hub may have to pass it on over a thin line."""
POLL_SECONDS = 2.0
FINISH_AGAIN_SECONDS = 60.0
"""How often such an upload is looked for, and to be finished once more."""
_READ_BYTES = 256 * 1024
_RESUMES = 5  # of one blob, without a single byte getting through
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")
_ACCEPT = ", ".join(sorted(manifests.MANIFEST_TYPES | manifests.INDEX_TYPES))

T = TypeVar("T")
Progress = Callable[[str, int], None]
"""Called with a file's name and the count of bytes just sent or received."""


def ignore_progress(name: str, count: int) -> None:
    """Be told of progress, and say nothing."""
    del name, count


@dataclass(frozen=True, kw_only=True)
class Content:
    """A blob to push: a file, or a few bytes of our own."""

    name: str
    blob: Blob
    path: Path | None = None
    raw: bytes = b""

    def open(self) -> BinaryIO:
        """Open it for reading."""
        return self.path.open("rb") if self.path is not None else io.BytesIO(self.raw)


class Repository:
    """One repository. All methods block, and raise what a registry's refusal means as `api.errors`.

    `client` has the registry's address as its base URL, and credentials. What `sent` and `skipped` count are bytes of
    blobs: those that were sent, and those that were there already. An answer to what is written may take
    `write_seconds`, if not longer by the client's own limit, and an upload `settle_seconds` to become a blob.
    """

    def __init__(
        self,
        client: httpx.Client,
        name: str,
        progress: Progress = ignore_progress,
        *,
        hint: str = "is the registry running?",
        write_seconds: float = IDLE_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        manifests.check_repository(name)
        self.name = name
        self.sent = 0
        self.skipped = 0
        self.client = client
        self._progress = progress
        self._hint = hint
        self._write_seconds = write_seconds
        self._settle_seconds = settle_seconds

    # --- manifests -------------------------------------------------------------------------------------------------

    def get_manifest(self, reference: str) -> Manifest:
        """Return a manifest by tag or digest, verified. Raises NotFoundError, IntegrityError, TooLargeError."""
        manifests.check_reference(reference)
        element = f"{self.name}{'@' if manifests.is_digest(reference) else ':'}{reference}"
        url = self._url(f"manifests/{reference}")
        with self._translated(element), self.client.stream("GET", url, headers={"Accept": _ACCEPT}) as answer:
            if not answer.is_success:
                raise refused(answer, element)
            raw = b"".join(_bounded(answer, manifests.MAX_MANIFEST_BYTES, element))
        found = Manifest(
            digest=manifests.digest_of(raw),
            media_type=answer.headers.get("Content-Type", "").partition(";")[0].strip(),
            raw=raw,
        )
        if manifests.is_digest(reference) and found.digest != reference:
            raise IntegrityError(f"the registry sent {found.digest} instead", element=element)
        return found

    def find_manifest(self, reference: str) -> Manifest | None:
        """Return a manifest, or None where there is none."""
        try:
            return self.get_manifest(reference)
        except NotFoundError:
            return None

    def put_manifest(self, reference: str, manifest: Manifest) -> None:
        """Store a manifest whose blobs are there; where the registry keeps no referrers, list it for its subject."""
        answer = self._ask(
            "PUT",
            f"manifests/{reference}",
            f"manifest {reference}",
            content=manifest.raw,
            headers={"Content-Type": manifest.media_type},
        )
        subject = manifests.parse(manifest.raw, manifest.media_type).subject
        if subject is not None and answer.headers.get("OCI-Subject") != subject.digest:
            self._list_by_tag(subject.digest, manifest)

    def delete_manifest(self, reference: str) -> None:
        """Remove a tag, or a manifest by digest. Raises NotFoundError, UnsupportedError."""
        try:
            self._ask("DELETE", f"manifests/{reference}", f"{self.name}, {reference}")
        except (InvalidError, IntegrityError) as error:  # what registries say that remove by digest only
            raise UnsupportedError(
                f"the registry removes no tags ({error.cause})"[:500],
                element=f"{self.name}, {reference}",
                hint="remove it by its digest, with all its tags",
            ) from None

    def list_tags(self) -> list[str]:
        """Return all tags that people gave, in order. Raises NotFoundError."""
        tags: list[str] = []
        count, pages = 0, _Pages(self._url("tags/list?n=1000"), f"tags of {self.name}")
        for path in pages:
            answer = self._ask("GET", path, f"repository {self.name}")
            found = _decode(answer, _Tags, f"tags of {self.name}").tags or []
            count += len(found)
            if count > MAX_TAGS:
                raise TooLargeError(f"has more than {MAX_TAGS} tags", element=f"repository {self.name}")
            tags += [tag for tag in found if manifests.is_tag(tag) and not references.is_referrers_tag(tag)]
            pages.go_on(self._next(answer) if found else "")
        return sorted(set(tags))

    def list_referrers(self, digest: str) -> list[manifests.Descriptor]:
        """Return what refers to a manifest, in the order of digests, also where only a tag lists it."""
        manifests.check_digest(digest)
        element = f"referrers of {digest}"
        found: list[manifests.Descriptor] = []
        pages = _Pages(self._url(f"referrers/{digest}"), element)
        for path in pages:
            answer = self._ask("GET", path, element, accept=404)
            if answer.status_code == 404:
                listed = self.find_manifest(references.referrers_tag(digest))
                found += _entries(listed) if listed is not None else []
                break
            found += _decode(answer, manifests.ImageIndex, element).manifests
            if len(found) > MAX_REFERRERS:
                raise TooLargeError(f"are more than {MAX_REFERRERS}", element=element)
            pages.go_on(self._next(answer))
        return sorted({one.digest: one for one in found}.values(), key=lambda one: one.digest)

    def _list_by_tag(self, subject: str, manifest: Manifest) -> None:
        """Add a manifest to the tag that lists what refers to a subject."""
        tag = references.referrers_tag(subject)
        current = self.find_manifest(tag)
        before = _entries(current) if current is not None else []
        if all(one.digest != manifest.digest for one in before):
            listed = manifests.build_referrers([*before, manifests.describe(manifest)])
            self._ask(
                "PUT", f"manifests/{tag}", f"manifest {tag}", content=listed.raw,
                headers={"Content-Type": listed.media_type},
            )  # fmt: skip

    def _next(self, answer: httpx.Response) -> str:
        """Return where a list goes on, on the same registry; empty at its end."""
        url = answer.links.get("next", {}).get("url")
        if not url:
            return ""
        with self._translated(self.name):
            return self._same_host(answer, url)

    # --- blobs -----------------------------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        return self.stat_blob(digest) is not None

    def stat_blob(self, digest: str) -> int | None:
        """Return a blob's size in bytes, as far as the registry says it (else 0); None where there is none."""
        manifests.check_digest(digest)
        answer = self._ask("HEAD", f"blobs/{digest}", f"blob {digest}", accept=404, redirects=True)
        return None if answer.status_code == 404 else number(answer.headers.get("Content-Length", ""))

    def mount_blob(self, digest: str, *, source: str) -> bool:
        """Take a blob over from another repository of this registry; whether that was done."""
        manifests.check_digest(digest)
        params = {"mount": digest, "from": source}
        answer = self._ask("POST", "blobs/uploads/", f"blob {digest}", params=params)
        if answer.status_code == 201:
            return True
        try:
            self._ask("DELETE", self._location(answer), "upload", accept=404)  # it began an ordinary upload instead
        except SkerryError:
            return False  # the registry gives it up by itself in time
        return False

    def delete_blob(self, digest: str) -> None:
        """Take a blob from the repository. Raises NotFoundError, UnsupportedError."""
        manifests.check_digest(digest)
        self._ask("DELETE", f"blobs/{digest}", f"blob {digest}")

    def push_blobs(self, contents: Sequence[Content]) -> None:
        """Send the blobs that are not there, each once."""
        done: set[str] = set()
        for content in contents:
            if content.blob.digest not in done:
                done.add(content.blob.digest)
                self.push_blob(content)

    def push_blob(self, content: Content) -> None:
        """Send a blob unless it is there; in pieces, going on after failures where the registry says it stopped."""
        blob = content.blob
        if self.has_blob(blob.digest):
            self.skipped += blob.size
            return
        begun = self._ask("POST", "blobs/uploads/", content.name)
        location = self._location(begun)
        with content.open() as file:
            if blob.size <= CHUNK_BYTES:
                self._finish(content, location, _Part(file, 0, blob.size))
                self._count(content, blob.size)
            else:
                chunk = max(CHUNK_BYTES, number(begun.headers.get("OCI-Chunk-Min-Length", "")))
                location = self._send_chunks(content, file, location, chunk)
                self._finish(content, location, b"")

    def pull_blob(self, name: str, blob: Blob, target: Path) -> None:
        """Bring a blob into a file: resumed where an earlier try stopped, verified before the name exists.

        Raises IntegrityError where the registry has something else (nothing is kept then), UnavailableError once
        several tries brought nothing.
        """
        partial = target.with_name(f"{target.name}.partial")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            resumed = file.seek(0, os.SEEK_END) > 0
            if not self._pull(name, blob, file) and not (resumed and self._pull_anew(name, blob, file)):
                partial.unlink(missing_ok=True)
                raise IntegrityError(
                    "what the registry has is something else than its digest says", element=f"{name} ({blob.digest})"
                )
            os.fsync(file.fileno())
        os.replace(partial, target)
        sync_directory(target.parent)

    def read_blob(self, blob: Blob, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield a part of a blob, all of it by default, as it comes. Raises IntegrityError for more or less.

        The digest is the caller's to check; the connection is given back when the iterator is closed.
        """
        manifests.check_digest(blob.digest)
        end, element = blob.size if end is None else end, f"blob {blob.digest}"
        if start >= end:
            return
        headers = {"Accept-Encoding": "identity"}
        if (start, end) != (0, blob.size):
            headers["Range"] = f"bytes={start}-{end - 1}"
        url = self._url(f"blobs/{blob.digest}")
        with (
            self._translated(element),
            self.client.stream(
                "GET", url, headers=headers, follow_redirects=self._follows, extensions={LIMIT: None}
            ) as answer,
        ):
            if not answer.is_success:
                raise refused(answer, element)
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise UnsupportedError("the registry sends it encoded, which was not asked for", element=element)
            at = 0
            if answer.status_code == 206:
                match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
                if match is None or int(match.group(1)) != start:
                    raise UnavailableError("the registry sent another part than was asked for", element=element)
                at = start
            yield from _part(answer.iter_raw(_READ_BYTES), at, range(start, end), blob)

    def _pull(self, name: str, blob: Blob, file: io.BufferedRandom) -> bool:
        """Complete a file from where it ends; whether it is the right one then."""
        if file.seek(0, os.SEEK_END) > blob.size:
            file.truncate(0)
        failures = 0
        while (size := file.seek(0, os.SEEK_END)) < blob.size:
            try:
                for piece in self.read_blob(blob, start=size):
                    file.write(piece)
                    self._progress(name, len(piece))
                file.flush()
            except UnavailableError:
                file.flush()
                failures = failures + 1 if file.seek(0, os.SEEK_END) == size else 1
                if failures > _RESUMES:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**failures))  # noqa: S311 - full jitter
        file.seek(0)
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == blob.digest

    def _pull_anew(self, name: str, blob: Blob, file: io.BufferedRandom) -> bool:
        """Fetch it from its first byte, once: what an earlier try left behind may have been damaged."""
        file.truncate(0)
        return self._pull(name, blob, file)

    def _send_chunks(self, content: Content, file: BinaryIO, location: str, chunk: int) -> str:
        """Send a large blob; when a request fails, ask how far it got and go on from there."""
        offset, failures = 0, 0
        while offset < content.blob.size:
            piece = _Part(file, offset, min(chunk, content.blob.size - offset))
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

    def _finish(self, content: Content, location: str, rest: _Part | bytes) -> None:
        """Make a blob of an upload. A registry that takes long over it is asked again until it has done so, or says no.

        Raises TimedOutError after `SETTLE_SECONDS`.
        """
        digest = {"digest": content.blob.digest}
        try:
            self._ask("PUT", location, content.name, content=rest, params=digest)
        except UnavailableError as error:
            if not isinstance(error.__cause__, httpx.ReadTimeout):
                raise
            self._settle(content, location)

    def _settle(self, content: Content, location: str) -> None:
        """Wait until an upload that has arrived is a blob."""
        now = time.monotonic()
        end, again = now + self._settle_seconds, now + FINISH_AGAIN_SECONDS
        while (now := time.monotonic()) < end:
            try:
                if self.has_blob(content.blob.digest):
                    return
                if now >= again:
                    # Whoever is still at it says so (416); where that has failed, this tells why, or does it.
                    again = now + FINISH_AGAIN_SECONDS
                    self._ask("PUT", location, content.name, accept=416, params={"digest": content.blob.digest})
            except UnavailableError as error:
                if not isinstance(error.__cause__, httpx.TimeoutException):
                    raise
            except NotFoundError:  # no such upload any more: it is a blob by now, or was given up
                if self.has_blob(content.blob.digest):
                    return
                raise
            time.sleep(POLL_SECONDS)
        raise TimedOutError(
            f"has arrived, but the registry did not finish it within {self._settle_seconds:g} s",
            element=content.name,
            hint="push again later: what is there by then is not sent again",
        )

    def _send_chunk(self, content: Content, location: str, piece: _Part, offset: int) -> httpx.Response:
        headers = {
            "Content-Range": f"{offset}-{offset + piece.length - 1}",
            "Content-Type": "application/octet-stream",
        }
        return self._ask("PATCH", location, content.name, accept=416, content=piece, headers=headers)

    def _count(self, content: Content, count: int) -> None:
        self.sent += count
        self._progress(content.name, count)

    # --- requests --------------------------------------------------------------------------------------------------

    @property
    def _follows(self) -> bool:
        """Registries elsewhere send readers of blobs on to their storage; the hub's own never does."""
        return isinstance(self.client.auth, RegistryAuth)

    def _url(self, path: str) -> str:
        return f"/v2/{self.name}/{path}"

    def _location(self, answer: httpx.Response) -> str:
        with self._translated("registry"):
            return self._same_host(answer, answer.headers.get("Location", ""))

    def _same_host(self, answer: httpx.Response, text: str) -> str:
        url = answer.url.join(text)
        if (url.scheme, url.netloc) != (answer.url.scheme, answer.url.netloc):
            raise UnsupportedError(
                f"the registry sends requests on to another host, {url.host[:200]}", element="registry"
            )
        return str(url)

    def _ask(
        self,
        method: str,
        path: str,
        element: str,
        *,
        accept: int = 200,
        content: bytes | _Part = b"",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        redirects: bool = False,
    ) -> httpx.Response:
        url = httpx.URL(path) if "://" in path or path.startswith("/v2/") else httpx.URL(self._url(path))
        if params:
            url = url.copy_merge_params(params)
        length = {"Content-Length": str(content.length)} if isinstance(content, _Part) else {}
        timeout = self.client.timeout
        if method in ("PUT", "PATCH"):  # what is written is made durable before there is an answer
            read = None if timeout.read is None else max(timeout.read, self._write_seconds)
            timeout = httpx.Timeout(read, connect=timeout.connect, write=timeout.write, pool=timeout.pool)
        with self._translated(element):
            answer = self.client.request(
                method,
                url,
                content=content,
                headers={**(headers or {}), **length},
                follow_redirects=redirects and self._follows,
                timeout=timeout,
            )
        if not answer.is_success and answer.status_code != accept:
            raise refused(answer, element)
        return answer

    @contextmanager
    def _translated(self, element: str) -> Iterator[None]:
        try:
            yield
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise UnavailableError(
                f"the registry cannot be reached: {str(error) or type(error).__name__}"[:500],
                element=element,
                hint=self._hint,
            ) from error


def file_content(name: str, path: Path, blob: Blob) -> Content:
    """Return a file to push once it has been compared with its digest. Raises InvalidError, IntegrityError."""
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
    return Content(name=name, blob=blob, path=path)


def text_content(name: str, raw: bytes) -> Content:
    """Return a few bytes to push."""
    return Content(name=name, blob=Blob(digest=manifests.digest_of(raw), size=len(raw)), raw=raw)


class _Part:
    """A part of a file as a request's body, read when it is sent, and again when it is sent again.

    As bytes it would stay in memory for as long as the HTTP library's requests and responses hold each other.
    """

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self.length = length

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(self._start)
        left = self.length
        while left:
            piece = self._file.read(min(left, _READ_BYTES))
            if not piece:
                raise IntegrityError("became shorter while it was sent", element=getattr(self._file, "name", "blob"))
            left -= len(piece)
            yield piece


class _Pages:
    """The addresses of a list's pages, each once and so many at most. Raises InvalidError for a list without an end."""

    def __init__(self, first: str, element: str) -> None:
        self._next = first
        self._element = element
        self._seen: set[str] = set()

    def go_on(self, path: str) -> None:
        """Say where the page that was given last goes on; empty for its end."""
        self._next = path

    def __iter__(self) -> Iterator[str]:
        while path := self._next:
            key, self._next = httpx.URL(path).raw_path.decode(), ""
            if key in self._seen or len(self._seen) >= MAX_PAGES:
                raise InvalidError("the registry's list has no end", element=self._element)
            self._seen.add(key)
            yield path


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


def _part(chunks: Iterator[bytes], at: int, wanted: range, blob: Blob) -> Iterator[bytes]:
    """Give what is wanted of chunks that begin at `at`; exactly so much, or an error."""
    start, end, element = wanted.start, wanted.stop, f"blob {blob.digest}"
    last = end if at else blob.size  # a registry that ignores ranges sends everything
    for chunk in chunks:
        if at + len(chunk) > max(last, end):
            raise IntegrityError(f"there are more than its {blob.size} bytes", element=element)
        piece = chunk[max(0, start - at) : max(0, end - at)]
        at += len(chunk)
        if piece:
            yield piece
        if at >= end and last > end:
            return
    if at < end:
        raise UnavailableError(f"the connection ended after {at} of {end} bytes", element=element)


def _bounded(answer: httpx.Response, limit: int, element: str) -> Iterator[bytes]:
    size = 0
    for piece in answer.iter_bytes(_READ_BYTES):
        size += len(piece)
        if size > limit:
            raise TooLargeError(f"is larger than {limit} bytes", element=element)
        yield piece


def _entries(listed: Manifest) -> list[manifests.Descriptor]:
    document = manifests.parse(listed.raw, listed.media_type)
    return list(document.manifests) if isinstance(document, manifests.ImageIndex) else []


def _decode(answer: httpx.Response, kind: type[T], element: str) -> T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"the registry's answer cannot be read: {error}"[:500], element=element) from None


def _reached(answer: httpx.Response) -> int:
    """Return the bytes of an upload that have arrived; an empty one has the range 0-0, and none of ours has one."""
    last = number(answer.headers.get("Range", "").rpartition("-")[2])
    return last + 1 if last else 0


def number(text: str) -> int:
    """Return a count that a registry wrote; 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 18 else 0
