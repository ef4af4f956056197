"""How many records follow a page is said exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.drivers.store import logstore
from skerry.drivers.store.sqlite import open_store


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_what_remains_is_exact_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(logstore, "MAX_COUNTED", 4)
    async with open_store(tmp_path / "hub.db") as store:
        for number in range(12):
            await store.create(f"k/{number:02}", b"x")
        start, revision, seen, told = "", 0, 0, []
        while True:
            page = await store.list("k/", limit=size, start=start, revision=revision)
            seen += len(page.records)
            left = 12 - seen
            assert page.remaining == left if left < 4 - size + 1 else page.remaining in (None, left)
            told.append(page.remaining)
            if page.next_key is None:
                break
            start, revision = page.next_key, page.revision
        assert told[0] is None
        assert told[-1] == 0
