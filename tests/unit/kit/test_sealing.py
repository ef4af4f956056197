"""Sealed files: what goes in comes out, from anywhere, after any interruption; nothing else ever does."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError
from skerry.kit import sealing
from skerry.kit.sealing import CHUNK_BYTES, HEADER_BYTES, OVERHEAD_BYTES, SealedReader, SealedWriter, SealingKey

KEY = SealingKey(b"a key id", bytes(range(32)))
CONTENT = secrets.token_bytes(3 * CHUNK_BYTES + 1234)
RECORD = CHUNK_BYTES + OVERHEAD_BYTES


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def seal(path: Path, content: bytes, *, pieces: int = 10_000) -> None:
    with opened(path) as descriptor:
        writer = SealedWriter(descriptor, KEY, size=len(content), digest=hashlib.sha256(content).digest())
        for start in range(0, max(len(content), 1), pieces):
            writer.append(content[start : start + pieces])


def read(path: Path, key: SealingKey = KEY) -> bytes:
    with opened(path) as descriptor:
        reader = SealedReader(descriptor, key)
        return reader.pread(reader.size + 10, 0)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(CONTENT)])
def test_what_is_sealed_comes_out(tmp_path: Path, size: int) -> None:
    seal(tmp_path / "f", CONTENT[:size], pieces=70_001)
    assert read(tmp_path / "f") == CONTENT[:size]
    assert (tmp_path / "f").stat().st_size == sealing.sealed_size(size)


def test_nothing_of_it_is_in_the_file(tmp_path: Path) -> None:
    seal(tmp_path / "f", CONTENT)
    raw = (tmp_path / "f").read_bytes()
    assert not any(CONTENT[at : at + 16] in raw for at in range(0, len(CONTENT) - 16, 997))


def test_the_same_content_never_looks_the_same(tmp_path: Path) -> None:
    seal(tmp_path / "one", CONTENT[:1000])
    seal(tmp_path / "two", CONTENT[:1000])
    assert (tmp_path / "one").read_bytes()[HEADER_BYTES:] != (tmp_path / "two").read_bytes()[HEADER_BYTES:]


@settings(max_examples=40)
@given(offset=st.integers(0, len(CONTENT) + 10), length=st.integers(0, 2 * CHUNK_BYTES))
def test_it_is_read_from_anywhere(tmp_path_factory: pytest.TempPathFactory, offset: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed-anywhere"
    if not path.exists():
        seal(path, CONTENT)
    with opened(path) as descriptor:
        reader = SealedReader(descriptor, KEY)
        assert reader.pread(length, offset) == CONTENT[offset : offset + length]
        reader.seek(offset)
        assert reader.read(length) + reader.read(length) == CONTENT[offset : offset + 2 * length]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[:-1], id="a byte short"),
        pytest.param(lambda raw: raw[: HEADER_BYTES + 2 * RECORD], id="whole chunks short"),
        pytest.param(lambda raw: raw + b"x", id="a byte more"),
        pytest.param(lambda raw: raw[:HEADER_BYTES], id="header alone"),
        pytest.param(lambda raw: b"", id="nothing"),
        pytest.param(
            lambda raw: (
                raw[:HEADER_BYTES]
                + raw[HEADER_BYTES + RECORD : HEADER_BYTES + 2 * RECORD]
                + raw[HEADER_BYTES : HEADER_BYTES + RECORD]
                + raw[HEADER_BYTES + 2 * RECORD :]
            ),
            id="two chunks swapped",
        ),
        pytest.param(
            lambda raw: (
                raw[: HEADER_BYTES + RECORD]
                + raw[HEADER_BYTES : HEADER_BYTES + RECORD]
                + raw[HEADER_BYTES + 2 * RECORD :]
            ),
            id="a chunk repeated",
        ),
        *(
            pytest.param(lambda raw, at=at: raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], id=f"bit {at}")
            for at in (0, 8, 12, 20, 52, 60, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9, HEADER_BYTES + RECORD)
        ),
    ],
)
def test_what_was_tampered_with_does_not_open(tmp_path: Path, damage: object) -> None:
    seal(tmp_path / "f", CONTENT)
    raw = (tmp_path / "f").read_bytes()
    changed = damage(raw)  # type: ignore[operator]
    assert changed != raw
    (tmp_path / "f").write_bytes(changed)
    with pytest.raises(IntegrityError):
        read(tmp_path / "f")


def test_a_chunk_of_another_file_does_not_open(tmp_path: Path) -> None:
    seal(tmp_path / "one", CONTENT)
    seal(tmp_path / "two", CONTENT)
    one, two = (tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()
    (tmp_path / "one").write_bytes(one[:HEADER_BYTES] + two[HEADER_BYTES:])
    with pytest.raises(IntegrityError):
        read(tmp_path / "one")


def test_a_file_shortened_along_with_its_header_does_not_open(tmp_path: Path) -> None:
    """The size is bound to the key: what is left of a file cannot pass for a shorter one."""
    seal(tmp_path / "f", CONTENT)
    raw = bytearray((tmp_path / "f").read_bytes()[: HEADER_BYTES + RECORD])
    raw[12:20] = CHUNK_BYTES.to_bytes(8, "big")
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(IntegrityError):
        read(tmp_path / "f")


@pytest.mark.parametrize("key", [SealingKey(b"other id", KEY.secret), SealingKey(KEY.id, bytes(32))])
def test_another_key_opens_nothing(tmp_path: Path, key: SealingKey) -> None:
    seal(tmp_path / "f", CONTENT[:100])
    with pytest.raises(IntegrityError):
        read(tmp_path / "f", key)
    assert "00" not in repr(key) or key.secret.hex() not in repr(key)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_interrupted_writer_goes_on_where_the_file_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, and damaged behind the cut or not: what is counted as there is there, and the rest follows."""
    path = tmp_path_factory.mktemp("cut") / "f"
    digest = hashlib.sha256(CONTENT).digest()
    seal(path, CONTENT)
    cut = data.draw(st.integers(0, path.stat().st_size))
    os.truncate(path, cut)
    if cut and data.draw(st.booleans()):
        raw = bytearray(path.read_bytes())
        raw[data.draw(st.integers(0, cut - 1))] ^= 0x40
        path.write_bytes(raw)
    with opened(path) as descriptor:
        writer = SealedWriter(descriptor, KEY, size=len(CONTENT), digest=digest)
        here, size = b"", writer.size
        while piece := writer.pread(40_000, len(here)):
            here += piece
        assert (here, size) == (CONTENT[:size], len(here))
        writer.append(CONTENT[size:])
    assert read(path) == CONTENT


def test_no_nonce_is_ever_used_again_for_a_chunk_that_is_written_again(tmp_path: Path) -> None:
    seal(tmp_path / "f", CONTENT)
    before = (tmp_path / "f").read_bytes()
    os.truncate(tmp_path / "f", HEADER_BYTES + RECORD + 10)
    with opened(tmp_path / "f") as descriptor:
        writer = SealedWriter(descriptor, KEY, size=len(CONTENT), digest=hashlib.sha256(CONTENT).digest())
        assert writer.size == CHUNK_BYTES
        writer.append(CONTENT[CHUNK_BYTES:])
    after = (tmp_path / "f").read_bytes()
    assert after[: HEADER_BYTES + RECORD] == before[: HEADER_BYTES + RECORD]
    second = slice(HEADER_BYTES + RECORD, HEADER_BYTES + RECORD + 7)
    assert after[second] != before[second]
    assert read(tmp_path / "f") == CONTENT


def test_beginning_again_takes_another_key(tmp_path: Path) -> None:
    with opened(tmp_path / "f") as descriptor:
        writer = SealedWriter(descriptor, KEY, size=100, digest=bytes(32))
        writer.append(b"x" * 100)
        first = os.pread(descriptor, HEADER_BYTES, 0)
        writer.clear()
        assert writer.size == 0
        assert os.fstat(descriptor).st_size == 0
        writer.append(b"y" * 100)
        assert os.pread(descriptor, HEADER_BYTES, 0)[60:] != first[60:]
    assert read(tmp_path / "f") == b"y" * 100


def test_more_than_was_announced_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "f") as descriptor:
        writer = SealedWriter(descriptor, KEY, size=10, digest=bytes(32))
        with pytest.raises(IntegrityError, match="more than its 10"):
            writer.append(b"x" * 11)


def test_a_part_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    seal(tmp_path / "f", CONTENT)
    with opened(tmp_path / "f") as descriptor:
        writer = SealedWriter(descriptor, KEY, size=len(CONTENT), digest=bytes(32))
        assert writer.size == 0


@settings(max_examples=200)
@given(st.binary(max_size=HEADER_BYTES + 40) | st.binary(max_size=80).map(lambda tail: b"\x89SKSEAL\x01" + tail))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    try:
        header = sealing.parse(raw)
    except IntegrityError:
        return
    assert header.chunks <= 2**32 - 1
    assert header.file_size >= HEADER_BYTES


def test_the_format_stays_what_it_is(tmp_path: Path) -> None:
    """A file that an agent sealed before is opened by every later one."""
    golden = bytes.fromhex(GOLDEN)
    (tmp_path / "f").write_bytes(golden)
    assert read(tmp_path / "f") == b"sealed long ago"


GOLDEN = (
    "89534b5345414c0100010000000000000000000f6a8d0ccbbf95cc3ef6e2282b928a5f11a7f411b0797cdab4f17b45bc123f"
    "825c61206b6579206964c96a0325facdc327aa1a624ee5133837fdfc9baaf05f9bd0cb0208c8345f5661782bb5eb58a9ac92"
    "9084b279606c44c3c017fa3650dc5d3bb010257c663020552ad42f576df75f5f7da79fcdcb5b514fb55e6fc6ad19b98306a9"
    "e684d86851cff1b0"
)
