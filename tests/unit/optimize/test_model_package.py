"""A package is there completely or not at all, whatever was there before and whenever the work stops."""

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skerry.api.errors import AlreadyExistsError, InvalidError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden
from skerry.core import card as cards
from skerry.optimize import package


def card(version: str = "v1") -> cards.EvaluationCard:
    return cards.EvaluationCard(
        model="digits",
        version=version,
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
        golden=Golden(blob=Blob(digest=f"sha256:{'0' * 64}", size=1), samples=1),
        variants=[],
        provenance=cards.Provenance(source_kind="pytorch"),
    )


def make(target: Path, version: str = "v1", **files: bytes) -> None:
    with package.draft(target) as draft:
        for name, content in files.items():
            draft.add(name, content)
        draft.publish(card(version))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def only(directory: Path, *names: str) -> bool:
    return sorted(path.name for path in directory.iterdir()) == sorted(names)


def test_publishes_all_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "package"
    with package.draft(target) as draft:
        blob = draft.add("model", b"weights")
        draft.add("scratch", b"")
        draft.remove("scratch")
        assert not target.exists()
        draft.publish(card())
    assert blob.size == 7
    assert set(contents(target)) == {"model", "card.json"}
    assert cards.decode((target / "card.json").read_bytes()) == card()
    assert only(tmp_path / "deep", "package")


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    make(tmp_path / "package", model=b"1")
    assert set(contents(tmp_path / "package")) == {"model", "card.json"}


def test_an_older_package_is_replaced_whole(tmp_path: Path) -> None:
    make(tmp_path / "package", old=b"1")
    make(tmp_path / "package", "v2", new=b"2")
    assert set(contents(tmp_path / "package")) == {"new", "card.json"}
    assert only(tmp_path, "package")


def test_without_an_exchanging_rename_it_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems (NFS, older overlays) and libcs have no renameat2."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    make(tmp_path / "package", old=b"1")
    make(tmp_path / "package", "v2", new=b"2")
    assert set(contents(tmp_path / "package")) == {"new", "card.json"}
    assert only(tmp_path, "package")


def test_a_link_to_a_package_stays_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real", old=b"1")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", "v2", new=b"2")
    assert (tmp_path / "link").is_symlink()
    assert set(contents(tmp_path / "real")) == {"new", "card.json"}


def test_other_peoples_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(AlreadyExistsError, match="holds files and is not a model package"):
        make(tmp_path / "home", model=b"1")
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyExistsError, match="is not a directory"):
        make(tmp_path / "file", model=b"1")
    assert only(tmp_path, "home", "file")
    assert only(tmp_path / "home", "thesis.tex")


def test_files_that_appear_during_the_work_are_kept(tmp_path: Path) -> None:
    with package.draft(tmp_path / "package") as draft:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "thesis.tex").write_text("x")
        with pytest.raises(AlreadyExistsError):
            draft.publish(card())
    assert only(tmp_path, "package")
    assert only(tmp_path / "package", "thesis.tex")


def test_work_that_stops_leaves_the_older_package(tmp_path: Path) -> None:
    make(tmp_path / "package", old=b"1")
    before = contents(tmp_path / "package")
    with contextlib.suppress(KeyboardInterrupt), package.draft(tmp_path / "package") as draft:
        draft.add("new", b"2")
        raise KeyboardInterrupt
    assert contents(tmp_path / "package") == before
    assert only(tmp_path, "package")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidError, match=r"file/package: cannot be written"):
        make(tmp_path / "file" / "package", model=b"1")


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_drafts_of_killed_runs_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    (tmp_path / f".package.{dead_pid()}.partial").mkdir()
    living = tmp_path / f".package.{os.getppid()}.partial"
    living.mkdir()
    other = tmp_path / f".other.{dead_pid()}.partial"
    other.mkdir()
    (tmp_path / f".package.{os.getpid()}.partial").mkdir()  # of an earlier process with this one's id
    make(tmp_path / "package", model=b"1")
    assert only(tmp_path, "package", living.name, other.name)


def test_a_package_set_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    make(tmp_path / "package", old=b"1")
    before = contents(tmp_path / "package")
    pid = dead_pid()
    (tmp_path / "package").rename(tmp_path / f".package.{pid}.partial.old")
    (tmp_path / f".package.{pid}.partial").mkdir()
    with contextlib.suppress(KeyboardInterrupt), package.draft(tmp_path / "package"):
        raise KeyboardInterrupt
    assert contents(tmp_path / "package") == before
    assert only(tmp_path, "package")
