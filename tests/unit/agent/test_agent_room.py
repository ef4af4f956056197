"""The disk guard: what is promised, what is refused, and in which order room is made."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from tests.unit.agent.test_agent_disk import blob_of, put, slot_of

from skerry.agent import room
from skerry.agent.disk import Disk, Freed
from skerry.agent.room import Room
from skerry.api.errors import StorageFullError
from skerry.core.journal import Slot

LIMIT = 100_000


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "state", limit_bytes=LIMIT)


def laid(disk: Disk, content: bytes, *, serial: int, golden: bytes | None = None) -> Slot:
    slot = slot_of(content, golden, serial=serial)
    put(disk, content)
    if golden is not None:
        put(disk, golden)
    disk.lay_slot(slot)
    return slot


def test_what_is_needed_is_what_is_missing(disk: Disk) -> None:
    room_of = Room(disk)
    desired = slot_of(b"m" * 5000, b"g" * 300).desired
    assert room_of.needed(desired) == 5300
    disk.blob(desired.blob).with_suffix(".partial").write_bytes(b"m" * 2000)
    assert room_of.needed(desired) == 3300
    put(disk, b"m" * 5000)
    put(disk, b"g" * 300)
    assert room_of.needed(desired) == 0


def test_without_links_the_slots_copy_counts_too(disk: Disk) -> None:
    disk._links = False
    assert Room(disk).needed(slot_of(b"m" * 5000, b"g" * 300).desired) == 2 * 5300


def test_this_file_system_has_links_and_the_probe_leaves_nothing(disk: Disk) -> None:
    assert disk.links()
    assert list((disk.root / "blobs" / "sha256").iterdir()) == []


def test_what_is_promised_to_one_is_not_promised_to_another(disk: Disk) -> None:
    promises = Room(disk)
    with promises.kept(60_000, "a") as promise:
        assert not promises.fits(50_000)
        words = r"58\.6 KiB of it for others that are being fetched"
        with pytest.raises(StorageFullError, match=words) as caught, promises.kept(50_000, "b"):
            pass
        assert caught.value.element == "b"
        promise.came(30_000)
        assert promises.fits(50_000)
        promise.came(1 << 40)
        assert promise.bytes_left == 0
    assert promises.fits(LIMIT)
    assert promises.fits(0)


def test_a_refusal_says_what_was_removed_in_vain(disk: Disk) -> None:
    promises = Room(disk)
    for freed, words in (
        (Freed(3, 2048), r"; 3 unused files \(2\.0 KiB\) were removed"),
        (Freed(), "; there was nothing left to remove"),
    ):
        with pytest.raises(StorageFullError, match=words), promises.kept(2 * LIMIT, "a", freed=freed):
            pass


def test_nothing_that_is_named_is_ever_removed(disk: Disk) -> None:
    current, previous = laid(disk, b"current" * 500, serial=2), laid(disk, b"previous" * 500, serial=1)
    old = laid(disk, b"old" * 900, serial=0, golden=b"golden" * 100)
    building = disk.slot("digits", 7).with_name(".7.building")
    building.mkdir()
    (building / "model.onnx").write_bytes(b"half")
    log = disk.log("digits")
    log.write_bytes(b"today")
    log.with_name("server.log.1").write_bytes(b"yesterday" * 1000)
    wanted = put(disk, b"wanted by a benchmark")
    freed = room.free(disk, {"digits": [current, previous]}, others=[wanted.digest])
    assert freed.files == 7, "the old slot's three files and two blobs, what was half made, a log"
    assert freed.bytes > 9000
    assert sorted(path.name for path in disk.slot("digits", 1).parent.iterdir()) == ["1", "2"]
    for slot in (current, previous):
        disk.check_slot(slot)
        assert disk.has_blob(slot.desired.blob)
    assert disk.has_blob(wanted)
    assert not disk.has_blob(old.desired.blob)
    assert log.read_bytes() == b"today"
    assert room.free(disk, {"digits": [current, previous]}, others=[wanted.digest]) == Freed()


def test_pruning_day_by_day_keeps_the_logs(disk: Disk) -> None:
    log = disk.log("digits").with_name("server.log.1")
    log.write_bytes(b"yesterday")
    assert room.prune(disk, {}) == Freed()
    assert log.exists()


def test_another_workloads_slots_are_not_touched(disk: Disk) -> None:
    slot = laid(disk, b"model", serial=1)
    room.free(disk, {"other": []}, others=[slot.desired.blob.digest])
    disk.check_slot(slot)


def test_without_links_a_slots_own_copy_is_enough(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as on vfat
    assert not disk.links()
    slot = laid(disk, b"model" * 1000, serial=1, golden=b"golden" * 100)
    coming = slot_of(b"coming" * 100, serial=2)
    put(disk, b"coming" * 100)
    freed = room.free(disk, {"digits": [slot, coming]})
    assert freed.files == 2
    disk.check_slot(slot)
    assert disk.has_blob(coming.desired.blob), "it is not laid yet"
    assert not disk.blob(slot.desired.blob).exists()


def test_a_blob_with_another_name_frees_nothing(disk: Disk) -> None:
    slot = laid(disk, b"model" * 1000, serial=1)
    freed = disk.free_blobs(keep=[])
    assert (freed.files, freed.bytes) == (1, 0)
    disk.check_slot(slot)
    assert msgspec.structs.replace(slot).desired.blob == blob_of(b"model" * 1000)
