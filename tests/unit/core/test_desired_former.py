"""What a device may go back to stays within its reach whatever comes to the version that it has now."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.unit.core.test_desired_content import digest, workload

from skerry.api.kinds.variants import Blob
from skerry.core.desired import Assignment, DesiredRecord, assign, may_fetch
from skerry.core.messages import WorkloadDesired


def assigned(record: DesiredRecord, wanted: WorkloadDesired) -> DesiredRecord:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return assign(record, Assignment(workload=wanted, deployment_uid="1", wave=0, reason="", assigned_at=at))


@pytest.mark.parametrize("more", [{"signatures": [Blob(digest=digest("9", "d"), size=1)]}, {"deltas": []}])
def test_the_version_before_stays_when_signatures_or_deltas_of_this_one_change(more: dict[str, Any]) -> None:
    record = DesiredRecord(uid="u", namespace="default", device="d")
    for wanted in (workload("a", "1"), workload("a", "2"), msgspec.structs.replace(workload("a", "2"), **more)):
        record = assigned(record, wanted)
    assert all(may_fetch(record, "default/a", digest("1", kind)) for kind in "abcde")
    assert all(may_fetch(record, "default/a", blob.digest) for blob in more.get("signatures", []))
    record = assigned(record, workload("a", "3"))
    assert may_fetch(record, "default/a", digest("2", "a"))
    assert not may_fetch(record, "default/a", digest("1", "a"))
