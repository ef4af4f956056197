"""What a survey keeps of manifests is what a plan needs of them, and the order survives what refers to its own part."""

import json
import tracemalloc
from pathlib import Path

from tests.unit.core.test_garbage import LIMIT, ONE, digest_of, going, image, index, stored
from tests.unit.test_registry_damage import REPOSITORY, push

from skerry.core import garbage
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest
from skerry.drivers.registry.directory import DirectoryStore


def outlined(raw: bytes, media_type: str = manifests.MANIFEST_TYPE, digest: str = "") -> object:
    return garbage.outline(Manifest(digest=digest or digest_of(raw), media_type=media_type, raw=raw))


def test_an_outline_is_none_of_what_is_damaged_or_cannot_be_read() -> None:
    assert outlined(ONE) is not None
    assert outlined(ONE, digest=digest_of(b"another")) is None
    assert outlined(b"{") is None
    assert outlined(ONE, "text/html") is None


def test_what_refers_to_what_it_consists_of_goes_like_anything_else() -> None:
    described = {"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(ONE), "size": len(ONE)}
    circle = index(ONE, subject=described)
    repository = stored(ONE, circle, blobs=(b"one",))
    assert going(repository) == {digest_of(raw) for raw in (ONE, circle, b"one", b"{}")}
    order = [item.digest for item in garbage.plan(repository, {}, fresh_after=LIMIT).garbage]
    assert order.index(digest_of(circle)) < order.index(digest_of(ONE)) < order.index(digest_of(b"one"))
    assert going(stored(ONE, circle, blobs=(b"one",), tags={"v1": ONE})) == set()


async def test_a_survey_holds_no_manifests(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await push(store, b"{}")
    for number in range(20):
        fields = json.loads(image(annotations={"n": str(number), "padding": "x" * 250_000}))
        raw = json.dumps(fields).encode()
        await store.put_manifest(REPOSITORY, digest_of(raw), manifests.MANIFEST_TYPE, raw)
    tracemalloc.start()
    try:
        (found,) = await store.survey()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.manifests) == 20
    assert held < 250_000
    assert peak < 5 * 250_000  # one at a time, read and parsed
