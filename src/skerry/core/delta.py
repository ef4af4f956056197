"""The delta format, version 1: how a blob is made from one that a device has, in order and in little memory. Pure.

    file     = magic, from: digest and size, to: digest and size, segment*, end
    segment  = copy  (old offset, length)                 these bytes of the old blob
             | data  (length, packed length, bytes)       new bytes, deflated where that is shorter
             | diff  (old offset, length, width, signed, packed length of each plane, planes)

All numbers are little-endian. The segments' lengths add up to the new blob's size, in order; nothing follows the end.
A `diff` is the difference of two runs of numbers of `width` bytes each, taken as one long integer:

    difference = new - old + 0x8080...80   modulo 256 ** length

which leaves small differences, of either sign, as bytes near 0x80 (balanced digits), and needs no arithmetic on
vectors. Signed numbers of one byte have their top bit flipped first, so that -1 and 0 are neighbours. Plane i holds
byte i of each number; every plane is deflated where that is shorter. A reader checks the digest of what it made: it
alone decides.

Lives here: bytes, bounds, arithmetic. Must not live here: which segments are best (`core.delta_encode`), files, digests
of whole blobs.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from skerry.api.errors import IntegrityError, UnsupportedError

ENCODING = "skerry-delta-v1"
MAX_BLOCK_BYTES = 256 * 1024
"""Of a `data` or `diff` segment; the memory that applying a delta takes is a small multiple of it."""
WIDTHS = (1, 2, 4, 8)

END, COPY, DATA, DIFF = 0, 1, 2, 3
_MAGIC = b"\x89SKDELTA\r\n\x1a\n\x01"
_FAMILY = len(_MAGIC) - 1
_HEADER = struct.Struct(f"<{len(_MAGIC)}s32sQ32sQ")
_COPY = struct.Struct("<QQ")
_DATA = struct.Struct("<II")
_DIFF = struct.Struct("<QIBB")

Read = Callable[[int], bytes]
"""Gives the next bytes of a delta, at most so many; none at its end."""
ReadOld = Callable[[int, int], bytes]
"""Gives bytes of the old blob, from an offset on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a delta leads from and to."""

    old_digest: str
    old_size: int
    new_digest: str
    new_size: int


def encode_header(header: Header) -> bytes:
    """Return the header's bytes."""
    old, new = (bytes.fromhex(digest.removeprefix("sha256:")) for digest in (header.old_digest, header.new_digest))
    return _HEADER.pack(_MAGIC, old, header.old_size, new, header.new_size)


def read_header(read: Read) -> Header:
    """Read a delta's header. Raises IntegrityError, and UnsupportedError for another version."""
    magic, old, old_size, new, new_size = _HEADER.unpack(_exactly(read, _HEADER.size))
    if magic[:_FAMILY] != _MAGIC[:_FAMILY]:
        raise _broken("it is none")
    if magic != _MAGIC:
        raise UnsupportedError(f"is of version {magic[-1]}, not 1", element="delta", hint="update the agent")
    return Header(
        old_digest=f"sha256:{old.hex()}", old_size=old_size, new_digest=f"sha256:{new.hex()}", new_size=new_size
    )


def decode(header: Header, read: Read, read_old: ReadOld) -> Iterator[bytes]:
    """Give the new blob in order, in pieces of at most MAX_BLOCK_BYTES; `read` goes on behind the header.

    Raises IntegrityError for anything that is not a delta of that header, with never more than its size given before.
    Whoever calls compares the digest of it all.
    """
    left = header.new_size
    while (kind := _exactly(read, 1)[0]) != END:
        if kind == COPY:
            offset, length = _COPY.unpack(_exactly(read, _COPY.size))
            _check_span(length, left, left)
            yield from _copied(header, read_old, offset, length)
        elif kind == DATA:
            length, packed = _DATA.unpack(_exactly(read, _DATA.size))
            _check_span(length, left, MAX_BLOCK_BYTES)
            yield _unpacked(read, packed, length)
        elif kind == DIFF:
            offset, length, width, signed = _DIFF.unpack(_exactly(read, _DIFF.size))
            _check_span(length, left, MAX_BLOCK_BYTES)
            if width not in WIDTHS or signed > 1 or length % width:
                raise _broken("a difference is of impossible numbers")
            yield _differed(read, _old(header, read_old, offset, length), width, signed=bool(signed))
        else:
            raise _broken(f"there is no segment {kind}")
        left -= length
    if left:
        raise _broken(f"{left} bytes of the new content are missing")
    if read(1):
        raise _broken("something follows its end")


def encode_copy(offset: int, length: int) -> bytes:
    """Return a segment that takes bytes of the old blob."""
    return bytes([COPY]) + _COPY.pack(offset, length)


def encode_data(content: bytes) -> bytes:
    """Return a segment of new bytes, at most MAX_BLOCK_BYTES."""
    packed = _packed(content)
    return bytes([DATA]) + _DATA.pack(len(content), len(packed)) + packed


def encode_diff(offset: int, old: bytes, new: bytes, width: int, *, signed: bool) -> bytes:
    """Return a segment that makes `new` from the bytes `old` at that offset: as many, at most MAX_BLOCK_BYTES."""
    length = len(new)
    bias, mask = _constants(length)
    difference = _number(new, width, signed=signed) - _number(old, width, signed=signed) + bias
    raw = (difference & mask).to_bytes(length, "little")
    planes = [_packed(raw[plane::width]) for plane in range(width)]
    sizes = struct.pack(f"<{width}I", *(len(plane) for plane in planes))
    return b"".join([bytes([DIFF]), _DIFF.pack(offset, length, width, signed), sizes, *planes])


def encode_end() -> bytes:
    """Return what ends a delta."""
    return bytes([END])


def _copied(header: Header, read_old: ReadOld, offset: int, length: int) -> Iterator[bytes]:
    while length:
        piece = min(length, MAX_BLOCK_BYTES)
        yield _old(header, read_old, offset, piece)
        offset, length = offset + piece, length - piece


def _differed(read: Read, old: bytes, width: int, *, signed: bool) -> bytes:
    length = len(old)
    sizes = struct.unpack(f"<{width}I", _exactly(read, 4 * width))
    raw = bytearray(length)
    for plane, size in enumerate(sizes):
        raw[plane::width] = _unpacked(read, size, length // width)
    bias, mask = _constants(length)
    new = (_number(old, width, signed=signed) + int.from_bytes(raw, "little") - bias) & mask
    if signed and width == 1:
        new ^= bias
    return new.to_bytes(length, "little")


def _number(raw: bytes, width: int, *, signed: bool) -> int:
    number = int.from_bytes(raw, "little")
    return number ^ _constants(len(raw))[0] if signed and width == 1 else number


@lru_cache(maxsize=2)
def _constants(length: int) -> tuple[int, int]:
    """Return 0x8080...80 and 0xffff...ff of that length; a file's blocks have one length, but for the last ones."""
    return int.from_bytes(b"\x80" * length, "little"), (1 << 8 * length) - 1


def _packed(raw: bytes) -> bytes:
    """Deflate; what does not become shorter stays as it is.

    Differences repeat nothing, and looking for repetition makes them longer: they are tried without it, and with it
    where that has shown that they are not all different.
    """
    best = raw
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        if strategy == zlib.Z_DEFAULT_STRATEGY and len(best) > 0.9 * len(raw):
            break
        packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
        packed = packer.compress(raw) + packer.flush()
        best = min(best, packed, key=len)
    return best


def _unpacked(read: Read, packed: int, length: int) -> bytes:
    if packed > length:
        raise _broken("a packed part is longer than its content")
    raw = _exactly(read, packed)
    if packed == length:
        return raw
    unpacker = zlib.decompressobj(-15)
    try:
        content = unpacker.decompress(raw, length + 1)
    except zlib.error:
        raise _broken("a packed part cannot be unpacked") from None
    if len(content) != length or not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise _broken("a packed part is not as long as it says")
    return content


def _old(header: Header, read_old: ReadOld, offset: int, length: int) -> bytes:
    if offset > header.old_size or length > header.old_size - offset:
        raise _broken("it takes what the old content does not have")
    raw = read_old(offset, length)
    if len(raw) != length:
        raise _broken("the old content is shorter than it says")
    return raw


def _check_span(length: int, left: int, most: int) -> None:
    if not 0 < length <= min(left, most):
        raise _broken(f"a segment of {length} bytes cannot be")


def _exactly(read: Read, count: int) -> bytes:
    raw = read(count)
    if len(raw) != count:
        raise _broken("it ends in the middle")
    return raw


def _broken(cause: str) -> IntegrityError:
    return IntegrityError(f"cannot be applied: {cause}", element="delta")
