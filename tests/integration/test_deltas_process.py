"""The process that makes deltas: what it says when it fails reaches the log, bounded."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path

import pytest

from skerry.api.errors import InvalidError
from skerry.hub import deltas


def arguments(directory: Path, old: bytes, new: bytes, *, most: int) -> list[str]:
    for name, content in (("old", old), ("new", new)):
        (directory / name).write_bytes(content)
    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (old, new)]
    return [*(str(directory / name) for name in ("old", "new", "delta")), *digests, "onnx", str(most)]


async def test_what_it_says_when_it_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidError, match="code 1"):
        await deltas._run(arguments(tmp_path, b"", b"new", most=10))  # an empty file cannot be mapped
    [said] = [record for record in caplog.records if record.msg.startswith("delta.process_said")]
    assert "cannot mmap an empty file" in said.getMessage()
    assert "\n" not in said.getMessage()


async def test_one_that_talks_without_end_neither_blocks_nor_fills_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    talker = tmp_path / "talker"
    talker.write_text(f"#!{sys.executable}\nimport sys\nsys.stderr.write('x' * 1_000_000 + 'the end')\nsys.exit(9)\n")
    talker.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(talker))
    with pytest.raises(InvalidError, match="code 9"):
        await deltas._run([])
    [said] = [record.getMessage() for record in caplog.records]
    assert said.endswith('the end"')
    assert len(said) < deltas.SAID_BYTES + 200


async def test_one_that_has_nothing_to_say_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert await deltas._run(arguments(tmp_path, b"a" * 5000, b"a" * 5000, most=1000))
    assert [record for record in caplog.records if record.msg.startswith("delta.")] == []
