"""Versions of desired states: who has a hub's key once does not use all of them up; and what a device has is kept."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.core.test_desired_content import workload
from tests.unit.core.test_garbage import LIMIT, digest_of, image, index, stored
from tests.unit.core.test_session import desired, reported, session, signed, take

from skerry.api.errors import ForbiddenError, InvalidError
from skerry.api.kinds.variants import Blob
from skerry.core import garbage, messages
from skerry.core import manifest as manifests
from skerry.core.desired import content_of


@pytest.mark.parametrize("version", [2**53, 2**63, 2**64 - 1])
def test_a_version_that_no_hub_could_exceed_is_none(version: int) -> None:
    with pytest.raises(InvalidError):
        session().offer(signed(desired(version)))


@pytest.mark.parametrize("floor", [0, 41, 2**52])
def test_a_version_jumps_by_a_bound_only_and_the_device_goes_on(floor: int) -> None:
    one = session(floor=floor)
    one.connected()
    far = floor + messages.MAX_MANIFEST_JUMP
    with pytest.raises(ForbiddenError, match=f"version {far + 1} is too far above {floor}"):
        one.offer(signed(desired(far + 1)))
    report = reported(one)
    assert report is not None
    assert "too far above" in report.refused
    assert report.refused_manifest_version == 0, "it is not the hub that is behind"
    assert one.floor == floor
    take(one, desired(floor + 1))
    take(one, desired(far))
    assert one.floor == far


def test_what_a_device_has_is_kept_with_its_card_when_its_model_version_is_deleted() -> None:
    contents = {"model": b"model", "golden": b"golden", "signature": b"signature", "card": b"card"}
    blobs = {name: Blob(digest=digest_of(raw), size=len(raw)) for name, raw in contents.items()}
    wanted = msgspec.structs.replace(
        workload("a", "1"),
        blob=blobs["model"],
        golden=blobs["golden"],
        signatures=[blobs["signature"]],
        card=blobs["card"],
        deltas=[],
    )
    variant = image(b"model")
    top = index(variant)
    referrers = [
        image(contents[name], subject=top, kind=kind)
        for name, kind in (
            ("card", manifests.CARD_TYPE),
            ("golden", manifests.GOLDEN_TYPE),
            ("signature", manifests.SIGNATURE_TYPE),
        )
    ]
    repository = stored(variant, top, *referrers, blobs=tuple(contents.values()))
    needs = dict.fromkeys(content_of(wanted).digests, "device default/till-1")
    going = {item.digest for item in garbage.plan(repository, needs, fresh_after=LIMIT).garbage if item.kind == "blob"}
    assert going == {digest_of(b"{}")}
