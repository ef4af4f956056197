"""What of a registry nothing needs any more. Pure: its content and the reasons to keep come in, a plan goes out.

Lives here: what keeps what, and in which order the rest goes. Must not live here: where the reasons come from
(`hub.needs`), how content is removed (`core.ports.ArtifactStore`).

    kept     what has a tag, what a reason names, what was looked at within the grace period
             what a kept manifest consists of; what refers to a kept manifest, but for deltas that no reason names
    order    a manifest goes before what it consists of and before what refers to it; blobs go last

So whoever finds the top of something can rely on the rest: while it is there nothing of it has gone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from skerry.api.errors import InvalidError
from skerry.api.meta import Struct
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest, StoredDocument, StoredRepository

Kind = Literal["manifest", "blob"]
FRESH = "looked at within the grace period"


class Item(Struct, frozen=True, kw_only=True):
    """One manifest or blob of one repository, and why it stays or goes."""

    repository: str
    kind: Kind
    digest: str
    size: int
    """Bytes."""
    reason: str


class Report(Struct, frozen=True, kw_only=True):
    """What a collection did, or would do."""

    dry_run: bool
    removed: list[Item] = []
    """Or what would be; the first of them."""
    kept: list[Item] = []
    """The first of them."""
    removed_count: int = 0
    """All of them, also those that are not listed."""
    kept_count: int = 0
    freed_bytes: int = 0
    """Of content that no repository refers to any more; in a dry run, what of it is to go."""
    left_alone: dict[str, str] = {}
    """Repository -> why it was not gone through to its end this time."""


class Removed(Struct, frozen=True, kw_only=True):
    """What `skerry model rm` took away."""

    names: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to go from one repository, in this order, and what stays; `problem` says why nothing may go."""

    repository: str
    garbage: Sequence[Item] = ()
    kept: Sequence[Item] = ()
    problem: str = ""


def plan(repository: StoredRepository, needs: Mapping[str, str], *, fresh_after: int) -> Plan:
    """Decide on one repository. `needs` says by digest why something has to stay; `fresh_after` is nanoseconds.

    Where a manifest cannot be read nobody knows what it needs, so nothing goes.
    """
    documents: dict[str, StoredDocument] = {}
    for digest, stored in repository.manifests.items():
        if stored.document is None:
            problem = f"its manifest {digest} cannot be read: push it again, or delete it by its digest"
            return Plan(repository=repository.name, problem=problem)
        documents[digest] = stored.document
    kept = _Marking(repository, documents, needs, fresh_after).run()
    blobs = [digest for digest in sorted(repository.blobs) if digest not in kept]
    return Plan(
        repository=repository.name,
        garbage=[
            *(
                _item(repository, digest, "manifest", "nothing refers to it")
                for digest in _order(documents)
                if digest not in kept
            ),
            *(_item(repository, digest, "blob", "no manifest that stays has it") for digest in blobs),
        ],
        kept=[
            *(_item(repository, d, "manifest", kept[d]) for d in sorted(repository.manifests) if d in kept),
            *(_item(repository, d, "blob", kept[d]) for d in sorted(repository.blobs) if d in kept),
        ],
    )


class _Marking:
    """Finds what stays, with the first reason found for each."""

    def __init__(
        self,
        repository: StoredRepository,
        documents: Mapping[str, StoredDocument],
        needs: Mapping[str, str],
        fresh_after: int,
    ) -> None:
        self._repository = repository
        self._documents = documents
        self._needs = needs
        self._fresh_after = fresh_after
        self._kept: dict[str, str] = {}
        self._open: list[str] = []
        self._referrers: dict[str, list[str]] = {}
        for digest, document in documents.items():
            if document.subject:
                self._referrers.setdefault(document.subject, []).append(digest)

    def run(self) -> dict[str, str]:
        for tag, digest in sorted(self._repository.tags.items()):
            self._keep(digest, f"tag {tag}")
        for digest, reason in self._needs.items():
            self._keep(digest, reason)
        for stored in (self._repository.manifests, self._repository.blobs):
            for digest, one in stored.items():
                if one.touched >= self._fresh_after:
                    self._keep(digest, FRESH)
        while self._open:
            self._follow(self._open.pop())
        return self._kept

    def _keep(self, digest: str, reason: str) -> None:
        if digest not in self._kept:
            self._kept[digest] = reason
            self._open.append(digest)

    def _follow(self, digest: str) -> None:
        document = self._documents.get(digest)
        if document is None:
            return
        for part in document.parts:
            self._keep(part, f"part of {digest[:19]}")
        for referrer in self._referrers.get(digest, ()):
            if not self._is_idle_delta(self._documents[referrer]):
                self._keep(referrer, f"refers to {digest[:19]}")

    def _is_idle_delta(self, document: StoredDocument) -> bool:
        """Whether it is a delta that no version's status lists and no device was told of: it was made in vain."""
        return document.type == manifests.DELTA_TYPE and not any(p in self._needs for p in document.parts)


def outline(stored: Manifest) -> StoredDocument | None:
    """Return what a manifest says of others; None where it is damaged or cannot be read."""
    if manifests.digest_of(stored.raw) != stored.digest:
        return None
    try:
        document = manifests.parse(stored.raw, stored.media_type)
    except InvalidError:
        return None
    return StoredDocument(
        type=sys.intern(document.type),
        parts=tuple(dict.fromkeys(sys.intern(part.digest) for part in document.content)),  # many name the same
        subject=sys.intern(document.subject.digest) if document.subject is not None else "",
    )


def _order(documents: Mapping[str, StoredDocument]) -> list[str]:
    """Return all manifests, each after those that consist of it and, where that can be, after the one it refers to."""
    whole: dict[str, set[str]] = {digest: set() for digest in documents}
    for digest, document in documents.items():
        for part in document.parts:
            if part in whole:
                whole[part].add(digest)
    both = {digest: set(waits) for digest, waits in whole.items()}
    for digest, document in documents.items():
        if document.subject in both:
            both[digest].add(document.subject)
    try:
        return list(TopologicalSorter(both).static_order())
    except CycleError:  # something consists of what it refers to, which it is free to
        return list(TopologicalSorter(whole).static_order())  # digests make cycles impossible


def _item(repository: StoredRepository, digest: str, kind: Kind, reason: str) -> Item:
    stored = (repository.manifests if kind == "manifest" else repository.blobs)[digest]
    return Item(repository=repository.name, kind=kind, digest=digest, size=stored.size, reason=reason)
