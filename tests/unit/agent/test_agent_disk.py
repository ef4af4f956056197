"""The agent's disk: atomic, private, verified, bounded; and honest when it is full."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skerry.agent import disk as disks
from skerry.agent.disk import AcceptedDesired, Disk
from skerry.api.errors import IntegrityError, InvalidError, NotFoundError, StorageFullError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core.journal import Slot, State
from skerry.core.messages import WorkloadDesired


def blob_of(content: bytes) -> Blob:
    return Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))


def slot_of(model: bytes, golden: bytes | None = None, *, serial: int = 1) -> Slot:
    desired = WorkloadDesired(
        name="digits",
        rollout="digits-1",
        revision=1,
        model="digits",
        model_version="digits-v1",
        version="v1",
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository="default/digits",
        blob=blob_of(model),
        golden=None if golden is None else blob_of(golden),
    )
    return Slot(serial=serial, desired=desired)


def put(disk: Disk, content: bytes) -> Blob:
    blob = blob_of(content)
    disk.blob(blob).write_bytes(content)
    return blob


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "state")


def modes(root: Path) -> Iterator[tuple[Path, int]]:
    for path in [root, *root.rglob("*")]:
        yield path, path.stat().st_mode & 0o777


def test_everything_is_its_owners_alone(disk: Disk) -> None:
    put(disk, b"model")
    disk.write("identity.json", b"{}")
    disk.write_desired(AcceptedDesired(manifest_version=1, envelope=b"{}"))
    disk.write_journal(State(name="digits"))
    disk.lay_slot(slot_of(b"model"))
    disk.log("digits").touch()
    assert (disk.root.stat().st_mode & 0o777) == 0o700, "so nobody gets at anything below"
    for path, mode in modes(disk.root):
        if path.name.endswith(".json"):
            assert mode == 0o600, path


def test_a_second_agent_is_told_who_is_there(disk: Disk, tmp_path: Path) -> None:
    with disk.lock():
        other = Disk(tmp_path / "state")
        with pytest.raises(UnavailableError, match=rf"another agent \(process {os.getpid()}\)") as caught, other.lock():
            pass
        assert "--state-dir" in caught.value.hint
    with disk.lock():
        pass


def test_the_lock_ends_with_its_process(disk: Disk) -> None:
    code = f"""
import os, signal
from pathlib import Path
from skerry.agent.disk import Disk
with Disk(Path({str(disk.root)!r})).lock():
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with disk.lock():
        pass


def test_a_state_directory_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="state directory"):
        Disk(tmp_path / "file" / "state")


def test_journals_come_back_and_damaged_ones_are_set_aside(disk: Disk) -> None:
    for name in ("a", "b", "c.d"):
        disk.write_journal(State(name=name, phase="Running"))
    broken = disk.root / "workloads" / "b" / "journal.json"
    broken.write_bytes(broken.read_bytes()[:-5])
    (disk.root / "workloads" / "c.d" / "journal.json").write_bytes(b'{"name":"other"}')
    states, damaged = disk.read_journals()
    assert [state.name for state in states] == ["a"]
    assert damaged == ["b", "c.d"]
    assert disk.read_journals() == (states, [])


def test_what_is_no_workload_stops_none_and_is_let_lie(disk: Disk) -> None:
    """A file manager's droppings, a file system's own directory, journals that cannot be read or be set aside."""
    workloads = disk.root / "workloads"
    disk.write_journal(State(name="good", phase="Running"))
    (workloads / ".DS_Store").write_text("x")
    (workloads / "stray").write_text("x")
    (workloads / "lost+found").mkdir()
    for name in ("dir", "loop", "stuck"):
        (workloads / name).mkdir()
    (workloads / "dir" / "journal.json").mkdir()
    (workloads / "loop" / "journal.json").symlink_to("journal.json")  # open says ELOOP, whoever asks
    (workloads / "stuck" / "journal.json").mkdir()
    (workloads / "stuck" / "journal.damaged").write_text("x")
    states, damaged = disk.read_journals()
    assert [state.name for state in states] == ["good"]
    assert damaged == ["dir", "loop", "stuck"]
    assert disk.workloads() == ["dir", "good", "loop", "stuck"]
    assert disk.read_journals() == (states, ["stuck"]), "the others are set aside"


def test_an_accepted_state_comes_back(disk: Disk) -> None:
    assert disk.read_desired() is None
    accepted = AcceptedDesired(manifest_version=7, envelope=b"\x00raw")
    disk.write_desired(accepted)
    assert disk.read_desired() == accepted
    (disk.root / "desired.json").write_bytes(b"{")
    with pytest.raises(InvalidError):
        disk.read_desired()


def test_a_slot_is_complete_or_not_there(disk: Disk) -> None:
    slot = slot_of(b"model", b"golden")
    put(disk, b"model")
    with pytest.raises(NotFoundError):
        disk.lay_slot(slot)
    assert not disk.slot("digits", 1).exists()
    put(disk, b"golden")
    for _ in range(2):
        disk.lay_slot(slot)
        assert disk.model(slot).read_bytes() == b"model"
        assert sorted(p.name for p in disk.slot("digits", 1).iterdir()) == [
            "golden.npz",
            "model.onnx",
            "signature.json",
        ]
    disk.check_slot(slot)
    assert [p.name for p in disk.slot("digits", 1).parent.iterdir()] == ["1"]


@pytest.mark.parametrize("damage", ["model.onnx", "golden.npz"])
def test_a_slot_that_changed_is_noticed(disk: Disk, damage: str) -> None:
    slot = slot_of(b"model", b"golden")
    put(disk, b"model")
    put(disk, b"golden")
    disk.lay_slot(slot)
    path = disk.slot("digits", 1) / damage
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(IntegrityError):
        disk.check_slot(slot)
    assert not disk.has_blob(blob_of(b"model" if damage == "model.onnx" else b"golden")), "nor is the cache trusted"


def test_a_tampered_blob_never_gets_into_a_slot(disk: Disk) -> None:
    slot = slot_of(b"model")
    disk.blob(slot.desired.blob).write_bytes(b"m0del")
    with pytest.raises(IntegrityError):
        disk.lay_slot(slot)
    assert not disk.slot("digits", 1).exists()
    assert not disk.has_blob(slot.desired.blob)
    assert not disk.blob(slot.desired.blob).exists(), "a damaged blob is removed, to be fetched again"


def test_erasing_and_pruning_keep_what_is_named(disk: Disk) -> None:
    kept, gone = put(disk, b"one"), put(disk, b"two")
    disk.blob(gone).with_name(disk.blob(gone).name + ".partial").write_bytes(b"t")
    part = disk.blob(kept).with_name(disk.blob(kept).name + ".partial")
    part.write_bytes(b"on")
    assert disk.partial_size(kept) == 2
    for serial in (1, 2, 3):
        disk.lay_slot(slot_of(b"one", serial=serial))
    disk.erase_slots("digits", keep={2})
    assert [p.name for p in (disk.root / "workloads/digits/slots").iterdir()] == ["2"]
    assert disk.prune_blobs(keep=[kept.digest]) == 2
    assert sorted(p.name for p in (disk.root / "blobs/sha256").iterdir()) == sorted([disk.blob(kept).name, part.name])
    disk.delete_workload("digits")
    disk.delete_workload("digits")
    assert disk.workloads() == []


def test_room_is_refused_early_with_the_amounts(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "state", limit_bytes=3000)
    put(disk, b"x" * 1000)
    disk.lay_slot(slot_of(b"x" * 1000))
    disk.check_room(1900, "model")
    with pytest.raises(StorageFullError, match=r"2\.0 KiB do not fit: 1\.0 KiB of the limit of 2\.9 KiB are in use"):
        disk.check_room(2001, "model")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(StorageFullError, match="stay in reserve"):
        Disk(tmp_path / "state", reserve_bytes=free).check_room(1 << 40, "model")


@contextmanager
def biggest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond that: the kernel's own way to be full for one process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_write_that_fails_leaves_the_old_content(disk: Disk) -> None:
    disk.write("identity.json", b"old")
    with biggest_file(4096), pytest.raises(OSError, match="File too large"):
        disk.write("identity.json", b"x" * 100_000)
    assert disk.read("identity.json") == b"old"
    assert [p.name for p in disk.root.iterdir() if p.name.startswith(".")] == []


def test_own_files_are_bounded(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "MAX_FILE_BYTES", 10)
    disk.write("identity.json", b"x" * 11)
    with pytest.raises(InvalidError, match="larger than"):
        disk.read("identity.json")
