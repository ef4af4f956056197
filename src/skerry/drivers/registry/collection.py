"""Garbage in a store's directory: what there is, and bytes that no repository has any more.

Lives here: walking the directory (see `directory` for its layout); all of it blocks. Must not live here: what may go
(`core.garbage`), links (`directory`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from skerry.core import garbage
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest, StoredLink, StoredRepository
from skerry.kit.files import sync_directory


class _Subject(msgspec.Struct):
    digest: str = ""


class _WithSubject(msgspec.Struct):
    subject: _Subject | None = None


def survey(root: Path, content: Callable[[str], Path]) -> list[StoredRepository]:
    """Return what the repositories under `root` hold. `content` says where a digest's bytes are."""
    found = []
    for home in _homes(root):
        links = {name: _links(home / name) for name in ("_tags", "_manifests", "_blobs")}
        found.append(
            StoredRepository(
                name=home.relative_to(root).as_posix(),
                tags={tag: _read(home / "_tags" / tag) for tag in links["_tags"] if manifests.is_tag(tag)},
                manifests={
                    f"sha256:{name}": _manifest(home / "_manifests" / name, content(name), touched)
                    for name, touched in links["_manifests"].items()
                },
                blobs={
                    f"sha256:{name}": StoredLink(size=_size(content(name)), touched=touched)
                    for name, touched in links["_blobs"].items()
                },
            )
        )
    return found


def subject_of(content: Path) -> str | None:
    """Return the digest that a manifest refers to, whatever else it is; None where there is none."""
    try:
        subject = msgspec.json.decode(content.read_bytes(), type=_WithSubject).subject
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return subject.digest if subject is not None and manifests.is_digest(subject.digest) else None


def free_unlinked(root: Path, blobs: Path) -> int:
    """Remove content without any link; returns its bytes. Nobody may add links meanwhile."""
    linked: set[str] = set()
    for home in _homes(root):
        linked.update(_links(home / "_blobs"), _links(home / "_manifests"))
    freed = 0
    for directory in blobs.iterdir():
        gone = [path for path in directory.iterdir() if manifests.is_digest(f"sha256:{path.name}")]
        gone = [path for path in gone if path.name not in linked]
        for path in gone:
            freed += path.stat().st_size
            path.unlink()
        if gone:
            sync_directory(directory)
    return freed


def _homes(root: Path) -> Iterator[Path]:
    for directory, names, _ in os.walk(root):
        if any(name in ("_tags", "_manifests", "_blobs") for name in names):
            yield Path(directory)
        names[:] = [name for name in names if not name.startswith("_")]


def _links(directory: Path) -> dict[str, int]:
    """Return the links in a directory with their times; what is being written beside them is none."""
    found = {}
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return {}
    for entry in entries:
        if not entry.name.startswith("."):
            try:
                found[entry.name] = entry.stat().st_mtime_ns
            except FileNotFoundError:
                continue
    return found


def _manifest(link: Path, content: Path, touched: int) -> StoredLink:
    try:
        raw = content.read_bytes()
    except OSError:  # not there, or on a bad block of the disk
        return StoredLink(size=0, touched=touched)
    found = Manifest(digest=f"sha256:{link.name}", media_type=_read(link), raw=raw)
    return StoredLink(size=len(raw), touched=touched, document=garbage.outline(found))


def _read(link: Path) -> str:
    try:
        return link.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""  # removed meanwhile


def _size(content: Path) -> int:
    try:
        return content.stat().st_size
    except FileNotFoundError:
        return 0
