"""The one door to the disk: everything the agent keeps, below its state directory.

    lock                                  held by the one agent that runs here
    identity.json, device.pem             who this device is; 0600
    trust.json                            its trust anchor and signed policy; see `trust`
    desired.json                          the accepted desired state, as it was signed
    commands.json                         ids of commands that were taken and could come again
    protection.json                       the key of encrypted models, wrapped; see `sealed`
    blobs/sha256/<hex>                    cache of verified artifacts; <hex>.sealed where they are kept encrypted
    workloads/<name>/journal.json         the state of `core.workload`
    workloads/<name>/journal.previous     the state before, should the other be damaged
    workloads/<name>/slots/<serial>/      model, signature.json, golden.npz: complete or not there; or <file>.sealed
    workloads/<name>/server.log
    runtime/                              the runtime driver's own
    spool/                                samples that wait for the hub; see `spool`

Every write is atomic and fsynced; the directory is its owner's alone (0700). Methods block; call what reads whole
models in a thread. Lives here: paths, bytes, room. Must not live here: what any of it means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from skerry.agent import plain
from skerry.agent.sealed import ENCRYPTED, SUFFIX, SealedBlobs, Vault
from skerry.api.errors import IntegrityError, InvalidError, NotFoundError, StorageFullError, UnavailableError
from skerry.api.kinds.variants import Blob
from skerry.api.meta import NAME_PATTERN
from skerry.api.quantity import human_bytes
from skerry.core.journal import Slot, State
from skerry.core.messages import WorkloadDesired
from skerry.core.ports import Content, OpenPart
from skerry.kit import files

log = logging.getLogger(__name__)

COMMANDS_FILE = "commands.json"
DESIRED_FILE = "desired.json"
SIGNATURE_FILE = "signature.json"
GOLDEN_FILE = "golden.npz"
JOURNAL_FILE = "journal.json"
SPARE_FILE = "journal.previous"
MODEL_FILES = {"onnx": "model.onnx", "tflite": "model.tflite", "executorch": "model.pte", "torchscript": "model.pt"}
MAX_FILE_BYTES = 16 * 1024 * 1024
"""Of the agent's own files (journals, desired state, identity)."""
_CHUNK = 256 * 1024
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP)


@dataclass(frozen=True, slots=True)
class Freed:
    """What was removed to make room."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.files + other.files, self.bytes + other.bytes)

    @property
    def sentence(self) -> str:
        """As people read it."""
        return f"{self.files} unused file{'' if self.files == 1 else 's'} ({human_bytes(self.bytes)}) were removed"


class AcceptedDesired(msgspec.Struct, frozen=True, kw_only=True):
    """The newest desired state that was accepted, and its version apart: the floor holds if the rest is damaged."""

    manifest_version: int
    envelope: bytes
    uid: str = ""
    """The device that accepted it, which alone it binds; empty: whoever is on this disk."""


class Disk:
    """The agent's state directory."""

    def __init__(
        self, root: Path, *, reserve_bytes: int = 0, limit_bytes: int | None = None, vault: Vault | None = None
    ) -> None:
        """`vault` has the key of models that are kept encrypted; by default it is the identity's."""
        self.root = root
        self.vault = vault or Vault(root)
        self.sealed = SealedBlobs(self, self.vault)
        self._reserve = reserve_bytes
        self._limit = limit_bytes
        self._links: bool | None = None
        try:
            files.private_directory(root)
            files.private_directory(self._blobs)
            files.private_directory(self._workloads)
        except OSError as error:
            raise UnavailableError(
                f"cannot be used: {error.strerror}",
                element=f"state directory {root}",
                hint="choose one you may write to",
            ) from None

    @property
    def _blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def _workloads(self) -> Path:
        return self.root / "workloads"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only agent on this directory. Raises UnavailableError naming the other's pid."""
        descriptor = self._open_lock()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 32).decode(errors="replace").strip()
                raise UnavailableError(
                    f"another agent (process {owner or 'unknown'}) runs on it",
                    element=f"state directory {self.root}",
                    hint="stop that one, or give this one a --state-dir of its own",
                ) from None
            with contextlib.suppress(OSError):  # nobody reads it but whoever is refused
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            files.remove_drafts(self.root)
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        path, flags = self.root / "lock", os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        log.error("disk.read_only path=%s", self.root)
        try:
            return os.open(path, flags | os.O_RDONLY)
        except OSError as error:
            raise UnavailableError(
                f"cannot be used: {error.strerror}", element=f"state directory {self.root}", hint="check the disk"
            ) from None

    # --- small files ----------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return one of the agent's own files. Raises NotFoundError, InvalidError when it is beyond the bound."""
        try:
            with (self.root / name).open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            raise NotFoundError(element=str(self.root / name)) from None
        if len(raw) > MAX_FILE_BYTES:
            raise InvalidError(f"is larger than {MAX_FILE_BYTES} bytes", element=str(self.root / name))
        return raw

    def write(self, name: str, content: bytes) -> None:
        """Replace one of the agent's own files (0600). Raises StorageFullError; the old content stays then."""
        files.write_atomic(self.root / name, content, mode=0o600)

    def delete(self, name: str) -> None:
        """Remove a file if it is there, for good."""
        (self.root / name).unlink(missing_ok=True)
        files.sync_directory((self.root / name).parent)

    def read_desired(self) -> AcceptedDesired | None:
        """Return the accepted desired state; None when there was none. Raises InvalidError when it is damaged."""
        try:
            return msgspec.json.decode(self.read(DESIRED_FILE), type=AcceptedDesired)
        except NotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidError(str(error), element=str(self.root / DESIRED_FILE)) from None

    def write_desired(self, accepted: AcceptedDesired) -> None:
        """Make an accepted desired state durable. Raises StorageFullError."""
        self.write(DESIRED_FILE, msgspec.json.encode(accepted))

    def read_commands(self) -> dict[str, datetime]:
        """Return the ids of commands that were taken, each with its expiry; none where the file is damaged."""
        try:
            found = msgspec.json.decode(self.read(COMMANDS_FILE), type=dict[str, datetime])
        except NotFoundError:
            return {}
        except (InvalidError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            log.warning("commands.unreadable error=%s", error)
            return {}
        return {id_: expiry for id_, expiry in found.items() if expiry.tzinfo is not None}

    def write_commands(self, taken: Mapping[str, datetime]) -> None:
        """Make the ids of commands that were taken durable. Raises StorageFullError."""
        self.write(COMMANDS_FILE, msgspec.json.encode(taken))

    # --- journals -------------------------------------------------------------------------------------------------

    def read_journals(self) -> tuple[list[State], list[str]]:
        """Return every workload's journal, and the names of those that are damaged or cannot be read (set aside).

        In a damaged one's place comes the state before it, which is as good: its step is taken again.
        """
        states, damaged = [], []
        for name in self.workloads():
            directory = self._workloads / name
            journal, spare = directory / JOURNAL_FILE, directory / SPARE_FILE
            state = self._read_journal(journal)
            if state is None and (os.path.lexists(journal) or os.path.lexists(spare)):
                damaged.append(name)
                with contextlib.suppress(OSError):  # a disk that became read-only, or is dying
                    os.replace(journal, directory / "journal.damaged")
                state = self._read_journal(spare)
            if state is not None:
                states.append(state)
        return states, damaged

    def _read_journal(self, path: Path) -> State | None:
        try:
            state = msgspec.json.decode(self.read(str(path.relative_to(self.root))), type=State)
        except (NotFoundError, InvalidError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError):
            return None
        return state if state.name == path.parent.name else None

    def write_journal(self, state: State) -> None:
        """Make a workload's state durable, and keep the one before. Raises StorageFullError; the old one stays then."""
        directory = files.private_directory(self._workloads / state.name)
        journal, draft = directory / JOURNAL_FILE, directory / f".{SPARE_FILE}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):  # a file system without hard links does without
            draft.unlink(missing_ok=True)
            os.link(journal, draft)
            os.replace(draft, directory / SPARE_FILE)
        name, content = f"workloads/{state.name}/{JOURNAL_FILE}", msgspec.json.encode(state)
        try:
            self.write(name, content)
        except StorageFullError:  # what is needed now comes before what may be needed
            (directory / SPARE_FILE).unlink(missing_ok=True)
            self.write(name, content)

    def delete_workload(self, name: str) -> None:
        """Forget a workload: its journal first, then whatever is left of it."""
        directory = self._workloads / name
        if directory.is_dir():
            (directory / SPARE_FILE).unlink(missing_ok=True)
            self.delete(f"workloads/{name}/{JOURNAL_FILE}")
            shutil.rmtree(directory, ignore_errors=True)
            files.sync_directory(self._workloads)

    def workloads(self) -> list[str]:
        """Return the names of all workloads of which anything is on the disk; whatever else lies there is let lie."""
        return sorted(
            path.name
            for path in self._workloads.iterdir()
            if re.match(NAME_PATTERN, path.name) and os.path.isdir(path)  # Path.is_dir raises EIO
        )

    def log(self, name: str) -> Path:
        """Return the path of a workload's log."""
        return files.private_directory(self._workloads / name) / "server.log"

    # --- slots ----------------------------------------------------------------------------------------------------

    def slot(self, name: str, serial: int) -> Path:
        """Return the directory of a slot."""
        return self._workloads / name / "slots" / str(serial)

    def model(self, slot: Slot) -> Path:
        """Return the path of a slot's model file."""
        return self._file(slot, MODEL_FILES.get(slot.desired.format, "model.bin"))

    def golden(self, slot: Slot) -> Path:
        """Return the path of a slot's golden samples; it may have none."""
        return self._file(slot, GOLDEN_FILE)

    def _file(self, slot: Slot, name: str) -> Path:
        name = f"{name}{SUFFIX}" if slot.desired.protection == ENCRYPTED else name
        return self.slot(slot.desired.name, slot.serial) / name

    def lay_slot(self, slot: Slot) -> None:
        """Put a slot's files in place, in one rename, from verified blobs. Repeating it is harmless.

        Raises IntegrityError or NotFoundError for a blob that is not what was fetched, StorageFullError.
        """
        desired, target = slot.desired, self.slot(slot.desired.name, slot.serial)
        files.private_directory(target.parent)
        building = target.with_name(f".{target.name}.building")
        for stale in (building, target):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            building.mkdir(mode=0o700)
            for blob, path in self._contents(slot):
                self._place(self.cache(desired), blob, building / path.name)
            files.write_atomic(building / SIGNATURE_FILE, msgspec.json.encode(desired.signature), mode=0o600)
            os.replace(building, target)
            files.sync_directory(target.parent)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise plain.full_or(error, str(target)) from error

    def check_slot(self, slot: Slot) -> None:
        """Read a slot's files once more, since nothing but verified bytes may reach an engine.

        Raises IntegrityError, NotFoundError.
        """
        for blob, path in self._contents(slot):
            self.cache(slot.desired).verify(path, blob)

    def settle_slot(self, slot: Slot) -> None:
        """Seal what a slot holds in plain and is to hold encrypted; what finds no room sealed is removed all the same.

        Then it is fetched again, if it is ever needed. Repeating it is harmless. Raises what `Vault.key` raises.
        """
        if slot.desired.protection != ENCRYPTED:
            return
        for blob, path in self._contents(slot):
            plain = path.with_name(path.name.removesuffix(SUFFIX))
            if not plain.exists():
                continue
            try:
                if not path.exists():
                    if not self.sealed.has_blob(blob):
                        self.sealed.seal(plain, blob)
                    self._place(self.sealed, blob, path)
            except (StorageFullError, IntegrityError) as error:
                log.error("protection.not_sealed path=%s error=%s", path, error)
            plain.unlink(missing_ok=True)
            files.sync_directory(path.parent)

    def _contents(self, slot: Slot) -> list[tuple[Blob, Path]]:
        """A slot's blobs, and where they are placed."""
        golden = slot.desired.golden
        placed = [(slot.desired.blob, self.model(slot))]
        return [*placed, (golden, self.golden(slot))] if golden is not None else placed

    def erase_slots(self, name: str, *, keep: Iterable[int]) -> None:
        """Remove every slot of a workload but these, half-made ones included."""
        directory = self._workloads / name / "slots"
        kept = {str(serial) for serial in keep}
        if directory.is_dir():
            for path in directory.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)
            files.sync_directory(directory)

    # --- blobs ----------------------------------------------------------------------------------------------------

    def cache(self, desired: WorkloadDesired) -> Disk | SealedBlobs:
        """Return what keeps the blobs of a workload: in plain, or sealed."""
        return self.sealed if desired.protection == ENCRYPTED else self

    def blob(self, blob: Blob) -> Path:
        """Return where a blob lies, or will."""
        return self._blobs / blob.digest.removeprefix("sha256:")

    def has_blob(self, blob: Blob) -> bool:
        """Return whether the blob is in the cache and still what it was; a damaged one is removed."""
        try:
            self.verify(self.blob(blob), blob)
        except NotFoundError:
            return False
        except IntegrityError:
            self.blob(blob).unlink(missing_ok=True)
            return False
        return True

    def verify(self, path: Path, blob: Blob) -> None:
        """Read all of a file. Raises NotFoundError, IntegrityError when it is not that blob."""
        plain.verify(path, blob)

    part: OpenPart | None = None
    """What a fetch writes through; none is needed for plain bytes."""

    def holds(self, digest: str) -> bool:
        """Return whether a blob is here in any form; its content is not looked at."""
        blob = Blob(digest=digest, size=0)
        return self.blob(blob).is_file() or self.sealed.blob(blob).is_file()

    @contextmanager
    def open_blob(self, blob: Blob) -> Iterator[Content]:
        """Open a blob, plain or sealed, whichever is here. Raises NotFoundError, IntegrityError."""
        other = not self.blob(blob).exists() and self.sealed.blob(blob).exists()
        with self.sealed.open_blob(blob) if other else self.open_plain(blob) as content:
            yield content

    def open_plain(self, blob: Blob) -> AbstractContextManager[Content]:
        """Open a blob that is here in plain. Raises NotFoundError, IntegrityError."""
        return plain.opened(self.blob(blob))

    def adopt(self, blob: Blob) -> bool:
        """Take a blob in plain from what is here sealed; whether there was one. Raises StorageFullError."""
        if not self.sealed.blob(blob).exists() or not self.sealed.has_blob(blob):
            return False
        self.check_room(blob.size, blob.digest)
        with self.sealed.open_blob(blob) as content:
            self.write_blob(blob, iter(lambda: content.read(_CHUNK), b""))
        return True

    def write_blob(self, blob: Blob, pieces: Iterable[bytes]) -> None:
        """Make a blob from its content, in order; its name exists once its digest holds.

        Raises IntegrityError when it does not, OSError.
        """
        plain.write(self.blob(blob), blob, pieces)

    def lacking_bytes(self, blob: Blob) -> int:
        """Return how much of a blob has still to be written, wherever it comes from."""
        return 0 if self.blob(blob).exists() else max(blob.size - self.partial_size(blob), 0)

    def stored_size(self, blob: Blob) -> int:
        """Return the bytes that it takes of the disk."""
        return blob.size

    def read_blob(self, blob: Blob, *, most: int) -> bytes:
        """Return a small cached blob, verified. Raises NotFoundError, IntegrityError (damaged, or above `most`)."""
        path = self.blob(blob)
        try:
            with path.open("rb") as file:
                raw = file.read(min(blob.size, most) + 1)
        except FileNotFoundError:
            raise NotFoundError(element=str(path)) from None
        except OSError as error:  # a dying SD card
            raise IntegrityError(f"cannot be read: {error.strerror}", element=str(path)) from None
        if len(raw) != blob.size or f"sha256:{hashlib.sha256(raw).hexdigest()}" != blob.digest:
            raise IntegrityError(f"is not {blob.digest} of {blob.size} bytes any more", element=str(path))
        return raw

    def prune_blobs(self, *, keep: Iterable[str]) -> int:
        """Remove every blob, whole or partial, that is not named as `kept_name` does; return how many."""
        return self.free_blobs(keep=keep).files

    def free_blobs(self, *, keep: Iterable[str]) -> Freed:
        """Remove what `prune_blobs` does, and return what that was."""
        kept = {name.removeprefix("sha256:") for name in keep}
        return _remove(path for path in self._blobs.iterdir() if _kept_as(path) not in kept)

    def free_slots(self, named: Mapping[str, Iterable[int]]) -> Freed:
        """Remove every slot, also half-made, that is not among those named for its workload; others stay."""
        found = []
        for name, serials in named.items():
            kept = {str(serial) for serial in serials}
            directory = self._workloads / name / "slots"
            slots = directory.iterdir() if directory.is_dir() else ()
            found += [path for path in slots if path.name.removeprefix(".").removesuffix(".building") not in kept]
        freed = _remove(file for path in found for file in path.rglob("*") if not file.is_dir())
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return freed

    def free_copies(self, slots: Iterable[Slot]) -> Freed:
        """Remove cached blobs of which a slot has its own complete copy; with links there are none."""
        if self.links():
            return Freed()
        found = []
        for slot in slots:
            cache = self.cache(slot.desired)
            found += [
                cache.blob(blob)
                for blob, own in self._contents(slot)
                if own.is_file() and own.stat().st_size == cache.stored_size(blob)
            ]
        return _remove(found)

    def free_logs(self) -> Freed:
        """Remove logs that were moved aside, and journals that were found damaged."""
        return _remove([*self._workloads.glob("*/server.log.1"), *self._workloads.glob("*/journal.damaged")])

    def links(self) -> bool:
        """Return whether files of this file system can have several names, so that a slot needs no copy of a blob."""
        if self._links is None:
            probe, link = self._blobs / ".probe", self._blobs / ".probe-link"
            try:
                probe.touch(mode=0o600)
                link.unlink(missing_ok=True)
                os.link(probe, link)
                self._links = True
            except OSError as error:
                self._links = False if error.errno in _NO_LINKS else None
            finally:
                for path in (probe, link):
                    with contextlib.suppress(OSError):  # a disk that became read-only
                        path.unlink(missing_ok=True)
        return self._links is not False

    def check_room(self, size: int, element: str) -> None:
        """Refuse early what would not fit. Raises StorageFullError with the amounts."""
        found = os.statvfs(self.root)
        free = found.f_frsize * found.f_bavail
        room, why = (
            free - self._reserve,
            f"{human_bytes(free)} are free and {human_bytes(self._reserve)} stay in reserve",
        )
        if self._limit is not None:
            used = self._used()
            if self._limit - used < room:
                room, why = (
                    self._limit - used,
                    f"{human_bytes(used)} of the limit of {human_bytes(self._limit)} are in use",
                )
        if size > room:
            raise StorageFullError(
                f"{human_bytes(size)} do not fit: {why}",
                element=element,
                hint="free some space, or change storage in agent.toml",
            )

    def missing_bytes(self, blobs: Iterable[Blob]) -> int:
        """Return how much of these blobs has still to come; one that is here sealed is only opened.

        Their content is not looked at.
        """
        missing = 0
        for blob in blobs:
            missing += 0 if self.holds(blob.digest) else max(blob.size - self.partial_size(blob), 0)
        return missing

    def partial_size(self, blob: Blob) -> int:
        """Return how much of a blob an interrupted fetch has left."""
        found = (path for path in self._blobs.glob(f"*{self.blob(blob).name}*partial*") if SUFFIX not in path.name)
        return max((path.stat().st_size for path in found), default=0)

    def _place(self, cache: Disk | SealedBlobs, blob: Blob, target: Path) -> None:
        source = cache.blob(blob)
        cache.verify(source, blob)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with source.open("rb") as reader, target.open("xb") as writer:  # a file system without hard links
                shutil.copyfileobj(reader, writer, _CHUNK)
                writer.flush()
                os.fsync(writer.fileno())
            cache.verify(target, blob)

    def _used(self) -> int:
        sizes: dict[int, int] = {}
        for top in (self._blobs, self._workloads):
            for directory, _, names in os.walk(top):
                for name in names:
                    try:
                        found = os.lstat(os.path.join(directory, name))
                    except FileNotFoundError:
                        continue
                    sizes[found.st_ino] = found.st_size
        return sum(sizes.values())


def kept_name(desired: WorkloadDesired, blob: Blob) -> str:
    """Return how a workload's blob is named to `Disk.free_blobs`: the form counts, so that the other one goes."""
    return f"{blob.digest}{SUFFIX}" if desired.protection == ENCRYPTED else blob.digest


def _kept_as(path: Path) -> str:
    """The name under which a file of the cache is kept, be it whole or a part."""
    return f"{path.name.lstrip('.')[:64]}{SUFFIX if SUFFIX in path.name else ''}"


def _remove(paths: Iterable[Path]) -> Freed:
    """Remove files; one that has another name frees nothing, and is counted so."""
    freed = Freed()
    for path in paths:
        try:
            found = path.lstat()
            path.unlink()
        except OSError:
            continue
        freed += Freed(1, found.st_blocks * 512 if found.st_nlink == 1 else 0)
    return freed
