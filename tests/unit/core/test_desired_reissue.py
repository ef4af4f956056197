from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.test_session import workload

from skerry.api.errors import InvalidError
from skerry.core.desired import MAX_VERSION, Assignment, DesiredRecord, assign, reissue

NOW = datetime(2026, 11, 23, tzinfo=UTC)
EMPTY = DesiredRecord(uid="u", namespace="default", device="till")


def record(*names: str) -> DesiredRecord:
    made = EMPTY
    for name in names:
        made = assign(
            made,
            Assignment(workload=workload(name), deployment_uid="d", wave=0, reason="", assigned_at=NOW),
        )
    return made


@given(st.lists(st.sampled_from("abc"), unique=True), st.integers(0, 100))
def test_a_reissued_record_is_the_same_under_a_version_that_was_never_accepted(names: list[str], above: int) -> None:
    before = record(*names)
    after = reissue(before, above=above)
    assert after.manifest_version > max(before.manifest_version, above)
    assert [a.workload for a in after.assignments] == [a.workload for a in before.assignments]
    assert {a.manifest_version for a in after.assignments} <= {after.manifest_version}
    assert msgspec.structs.replace(after, manifest_version=0, assignments=[]) == EMPTY


def test_a_version_that_cannot_be_is_refused() -> None:
    assert reissue(EMPTY, above=MAX_VERSION - 1).manifest_version == MAX_VERSION
    with pytest.raises(InvalidError, match="which no hub has issued"):
        reissue(EMPTY, above=MAX_VERSION)
