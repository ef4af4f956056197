"""Models that lie on this device encrypted: whose key opens them, and the cache of blobs that are sealed.

    protection.json    the device's sealing key, wrapped to one or two P-256 keys (`kit.hpke`)
    blobs/sha256/<hex>.sealed, slots/<serial>/<file>.sealed    see `kit.sealing`

The sealing key wraps the key of each file. It is wrapped itself to the key that `protection.key` names, or else to this
device's identity key; that one is exchanged at each renewal, and only `protection.json` has to be written anew then.
It is wrapped to the next key before that takes the place of the present one, so that no power cut parts the two.
Lives here: that key, and what `disk` does with plain blobs done with sealed ones. Must not live here: the format
(`kit.sealing`), where plaintext may be (`memory_file`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from skerry.agent import memory_file, plain
from skerry.agent.settings import ProtectionSettings
from skerry.api.errors import (
    IntegrityError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.core.ports import Content, Part
from skerry.kit import files

if TYPE_CHECKING:  # an agent that seals nothing does without
    from cryptography.hazmat.primitives.asymmetric import ec

    from skerry.agent.disk import Disk
    from skerry.kit.sealing import SealingKey

log = logging.getLogger(__name__)

FILE = "protection.json"
SUFFIX = ".sealed"
ENCRYPTED = "encrypted"
Source = Literal["identity", "file"]
_IDENTITY_FILES = ("device.pem", "pending.key")
"""The present key, and the next one while it is being exchanged."""
_INFO = b"skerry sealing key, version 1"
_ID_BYTES = 8
_MAX_PEM_BYTES = 64 * 1024
_MAX_RING_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024


class Wrap(msgspec.Struct, frozen=True, kw_only=True):
    """The sealing key, for one recipient."""

    recipient: str
    """SHA-256 of its public key's uncompressed point, in hex."""
    sealed: bytes


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content."""

    id: bytes
    source: Source
    """Which kind of key it was last wrapped to."""
    wraps: list[Wrap]


class Vault:
    """This device's sealing key; opened when it is first needed, and in memory from then on. Threads may share it."""

    def __init__(self, root: Path, settings: ProtectionSettings | None = None) -> None:
        self._root = root
        self._settings = settings or ProtectionSettings()
        self._lock = threading.Lock()
        self._key: SealingKey | None = None

    def check(self) -> None:
        """See whether anything can be sealed and used here, before anything is fetched. Raises what `key` raises."""
        self.key()
        memory_file.check()
        swaps = memory_file.swaps()
        if swaps and self._settings.swap == "refuse":
            raise UnsupportedError(
                f"memory may be written to {', '.join(swaps)}, which this device's settings forbid",
                element="protection.swap",
                hint="turn swapping off, use zram, or allow it in agent.toml",
            )

    def key(self) -> SealingKey:
        """Return the sealing key, made at its first use.

        Raises UnavailableError while the key file is not there, or another one than was used; UnsupportedError without
        any key, InvalidError for a file that is damaged. Never IntegrityError: without a key no content is judged.
        """
        with self._lock:
            if self._key is None:
                memory_file.forbid_dumps()
                self._key = self._open()
            return self._key

    def rewrap(self, following: ec.EllipticCurvePrivateKey) -> None:
        """Have the identity key that is about to take the present one's place open it as well.

        Raises StorageFullError, OSError: then the present one stays.
        """
        try:
            ring = self._read()
        except InvalidError as error:  # there is nothing that could be kept
            log.error("protection.not_rewrapped error=%s", error)
            return
        if ring is None or ring.source == "file":
            return
        found = self._unwrap(ring, self._identity_keys(needed=False))
        if found is not None:
            present, key = found
            self._write(Ring(id=ring.id, source="identity", wraps=[_wrap(one, key) for one in (present, following)]))

    # --- the ring ---------------------------------------------------------------------------------------------------

    def _open(self) -> SealingKey:
        source: Source = "file" if self._settings.key else "identity"
        keys = [self._file_key()] if self._settings.key else self._identity_keys()
        ring = self._read()
        if ring is None:
            return self._make(keys[0], source)
        fallback = self._identity_keys(needed=False) if source == "file" and ring.source == "identity" else []
        found = self._unwrap(ring, [*keys, *fallback])
        if found is None:
            return self._renounce(ring, keys[0], source)
        opener, key = found
        exchanging = source == "identity" and (self._root / _IDENTITY_FILES[1]).exists()
        if not exchanging and (opener is not keys[0] or len(ring.wraps) > 1):  # no other key has to open it any more
            self._write(Ring(id=ring.id, source=source, wraps=[_wrap(keys[0], key)]))
        return key

    def _make(self, recipient: ec.EllipticCurvePrivateKey, source: Source) -> SealingKey:
        from skerry.kit.sealing import KEY_BYTES, SealingKey  # noqa: PLC0415 - see above

        key = SealingKey(secrets.token_bytes(_ID_BYTES), secrets.token_bytes(KEY_BYTES))
        self._write(Ring(id=key.id, source=source, wraps=[_wrap(recipient, key)]))
        log.info("protection.key_made id=%s source=%s", key.id.hex(), source)
        return key

    def _renounce(self, ring: Ring, recipient: ec.EllipticCurvePrivateKey, source: Source) -> SealingKey:
        """No key opens it. An identity that is gone does not come back; a key file may only be another one's."""
        if ring.source == "file":
            raise UnavailableError(
                "was wrapped to another key than " + (self._settings.key or "this device's identity key"),
                element=str(self._root / FILE),
                hint="set protection.key to the file that was used; or remove this one, and models are fetched again",
            )
        log.error("protection.key_lost id=%s", ring.id.hex())  # enrolled with another key: models come again
        return self._make(recipient, source)

    def _unwrap(
        self, ring: Ring, keys: Iterable[ec.EllipticCurvePrivateKey]
    ) -> tuple[ec.EllipticCurvePrivateKey, SealingKey] | None:
        from skerry.kit import hpke  # noqa: PLC0415 - see above
        from skerry.kit.sealing import KEY_BYTES, SealingKey  # noqa: PLC0415 - see above

        for key in keys:
            for wrap in ring.wraps:
                if wrap.recipient == _fingerprint(key):
                    try:
                        secret = hpke.decrypt(key, wrap.sealed, info=_INFO, aad=ring.id)
                    except IntegrityError:
                        continue
                    if len(secret) == KEY_BYTES:
                        return key, SealingKey(ring.id, secret)
        return None

    def _read(self) -> Ring | None:
        path = self._root / FILE
        try:
            ring = read_ring(_read_bounded(path, _MAX_RING_BYTES))
        except FileNotFoundError:
            return None
        except InvalidError as error:
            raise InvalidError(
                error.cause, element=str(path), hint="remove it, and models that are sealed are fetched again"
            ) from None
        return ring

    def _write(self, ring: Ring) -> None:
        files.write_atomic(self._root / FILE, msgspec.json.encode(ring), mode=0o600)

    # --- whose key --------------------------------------------------------------------------------------------------

    def _file_key(self) -> ec.EllipticCurvePrivateKey:
        path = Path(self._settings.key)
        try:
            raw = _read_bounded(path, _MAX_PEM_BYTES)
        except OSError as error:
            raise UnavailableError(
                f"the key for encrypted models cannot be read: {error.strerror}",
                element=str(path),
                hint="is the volume mounted that protection.key in agent.toml names?",
            ) from None
        return _parse_pem(raw, str(path))

    def _identity_keys(self, *, needed: bool = True) -> list[ec.EllipticCurvePrivateKey]:
        found = []
        for name in _IDENTITY_FILES:
            try:
                found.append(_parse_pem(_read_bounded(self._root / name, _MAX_PEM_BYTES), str(self._root / name)))
            except (FileNotFoundError, InvalidError):
                continue
        if not found and needed:
            raise UnsupportedError(
                "this device has no key to encrypt models with",
                element=str(self._root / _IDENTITY_FILES[0]),
                hint="enrol it, or name a key file in protection.key of agent.toml",
            )
        return found


def source_of(root: Path, settings: ProtectionSettings) -> str:
    """Return what keeps models on this device: `file`, `identity`, or nothing; as the hub is told."""
    try:
        if settings.key:
            return "file" if os.access(settings.key, os.R_OK) else ""
        return "identity" if os.access(root / _IDENTITY_FILES[0], os.R_OK) else ""
    except ValueError:  # a path that is none
        return ""


def read_ring(raw: bytes) -> Ring:
    """Parse the file's content. Raises InvalidError, whatever the bytes."""
    try:
        ring = msgspec.json.decode(raw, type=Ring)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidError(f"is damaged: {str(error)[:200]}", element=FILE) from None
    if len(ring.id) != _ID_BYTES or not 0 < len(ring.wraps) <= 8:
        raise InvalidError("is damaged: its key has no name, or nobody opens it", element=FILE)
    return ring


def _wrap(recipient: ec.EllipticCurvePrivateKey, key: SealingKey) -> Wrap:
    from skerry.kit import hpke  # noqa: PLC0415 - see above

    sealed = hpke.encrypt(recipient.public_key(), key.secret, info=_INFO, aad=key.id)
    return Wrap(recipient=_fingerprint(recipient), sealed=sealed)


def _fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    from skerry.kit import hpke  # noqa: PLC0415 - see above

    return hashlib.sha256(hpke.public_bytes(key.public_key())).hexdigest()


def _parse_pem(raw: bytes, element: str) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - see above

    try:
        key = serialization.load_pem_private_key(raw, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"is no private key in PEM: {str(error)[:200]}", element=element) from None
    except Exception as error:  # noqa: BLE001 - an algorithm that the library does not know
        raise InvalidError(f"is no key that can be used: {str(error)[:200]}", element=element) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidError(
            "is not an EC key on P-256",
            element=element,
            hint="make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        )
    return key


def _read_bounded(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise InvalidError(f"is larger than {most} bytes", element=str(path))
    return raw


# --- the cache ----------------------------------------------------------------------------------------------------


class SealedBlobs:
    """What `Disk` offers for plain blobs, for those that are kept encrypted; blocks.

    Everything that needs the key raises what `Vault.key` raises.
    """

    def __init__(self, disk: Disk, vault: Vault) -> None:
        self._disk = disk
        self._vault = vault

    def blob(self, blob: Blob) -> Path:
        """Return where a blob lies sealed, or will."""
        path = self._disk.blob(blob)
        return path.with_name(f"{path.name}{SUFFIX}")

    def stored_size(self, blob: Blob) -> int:
        """Return the bytes that it takes of the disk."""
        from skerry.kit import sealing  # noqa: PLC0415 - see above

        return sealing.sealed_size(blob.size)

    def lacking_bytes(self, blob: Blob) -> int:
        """Return how much of a blob has still to be written, wherever it comes from."""
        return 0 if self.blob(blob).exists() else max(self.stored_size(blob) - self.partial_size(blob), 0)

    def has_blob(self, blob: Blob) -> bool:
        """Return whether the blob is here, sealed, and what it was; a damaged one is removed."""
        try:
            self.verify(self.blob(blob), blob)
        except NotFoundError:
            return False
        except IntegrityError:
            self.blob(blob).unlink(missing_ok=True)
            return False
        return True

    def verify(self, path: Path, blob: Blob) -> None:
        """Open all of a sealed file. Raises NotFoundError, IntegrityError when it is not that blob."""
        for _ in self._pieces(path, blob):
            pass

    def missing_bytes(self, blobs: Iterable[Blob]) -> int:
        """Return how much of these blobs has still to come; one that is here in plain is only sealed."""
        return sum(
            0
            if self.blob(blob).exists() or self._disk.blob(blob).exists()
            else max(blob.size - self.partial_size(blob), 0)
            for blob in blobs
        )

    def partial_size(self, blob: Blob) -> int:
        """Return how much of a blob an interrupted fetch has left, roughly: chunks have a few bytes of their own."""
        sizes = [path.stat().st_size for path in self.blob(blob).parent.glob(f"*{self.blob(blob).name}*partial*")]
        return max(sizes, default=0)

    def check_room(self, size: int, element: str) -> None:
        """Refuse early what would not fit. Raises StorageFullError."""
        self._disk.check_room(size, element)

    def holds(self, digest: str) -> bool:
        """Return whether a blob is here in any form; its content is not looked at."""
        return self._disk.holds(digest)

    def part(self, descriptor: int, blob: Blob) -> Part:
        """Return what a fetch writes through: nothing comes to the disk but sealed."""
        from skerry.kit.sealing import SealedWriter  # noqa: PLC0415 - see above

        return SealedWriter(descriptor, self._vault.key(), size=blob.size, digest=_raw(blob))

    @contextmanager
    def open_blob(self, blob: Blob) -> Iterator[Content]:
        """Open a blob, sealed or plain, whichever is here. Raises NotFoundError, IntegrityError."""
        if not self.blob(blob).exists():
            with self._disk.open_plain(blob) as content:
                yield content
            return
        with self._opened(self.blob(blob)) as content:
            yield content

    def adopt(self, blob: Blob) -> bool:
        """Seal a blob that is here in plain, and whole; whether there was one. Raises StorageFullError."""
        source = self._disk.blob(blob)
        if not source.exists() or not self._disk.has_blob(blob):
            return False
        self.seal(source, blob)
        return True

    def seal(self, source: Path, blob: Blob) -> None:
        """Seal a plain file into the cache. Raises IntegrityError when it is not that blob, StorageFullError."""
        self._disk.check_room(self.stored_size(blob), blob.digest)
        with source.open("rb") as file:
            self.write_blob(blob, iter(lambda: file.read(_PIECE_BYTES), b""))

    def write_blob(self, blob: Blob, pieces: Iterable[bytes]) -> None:
        """Make a blob from its content, in order; its name exists once its digest holds.

        Raises IntegrityError when it does not, StorageFullError, OSError.
        """
        from skerry.kit.sealing import SealedWriter  # noqa: PLC0415 - see above

        target = self.blob(blob)
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        key, hasher = self._vault.key(), hashlib.sha256()
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                writer = SealedWriter(descriptor, key, size=blob.size, digest=_raw(blob))
                for piece in pieces:
                    hasher.update(piece)
                    writer.append(piece)
                writer.append(b"")
                if writer.size != blob.size or f"sha256:{hasher.hexdigest()}" != blob.digest:
                    raise IntegrityError("is not what it should be", element=blob.digest)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(draft, target)
            files.sync_directory(target.parent)
        except OSError as error:
            raise plain.full_or(error, blob.digest) from error
        finally:
            draft.unlink(missing_ok=True)

    def reveal(self, path: Path, blob: Blob, descriptor: int) -> None:
        """Write what is in a sealed file to a file in memory. Raises NotFoundError, IntegrityError.

        It is that blob, or this raises; the descriptor stays the caller's.
        """
        try:
            for piece in self._pieces(path, blob):
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            memory_file.freeze(descriptor)
        except OSError as error:
            raise UnavailableError(f"does not fit into memory: {error.strerror}", element=str(path)) from None

    def _pieces(self, path: Path, blob: Blob) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        with self._opened(path) as content:
            while content.size == blob.size and (piece := _read(content, path)):
                hasher.update(piece)
                yield piece
        if f"sha256:{hasher.hexdigest()}" != blob.digest:
            raise IntegrityError(f"is not {blob.digest} of {blob.size} bytes any more", element=str(path))

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Content]:
        from skerry.kit.sealing import SealedReader  # noqa: PLC0415 - see above

        key = self._vault.key()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFoundError(element=str(path)) from None
        except OSError as error:  # a dying SD card
            raise IntegrityError(f"cannot be read: {error.strerror}", element=str(path)) from None
        try:
            yield SealedReader(descriptor, key, element=str(path))
        finally:
            os.close(descriptor)


def _read(content: Content, path: Path) -> bytes:
    try:
        return content.read(_PIECE_BYTES)
    except OSError as error:  # a dying SD card
        raise IntegrityError(f"cannot be read: {error.strerror}", element=str(path)) from None


def _raw(blob: Blob) -> bytes:
    return bytes.fromhex(blob.digest.removeprefix("sha256:"))
