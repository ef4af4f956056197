"""A device that enrols again at a real hub: a person's word, by which it forgets what it accepted; its anchor first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.trusting import Owners

from skerry.agent import app, identity
from skerry.agent import trust as trusted
from skerry.agent.disk import AcceptedDesired, Disk
from skerry.core import anchor

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from tests.integration.hub.conftest import HubProcess


def test_enrolling_again_forgets_which_states_were_accepted_and_nothing_else(
    hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root.json"
    root.write_text(anchor.write(Owners().roots[0]))
    disk = Disk(tmp_path / "device")
    present: list[bool] = []
    save: Callable[..., None] = identity.save

    def looked(*args: object, **more: object) -> None:
        present.append((disk.root / trusted.FILE).exists())
        save(*args, **more)

    monkeypatch.setattr(identity, "save", looked)

    def enroll(*more: str) -> int:
        token = hub.create_token(test="again")
        where = ["--hub", hub.record["url"], "--token", token, "--name", "till-again"]
        return app.main(["enroll", *where, "--trust", str(root), "--state-dir", str(disk.root), *more])

    assert enroll() == 0
    assert present == [True], "a device that is cut off here does not come up without its anchor"
    known, kept = identity.load(disk), trusted.read(disk)
    disk.write_desired(AcceptedDesired(manifest_version=2**53 - 1, envelope=b"", uid=known.uid))
    assert enroll() == 1, "it is enrolled already"
    assert disk.read_desired() is not None
    assert enroll("--again") == 0
    assert identity.load(disk).uid == known.uid
    assert disk.read_desired() is None
    assert trusted.read(disk) == kept
