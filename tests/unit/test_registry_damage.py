"""What became damaged on a hub's disk is whole again once it is pushed again, or goes when it is deleted."""

import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skerry.api.errors import IntegrityError, NotFoundError, StorageFullError
from skerry.core import garbage
from skerry.core import manifest as manifests
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.registry.uploads import UploadSettings

REPOSITORY = "default/digits"
GOOD = b"weights" * 1000


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def content_of(root: Path, digest: str) -> Path:
    return root / "blobs" / "sha256" / digest[7:9] / digest[7:]


def traces_of(root: Path, digest: str) -> list[Path]:
    return list(root.rglob(digest[7:]))


def document(subject: bytes = b"") -> bytes:
    fields: dict[str, object] = {"schemaVersion": 2, "layers": [], "artifactType": "application/x"}
    fields["config"] = {"mediaType": "application/x", "digest": digest_of(b"{}"), "size": 2}
    if subject:
        described = {"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(subject), "size": len(subject)}
        fields["subject"] = described
    return json.dumps(fields).encode()


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


async def push(store: DirectoryStore, raw: bytes, repository: str = REPOSITORY) -> str:
    upload = await store.start_upload(repository)
    await store.append_upload(upload, _once(raw))
    await store.finish_upload(upload, digest_of(raw))
    return digest_of(raw)


async def read(store: DirectoryStore, digest: str) -> bytes:
    return b"".join([piece async for piece in store.read_blob(REPOSITORY, digest)])


@pytest.mark.parametrize("damage", [b"", b"\0" * len(GOOD), GOOD[:-1], GOOD + b"!"])
async def test_a_damaged_blob_is_whole_once_it_is_pushed_again(tmp_path: Path, damage: bytes) -> None:
    store = DirectoryStore(tmp_path)
    digest = await push(store, GOOD)
    content_of(tmp_path, digest).write_bytes(damage)
    await push(store, GOOD, "default/other")  # whoever sends it
    assert await read(store, digest) == GOOD


@pytest.mark.parametrize("damage", [b"", b"\0" * len(document()), b"{" + document()])
async def test_a_damaged_manifest_is_whole_once_it_is_pushed_again(tmp_path: Path, damage: bytes) -> None:
    store = DirectoryStore(tmp_path)
    await push(store, b"{}")
    stored = await store.put_manifest(REPOSITORY, "v1", manifests.MANIFEST_TYPE, document())
    content_of(tmp_path, stored.digest).write_bytes(damage)
    with pytest.raises(IntegrityError, match="push it again"):
        await store.get_manifest(REPOSITORY, "v1")
    await store.put_manifest(REPOSITORY, stored.digest, manifests.MANIFEST_TYPE, document())
    assert (await store.get_manifest(REPOSITORY, "v1")).raw == document()


@pytest.mark.parametrize("missing", [False, True])
async def test_a_damaged_manifest_can_be_deleted_and_keeps_no_garbage_back(tmp_path: Path, missing: bool) -> None:
    store = DirectoryStore(tmp_path)
    await push(store, b"{}")
    await store.put_manifest(REPOSITORY, "v1", manifests.MANIFEST_TYPE, document())
    referrer = await store.put_manifest(REPOSITORY, "v2", manifests.MANIFEST_TYPE, document(subject=document()))
    content = content_of(tmp_path, referrer.digest)
    content.unlink() if missing else content.write_bytes(b"rubbish")
    (before,) = await store.survey()
    assert "cannot be read" in garbage.plan(before, {}, fresh_after=time.time_ns() * 2).problem
    await store.delete_manifest(REPOSITORY, referrer.digest)
    assert await store.list_tags(REPOSITORY) == ["v1"]
    assert traces_of(tmp_path, referrer.digest) == []  # its bytes, its link, its place among the referrers
    assert list(await store.list_referrers(REPOSITORY, digest_of(document()))) == []
    (after,) = await store.survey()
    assert garbage.plan(after, {}, fresh_after=time.time_ns() * 2).problem == ""
    with pytest.raises(NotFoundError):
        await store.delete_manifest(REPOSITORY, referrer.digest)


async def test_the_tag_of_a_damaged_manifest_can_be_deleted(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await push(store, b"{}")
    stored = await store.put_manifest(REPOSITORY, "v1", manifests.MANIFEST_TYPE, document())
    content_of(tmp_path, stored.digest).write_bytes(b"rubbish")
    await store.delete_manifest(REPOSITORY, "v1")
    assert await store.list_tags(REPOSITORY) == []
    with pytest.raises(NotFoundError):
        await store.delete_manifest(REPOSITORY, "v1")


async def test_manifests_leave_the_reserve_to_others_but_for_those_that_are_there(tmp_path: Path) -> None:
    roomy = DirectoryStore(tmp_path)
    await push(roomy, b"{}")
    await roomy.put_manifest(REPOSITORY, "v1", manifests.MANIFEST_TYPE, document())
    full = DirectoryStore(tmp_path, UploadSettings(reserve_bytes=2**62))
    other = document(subject=b"another")
    with pytest.raises(StorageFullError, match=digest_of(other)):
        await full.put_manifest(REPOSITORY, "v2", manifests.MANIFEST_TYPE, other)
    assert not content_of(tmp_path, digest_of(other)).exists()
    await full.put_manifest(REPOSITORY, "stable", manifests.MANIFEST_TYPE, document())
    assert await full.list_tags(REPOSITORY) == ["stable", "v1"]
