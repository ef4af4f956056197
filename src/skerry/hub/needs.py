"""Why content of the registry has to stay: what versions, rollouts and devices need of it.

Lives here: reading the hub's objects for it. One that cannot be read is an error, for it might need anything. Must not
live here: what follows from it (`core.garbage`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TypeVar

import msgspec

from skerry.api.errors import IntegrityError
from skerry.api.kinds import Resource
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core import desired
from skerry.core.desired import DesiredRecord
from skerry.hub.objects import DESIRED_PREFIX, UNREADABLE, Objects

T = TypeVar("T", bound=Resource)
PAGE = 500
FINISHED = frozenset({"Succeeded", "RolledBack", "Failed", "Superseded"})


class Needs:
    """Reasons by digest, of repositories, and of a namespace's repositories whichever it is."""

    def __init__(self) -> None:
        self._by_repository: dict[str, dict[str, str]] = {}
        self._by_namespace: dict[str, dict[str, str]] = {}

    def add(self, repository: str, digests: Iterable[str], reason: str) -> None:
        """Note why a repository's content has to stay; the first reason is kept."""
        known = self._by_repository.setdefault(repository, {})
        for digest in digests:
            known.setdefault(digest, reason)

    def add_anywhere(self, namespace: str, digest: str, reason: str) -> None:
        """Note why it has to stay in whichever of a namespace's repositories it is."""
        self._by_namespace.setdefault(namespace, {}).setdefault(digest, reason)

    def of(self, repository: str) -> Mapping[str, str]:
        """Return the reasons that hold in a repository, by digest."""
        namespace = repository.split("/", 1)[0]
        return {**self._by_namespace.get(namespace, {}), **self._by_repository.get(repository, {})}


async def read_needs(objects: Objects) -> Needs:
    """Read all that needs content. Raises IntegrityError where a record cannot be read."""
    needs = Needs()
    async for version in read_all(objects, ModelVersion):
        spec, status = version.spec, version.status
        reason = f"modelversion {version.metadata.namespace}/{version.metadata.name}"
        digests = {spec.artifact.digest, *(variant.blob.digest for variant in status.variants)}
        digests |= {variant.manifest for variant in status.variants if variant.manifest}
        if spec.golden is not None:
            digests.add(spec.golden.blob.digest)
        needs.add(spec.artifact.repository, digests, reason)
        needs.add(spec.artifact.repository, [d.blob.digest for d in status.deltas], f"delta of {reason}")
    for rollout in counting([rollout async for rollout in read_all(objects, Rollout)]):
        if rollout.spec.model_digest:
            namespace = rollout.metadata.namespace
            needs.add_anywhere(namespace, rollout.spec.model_digest, f"rollout {namespace}/{rollout.metadata.name}")
    async for record in read_desired(objects):
        reason = f"device {record.namespace}/{record.device}"
        for content in desired.contents_of(record):
            needs.add(content.repository, content.digests, reason)
    return needs


def counting(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Return the rollouts whose models may still come to devices: those under way, the newest, what they return to."""
    by_name = {(one.metadata.namespace, one.metadata.name): one for one in rollouts}
    newest: dict[tuple[str, str, str], Rollout] = {}
    for one in by_name.values():
        key = (one.metadata.namespace, one.spec.deployment, one.spec.deployment_uid)
        if key not in newest or newest[key].spec.revision < one.spec.revision:
            newest[key] = one
    found = {(o.metadata.namespace, o.metadata.name): o for o in by_name.values() if o.status.phase not in FINISHED}
    found |= {(one.metadata.namespace, one.metadata.name): one for one in newest.values()}
    for one in list(found.values()):
        before = by_name.get((one.metadata.namespace, one.spec.previous))
        if before is not None:
            found[before.metadata.namespace, before.metadata.name] = before
    return list(found.values())


async def read_all(objects: Objects, kind: type[T]) -> AsyncIterator[T]:
    """Give all objects of a kind, in all namespaces. Raises IntegrityError."""
    start = ""
    while True:
        try:
            page = await objects.list(kind, limit=PAGE, start=start)
        except UNREADABLE as error:
            raise IntegrityError(f"cannot be read: {error}"[:300], element=f"a {kind.__name__}") from None
        for item in page.items:
            yield item
        if not page.next_key:
            return
        start = page.next_key


async def read_desired(objects: Objects) -> AsyncIterator[DesiredRecord]:
    """Give what is desired of all devices. Raises IntegrityError."""
    start = ""
    while True:
        page = await objects.store.list(DESIRED_PREFIX, limit=PAGE, start=start)
        for record in page.records:
            try:
                yield msgspec.json.decode(record.value, type=DesiredRecord)
            except UNREADABLE as error:
                raise IntegrityError(f"cannot be read: {error}"[:300], element=record.key) from None
        if not page.next_key:
            return
        start = page.next_key
