"""What a device's `core.ports.ArtifactSource` does with what an earlier fetch left, readable or not."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.contract.test_artifact_source_contract import (
    BLOB,
    CONTENT,
    WAIT,
    Registry,
    answer,
    fetch,
    partial_of,
    registry,  # noqa: F401
    serving_ranges,
    target,  # noqa: F401
)

from skerry.api.errors import IntegrityError, UnavailableError, UnreachableError
from skerry.drivers.registry import oci
from skerry.drivers.registry.oci import OciArtifactSource, OciSettings
from skerry.kit.sealing import CHUNK_BYTES, SealedWriter, SealingKey

# ruff: noqa: F811 - fixtures are named as they are


def test_what_the_disk_cannot_read_any_more_comes_again(registry: Registry, target: Path, monkeypatch: Any) -> None:
    registry.script, real = serving_ranges(), os.pread
    broken: list[int] = []
    partial_of(target).write_bytes(CONTENT[:600_000])

    def bad_sector(descriptor: int, size: int, offset: int) -> bytes:
        if not broken and offset + size > 300_000:
            broken.append(offset)
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", bad_sector)
    assert fetch(registry, target) == len(CONTENT)
    assert broken
    assert target.read_bytes() == CONTENT


def test_a_disk_that_fails_is_not_a_hub_that_is_away(registry: Registry, target: Path, monkeypatch: Any) -> None:
    registry.script = serving_ranges()

    def broken(descriptor: int, content: Any, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(UnavailableError, match="disk") as caught:
        fetch(registry, target)
    assert not isinstance(caught.value, UnreachableError)


def test_a_sealed_part_that_the_disk_cannot_read_is_cut_there(tmp_path: Path, monkeypatch: Any) -> None:
    key, digest, size = SealingKey(b"k" * 8, b"s" * 32), b"d" * 32, 4 * CHUNK_BYTES
    descriptor = os.open(tmp_path / "sealed", os.O_RDWR | os.O_CREAT)
    SealedWriter(descriptor, key, size=size, digest=digest).append(bytes(3 * CHUNK_BYTES))
    real = os.pread

    def bad_sector(number: int, length: int, offset: int) -> bytes:
        if offset > 2 * CHUNK_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return real(number, length, offset)

    monkeypatch.setattr(os, "pread", bad_sector)
    try:
        assert SealedWriter(descriptor, key, size=size, digest=digest).size == 2 * CHUNK_BYTES
        monkeypatch.setattr(os, "pread", lambda *_: bad_sector(0, 0, size))
        assert SealedWriter(descriptor, key, size=size, digest=digest).size == 0
    finally:
        os.close(descriptor)


def test_a_fetch_is_given_up_while_it_reads_what_is_there(registry: Registry, target: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(oci, "_CHUNK_BYTES", 1024)
    partial_of(target).write_bytes(CONTENT[:600_000])
    real, reads, go_on = os.pread, [], threading.Event()

    async def cancelled() -> None:
        loop, reading = asyncio.get_running_loop(), asyncio.Event()

        def waits(descriptor: int, size: int, offset: int) -> bytes:
            reads.append(offset)
            loop.call_soon_threadsafe(reading.set)
            go_on.wait(WAIT)
            return real(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", waits)
        source = OciArtifactSource(registry.url, None, OciSettings())
        fetching = asyncio.ensure_future(source.fetch("default/digits", BLOB, target, progress=lambda _: None))
        async with asyncio.timeout(WAIT):
            await reading.wait()
            fetching.cancel()
            await asyncio.sleep(0)  # it is told
            go_on.set()
            await asyncio.wait({fetching})

    asyncio.run(cancelled())
    assert len(reads) == 1
    assert partial_of(target).stat().st_size == 600_000


def test_what_is_there_goes_only_for_an_answer_of_the_right_length(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: iter(
        [answer("416 No", Content_Length=0)] if start else [answer("503 Busy", Content_Length=0)]
    )
    with pytest.raises(UnavailableError, match="503"):
        fetch(registry, target)
    assert partial_of(target).read_bytes() == CONTENT[:1000]


def test_of_a_source_that_may_lie_nothing_is_believed(registry: Registry, target: Path) -> None:
    partial_of(target).write_bytes(CONTENT[:1000])
    registry.script = lambda start: iter([answer("416 No", Content_Length=0)])
    with pytest.raises(IntegrityError, match="no such part"):
        fetch(registry, target, may_lie=True)
    assert partial_of(target).read_bytes() == CONTENT[:1000]
