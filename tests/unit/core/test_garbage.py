"""What of a registry nothing needs: by the rules' own words, and never what a collection that is raced still needs."""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skerry.api.errors import NotFoundError
from skerry.core import garbage
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest, StoredLink, StoredRepository
from skerry.drivers.registry.directory import DirectoryStore

T = TypeVar("T")
OLD, FRESH, LIMIT = 10, 1000, 100
GRACE = 100


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def described(raw: bytes, media_type: str = "application/x") -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(raw), "size": len(raw)}


def image(*layers: bytes, subject: bytes = b"", kind: str = "application/x", **more: Any) -> bytes:
    fields: dict[str, Any] = {"schemaVersion": 2, "artifactType": kind, "config": described(b"{}")}
    fields["layers"] = [described(layer) for layer in layers]
    if subject:
        fields["subject"] = described(subject, manifests.INDEX_TYPE)
    return json.dumps(fields | more).encode()


def index(*images: bytes, **more: Any) -> bytes:
    listed = [described(one, manifests.MANIFEST_TYPE) for one in images]
    return json.dumps({"schemaVersion": 2, "manifests": listed} | more).encode()


def stored(
    *documents: bytes,
    blobs: tuple[bytes, ...] = (),
    tags: dict[str, bytes] | None = None,
    fresh: tuple[bytes, ...] = (),
) -> StoredRepository:
    def made(raw: bytes) -> StoredLink:
        media_type = manifests.INDEX_TYPE if b'"manifests"' in raw else manifests.MANIFEST_TYPE
        found = Manifest(digest=digest_of(raw), media_type=media_type, raw=raw)
        return StoredLink(size=len(raw), touched=FRESH if raw in fresh else OLD, document=garbage.outline(found))

    return StoredRepository(
        name="default/digits",
        tags={tag: digest_of(raw) for tag, raw in (tags or {}).items()},
        manifests={digest_of(raw): made(raw) for raw in documents},
        blobs={
            digest_of(raw): StoredLink(size=len(raw), touched=FRESH if raw in fresh else OLD) for raw in (b"{}", *blobs)
        },
    )


def going(repository: StoredRepository, needs: dict[str, str] | None = None) -> set[str]:
    return {item.digest for item in garbage.plan(repository, needs or {}, fresh_after=LIMIT).garbage}


ONE, TWO = image(b"one"), image(b"two")
TOP = index(ONE, TWO)
CARD = image(b"card", subject=TOP)
EVERYTHING = {digest_of(raw) for raw in (ONE, TWO, TOP, CARD, b"one", b"two", b"card", b"{}")}


def whole(**more: Any) -> StoredRepository:
    return stored(ONE, TWO, TOP, CARD, blobs=(b"one", b"two", b"card"), **more)


def test_what_nothing_names_goes_from_the_top_down_and_blobs_last() -> None:
    order = [item.digest for item in garbage.plan(whole(), {}, fresh_after=LIMIT).garbage]
    assert set(order) == EVERYTHING
    top = order.index(digest_of(TOP))
    assert all(top < order.index(digest_of(raw)) for raw in (ONE, TWO, CARD))
    assert all(order.index(digest_of(blob)) > 3 for blob in (b"one", b"two", b"card", b"{}"))


def test_a_tag_a_need_or_a_late_look_keeps_all_of_it() -> None:
    assert going(whole(tags={"v1": TOP})) == set()
    assert going(whole(), {digest_of(TOP): "modelversion default/digits-v1"}) == set()
    assert going(whole(fresh=(TOP,))) == set()
    kept = garbage.plan(whole(tags={"v1": TOP}), {}, fresh_after=LIMIT).kept
    assert {item.reason for item in kept if item.digest == digest_of(TOP)} == {"tag v1"}


def test_a_device_keeps_its_own_blob_only() -> None:
    assert going(whole(), {digest_of(b"one"): "device default/till-7"}) == EVERYTHING - {digest_of(b"one")}
    assert going(whole(fresh=(b"two",))) == EVERYTHING - {digest_of(b"two")}


def test_a_delta_stays_as_long_as_a_version_or_a_device_names_it() -> None:
    delta = image(b"delta", subject=ONE, kind=manifests.DELTA_TYPE)
    repository = stored(ONE, TWO, TOP, delta, blobs=(b"one", b"two", b"delta"), tags={"v1": TOP})
    assert going(repository) == {digest_of(delta), digest_of(b"delta")}
    assert going(repository, {digest_of(b"delta"): "delta of modelversion default/digits-v1"}) == set()


def test_nothing_goes_where_a_manifest_cannot_be_read() -> None:
    for raw in (b"rubbish", b"{"):
        repository = stored(ONE, blobs=(b"one",))
        damaged = {**repository.manifests, digest_of(raw): StoredLink(size=1, touched=OLD)}
        found = garbage.plan(
            StoredRepository(name="a", tags={}, manifests=damaged, blobs=repository.blobs), {}, fresh_after=LIMIT
        )
        assert not found.garbage
        assert "cannot be read" in found.problem


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_it_is_what_a_plain_walk_from_what_is_needed_does_not_reach(data: st.DataObject) -> None:
    blobs = [b"%d" % number for number in range(4)]
    images: list[bytes] = []
    for number in range(data.draw(st.integers(0, 4))):
        layers = data.draw(st.lists(st.sampled_from(blobs), max_size=3))
        subject = data.draw(st.sampled_from([b"", *images]))
        images.append(image(*layers, subject=subject, annotations={"n": str(number)}))
    indexes = [
        index(*data.draw(st.lists(st.sampled_from(images), max_size=3)), annotations={"n": str(number)})
        for number in range(data.draw(st.integers(0, 2)) if images else 0)
    ]
    documents = [*images, *indexes]
    everything = [*documents, *blobs, b"{}"]
    named = data.draw(st.lists(st.sampled_from(documents), max_size=2)) if documents else []
    tags = {f"t{number}": raw for number, raw in enumerate(named)}
    needs = data.draw(st.lists(st.sampled_from(everything), max_size=2))
    fresh = tuple(data.draw(st.lists(st.sampled_from(everything), max_size=2)))
    reached = {digest_of(raw) for raw in (*tags.values(), *needs, *fresh)}
    while True:
        before = set(reached)
        for raw in documents:
            said = json.loads(raw)
            if digest_of(raw) in reached:
                reached |= {p["digest"] for p in [*said.get("manifests", []), *said.get("layers", [])]}
                reached |= {said["config"]["digest"]} if "config" in said else set()
            if said.get("subject", {}).get("digest") in reached:
                reached.add(digest_of(raw))
        if reached == before:
            break
    repository = stored(*documents, blobs=tuple(blobs), tags=tags, fresh=fresh)
    plan = garbage.plan(repository, {digest_of(raw): "needed" for raw in needs}, fresh_after=LIMIT)
    assert {item.digest for item in plan.garbage} == {digest_of(raw) for raw in everything} - reached
    assert {item.digest for item in plan.kept} == {digest_of(raw) for raw in everything} & reached
    assert len(plan.garbage) == len({item.digest for item in plan.garbage})


async def test_what_is_wanted_back_after_the_survey_is_not_discarded(tmp_path: Path) -> None:
    now = [1000]
    store = DirectoryStore(tmp_path, time_ns=lambda: now[0])
    for raw in (b"{}", b"one"):
        upload = await store.start_upload("a/b")
        await store.append_upload(upload, _once(raw))
        await store.finish_upload(upload, digest_of(raw))
    await store.put_manifest("a/b", digest_of(ONE), manifests.MANIFEST_TYPE, ONE)
    now[0] += 10 * GRACE
    (surveyed,) = await store.survey()
    plan = garbage.plan(surveyed, {}, fresh_after=now[0] - GRACE)
    assert [item.kind for item in plan.garbage] == ["manifest", "blob", "blob"]
    now[0] += 1
    await store.put_manifest("a/b", "v1", manifests.MANIFEST_TYPE, ONE)  # it refers to the blobs, and looks at no other
    for item in plan.garbage:
        links = surveyed.manifests if item.kind == "manifest" else surveyed.blobs
        assert not await store.discard("a/b", item.kind, item.digest, touched=links[item.digest].touched)
    now[0] += 10 * GRACE
    (surveyed,) = await store.survey()
    await store.get_manifest("a/b", digest_of(ONE))
    assert not await store.discard(
        "a/b", "manifest", digest_of(ONE), touched=surveyed.manifests[digest_of(ONE)].touched
    )
    await store.stat_blob("a/b", digest_of(b"one"))
    assert not await store.discard("a/b", "blob", digest_of(b"one"), touched=surveyed.blobs[digest_of(b"one")].touched)
    assert await store.discard("a/b", "blob", digest_of(b"{}"), touched=surveyed.blobs[digest_of(b"{}")].touched)


async def test_a_collection_that_was_cut_off_is_finished_by_the_next(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    upload = await store.start_upload("a/b")
    await store.append_upload(upload, _once(b"one"))
    await store.finish_upload(upload, digest_of(b"one"))
    (surveyed,) = await store.survey()
    assert await store.discard("a/b", "blob", digest_of(b"one"), touched=surveyed.blobs[digest_of(b"one")].touched)
    again = DirectoryStore(tmp_path)  # the hub was killed in between
    assert await again.free_unlinked() == len(b"one")
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert await again.free_unlinked() == 0


VERSIONS = 2


class RacedCollection(RuleBasedStateMachine):
    """Pushes, deployments, removals and a collection, each cut into its steps, in any order, on a real store."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.now = 1_000_000
        self.store = DirectoryStore(Path(self.directory.name), time_ns=lambda: self.now)
        self.needed: set[int] = set()
        self.tagged: set[int] = set()
        self.pushes: dict[int, Iterator[None]] = {}
        self.collection: Iterator[None] | None = None

    @initialize()
    def leave_garbage(self) -> None:
        """Begin with versions that were removed long ago: nothing is more dangerous than to want one of them back."""
        for version in range(VERSIONS):
            for _ in self.pushing(version):
                pass
            self.remove(version)
        self.now += 2 * GRACE

    def teardown(self) -> None:
        self.loop.close()
        self.directory.cleanup()

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @staticmethod
    def blobs(version: int) -> list[bytes]:
        return [b"{}", b"shared", b"own %d" % version]

    def manifest(self, version: int) -> bytes:
        return image(*self.blobs(version)[1:], annotations={"version": str(version)})

    def index(self, version: int) -> bytes:
        return index(self.manifest(version), annotations={"version": str(version)})

    def pushing(self, version: int) -> Iterator[None]:
        """As clients push: what is there is not sent; the index has its tag last."""
        for raw in self.blobs(version):
            try:
                self.do(self.store.stat_blob("a/b", digest_of(raw)))
            except NotFoundError:
                yield
                upload = self.do(self.store.start_upload("a/b"))
                self.do(self.store.append_upload(upload, _once(raw)))
                self.do(self.store.finish_upload(upload, digest_of(raw)))
            yield
        raw = self.manifest(version)
        self.do(self.store.put_manifest("a/b", digest_of(raw), manifests.MANIFEST_TYPE, raw))
        yield
        raw = self.index(version)
        self.do(self.store.put_manifest("a/b", digest_of(raw), manifests.INDEX_TYPE, raw))
        yield
        self.do(self.store.put_manifest("a/b", f"v{version}", manifests.INDEX_TYPE, raw))
        self.tagged.add(version)

    def collecting(self) -> Iterator[None]:
        """As `hub.gc` collects: look at everything, then at what is needed, then discard one by one."""
        repositories = self.do(self.store.survey())
        yield
        needs = {digest_of(self.index(version)): "modelversion" for version in self.needed}
        fresh_after = self.now - GRACE
        yield
        for repository in repositories:
            for item in garbage.plan(repository, needs, fresh_after=fresh_after).garbage:
                links = repository.manifests if item.kind == "manifest" else repository.blobs
                touched = links[item.digest].touched
                if not self.do(self.store.discard("a/b", item.kind, item.digest, touched=touched)):
                    break
                yield
        self.do(self.store.free_unlinked())

    @rule(version=st.integers(0, VERSIONS - 1), steps=st.integers(1, 8))
    def push(self, version: int, steps: int) -> None:
        pushing = self.pushes.setdefault(version, self.pushing(version))
        for _ in range(steps):
            try:
                next(pushing)
            except (StopIteration, NotFoundError):  # done; or something was collected that it counted on, which it says
                del self.pushes[version]
                return

    @rule(steps=st.integers(1, 4), ends=st.booleans())
    def collect(self, steps: int, *, ends: bool) -> None:
        self.collection = self.collection or self.collecting()
        for _ in range(steps):
            if next(self.collection, "done") == "done":
                self.collection = None
                return
        if ends:
            self.collection = None  # the hub was killed

    @rule(version=st.integers(0, VERSIONS - 1))
    def deploy(self, version: int) -> None:
        """A ModelVersion is made by hand, of what may be garbage by now; it counts once it was found complete."""
        self.needed.add(version)
        try:
            self.read(version)
        except NotFoundError:
            self.needed.discard(version)  # Broken, and says so

    @precondition(lambda self: self.tagged or self.needed)
    @rule(version=st.integers(0, VERSIONS - 1))
    def remove(self, version: int) -> None:
        self.needed.discard(version)
        if version in self.tagged:
            self.tagged.discard(version)
            self.do(self.store.delete_manifest("a/b", f"v{version}"))

    @rule(ticks=st.integers(1, 3 * GRACE))
    def wait(self, ticks: int) -> None:
        self.now += ticks

    def read(self, version: int) -> None:
        """Look at everything, as the hub does before a version is Ready."""
        self.do(self.store.get_manifest("a/b", digest_of(self.index(version))))
        self.do(self.store.get_manifest("a/b", digest_of(self.manifest(version))))
        for raw in self.blobs(version):
            self.do(self.store.stat_blob("a/b", digest_of(raw)))

    @invariant()
    def nothing_needed_is_gone(self) -> None:
        if not self.needed and not self.tagged:
            return
        survey = {one.name: one for one in self.do(self.store.survey())}["a/b"]
        for version in self.needed | self.tagged:
            for raw in (self.index(version), self.manifest(version)):
                assert survey.manifests[digest_of(raw)].document is not None
            for raw in self.blobs(version):
                assert survey.blobs[digest_of(raw)].size == len(raw)


async def _once(raw: bytes) -> AsyncIterator[bytes]:
    yield raw


RacedCollection.TestCase.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRacedCollection = RacedCollection.TestCase
