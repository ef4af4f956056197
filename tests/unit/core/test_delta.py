"""Deltas: whatever changed, the new content comes out of the old one; whatever the bytes, nothing else ever does."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError, UnsupportedError
from skerry.core import delta, delta_encode
from skerry.core.weights import Tensor

BLOCK = delta.MAX_BLOCK_BYTES


def header(old: bytes, new: bytes) -> delta.Header:
    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (old, new)]
    return delta.Header(old_digest=digests[0], old_size=len(old), new_digest=digests[1], new_size=len(new))


def make(old: bytes, new: bytes, layouts: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())) -> bytes:
    return b"".join(delta_encode.encode(header(old, new), old, new, *layouts))


def pieces(raw: bytes, old: bytes) -> list[bytes]:
    file = io.BytesIO(raw)
    found = delta.read_header(file.read)
    return list(delta.decode(found, file.read, lambda offset, length: old[offset : offset + length]))


def apply(raw: bytes, old: bytes) -> bytes:
    return b"".join(pieces(raw, old))


def wrap(old: bytes, size: int, *segments: bytes, end: bytes = bytes([delta.END])) -> bytes:
    found = delta.Header(
        old_digest="sha256:" + "0" * 64, old_size=len(old), new_digest="sha256:" + "1" * 64, new_size=size
    )
    return b"".join([delta.encode_header(found), *segments, end])


@given(old=st.binary(max_size=300), new=st.binary(max_size=300))
def test_any_content_is_made_of_any_other(old, new):
    assert apply(make(old, new), old) == new


@given(
    data=st.data(),
    width=st.sampled_from(delta.WIDTHS),
    count=st.integers(1, 40),
    signed=st.booleans(),
)
def test_differences_of_any_numbers_are_exact(data, width, count, signed):
    old, new = (data.draw(st.binary(min_size=width * count, max_size=width * count)) for _ in range(2))
    segment = delta.encode_diff(0, old, new, width, signed=signed)
    assert apply(wrap(old, len(new), segment), old) == new


@given(
    data=st.data(),
    gaps=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), min_size=1, max_size=6),
)
def test_tensors_find_their_twins_wherever_they_moved(data, gaps):
    old, new = bytearray(), bytearray()
    layouts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, (before, after) in enumerate(gaps):
        width = data.draw(st.sampled_from(delta.WIDTHS))
        for content, gap, layout in ((old, before, layouts[0]), (new, after, layouts[1])):
            content.extend(gap)
            values = data.draw(st.binary(max_size=40).map(lambda raw: raw[: len(raw) // 8 * 8]))
            if values:
                layout.append(Tensor(f"t{index}", len(content), len(values), width, False))
                content.extend(values)
    new += data.draw(st.binary(max_size=9))
    assert apply(make(bytes(old), bytes(new), layouts), bytes(old)) == new


def test_what_did_not_change_is_not_sent():
    old = bytes(range(256)) * 4096
    new = old[:-40] + b"x" * 40
    layout = [Tensor("a", 0, len(old) - 40, 4, False), Tensor("b", len(old) - 40, 40, 4, False)]
    raw = make(old, new, (layout, layout))
    assert len(raw) < 250
    assert apply(raw, old) == new


def test_small_changes_of_numbers_are_small():
    old = b"".join(struct.pack("<f", 0.03 + 1e-6 * (index * 7919 % 65536)) for index in range(60_000))
    new = b"".join(
        struct.pack("<f", value + 1e-6 * ((index * 104729) % 64 - 32) / 64)
        for index, (value,) in enumerate(struct.iter_unpack("<f", old))
    )
    layout = [Tensor("w", 0, len(old), 4, False)]
    raw = make(old, new, (layout, layout))
    assert len(raw) < 0.4 * len(zlib.compress(new, 9))
    assert apply(raw, old) == new


def test_numbers_of_one_byte_do_not_disturb_their_neighbours_around_zero():
    old = bytes(index * 31 % 7 - 3 & 0xFF for index in range(50_000))
    new = bytes(byte + 1 & 0xFF for byte in old)
    segment = delta.encode_diff(0, old, new, 1, signed=True)
    assert len(segment) < 500  # all differences are one
    assert apply(wrap(old, len(new), segment), old) == new


def test_pieces_and_memory_stay_small_whatever_the_size():
    old = bytes(40 * BLOCK)
    raw = wrap(
        old,
        40 * BLOCK,
        delta.encode_copy(0, 39 * BLOCK),
        delta.encode_diff(0, old[:BLOCK], b"\1" * BLOCK, 4, signed=False),
    )
    file = io.BytesIO(raw)
    found = delta.read_header(file.read)
    tracemalloc.start()
    try:
        sizes = [
            len(piece) for piece in delta.decode(found, file.read, lambda offset, length: old[offset : offset + length])
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (max(sizes), sum(sizes)) == (BLOCK, 40 * BLOCK)
    assert peak < 16 * BLOCK


def bomb(length: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(100 * BLOCK)) + packer.flush()
    return bytes([delta.DATA]) + struct.pack("<II", length, len(packed)) + packed


OLD = bytes(range(200))
REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "something else": lambda: b"PK\x03\x04" + bytes(200),
    "cut in the header": lambda: wrap(OLD, 9)[:40],
    "no segments": lambda: wrap(OLD, 9),
    "no end": lambda: wrap(OLD, 9, delta.encode_data(b"123456789"), end=b""),
    "something behind the end": lambda: wrap(OLD, 9, delta.encode_data(b"123456789")) + b"x",
    "too much": lambda: wrap(OLD, 8, delta.encode_data(b"123456789")),
    "too little": lambda: wrap(OLD, 10, delta.encode_data(b"123456789")),
    "an unknown segment": lambda: wrap(OLD, 9, b"\x09"),
    "an empty segment": lambda: wrap(OLD, 9, delta.encode_copy(0, 0), delta.encode_data(b"123456789")),
    "a copy beyond the end": lambda: wrap(OLD, 9, delta.encode_copy(195, 9)),
    "a copy from far away": lambda: wrap(OLD, 9, delta.encode_copy(2**64 - 4, 9)),
    "a difference beyond the end": lambda: wrap(OLD, 8, delta.encode_diff(196, bytes(8), bytes(8), 4, signed=False)),
    "a block that is too large": lambda: wrap(OLD, 2**40, bytes([delta.DATA]) + struct.pack("<II", 2**31, 4) + b"abcd"),
    "numbers of three bytes": lambda: wrap(OLD, 9, bytes([delta.DIFF]) + struct.pack("<QIBB3I", 0, 9, 3, 0, 3, 3, 3)),
    "half a number": lambda: wrap(OLD, 9, bytes([delta.DIFF]) + struct.pack("<QIBB4I", 0, 9, 4, 0, 2, 2, 2, 2)),
    "a bomb": lambda: wrap(OLD, BLOCK, bomb(BLOCK)),
    "packed longer than unpacked": lambda: wrap(OLD, 4, bytes([delta.DATA]) + struct.pack("<II", 4, 2**32 - 1)),
    "what is no deflate": lambda: wrap(OLD, 9, bytes([delta.DATA]) + struct.pack("<II", 9, 4) + b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_delta_is_refused(kind):
    with pytest.raises(IntegrityError):
        apply(REFUSED[kind](), OLD)


def test_an_old_content_that_became_shorter_is_noticed():
    with pytest.raises(IntegrityError):
        apply(wrap(OLD, 9, delta.encode_copy(190, 9)), OLD[:195])


def test_another_version_is_named():
    raw = bytearray(wrap(OLD, 0))
    raw[12] = 2
    with pytest.raises(UnsupportedError, match="version 2"):
        apply(bytes(raw), OLD)


@settings(max_examples=300)
@given(data=st.data())
def test_damage_anywhere_gives_an_error_or_other_bytes_of_that_length(data):
    old = bytes(range(256)) * 4
    new = old[:500] + bytes(byte ^ 5 for byte in old[500:900]) + old[:124]
    raw = bytearray(make(old, new, ([Tensor("a", 480, 440, 4, False)], [Tensor("a", 480, 440, 4, False)])))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    given_ = 0
    try:
        file = io.BytesIO(raw)
        found = delta.read_header(file.read)
        for piece in delta.decode(found, file.read, lambda offset, length: old[offset : offset + length]):
            given_ += len(piece)
            assert len(piece) <= BLOCK
            assert given_ <= found.new_size
    except (IntegrityError, UnsupportedError):
        return
    assert given_ == found.new_size
