"""What every `core.ports.ArtifactStore` does, whatever it is made of."""

import asyncio
import errno
import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration import docker_registry
from tests.integration.docker_registry import needs_docker_registry

from skerry.api.errors import (
    ConflictError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
)
from skerry.core import manifest as manifests
from skerry.core.ports import ArtifactStore, Manifest
from skerry.core.reference import Reference
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.registry.directory import MAX_REFERRERS, DirectoryStore
from skerry.drivers.registry.elsewhere import ElsewhereStore
from skerry.drivers.registry.uploads import UploadSettings

REPOSITORY = "default/digits"
Open = Callable[..., ArtifactStore]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(params=["directory", pytest.param("elsewhere", marks=needs_docker_registry)])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[ElsewhereStore] = []

    def in_directory(**settings: float) -> ArtifactStore:
        return DirectoryStore(tmp_path / "artifacts", UploadSettings(**settings))  # type: ignore[arg-type]

    def elsewhere(**settings: float) -> ArtifactStore:
        place = Reference(
            host=request.getfixturevalue("registry"), repository=f"t{digest_of(str(tmp_path).encode())[7:]}"
        )
        client = open_registry(place.host, None, plain_http=True)
        store = ElsewhereStore(place, client, tmp_path / "artifacts/uploads", UploadSettings(**settings))  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield in_directory if request.param == "directory" else elsewhere
    for store in opened:
        store.close()


@pytest.fixture
def store(opening: Open) -> ArtifactStore:
    return opening()


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def push(store: ArtifactStore, raw: bytes, repository: str = REPOSITORY) -> str:
    upload = await store.start_upload(repository)
    await store.append_upload(upload, pieces(raw))
    await store.finish_upload(upload, digest_of(raw))
    return digest_of(raw)


async def read(store: ArtifactStore, digest: str, repository: str = REPOSITORY, **part: int) -> bytes:
    return b"".join([chunk async for chunk in store.read_blob(repository, digest, **part)])


def described(raw: bytes, media_type: str = "application/x") -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(raw), "size": len(raw)}


def document(config: bytes = b"{}", layers: Iterable[bytes] = (), **more: object) -> bytes:
    fields = {"schemaVersion": 2, "config": described(config), "layers": [described(layer) for layer in layers]}
    return json.dumps(fields | more).encode()


async def put(store: ArtifactStore, raw: bytes, reference: str = "") -> Manifest:
    return await store.put_manifest(REPOSITORY, reference or digest_of(raw), manifests.MANIFEST_TYPE, raw)


def files_under(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def matching(root: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in root.glob(pattern)]


async def test_an_upload_becomes_a_blob_of_its_repository_alone(store: ArtifactStore) -> None:
    raw = bytes(range(256)) * 10_000
    upload = await store.start_upload(REPOSITORY)
    assert await store.upload_repository(upload) == REPOSITORY
    assert await store.append_upload(upload, pieces(raw[:1000], b"", raw[1000:])) == len(raw)
    with pytest.raises(NotFoundError):
        await store.stat_blob(REPOSITORY, digest_of(raw))
    await store.finish_upload(upload, digest_of(raw))
    assert await store.stat_blob(REPOSITORY, digest_of(raw)) == len(raw)
    assert await read(store, digest_of(raw)) == raw
    with pytest.raises(NotFoundError):
        await store.stat_blob("default/other", digest_of(raw))
    with pytest.raises(NotFoundError):
        await read(store, digest_of(raw), "default/other")
    with pytest.raises(NotFoundError):
        await store.upload_size(upload)


async def test_a_large_blob_passes_through_little_memory(store: ArtifactStore) -> None:
    chunk, count = bytes(range(256)) * 256, 1024
    digest = hashlib.sha256()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            digest.update(chunk)
            yield chunk

    tracemalloc.start()
    try:
        upload = await store.start_upload(REPOSITORY)
        await store.append_upload(upload, chunks())
        await store.finish_upload(upload, f"sha256:{digest.hexdigest()}")
        size = 0
        async for part in store.read_blob(REPOSITORY, f"sha256:{digest.hexdigest()}"):
            size += len(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == len(chunk) * count
    assert peak < size / 8


@pytest.mark.parametrize(
    ("start", "length"), [(0, 0), (0, 1), (5, None), (999_999, 10), (1_000_000, None), (3, 700_000)]
)
async def test_any_part_of_a_blob_can_be_read(store: ArtifactStore, start: int, length: int | None) -> None:
    raw = bytes(range(250)) * 4000
    digest = await push(store, raw)
    part = {"start": start} if length is None else {"start": start, "length": length}
    assert await read(store, digest, **part) == raw[start : None if length is None else start + length]


async def test_an_upload_says_where_to_go_on(store: ArtifactStore) -> None:
    upload = await store.start_upload(REPOSITORY)
    assert await store.append_upload(upload, pieces(b"abc"), offset=0) == 3
    assert await store.upload_size(upload) == 3
    for wrong in (0, 2, 4):
        with pytest.raises(ConflictError, match="has 3 bytes"):
            await store.append_upload(upload, pieces(b"x"), offset=wrong)
    assert await store.append_upload(upload, pieces(b"def"), offset=3) == 6
    await store.finish_upload(upload, digest_of(b"abcdef"))


async def test_an_upload_goes_on_after_a_restart(opening: Open) -> None:
    upload = await opening().start_upload(REPOSITORY)
    await opening().append_upload(upload, pieces(b"abc"))
    store = opening()
    assert await store.upload_size(upload) == 3
    await store.append_upload(upload, pieces(b"def"), offset=3)
    await store.finish_upload(upload, digest_of(b"abcdef"))
    assert await read(opening(), digest_of(b"abcdef")) == b"abcdef"


async def test_what_a_sender_sent_before_it_broke_off_is_kept(store: ArtifactStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a" * 1_500_000
        yield b"b" * 10
        raise ConnectionError("gone")

    upload = await store.start_upload(REPOSITORY)
    with pytest.raises(ConnectionError):
        await store.append_upload(upload, broken())
    assert await store.upload_size(upload) == 1_500_010


async def test_an_append_that_is_cancelled_keeps_what_came(store: ArtifactStore) -> None:
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"abc"
        waiting.set()
        await asyncio.Event().wait()

    upload = await store.start_upload(REPOSITORY)
    appending = asyncio.ensure_future(store.append_upload(upload, slow()))
    await waiting.wait()
    with pytest.raises(ConflictError, match="another request"):
        await store.append_upload(upload, pieces(b"x"))
    with pytest.raises(ConflictError):
        await store.cancel_upload(upload)
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert await store.upload_size(upload) == 3
    await store.finish_upload(upload, digest_of(b"abc"))


async def test_a_wrong_digest_drops_the_upload(store: ArtifactStore, tmp_path: Path) -> None:
    upload = await store.start_upload(REPOSITORY)
    await store.append_upload(upload, pieces(b"abc"))
    with pytest.raises(IntegrityError, match=digest_of(b"abc")):
        await store.finish_upload(upload, digest_of(b"other"))
    with pytest.raises(NotFoundError):
        await store.upload_size(upload)
    assert files_under(tmp_path) == []


async def test_a_cancelled_upload_is_gone(store: ArtifactStore, tmp_path: Path) -> None:
    upload = await store.start_upload(REPOSITORY)
    await store.cancel_upload(upload)
    for attempt in (store.upload_size(upload), store.cancel_upload(upload), store.append_upload(upload, pieces(b"x"))):
        with pytest.raises(NotFoundError):
            await attempt
    assert files_under(tmp_path) == []


@pytest.mark.parametrize("upload", ["", "..", "../../blobs", "0" * 32, "x" * 32, "a/b", "\x00"])
async def test_an_upload_that_never_was_is_not_found(store: ArtifactStore, upload: str) -> None:
    with pytest.raises(NotFoundError):
        await store.upload_size(upload)


async def test_too_large_a_blob_is_dropped_as_soon_as_it_is_seen(opening: Open, tmp_path: Path) -> None:
    store = opening(max_blob_bytes=1_000_000)
    upload = await store.start_upload(REPOSITORY)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100_000
            yield bytes(100_000)

    with pytest.raises(TooLargeError, match="1000000 bytes"):
        await store.append_upload(upload, endless())
    assert sent < 3_000_000
    assert files_under(tmp_path) == []


async def test_a_full_disk_drops_the_upload_and_nothing_else(
    opening: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opening()
    kept = await push(store, b"kept")
    before = files_under(tmp_path)
    upload = await store.start_upload(REPOSITORY)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)  # the disk's part, not ours
        with pytest.raises(StorageFullError):
            await store.append_upload(upload, pieces(b"abc"))
    assert files_under(tmp_path) == before
    assert await read(store, kept) == b"kept"
    assert await push(store, b"afterwards") == digest_of(b"afterwards")


async def test_uploads_leave_the_reserve_to_others(opening: Open, tmp_path: Path) -> None:
    store = opening(reserve_bytes=2**62)
    upload = await store.start_upload(REPOSITORY)
    with pytest.raises(StorageFullError):
        await store.append_upload(upload, pieces(b"abc"))
    assert files_under(tmp_path) == []


async def test_the_number_of_uploads_is_bounded_and_forgotten_ones_make_room(opening: Open, tmp_path: Path) -> None:
    store = opening(max_uploads=2, max_age_seconds=1000)
    old, young = await store.start_upload(REPOSITORY), await store.start_upload(REPOSITORY)
    with pytest.raises(UnavailableError, match="2 uploads"):
        await store.start_upload(REPOSITORY)
    long_ago = time.time() - 2000
    for path in matching(tmp_path, f"**/{old}/*", f"**/{old}"):
        os.utime(path, (long_ago, long_ago))
    await store.start_upload(REPOSITORY)
    assert await store.upload_size(young) == 0
    with pytest.raises(NotFoundError):
        await store.upload_size(old)


@pytest.mark.parametrize("opening", ["directory"], indirect=True)  # another registry keeps it as it likes
async def test_equal_content_is_kept_once(store: ArtifactStore, tmp_path: Path) -> None:
    raw = os.urandom(5000)
    await push(store, raw)
    await push(store, raw)
    await push(store, raw, "default/other")
    assert [path.stat().st_size for path in files_under(tmp_path)].count(5000) == 1


async def test_a_blob_goes_with_its_last_repository(store: ArtifactStore, tmp_path: Path) -> None:
    digest = await push(store, b"shared")
    await store.mount_blob("default/other", digest, source=REPOSITORY)
    await store.delete_blob(REPOSITORY, digest)
    with pytest.raises(NotFoundError):
        await store.stat_blob(REPOSITORY, digest)
    assert await read(store, digest, "default/other") == b"shared"
    await store.delete_blob("default/other", digest)
    assert files_under(tmp_path) == []
    with pytest.raises(NotFoundError):
        await store.delete_blob(REPOSITORY, digest)
    with pytest.raises(NotFoundError):
        await store.mount_blob("default/third", digest, source=REPOSITORY)


async def test_a_manifest_is_found_by_digest_and_by_tag(opening: Open) -> None:
    store = opening()
    await push(store, b"{}")
    first, second = document(), document(annotations={"n": "2"})
    stored = await put(store, first, "1.0")
    assert stored == Manifest(digest=digest_of(first), media_type=manifests.MANIFEST_TYPE, raw=first)
    await put(store, second)
    await put(store, first, "latest")
    await put(store, second, "latest")  # tags move
    store = opening()
    assert await store.get_manifest(REPOSITORY, "1.0") == stored
    assert await store.get_manifest(REPOSITORY, digest_of(first)) == stored
    assert (await store.get_manifest(REPOSITORY, "latest")).raw == second
    assert list(await store.list_tags(REPOSITORY)) == ["1.0", "latest"]
    for repository, reference in ((REPOSITORY, "2.0"), ("default/other", "1.0"), (REPOSITORY, digest_of(b""))):
        with pytest.raises(NotFoundError):
            await store.get_manifest(repository, reference)
    with pytest.raises(NotFoundError):
        await store.list_tags("default/other")


async def test_a_manifest_needs_what_it_refers_to_in_the_same_repository(store: ArtifactStore) -> None:
    await push(store, b"{}")
    await push(store, b"layer", "default/other")
    raw = document(layers=[b"layer"])
    with pytest.raises(NotFoundError, match=digest_of(b"layer")):
        await put(store, raw, "1")
    await store.mount_blob(REPOSITORY, digest_of(b"layer"), source="default/other")
    index = json.dumps({"schemaVersion": 2, "manifests": [described(raw, manifests.MANIFEST_TYPE)]}).encode()
    with pytest.raises(NotFoundError, match=digest_of(raw)):
        await store.put_manifest(REPOSITORY, "1", manifests.INDEX_TYPE, index)
    await put(store, raw)
    await store.put_manifest(REPOSITORY, "1", manifests.INDEX_TYPE, index)
    assert (await store.get_manifest(REPOSITORY, "1")).media_type == manifests.INDEX_TYPE


async def test_a_manifest_under_another_digest_is_refused(store: ArtifactStore) -> None:
    await push(store, b"{}")
    with pytest.raises(IntegrityError):
        await put(store, document(), digest_of(b"other"))
    with pytest.raises(InvalidError):
        await store.put_manifest(REPOSITORY, "1", manifests.MANIFEST_TYPE, b"rubbish")


@pytest.mark.parametrize("opening", ["directory"], indirect=True)  # whose files these are
async def test_damage_on_the_disk_is_not_passed_on(store: ArtifactStore, tmp_path: Path) -> None:
    await push(store, b"{}")
    await put(store, document(), "1")
    (content,) = matching(tmp_path, f"**/blobs/sha256/*/{digest_of(document()).removeprefix('sha256:')}")
    content.write_bytes(document(annotations={"changed": "yes"}))
    with pytest.raises(IntegrityError, match="damaged"):
        await store.get_manifest(REPOSITORY, "1")


async def test_referrers_come_and_go(store: ArtifactStore) -> None:
    await push(store, b"{}")
    subject = document()
    referring = [document(subject=described(subject), annotations={"n": str(n)}) for n in range(3)]
    for raw in referring:
        await put(store, raw)
    found = await store.list_referrers(REPOSITORY, digest_of(subject))
    assert [m.digest for m in found] == sorted(map(digest_of, referring))
    assert list(await store.list_referrers("default/other", digest_of(subject))) == []
    await store.delete_manifest(REPOSITORY, digest_of(referring[0]))
    assert len(await store.list_referrers(REPOSITORY, digest_of(subject))) == 2


@pytest.mark.parametrize("opening", ["directory"], indirect=True)  # the other registry's bounds are its own
async def test_the_number_of_referrers_is_bounded(store: ArtifactStore, tmp_path: Path) -> None:
    await push(store, b"{}")
    first, more = (document(subject=described(document()), annotations={"n": n}) for n in ("1", "more"))
    await put(store, first)
    (link,) = matching(tmp_path, f"**/_referrers/*/{digest_of(first).removeprefix('sha256:')}")
    for number in range(MAX_REFERRERS - 1):  # as pushing so many would leave it, without its fsyncs
        link.with_name(f"{number:064x}").touch()
    with pytest.raises(TooLargeError):
        await put(store, more)
    with pytest.raises(NotFoundError):
        await store.get_manifest(REPOSITORY, digest_of(more))
    await put(store, first)  # which is there already


@pytest.mark.parametrize("opening", ["directory"], indirect=True)  # some registries remove no tags
async def test_a_deleted_manifest_takes_its_tags_along_and_a_deleted_tag_only_itself(store: ArtifactStore) -> None:
    await push(store, b"{}")
    raw = document()
    for tag in ("a", "b", "c"):
        await put(store, raw, tag)
    await put(store, document(annotations={"n": "2"}), "other")
    await store.delete_manifest(REPOSITORY, "a")
    assert list(await store.list_tags(REPOSITORY)) == ["b", "c", "other"]
    await store.delete_manifest(REPOSITORY, digest_of(raw))
    assert list(await store.list_tags(REPOSITORY)) == ["other"]
    with pytest.raises(NotFoundError):
        await store.delete_manifest(REPOSITORY, "b")


async def test_everything_at_once_stays_whole(store: ArtifactStore) -> None:
    await push(store, b"{}")

    async def one(number: int) -> None:
        layer = b"%d" % (number % 4) * 50_000
        await push(store, layer)
        await put(store, document(layers=[layer]), f"tag-{number % 3}")
        await put(store, document(layers=[layer], annotations={"n": str(number)}), "shared")

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(one(number))
    for tag in await store.list_tags(REPOSITORY):
        found = await store.get_manifest(REPOSITORY, tag)
        for part in manifests.parse(found.raw, found.media_type).content:
            assert digest_of(await read(store, part.digest)) == part.digest


async def test_only_the_owner_can_read_it(store: ArtifactStore, tmp_path: Path) -> None:
    await push(store, b"{}")
    await put(store, document(), "1")
    upload = await store.start_upload(REPOSITORY)
    await store.append_upload(upload, pieces(b"abc"))
    root = tmp_path / "artifacts"
    assert {oct(path.stat().st_mode & 0o077) for path in files_under(root)} == {"0o0"}


_NAMES = st.text(max_size=30) | st.from_regex(r"[a-zA-Z0-9._/-]{0,30}")


@given(repository=_NAMES, reference=_NAMES)
def test_no_name_leads_out_of_the_directory(
    tmp_path_factory: pytest.TempPathFactory, repository: str, reference: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "names" / "artifacts"
    store = DirectoryStore(root)

    async def attempts() -> None:
        for attempt in (
            store.get_manifest(repository, reference),
            store.list_tags(repository),
            store.stat_blob(repository, reference),
            store.upload_size(reference),
            store.delete_manifest(repository, reference),
            store.mount_blob(repository, digest_of(b""), source=reference),
        ):
            with pytest.raises((InvalidError, NotFoundError)):
                await attempt
        try:
            await store.cancel_upload(await store.start_upload(repository))
        except InvalidError:
            return

    asyncio.run(attempts())
    assert [path.name for path in root.parent.iterdir()] == ["artifacts"]
    assert files_under(root) == []
