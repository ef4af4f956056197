"""The audit log as it is written: entries come together, go to the disk in one write, and are fsynced before anybody
is told.

What cannot be written is an error of whoever appends: nothing is carried out unrecorded. The disk belongs to one
thread; a batch that fails leaves the file as it was before. Must not live here: what is recorded, reading.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec

from skerry.api.audit import EXPIRED, REQUEST, TORN, UNANSWERED, AuditEvent, ObjectReference, ResponseStatus, User
from skerry.api.errors import SkerryError, StorageFullError, UnavailableError
from skerry.core import audit
from skerry.core.audit import Link
from skerry.core.audit_policy import Reads
from skerry.core.ports import Clock
from skerry.drivers import audit_files
from skerry.drivers.audit_files import Segment
from skerry.hub.audit import mending
from skerry.kit import files

log = logging.getLogger(__name__)

HUB = User(username="system:hub", groups=["system:hubs"])
"""Who says what the log says of itself."""
RESERVE_BYTES = 8 * 1024 * 1024
"""With less left on its disk nothing is begun that has to be recorded."""
_LOOK_SECONDS = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How much is recorded, and how much of it is kept."""

    reads: Reads = "none"
    file_bytes: int = 64 * 1024 * 1024
    """A file is begun anew once it has this size: what is removed is removed by the file."""
    total_bytes: int = 1024 * 1024 * 1024
    """The oldest files are removed beyond it."""
    days: int = 90
    """A file without a newer entry is removed; the newest file stays."""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """Entries that are to be written, and who waits for them."""

    events: Sequence[AuditEvent]
    written: asyncio.Future[None]


class Growth:
    """Tells who follows a log that something was appended to it."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        """Set, and replaced by another one, when something was appended."""

    def tell(self) -> None:
        """Wake everybody who waits."""
        self.event.set()
        self.event = asyncio.Event()


@asynccontextmanager
async def open_log(
    directory: Path, settings: AuditSettings, clock: Clock, *, growth: Growth | None = None
) -> AsyncIterator[AuditLog]:
    """Open the log in its directory, mend its end, and close it afterwards; logs that are read as one share `growth`.

    Raises UnavailableError when another hub has it open or the directory cannot be used, StorageFullError.
    """
    made = AuditLog(directory, settings, clock, growth or Growth())
    try:
        await made.open()
        yield made
    finally:
        await made.close()


class AuditLog:
    """One chain of entries in its own directory; see `open_log`."""

    def __init__(self, directory: Path, settings: AuditSettings, clock: Clock, growth: Growth) -> None:
        self.directory, self.settings = directory, settings
        self._growth = growth
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._turn = asyncio.Lock()
        self._pending: list[_Waiting] = []
        self._lock = self._file = -1
        self._size = 0
        self._link = Link()
        self._broken = ""
        self._looked_at = float("-inf")
        self._free = RESERVE_BYTES

    @property
    def newest(self) -> Link:
        """The newest entry: whoever keeps it elsewhere can tell later whether the log's end was cut off."""
        return self._link

    async def open(self) -> None:
        """Find the end, and write down what is to be said of it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def close(self) -> None:
        """Write what waits, and let go of the files."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close, self._take())
        self._thread.shutdown(wait=False)

    def check(self) -> None:
        """Return when what is begun now can be recorded, as far as can be told. Raises StorageFullError,
        UnavailableError."""
        if self._broken:
            raise UnavailableError(self._broken, element="audit log", hint="restart the hub when its disk is well")
        now = self._clock.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            try:
                found = os.statvfs(self.directory)
            except OSError as error:
                raise _translated(error, "audit log") from None
            self._looked_at, self._free = now, found.f_bavail * found.f_frsize
        if self._free < RESERVE_BYTES:
            raise _full()

    async def append(self, *events: AuditEvent) -> None:
        """Write entries, and return when they would survive a power cut. Raises StorageFullError, UnavailableError.

        Entries of callers that are cancelled meanwhile are written nevertheless.
        """
        waiting = _Waiting(events=events, written=asyncio.get_running_loop().create_future())
        self._pending.append(waiting)
        async with self._turn:
            if not waiting.written.done():
                await self._write()
        await waiting.written

    def note(self, *events: AuditEvent) -> None:
        """Have entries written with whatever is written next, at the latest when the log is closed."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(events=events, written=written))

    # --- in the event loop ------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Write all that waits; whoever comes meanwhile goes with the next write."""
        batch = self._take()
        events = [event for waiting in batch for event in waiting.events]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._append, events)
        running.add_done_callback(lambda done: self._settle(batch, done))
        await asyncio.wait([running])  # which does not end it when we are cancelled

    def _take(self) -> list[_Waiting]:
        batch, self._pending = self._pending, []
        return batch

    def _settle(self, batch: Sequence[_Waiting], done: asyncio.Future[None]) -> None:
        error = UnavailableError("was closed", element="audit log") if done.cancelled() else done.exception()
        for waiting in batch:
            if waiting.written.done():
                continue
            if error is None:
                waiting.written.set_result(None)
            else:
                waiting.written.set_exception(error)
                waiting.written.exception()  # retrieved: whoever asked may be gone
        self._growth.tell()

    # --- in the thread of the disk ----------------------------------------------------------------------------------

    def _open(self) -> None:
        element = f"audit log {self.directory}"
        try:
            files.private_directory(self.directory)
            self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = mending.find_end(self.directory)
            self._link, self._size = end.link, end.size
            if end.segment is not None:
                self._file = _open_file(end.segment.path)
            torn = [self._about_itself("mend", {TORN: str(end.torn)})] if end.torn else []
            self._append([*torn, *(self._unanswered(event) for event in end.unanswered.values())])
            self._expire()
        except BlockingIOError:
            raise UnavailableError("is in use by another hub", element=element) from None
        except OSError as error:
            raise _translated(error, element) from None

    def _close(self, batch: Sequence[_Waiting]) -> None:
        try:
            if batch and self._file >= 0:
                self._append([event for waiting in batch for event in waiting.events])
        except SkerryError as error:
            log.error("audit.lost cause=%s", error)
        finally:
            for descriptor in (self._file, self._lock):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._lock = -1

    def _append(self, events: Sequence[AuditEvent]) -> None:
        """Write and fsync, or leave the file as it was and raise."""
        if not events:
            return
        if self._broken:
            raise UnavailableError(self._broken, element="audit log")
        try:
            if self._file >= 0 and not os.fstat(self._file).st_nlink:
                log.error("audit.file_removed after=%d", self._link.sequence)  # what follows must not go with it
                self._begin_file()
            if self._file < 0 or self._size >= self.settings.file_bytes:
                self._begin_file()
                self._write_out(events)
                self._expire()
            else:
                self._write_out(events)
        except OSError as error:
            self._retract()
            log.error("audit.not_written entries=%d cause=%s", len(events), error)
            raise _translated(error, "audit log") from None

    def _write_out(self, events: Sequence[AuditEvent]) -> None:
        link, raw = self._link, bytearray()
        for event in events:
            line, link = audit.seal(event, link)
            raw += line
            raw += b"\n"
        view = memoryview(raw)
        while view:
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)
        self._link, self._size = link, self._size + len(raw)

    def _retract(self) -> None:
        """Take back what was half written; when not even that is possible nothing can be recorded any more."""
        if self._file < 0:
            return
        try:
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
        except OSError as error:
            self._broken = f"its file cannot be written ({error.strerror})"
            log.critical("audit.broken cause=%s", error)

    def _begin_file(self) -> None:
        begun = _open_file(audit_files.path_of(self.directory, self._link.sequence + 1))
        files.sync_directory(self.directory)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = begun, 0

    def _expire(self) -> None:
        """Remove what is too much or too old; what cannot be removed now is no reason to record nothing."""
        try:
            self._remove_oldest()
        except OSError as error:
            self._retract()
            log.error("audit.not_expired cause=%s", error)

    def _remove_oldest(self) -> None:
        """Remove the oldest files that are too much or too old, once it is written down which."""
        everything = audit_files.segments(self.directory)
        sizes = {segment.first: segment.path.stat().st_size for segment in everything}
        oldest = self._clock.now() - timedelta(days=self.settings.days)
        gone: list[Segment] = []
        while len(everything) - len(gone) > 1:
            segment = everything[len(gone)]
            too_much = sum(sizes.values()) > self.settings.total_bytes
            if not too_much and segment.path.stat().st_mtime >= oldest.timestamp():
                break
            gone.append(segment)
            del sizes[segment.first]
        if not gone:
            return
        last = mending.last_link(gone[-1].path)
        if last is not None:
            self._write_out([self._about_itself("expire", {EXPIRED: last.text})])
        for segment in gone:
            with suppress(FileNotFoundError):
                segment.path.unlink()
            log.info("audit.expired file=%s", segment.path.name)
        files.sync_directory(self.directory)

    def _about_itself(self, verb: str, annotations: dict[str, str]) -> AuditEvent:
        now = self._clock.now()
        return AuditEvent(
            audit_id=str(uuid.uuid4()),
            stage="ResponseComplete",
            verb=verb,
            user=HUB,
            object_ref=ObjectReference(api_group="skerry.dev", api_version="v1alpha1", resource="auditevents"),
            response_status=ResponseStatus(code=200),
            request_received_timestamp=now,
            stage_timestamp=now,
            annotations=annotations,
        )

    def _unanswered(self, event: AuditEvent) -> AuditEvent:
        return msgspec.structs.replace(
            event,
            stage="Panic",
            stage_timestamp=self._clock.now(),
            response_status=ResponseStatus(
                status="Failure", message="the hub ended before it had answered; it may have been carried out"
            ),
            annotations={UNANSWERED: "true", **{k: v for k, v in event.annotations.items() if k == REQUEST}},
        )


def _open_file(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _translated(error: OSError, element: str) -> SkerryError:
    if error.errno in _FULL:
        return _full()
    return UnavailableError(f"cannot be written ({error.strerror})", element=element)


def _full() -> StorageFullError:
    return StorageFullError(
        element="audit log", hint="what cannot be recorded is not done; free some space, or lower --audit-log-mib"
    )
