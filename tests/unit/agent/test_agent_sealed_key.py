"""The key of encrypted models: whose key opens it, what happens when that changes, what is said when there is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.agent import memory_file, sealed
from skerry.agent.disk import Disk
from skerry.agent.sealed import Ring, Vault
from skerry.agent.settings import ProtectionSettings
from skerry.api.errors import IntegrityError, InvalidError, StorageFullError, UnavailableError, UnsupportedError
from skerry.api.kinds.variants import Blob
from skerry.core.manifest import digest_of


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(pem(key))
    return key


def ring(root: Path) -> Ring:
    return sealed.read_ring((root / sealed.FILE).read_bytes())


def test_the_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    make(tmp_path / "device.pem")
    vault = Vault(tmp_path)
    assert vault.key() is vault.key()
    assert Vault(tmp_path).key() == vault.key()
    assert (tmp_path / sealed.FILE).stat().st_mode & 0o777 == 0o600
    assert vault.key().secret not in (tmp_path / sealed.FILE).read_bytes()
    assert vault.key().secret.hex() not in repr(vault.key())


def test_a_renewal_keeps_the_key_whenever_the_power_fails(tmp_path: Path) -> None:
    old = make(tmp_path / "device.pem")
    key = Vault(tmp_path).key()
    following = make(tmp_path / "pending.key")
    Vault(tmp_path).rewrap(following)
    assert Vault(tmp_path).key() == key, "the present one still opens it, and the next one is not forgotten"
    assert len(ring(tmp_path).wraps) == 2
    (tmp_path / "device.pem").write_bytes(pem(following))
    assert Vault(tmp_path).key() == key
    assert len(ring(tmp_path).wraps) == 2, "it is not over yet"
    (tmp_path / "pending.key").unlink()
    assert Vault(tmp_path).key() == key
    assert len(ring(tmp_path).wraps) == 1, "the old one opens nothing any more"
    (tmp_path / "device.pem").write_bytes(pem(old))
    assert Vault(tmp_path).key() != key


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    make(tmp_path / "device.pem")
    first = Vault(tmp_path).key()
    make(tmp_path / "device.pem")
    assert Vault(tmp_path).key().id != first.id


def test_a_key_file_takes_over_from_the_identity_and_is_asked_for_from_then_on(tmp_path: Path) -> None:
    make(tmp_path / "device.pem")
    first = Vault(tmp_path).key()
    make(tmp_path / "key.pem")
    named = ProtectionSettings(key=str(tmp_path / "key.pem"))
    assert Vault(tmp_path, named).key() == first
    (tmp_path / "device.pem").unlink()
    assert Vault(tmp_path, named).key() == first, "the identity is not needed any more"
    make(tmp_path / "device.pem")
    with pytest.raises(UnavailableError, match="was wrapped to another key"):
        Vault(tmp_path).key()
    make(tmp_path / "key.pem")
    with pytest.raises(UnavailableError, match=r"set protection\.key to the file that was used"):
        Vault(tmp_path, named).key()
    Vault(tmp_path, named).rewrap(make(tmp_path / "pending.key"))
    assert ring(tmp_path).source == "file", "a renewal of the identity is none of its business"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is no"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "not an EC key on P-256"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "not an EC key on P-256"),
        (b"x" * 100_000, "larger than"),
    ],
)
def test_a_file_that_is_no_key_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(InvalidError, match=words) as raised:
        Vault(tmp_path, ProtectionSettings(key=str(tmp_path / "key.pem"))).key()
    assert "key.pem" in raised.value.element


def test_a_key_that_is_away_may_come_back_and_none_at_all_does_not(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is the volume mounted"):
        Vault(tmp_path, ProtectionSettings(key=str(tmp_path / "away" / "key.pem"))).key()
    with pytest.raises(UnsupportedError, match="no key to encrypt models with"):
        Vault(tmp_path).key()
    assert not (tmp_path / sealed.FILE).exists()


def test_what_the_hub_is_told(tmp_path: Path) -> None:
    assert sealed.source_of(tmp_path, ProtectionSettings()) == ""
    make(tmp_path / "device.pem")
    assert sealed.source_of(tmp_path, ProtectionSettings()) == "identity"
    named = ProtectionSettings(key=str(tmp_path / "key.pem"))
    assert sealed.source_of(tmp_path, named) == ""
    make(tmp_path / "key.pem")
    assert sealed.source_of(tmp_path, named) == "file"


def test_a_damaged_ring_is_named_and_stops_no_renewal(tmp_path: Path) -> None:
    key = make(tmp_path / "device.pem")
    (tmp_path / sealed.FILE).write_bytes(b"{")
    with pytest.raises(InvalidError, match="remove it"):
        Vault(tmp_path).key()
    Vault(tmp_path).rewrap(key)
    assert (tmp_path / sealed.FILE).read_bytes() == b"{"


@settings(max_examples=100)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "wraps", "source", "recipient", "sealed"]), inner, max_size=4)
        ),
        max_leaves=12,
    ).map(msgspec.json.encode)
)
def test_no_bytes_break_the_ring(raw: bytes) -> None:
    try:
        found = sealed.read_ring(raw)
    except InvalidError:
        return
    assert sealed.read_ring(msgspec.json.encode(found)) == found


# --- files in memory ----------------------------------------------------------------------------------------------


def test_a_file_in_memory_is_read_by_its_path_and_cannot_be_changed() -> None:
    with memory_file.created("test") as descriptor:
        os.write(descriptor, b"a model")
        memory_file.freeze(descriptor)
        assert memory_file.path_of(descriptor).read_bytes() == b"a model"
        assert "memfd" in os.readlink(memory_file.path_of(descriptor))
        with pytest.raises(PermissionError):
            os.write(descriptor, b"!")
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_without_a_memfd_it_is_an_unnamed_file_on_a_tmpfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    try:
        descriptor = memory_file.create("test")
    except UnsupportedError:
        pytest.skip("this machine has no tmpfs that tests may write to")
    try:
        assert memory_file.is_tmpfs(descriptor)
        assert os.fstat(descriptor).st_nlink == 0
        os.write(descriptor, b"a model")
        memory_file.freeze(descriptor)
        assert memory_file.path_of(descriptor).read_bytes() == b"a model"
    finally:
        os.close(descriptor)


def test_a_disk_is_no_tmpfs_and_is_never_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "f").open("wb") as file:
        on_memory = memory_file.is_tmpfs(file.fileno())
    if on_memory:
        pytest.skip("the tests' own directory lies on a tmpfs")
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(memory_file, "_TMPFS_PLACES", (str(tmp_path), str(tmp_path / "nowhere")))
    with pytest.raises(UnsupportedError, match="has no memfd, and no tmpfs"):
        memory_file.check()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_swap_on_a_disk_is_told_from_swap_in_memory(tmp_path: Path) -> None:
    (tmp_path / "swaps").write_text(
        "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0   partition\t1000\t0\t100\n/swapfile    file\t1000\t0\t-2\n\n"
    )
    assert memory_file.swaps(tmp_path / "swaps") == ["/swapfile"]
    assert memory_file.swaps(tmp_path / "none") == []


# --- what is done with files --------------------------------------------------------------------------------------


CONTENT = bytes(range(256)) * 1000
BLOB = Blob(digest=digest_of(CONTENT), size=len(CONTENT))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path / "state")
    make(made.root / "device.pem")
    return made


def test_a_blob_goes_from_one_form_to_the_other_and_back(disk: Disk) -> None:
    assert not disk.sealed.adopt(BLOB)
    disk.blob(BLOB).write_bytes(CONTENT)
    assert disk.sealed.adopt(BLOB)
    disk.blob(BLOB).unlink()
    assert disk.missing_bytes([BLOB]) == disk.sealed.missing_bytes([BLOB]) == 0
    assert (disk.lacking_bytes(BLOB), disk.sealed.lacking_bytes(BLOB)) == (len(CONTENT), 0)
    with disk.open_blob(BLOB) as content:
        assert (content.size, content.read(7), content.pread(5, 70_000)) == (
            len(CONTENT),
            CONTENT[:7],
            CONTENT[70_000:][:5],
        )
    assert disk.adopt(BLOB)
    assert disk.blob(BLOB).read_bytes() == CONTENT


def test_a_damaged_blob_of_one_form_is_none_of_the_other(disk: Disk) -> None:
    disk.blob(BLOB).write_bytes(CONTENT[:-1] + b"!")
    assert not disk.sealed.adopt(BLOB)
    assert not disk.blob(BLOB).exists()
    disk.blob(BLOB).write_bytes(CONTENT)
    disk.sealed.adopt(BLOB)
    disk.blob(BLOB).unlink()
    with disk.sealed.blob(BLOB).open("r+b") as file:
        file.seek(100_000)
        file.write(b"!")
    assert not disk.adopt(BLOB)
    assert not disk.sealed.blob(BLOB).exists()
    assert not disk.blob(BLOB).exists()


def test_what_turns_out_to_be_something_else_gets_no_name(disk: Disk) -> None:
    for cache in (disk, disk.sealed):
        for pieces in ([CONTENT[:-1]], [CONTENT, b"!"], [CONTENT[:-1], b"!"]):
            with pytest.raises(IntegrityError):
                cache.write_blob(BLOB, pieces)
            assert [path.name for path in disk.blob(BLOB).parent.iterdir()] == []


def test_a_full_disk_is_named_and_leaves_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for cache in (disk, disk.sealed):
        with pytest.raises(StorageFullError):
            cache.write_blob(BLOB, [CONTENT])
        assert [path.name for path in disk.blob(BLOB).parent.iterdir()] == []


def test_without_its_key_nothing_is_judged_or_removed(disk: Disk) -> None:
    make(disk.root / "key.pem")
    named = ProtectionSettings(key=str(disk.root / "key.pem"))
    first = Disk(disk.root, vault=Vault(disk.root, named))
    first.sealed.write_blob(BLOB, [CONTENT])
    make(disk.root / "key.pem")
    other = Disk(disk.root, vault=Vault(disk.root, named))
    with pytest.raises(UnavailableError):
        other.sealed.has_blob(BLOB)
    assert other.sealed.blob(BLOB).exists()


def test_the_forms_of_a_blob_are_kept_and_removed_apart(disk: Disk) -> None:
    names = [disk.blob(BLOB).name, f"{disk.blob(BLOB).name}.partial", f".{disk.blob(BLOB).name}.7.tmp"]
    names += [name.replace(disk.blob(BLOB).name, disk.sealed.blob(BLOB).name) for name in names]
    for kept, left in ((BLOB.digest, names[:3]), (f"{BLOB.digest}.sealed", names[3:])):
        for name in names:
            (disk.blob(BLOB).parent / name).touch()
        assert disk.prune_blobs(keep=[kept]) == 3
        assert sorted(path.name for path in disk.blob(BLOB).parent.iterdir()) == sorted(left)
