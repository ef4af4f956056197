"""All ports in one file; read this first.

A port is what the programs need of the outside world. Each has drivers in `skerry.drivers` and one contract suite in
`tests/contract` that every driver passes. Only `hub.app` and `agent.app` choose drivers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from skerry.api.kinds.variants import Blob
from skerry.core import messages


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> datetime: ...  # aware, UTC
    def monotonic(self) -> float: ...  # seconds


# --- store: etcd's semantics as Kubernetes uses them --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored value. Keys are slash-separated paths: `devices/default/till-7`."""

    key: str
    value: bytes
    revision: int  # of its last write
    created: int  # revision of its creation


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of a list; `next_key` continues it at the same `revision`, None ends it."""

    records: Sequence[Record]
    revision: int
    next_key: str | None
    remaining: int | None  # None: more than were counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One event of a watch. A bookmark has no record; a deletion carries the last value, at the deletion's revision."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    revision: int
    record: Record | None = None
    previous: Record | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """Another record that a write depends on: it happens only while that one is as it was last written at `revision`.

    Looked at in the write's own transaction, as a comparison in one of etcd's. ConflictError otherwise.
    """

    key: str
    revision: int


class Store(Protocol):
    """One global revision that rises by one with every write; a write that returned survives a power cut."""

    async def revision(self) -> int: ...
    async def get(self, key: str) -> Record | None: ...
    async def create(self, key: str, value: bytes, *, guard: Guard | None = None) -> Record: ...  # AlreadyExistsError
    async def update(
        self, key: str, value: bytes, *, expected: int, guard: Guard | None = None
    ) -> Record: ...  # NotFoundError, ConflictError
    async def delete(
        self, key: str, *, expected: int | None = None, guard: Guard | None = None
    ) -> Record: ...  # NotFoundError, ConflictError
    async def list(self, prefix: str, *, limit: int = 0, start: str = "", revision: int = 0) -> Page:
        """Records under `prefix` in key order, from key `start` on, as of `revision` (0: now). ExpiredError."""
        ...

    def watch(self, prefix: str, *, after: int) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Every change under `prefix` after that revision, in order, none missed, none twice; bookmarks when idle.

        The iterator raises ExpiredError when `after` is compacted away, or when its reader is too slow to keep up.
        """
        ...

    async def compact(self, before: int) -> None: ...  # forget history up to and including that revision
    async def close(self) -> None: ...


# --- artifacts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One OCI manifest or index as it was pushed, byte for byte."""

    digest: str
    media_type: str
    raw: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredDocument:
    """What a manifest says of others, and no more: a store has many, each of up to four megabytes."""

    type: str  # what it is an artifact of
    parts: Sequence[str]  # digests of what it consists of
    subject: str = ""  # the digest of what it refers to


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLink:
    """A repository's link to content. `touched` is when it was last looked at or referred to, by the store's clock."""

    size: int  # bytes
    touched: int  # nanoseconds since the epoch
    document: StoredDocument | None = None  # None: a blob, or a manifest that cannot be read


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRepository:
    """All that one repository has, by digest; tags name digests."""

    name: str
    tags: Mapping[str, str]
    manifests: Mapping[str, StoredLink]
    blobs: Mapping[str, StoredLink]


class ArtifactStore(Protocol):
    """The hub's side of a registry: blobs and manifests by digest, per repository; nothing is visible half-written."""

    async def start_upload(self, repository: str) -> str: ...  # upload id
    async def upload_repository(self, upload: str) -> str: ...  # NotFoundError
    async def append_upload(
        self, upload: str, chunks: AsyncIterator[bytes], *, offset: int | None = None
    ) -> int: ...  # new size
    async def upload_size(self, upload: str) -> int: ...  # NotFoundError
    async def finish_upload(self, upload: str, digest: str) -> None: ...  # IntegrityError: the upload is dropped
    async def cancel_upload(self, upload: str) -> None: ...
    async def mount_blob(self, repository: str, digest: str, *, source: str) -> None: ...  # NotFoundError
    async def delete_blob(self, repository: str, digest: str) -> None: ...  # NotFoundError
    async def stat_blob(self, repository: str, digest: str) -> int: ...  # size; NotFoundError
    def read_blob(
        self, repository: str, digest: str, *, start: int = 0, length: int | None = None, caller: str = ""
    ) -> AsyncIterator[bytes]: ...  # UnavailableError: too much is being read, by that caller or in all
    async def put_manifest(
        self, repository: str, reference: str, media_type: str, raw: bytes
    ) -> Manifest: ...  # InvalidError, IntegrityError; NotFoundError names what it refers to and is not there
    async def get_manifest(self, repository: str, reference: str) -> Manifest: ...  # tag or digest; NotFoundError
    async def delete_manifest(self, repository: str, reference: str) -> None: ...  # NotFoundError; a tag: only the tag
    async def list_tags(self, repository: str) -> Sequence[str]: ...  # NotFoundError
    async def list_referrers(self, repository: str, digest: str) -> Sequence[Manifest]: ...
    async def survey(self) -> Sequence[StoredRepository]: ...  # UnsupportedError: the registry's own business
    async def discard(
        self, repository: str, kind: Literal["manifest", "blob"], digest: str, *, touched: int
    ) -> bool: ...  # False: it was looked at since
    async def free_unlinked(self) -> int: ...  # bytes


class Part(Protocol):
    """What is there of a blob, in a file that a fetch holds open; whoever keeps it decides in which form."""

    @property
    def size(self) -> int: ...  # bytes of the blob
    def pread(self, length: int, offset: int) -> bytes: ...  # fewer only at the end, or where it became unreadable
    def append(self, plain: bytes | memoryview) -> None: ...
    def clear(self) -> None: ...  # begin again


class Content(Protocol):
    """What is in a blob, whatever the form of its file."""

    @property
    def size(self) -> int: ...  # bytes
    def read(self, length: int) -> bytes: ...  # the next ones; none at the end
    def pread(self, length: int, offset: int) -> bytes: ...  # fewer only at the end


OpenPart = Callable[[int, Blob], Part]
"""Takes a descriptor, open for reading and writing, that stays the caller's."""


class ArtifactSource(Protocol):
    """The device's side: bring one blob into a file, resuming what is there; verified before the final name exists."""

    async def fetch(
        self,
        repository: str,
        blob: Blob,
        target: Path,
        *,
        progress: Callable[[int], None],
        part: OpenPart | None = None,  # in another form than its plain bytes; who asks has looked whether it is there
    ) -> None:
        """`progress` gets the bytes that came over the network. IntegrityError, NotFoundError, UnavailableError."""
        ...


# --- device link --------------------------------------------------------------------------------------------------


class DeviceLink(Protocol):
    """The device's end. `connect` is one connection: the caller reconnects, with backoff."""

    def connect(self, *, boot_id: str) -> AbstractAsyncContextManager[DeviceConnection]: ...  # UnavailableError


class DeviceConnection(Protocol):
    """One live connection; online is announced by the driver, with offline as its last will."""

    async def send(
        self, message: messages.Reported | messages.CommandResult | messages.Telemetry
    ) -> None: ...  # UnavailableError
    def incoming(
        self,
    ) -> AsyncIterator[tuple[Literal["desired", "command"], bytes]]: ...  # raw envelopes; ends by UnavailableError


class HubLink(Protocol):
    """The hub's end of all devices' links."""

    def connect(self) -> AbstractAsyncContextManager[HubConnection]: ...  # UnavailableError


class HubConnection(Protocol):
    """One live connection of the hub to its devices' carrier."""

    async def publish_desired(self, uid: str, envelope: bytes) -> None: ...  # kept for devices that are away
    async def forget(self, uid: str) -> None: ...  # drop whatever is kept for a device that was deleted
    async def send_command(self, uid: str, envelope: bytes) -> None: ...
    def incoming(self) -> AsyncIterator[tuple[str, messages.FromDevice]]: ...  # (authenticated uid, message)


# --- runtime ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One server to start: a command, its directory, its environment and its limits."""

    name: str  # unique on the device: <workload>-<slot>
    argv: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    log: Path
    memory_limit_bytes: int = 0
    cpu_limit_millis: int = 0
    memory_request_bytes: int = 0
    cpu_request_millis: int = 0
    descriptors: Sequence[int] = ()  # that it inherits, under the same numbers

    @property
    def is_limited(self) -> bool:
        """Whether any limit or request was set."""
        amounts = (self.memory_limit_bytes, self.cpu_limit_millis, self.memory_request_bytes, self.cpu_request_millis)
        return any(amount > 0 for amount in amounts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A started server, known again after the agent's restart by more than its pid."""

    name: str
    id: str  # the runtime's own: `<pid>:<start time>` for a process


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """One command to run beside a server, for somebody who is connected."""

    argv: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    terminal: bool = False


class Executed(Protocol):
    """A command that was started beside a server; nothing of it is left when `end` has returned."""

    input: int  # descriptors, not blocking; -1 where there is none; one and the same for a terminal
    output: int
    errors: int

    async def wait(self) -> int: ...  # exit code
    def resize(self, rows: int, columns: int) -> None: ...
    def close_input(self) -> None: ...
    async def kill(self) -> None: ...
    async def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a server uses, all its processes together."""

    cpu_seconds: float  # since its start
    memory_bytes: int  # resident


class Runtime(Protocol):
    """Supervises servers; they outlive the agent and are adopted when it returns."""

    name: str

    async def start(self, launch: Launch) -> Instance: ...  # UnavailableError
    async def alive(self, instance: Instance) -> bool: ...
    async def wait(self, instance: Instance) -> str: ...  # why it ended, as a sentence
    async def stop(self, instance: Instance, *, grace_seconds: float) -> None: ...  # gone when this returns
    async def peak_memory(self, instance: Instance) -> int: ...  # bytes; 0 when it cannot be read
    async def list(self) -> Sequence[Instance]: ...  # all of ours, also of earlier agents
    async def execute(self, instance: Instance, execution: Execution) -> Executed: ...  # UnavailableError
    async def sweep(self) -> int: ...  # end what earlier agents executed and did not end; how many processes
    async def usage(self, instance: Instance) -> Usage | None: ...  # None: it does not run, or nobody knows
