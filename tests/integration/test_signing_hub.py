"""What the hub knows of signatures: which are attached to a model version, also those that come later."""

from __future__ import annotations

import msgspec
import pytest
from tests.integration.test_deltas import NS, REPOSITORY, Hub, digest, weights_of
from tests.integration.test_deltas import hub as hub  # noqa: PLC0414 - a fixture

from skerry.api.errors import UnavailableError
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.kinds.variants import Blob
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import manifest
from skerry.core.messages import MAX_SIGNATURES
from skerry.core.placement import build_workload
from skerry.core.ports import Manifest
from skerry.core.workload import same_content
from skerry.hub.controllers.model_version import SIGNATURES_SECONDS, ModelVersions


async def attach(hub: Hub, item: ModelVersion, raw: bytes, **changes: object) -> Blob:
    """Attach some bytes as a signature; what of its manifest is to be otherwise may be said."""
    index = await hub.context.artifacts.get_manifest(REPOSITORY, item.spec.artifact.digest)
    blob = Blob(digest=digest(raw), size=len(raw), media_type=manifest.SIGNATURE_TYPE)
    referrer = manifest.build_signature(index, blob)
    if changes:
        document = msgspec.json.decode(referrer.raw) | changes
        raw_manifest = msgspec.json.encode(document)
        referrer = Manifest(digest=digest(raw_manifest), media_type=referrer.media_type, raw=raw_manifest)
    for content in (manifest.EMPTY_CONFIG, raw):
        await hub.upload(content)
    await hub.context.artifacts.put_manifest(REPOSITORY, referrer.digest, referrer.media_type, referrer.raw)
    return blob


def workload_of(item: ModelVersion):
    template = ModelDeploymentSpec(model_version=item.metadata.name, device_selector=LabelSelector())
    spec = RolloutSpec(deployment="d", deployment_uid="u", revision=1, template=template)
    return build_workload(Rollout(metadata=ObjectMeta(name="d-1"), spec=spec), item, item.status.variants[0])


async def test_signatures_that_come_later_are_noticed_and_told_to_devices(hub):
    item = await hub.add("v1", weights_of(1))
    assert item.status.signatures == []
    before = workload_of(item)
    blobs = [await attach(hub, item, raw) for raw in (b"one", b"two")]
    item = await hub.look("v1")
    assert item.status.signatures == sorted(blobs, key=lambda blob: blob.digest)
    assert item.status.variants, "nothing else was forgotten"
    after = workload_of(item)
    assert after.signatures == item.status.signatures
    assert same_content(before, after), "what runs is the same: a new signature restarts nothing"

    subject = item.spec.artifact.digest
    for one in await hub.context.artifacts.list_referrers(REPOSITORY, subject):
        await hub.context.artifacts.delete_manifest(REPOSITORY, one.digest)
    assert (await hub.look("v1")).status.signatures == []


async def test_what_is_attached_and_no_signature_is_left_out(hub):
    item = await hub.add("v1", weights_of(1))
    await attach(hub, item, b"other", artifactType="application/vnd.example")
    await attach(hub, item, b"empty", layers=[])
    large = {"mediaType": manifest.SIGNATURE_TYPE, "digest": digest(b"large"), "size": manifest.MAX_SIGNATURE_BYTES + 1}
    assert (
        manifest.read_signature(
            Manifest(
                digest="",
                media_type=manifest.MANIFEST_TYPE,
                raw=msgspec.json.encode(
                    {
                        "schemaVersion": 2,
                        "mediaType": manifest.MANIFEST_TYPE,
                        "artifactType": manifest.SIGNATURE_TYPE,
                        "config": large | {"size": 2},
                        "layers": [large],
                    }
                ),
            )
        )
        is None
    )
    good = await attach(hub, item, b"good")
    assert (await hub.look("v1")).status.signatures == [good]


async def test_the_number_of_signatures_is_bounded(hub):
    item = await hub.add("v1", weights_of(1))
    for number in range(MAX_SIGNATURES + 2):
        await attach(hub, item, b"%d" % number)
    assert len((await hub.look("v1")).status.signatures) == MAX_SIGNATURES


async def test_a_registry_that_does_not_answer_changes_nothing(hub, monkeypatch):
    item = await hub.add("v1", weights_of(1))
    await attach(hub, item, b"one")
    item = await hub.look("v1")

    async def away(*_: object) -> None:
        raise UnavailableError(element="registry")

    monkeypatch.setattr(hub.context.artifacts, "list_referrers", away)
    assert await hub.look("v1") == item
    controller = ModelVersions(hub.context)
    controller._items.observe(f"{NS}/v1", item, int(item.metadata.resource_version))
    again = await controller.reconcile((NS, "v1"))
    assert again is not None
    assert 0 < again < 2 * SIGNATURES_SECONDS


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[" * 10_000])
def test_a_referrer_that_cannot_be_read_is_no_signature(raw):
    assert manifest.read_signature(Manifest(digest="", media_type=manifest.MANIFEST_TYPE, raw=raw)) is None
    assert manifest.read_signature(Manifest(digest="", media_type="text/plain", raw=raw)) is None
