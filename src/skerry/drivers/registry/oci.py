"""`core.ports.ArtifactSource` on a device: one blob from an OCI registry into a file, resumed, verified, atomic.

Blocking `http.client` in a thread instead of an asynchronous HTTP library: what that costs in memory is in
docs/adr. What is fetched lies in `<target>.partial` until its digest holds; only then does the target's name exist.
Must not live here: retries and their backoff (the caller's), what the content is.

Source: OCI distribution specification 1.1 (pulling blobs), RFC 9110 (ranges).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import http.client
import ipaddress
import os
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from skerry.api.errors import (
    BadRequestError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.core import manifest as manifests
from skerry.core.ports import OpenPart, Part
from skerry.drivers.registry import ahead
from skerry.drivers.registry.bandwidth import Bandwidth
from skerry.drivers.registry.lanes import Lanes, NoPartsError
from skerry.kit.files import sync_directory

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_CHUNK_BYTES = 256 * 1024
_REDIRECTS = 3


@dataclass(frozen=True, kw_only=True)
class OciSettings:
    """What can be set of a source."""

    idle_seconds: float = 30.0
    """How long a connection may take to be made, or say nothing."""
    reserve_bytes: int = 16 * 1024 * 1024
    """Space a fetch leaves free on the device, for everybody else."""
    sync_bytes: int = 8 * 1024 * 1024
    """Of what has come, at most so much is lost to a power cut."""
    connections: int = 1
    """At most so many for one blob, where that is found to be faster; see `ahead`."""
    may_lie: bool = False
    """Nobody vouches for this source: whatever it answers, what lay there before the fetch stays."""


class BusyError(UnavailableError):
    """It is there, and wants to be asked later."""


class OciArtifactSource:
    """Implements `core.ports.ArtifactSource`. `base_url` is the registry's; plain HTTP is for loopback only.

    The client's certificate and the authorities it trusts are in `tls`.
    """

    def __init__(
        self,
        base_url: str,
        tls: ssl.SSLContext | None,
        settings: OciSettings | None = None,
        bandwidth: Bandwidth | None = None,
        *,
        accept: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        """All fetches together keep to `bandwidth`, which may be changed at any time.

        `accept` looks at each connection before anything is asked, and raises SkerryError where it is none to ask.
        """
        self._base = _checked_url(base_url, tls)
        self._tls = tls
        self._settings = settings or OciSettings()
        self._bandwidth = bandwidth or Bandwidth()
        self._accept = accept

    async def fetch(
        self,
        repository: str,
        blob: Blob,
        target: Path,
        *,
        progress: Callable[[int], None],
        part: OpenPart | None = None,
    ) -> None:
        """Bring a blob into `target`; nothing is fetched when it is there already. `progress` gets counts of bytes.

        With `part` the file has another form than the blob's bytes, and whether it is there is the caller's to know.

        Raises NotFoundError, UnauthorizedError, ForbiddenError, BadRequestError, UnsupportedError: final;
        UnavailableError: try again, what came is kept (UnreachableError: nobody is there, which says nothing of this
        blob); IntegrityError: the registry has something else, nothing is
        kept (of a source that may lie: what was there before is); StorageFullError: nothing is kept. A count of 0
        says that content is about to come.
        """
        manifests.check_repository(repository)
        manifests.check_digest(blob.digest)
        loop = asyncio.get_running_loop()

        def report(count: int) -> None:
            loop.call_soon_threadsafe(progress, count)

        url = f"{self._base.geturl().rstrip('/')}/v2/{repository}/blobs/{blob.digest}"
        transfer = _Transfer(
            url,
            blob,
            target,
            tls=self._tls,
            settings=self._settings,
            bandwidth=self._bandwidth,
            report=report,
            accept=self._accept,
            part=part,
        )
        running = asyncio.ensure_future(asyncio.to_thread(transfer.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            transfer.abort()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # seen, though nobody is left to be told
            raise


class _PlainPart:
    """The blob's first bytes, as they are."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def append(self, plain: bytes | memoryview) -> None:
        view, offset = memoryview(plain), self.size
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            offset, view = offset + written, view[written:]

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)


_DISK_ERRORS = frozenset({errno.EIO, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EFBIG, errno.ELOOP})
"""What no socket says."""


class _Transfer:
    """One fetch; blocks, and runs in a thread. Only `abort` may be called from another one."""

    def __init__(
        self,
        url: str,
        blob: Blob,
        target: Path,
        *,
        tls: ssl.SSLContext | None,
        settings: OciSettings,
        bandwidth: Bandwidth,
        report: Callable[[int], None],
        accept: Callable[[socket.socket], None],
        part: OpenPart | None,
    ) -> None:
        self._url = url
        self._tls = tls
        self._settings = settings
        self._blob = blob
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        self._report = report
        self._accept = accept
        self._bandwidth = bandwidth
        self._aborted = threading.Event()
        self._line: socket.socket | None = None
        self._lanes: Lanes | None = None
        self._tried_parts = False
        self._asks_whole = False
        self._reached = False
        self._file = -1
        self._open_part = part
        self._part: Part = _PlainPart(-1)
        self._size = 0  # of what is in the file and in the hash
        self._before = 0  # of it, what was there before the fetch
        self._synced = 0  # of it, what a power cut leaves
        self._hash = hashlib.sha256()

    def abort(self) -> None:
        """Make `run` end soon, with an error nobody is interested in."""
        self._aborted.set()
        if self._lanes is not None:
            self._lanes.shut()
        if self._line is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._line, socket.SHUT_RDWR)  # not TLS's own: it is not for other threads

    def run(self) -> None:
        """Fetch, verify, rename."""
        try:
            if self._is_there():
                return
            with self._own_partial():
                self._read_partial()
                self._before = self._size
                with self._kept_from_lies():
                    self._complete()
                    if self._before and not self._is_right() and not self._settings.may_lie:
                        # A power cut may have damaged what was there: only content that came in one go is judged.
                        self._start_over()
                        self._complete()
                    self._check_right()
                os.fsync(self._file)
                os.replace(self._partial, self._target)
                sync_directory(self._target.parent)
        except (IntegrityError, StorageFullError) as error:
            if isinstance(error, StorageFullError) or not self._before or not self._settings.may_lie:
                self._partial.unlink(missing_ok=True)
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: addresses that are none
            raise self._translated(error) from error

    @contextmanager
    def _kept_from_lies(self) -> Iterator[None]:
        """Have the file end where it ended before, when a source that may lie is found to."""
        try:
            yield
        except IntegrityError:
            if self._settings.may_lie:
                os.ftruncate(self._file, self._before)
            raise

    def _check_right(self) -> None:
        if not self._is_right():
            raise self._wrong(f"its digest is sha256:{self._hash.hexdigest()}")

    # --- the file --------------------------------------------------------------------------------------------------

    def _is_there(self) -> bool:
        if self._open_part is not None:
            return False
        try:
            if self._target.stat().st_size != self._blob.size:
                return False
            with self._target.open("rb") as file:
                found = hashlib.sha256()
                while chunk := file.read(_CHUNK_BYTES):
                    self._check_wanted()
                    found.update(chunk)
                return f"sha256:{found.hexdigest()}" == self._blob.digest
        except FileNotFoundError:
            return False

    @contextmanager
    def _own_partial(self) -> Iterator[None]:
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Somebody may have finished, and renamed the file that we opened, before we had the lock.
                mine = os.fstat(self._file).st_ino == self._partial.stat().st_ino
            except (BlockingIOError, FileNotFoundError):
                mine = False
            if not mine:
                raise UnavailableError("is being fetched already", element=self._blob.digest)
            yield
        finally:
            os.close(self._file)

    def _read_partial(self) -> None:
        opened = self._open_part
        self._part = _PlainPart(self._file) if opened is None else opened(self._file, self._blob)
        if self._part.size > self._blob.size:
            self._start_over()
        try:
            while chunk := self._part.pread(_CHUNK_BYTES, self._size):
                self._check_wanted()
                self._hash.update(chunk)
                self._size += len(chunk)
        except OSError:  # the card cannot give back what it was given: it is as if nothing had come
            self._start_over()

    def _start_over(self) -> None:
        self._part.clear()
        self._size = self._synced = 0
        self._hash = hashlib.sha256()

    def _append(self, chunk: bytes) -> None:
        self._part.append(chunk)
        self._hash.update(chunk)
        self._size += len(chunk)
        if self._size - self._synced >= self._settings.sync_bytes:
            os.fdatasync(self._file)
            self._synced = self._size

    def _is_right(self) -> bool:
        return self._size == self._blob.size and f"sha256:{self._hash.hexdigest()}" == self._blob.digest

    def _check_space(self) -> None:
        needed = self._blob.size - self._size
        free = shutil.disk_usage(self._target.parent).free
        if free - needed < self._settings.reserve_bytes:
            raise StorageFullError(
                f"{needed} bytes are needed and {self._settings.reserve_bytes} kept free, {free} are there",
                element=self._blob.digest,
                hint="free some space on the device",
            )

    # --- the registry ----------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        """Fetch what is missing; return when all bytes are there."""
        while self._size < self._blob.size:
            self._check_space()
            if self._may_split():
                self._fetch_by_parts()
            if self._size < self._blob.size:
                self._fetch_rest()

    def _fetch_rest(self) -> None:
        """Ask once and take it all; or nothing if the registry has no such part, to be asked from the start then."""
        with self._answer() as answer:
            if not self._is_for_us(answer):
                self._asks_whole = True
                return
            self._report(0)
            # `read1` gives what has arrived; `read` would wait for a whole piece and lose it when the line breaks.
            while chunk := answer.read1(self._bandwidth.piece(_CHUNK_BYTES)):
                self._bandwidth.take(len(chunk))
                self._check_wanted()
                self._report(len(chunk))
                if self._size + len(chunk) > self._blob.size:
                    raise self._wrong(f"there are more than its {self._blob.size} bytes")
                self._append(chunk)
                while self._size < self._blob.size and (pause := self._bandwidth.wait()) > 0:
                    self._aborted.wait(pause)
                    self._check_wanted()
        if self._size < self._blob.size:
            raise UnavailableError(
                f"the connection ended after {self._size} of {self._blob.size} bytes", element=self._blob.digest
            )

    def _may_split(self) -> bool:
        split, left = not self._tried_parts, self._blob.size - self._size
        wide = self._settings.connections > 1 and not self._bandwidth.is_bound
        return split and wide and left >= ahead.LEAST_BYTES

    def _fetch_by_parts(self) -> None:
        """Fetch by several connections as long as that is faster; what is missing then is asked for at once."""
        self._tried_parts = True
        lanes = Lanes(
            self._url,
            self._blob.digest,
            connect=self._connect,
            accept=self._accept,
            wanted=self._check_wanted,
            took=self._took,
            refused=self._refused,
        )
        self._lanes = lanes
        parts = ahead.widest(lanes.ask, self._size, self._blob.size, self._settings.connections, stream=lanes.stream)
        try:
            for _, part in parts:
                self._append(part)
                self._check_wanted()
        except (NoPartsError, ahead.CutError):  # one connection shows what it is, or does without the others
            self._check_wanted()
        finally:
            lanes.shut()
            parts.close()
            lanes.close()

    def _took(self, count: int) -> None:
        """Note what a part brought, and pay for it."""
        self._bandwidth.take(count)
        self._report(count)
        while (pause := self._bandwidth.wait()) > 0:
            self._aborted.wait(pause)
            self._check_wanted()

    def _check_wanted(self) -> None:
        if self._aborted.is_set():
            raise UnavailableError("was given up", element=self._blob.digest)

    @contextmanager
    def _answer(self) -> Iterator[http.client.HTTPResponse]:
        url = urlsplit(self._url)
        for _ in range(_REDIRECTS + 1):
            with closing(self._connect(url)) as connection:
                self._reached = False
                connection.connect()
                self._reached = True
                self._line = connection.sock
                self._accept(connection.sock)
                self._check_wanted()
                headers = {"Accept-Encoding": "identity", "User-Agent": "skerry"}
                if self._size and not self._asks_whole:
                    headers["Range"] = f"bytes={self._size}-"
                target = f"{url.path}?{url.query}" if url.query else url.path
                connection.request("GET", target, headers=headers)
                with closing(connection.getresponse()) as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        yield answer
                        return
                    url = self._redirected(url, answer.getheader("Location", ""))
        raise UnavailableError("the registry redirects in a circle", element=self._blob.digest)

    def _connect(self, url: SplitResult) -> http.client.HTTPConnection:
        host, idle = url.hostname or "", self._settings.idle_seconds
        if url.scheme == "https":
            return http.client.HTTPSConnection(host, url.port, timeout=idle, context=self._tls)
        return http.client.HTTPConnection(host, url.port, timeout=idle)

    def _redirected(self, url: SplitResult, location: str) -> SplitResult:
        new = urlsplit(urljoin(url.geturl(), location))
        if (new.scheme, new.netloc) != (url.scheme, url.netloc):
            raise UnsupportedError(
                f"the registry redirects to {new.netloc[:200]}, which the device has no reason to trust",
                element=self._blob.digest,
                hint="let the registry serve its blobs itself",
            )
        return new

    def _is_for_us(self, answer: http.client.HTTPResponse) -> bool:
        """Whether it brings what is missing; False where everything is to be asked for. Raises SkerryError.

        What is there goes only once a whole answer of the right length is here to replace it.
        """
        asked = self._size > 0 and not self._asks_whole
        if asked and answer.status == 416:
            return self._no_such_part("the registry has no such part")
        if answer.status not in (200, 206):
            raise self._refused(answer)
        if answer.getheader("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedError("the registry sends it encoded, which was not asked for", element=self._blob.digest)
        due = self._blob.size - (self._size if answer.status == 206 else 0)
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.getheader("Content-Range", ""))
            expected = (self._size, self._blob.size - 1)
            if match is None or (int(match.group(1)), int(match.group(2))) != expected:
                return self._no_such_part("the registry sent another part than was asked for")
        elif asked and self._settings.may_lie:
            raise self._wrong("all of it was sent where a part was asked for")
        announced = answer.getheader("Content-Length", "")
        if announced and announced != str(due):
            raise self._wrong(f"the registry announces {announced[:30]} bytes where {due} are due")
        if answer.status == 200 and self._size:
            self._start_over()  # it does not know ranges, or has its reasons: everything comes again
        return True

    def _no_such_part(self, cause: str) -> bool:
        if self._settings.may_lie:
            raise self._wrong(cause)
        if self._asks_whole or not self._size:
            raise UnavailableError(cause, element=self._blob.digest)
        return False

    def _refused(self, answer: http.client.HTTPResponse) -> SkerryError:
        kinds: dict[int, type[SkerryError]] = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError}
        kinds |= {429: BusyError, 503: BusyError}
        later = answer.status >= 500 or answer.status in (408, 425)
        kind = kinds.get(answer.status, UnavailableError if later else BadRequestError)
        return kind(f"the registry answers {answer.status} {answer.reason[:80]}", element=self._blob.digest)

    def _wrong(self, cause: str) -> IntegrityError:
        return IntegrityError(
            f"what the registry has is something else: {cause}",
            element=self._blob.digest,
            hint="push the model version again",
        )

    def _translated(self, error: OSError | http.client.HTTPException | ValueError) -> SkerryError:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._partial.unlink(missing_ok=True)
            return StorageFullError(element=self._blob.digest, hint="free some space on the device")
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return UnavailableError(
                f"cannot be fetched: {error.strerror}", element=self._blob.digest, hint="look at the device's disk"
            )
        kind = UnavailableError if self._reached else UnreachableError
        return kind(f"cannot be fetched: {str(error)[:300] or type(error).__name__}", element=self._blob.digest)


def _checked_url(text: str, tls: ssl.SSLContext | None) -> SplitResult:
    with suppress(ValueError):  # an address or a port that is none
        url = urlsplit(text)
        host, _ = url.hostname, url.port
        if host and ((url.scheme == "http" and _is_loopback(host)) or (url.scheme == "https" and tls is not None)):
            return url
    raise InvalidError(
        "is not a registry's address", element=text[:200], hint="write https://<host>[:<port>], with a TLS context"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
