"""Files sealed in chunks: what is in them can be read from anywhere and written bit by bit, by whoever has the key.

    file    = header, chunk*
    header  = magic (8), bytes in a chunk (4), bytes in all (8), SHA-256 of all (32), key id (8), wrapped key (60)
    chunk   = nonce prefix (7), AES-256-GCM of up to that many bytes, tag (16)

Numbers are big-endian. Each file has a random key of its own, wrapped by a key-encryption key (AES-256-GCM: nonce,
ciphertext, tag; what comes before it in the header is the associated data). A chunk is sealed as in the STREAM
construction: its nonce is prefix, number (4), and whether it is the last (1); the header is its associated data. So a
chunk that was cut off, moved, or comes from another file does not open. Whoever goes on writing after an interruption
takes a new prefix: a chunk that is written again, maybe with something else in it, never meets the same nonce.

Lives here: the format, over file descriptors. Must not live here: where keys come from, paths, what is sealed.

Source: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance"
(2015), STREAM; NIST SP 800-38D (GCM).
"""

from __future__ import annotations

import os
import secrets
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from skerry.api.errors import IntegrityError

KEY_BYTES = 32
CHUNK_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
_MAGIC = b"\x89SKSEAL\x01"
_BOUND = struct.Struct(">8sIQ32s8s")
_NONCE_BYTES, _TAG_BYTES, _PREFIX_BYTES = 12, 16, 7
_WRAPPED_BYTES = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
HEADER_BYTES = _BOUND.size + _WRAPPED_BYTES
OVERHEAD_BYTES = _PREFIX_BYTES + _TAG_BYTES
"""Of each chunk."""
_PLACE = struct.Struct(">IB")
_MAX_CHUNKS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key-encryption key: `id` (8 bytes) says which, `secret` has 32 bytes."""

    id: bytes
    secret: bytes

    def __repr__(self) -> str:
        """Never the secret."""
        return f"SealingKey({self.id.hex()})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a sealed file says of itself; nothing of it is secret."""

    chunk_bytes: int
    size: int
    digest: bytes
    """SHA-256 of what is sealed."""
    key_id: bytes
    raw: bytes

    @property
    def chunks(self) -> int:
        """How many there are; nothing at all is one that is empty."""
        return max(1, -(-self.size // self.chunk_bytes))

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return HEADER_BYTES + self.size + self.chunks * OVERHEAD_BYTES

    def length(self, number: int) -> int:
        """Bytes that are in a chunk."""
        return min(self.chunk_bytes, self.size - number * self.chunk_bytes)

    def offset(self, number: int) -> int:
        """Where a chunk begins."""
        return HEADER_BYTES + number * (self.chunk_bytes + OVERHEAD_BYTES)


def parse(raw: bytes, element: str = "sealed file") -> Header:
    """Read a header. Raises IntegrityError for anything else, whatever the bytes."""
    if len(raw) != HEADER_BYTES:
        raise IntegrityError(f"has {len(raw)} bytes where a header of {HEADER_BYTES} is due", element=element)
    magic, chunk_bytes, size, digest, key_id = _BOUND.unpack_from(raw)
    if magic != _MAGIC:
        raise IntegrityError("is not sealed, or in a way of tomorrow", element=element)
    if not 0 < chunk_bytes <= MAX_CHUNK_BYTES or size > chunk_bytes * _MAX_CHUNKS:
        raise IntegrityError("has bounds that cannot be", element=element)
    return Header(chunk_bytes=chunk_bytes, size=size, digest=digest, key_id=key_id, raw=raw)


def sealed_size(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return the bytes of a file in which so many are sealed."""
    return HEADER_BYTES + size + max(1, -(-size // chunk_bytes)) * OVERHEAD_BYTES


class _Cipher:
    """One file's header with its key."""

    def __init__(self, header: Header, key: bytes, element: str) -> None:
        self.header = header
        self._element = element
        self._cipher = AESGCM(key)

    def seal(self, number: int, prefix: bytes, plain: bytes | memoryview) -> bytes:
        return prefix + self._cipher.encrypt(self._nonce(number, prefix), bytes(plain), self.header.raw)

    def open(self, number: int, record: bytes) -> bytes:
        """Return what is in a chunk. Raises IntegrityError."""
        if len(record) != self.header.length(number) + OVERHEAD_BYTES:
            raise IntegrityError(f"chunk {number} is cut off", element=self._element)
        prefix, sealed = record[:_PREFIX_BYTES], record[_PREFIX_BYTES:]
        try:
            return self._cipher.decrypt(self._nonce(number, prefix), sealed, self.header.raw)
        except InvalidTag:
            raise IntegrityError(f"chunk {number} is not what was sealed", element=self._element) from None

    def read(self, descriptor: int, number: int) -> bytes:
        """Read and open a chunk. Raises IntegrityError, OSError."""
        return self.open(
            number, _pread(descriptor, self.header.length(number) + OVERHEAD_BYTES, self.header.offset(number))
        )

    def _nonce(self, number: int, prefix: bytes) -> bytes:
        return prefix + _PLACE.pack(number, number == self.header.chunks - 1)


class SealedReader:
    """What is in a sealed file, from anywhere; the descriptor stays the caller's.

    Raises IntegrityError for a file that is not whole, or for another key. In memory is one chunk.
    """

    def __init__(self, descriptor: int, key: SealingKey, *, element: str = "sealed file") -> None:
        """`element` names the file in errors."""
        self._descriptor = descriptor
        self._cipher = _open_header(descriptor, key, element)
        self.header = self._cipher.header
        found = os.fstat(descriptor).st_size
        if found != self.header.file_size:
            raise IntegrityError(f"has {found} bytes, not {self.header.file_size}", element=element)
        self._number, self._chunk = -1, b""
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes that are sealed."""
        return self.header.size

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes from an offset on, fewer only at the end. Raises IntegrityError, OSError."""
        pieces = []
        end = min(offset + length, self.size)
        while offset < end:
            number, start = divmod(offset, self.header.chunk_bytes)
            piece = self._load(number)[start : start + end - offset]
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def read(self, length: int) -> bytes:
        """Return the next bytes; none at the end."""
        piece = self.pread(length, self._position)
        self._position += len(piece)
        return piece

    def seek(self, position: int) -> None:
        """Have `read` go on from there."""
        self._position = position

    def _load(self, number: int) -> bytes:
        if number != self._number:
            self._chunk, self._number = self._cipher.read(self._descriptor, number), number
        return self._chunk


class SealedWriter:
    """A sealed file in the making; it goes on with what an earlier one left, as far as that opens.

    The descriptor, open for reading and writing, stays the caller's. Up to one chunk waits in memory: a crash loses it.
    """

    def __init__(self, descriptor: int, key: SealingKey, *, size: int, digest: bytes) -> None:
        self._descriptor = descriptor
        self._key = key
        self._total, self._digest = size, digest
        self._prefix = secrets.token_bytes(_PREFIX_BYTES)
        self._buffer = bytearray()
        self._number = 0
        self._cipher: _Cipher | None = None
        try:
            found = _open_header(descriptor, key, "sealed file")
        except (IntegrityError, OSError):  # also where the disk cannot give it back: it begins anew
            return
        if (found.header.size, found.header.digest) == (size, digest):
            self._cipher = found
            self._number = self._count(found)

    @property
    def size(self) -> int:
        """Bytes that are here, of which the last few may be in memory only."""
        whole = self._number * CHUNK_BYTES
        return min(whole, self._total) + len(self._buffer)

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes that were written before, in one chunk's bounds. Raises IntegrityError, OSError."""
        if offset >= self.size or self._cipher is None:
            return b""
        number, start = divmod(offset, CHUNK_BYTES)
        chunk = self._cipher.read(self._descriptor, number) if number < self._number else bytes(self._buffer)
        return chunk[start : start + length]

    def append(self, plain: bytes | memoryview) -> None:
        """Write the next bytes. Raises IntegrityError beyond the size, OSError."""
        if self.size + len(plain) > self._total:
            raise IntegrityError(f"there are more than its {self._total} bytes", element="sealed file")
        if self._cipher is None:
            self._cipher = self._begin()
        self._buffer += plain
        while self._number < self._cipher.header.chunks and len(self._buffer) >= self._cipher.header.length(
            self._number
        ):
            length = self._cipher.header.length(self._number)
            record = self._cipher.seal(self._number, self._prefix, memoryview(self._buffer)[:length])
            _pwrite(self._descriptor, record, self._cipher.header.offset(self._number))
            self._number += 1
            del self._buffer[:length]
            if not self._buffer:
                break

    def clear(self) -> None:
        """Begin again, with another key: what was written may come differently now."""
        os.ftruncate(self._descriptor, 0)
        self._cipher, self._number = None, 0
        self._buffer.clear()

    def _begin(self) -> _Cipher:
        os.ftruncate(self._descriptor, 0)
        secret, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        bound = _BOUND.pack(_MAGIC, CHUNK_BYTES, self._total, self._digest, self._key.id)
        header = parse(bound + nonce + AESGCM(self._key.secret).encrypt(nonce, secret, bound))
        _pwrite(self._descriptor, header.raw, 0)
        return _Cipher(header, secret, "sealed file")

    def _count(self, cipher: _Cipher) -> int:
        """Return how many chunks are whole; what follows them is cut off."""
        number = 0
        try:
            while number < cipher.header.chunks:
                cipher.read(self._descriptor, number)
                number += 1
        except (IntegrityError, OSError):
            os.ftruncate(self._descriptor, cipher.header.offset(number))
        return number


def _open_header(descriptor: int, key: SealingKey, element: str) -> _Cipher:
    header = parse(_pread(descriptor, HEADER_BYTES, 0), element)
    if header.key_id != key.id:
        raise IntegrityError(f"is sealed for key {header.key_id.hex()}, not {key.id.hex()}", element=element)
    bound, wrapped = header.raw[: _BOUND.size], header.raw[_BOUND.size :]
    try:
        secret = AESGCM(key.secret).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], bound)
    except InvalidTag:
        raise IntegrityError("its header is not what was sealed", element=element) from None
    return _Cipher(header, secret, element)


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    pieces = []
    while length and (piece := os.pread(descriptor, length, offset)):
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return b"".join(pieces)


def _pwrite(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset, view = offset + written, view[written:]
