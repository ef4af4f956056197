"""Namespaces: there as soon as anybody names them, and gone with everything in them.

An object is made for each namespace with the first object in it (`Objects.create`), so that namespaces can be listed,
watched and labelled as anything else. A namespace that is being deleted takes nothing new; what is in it goes object by
object, each as if it had been deleted by itself, and the namespace last of all. Must not live here: HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from skerry.api.errors import AlreadyExistsError, ConflictError, ForbiddenError, NotFoundError, SkerryError
from skerry.api.kinds import KINDS, KindInfo, Resource
from skerry.api.kinds.namespace import Namespace, NamespaceCondition, NamespaceStatus
from skerry.api.meta import ObjectMeta
from skerry.core.ports import Clock
from skerry.hub import removal
from skerry.hub.objects import UNREADABLE, Objects, prefix_of

DEFAULT = "default"
SWEEP_SECONDS = 10.0
"""How long a call that deletes a namespace works on it; what is left then goes in the background."""
ROUND_SECONDS = 5.0
"""Between two looks at namespaces that wait for somebody's finalizers."""
PAGE = 200
_AFTER_SLASH = "0"  # the character that sorts right after "/", so that one key skips a whole namespace
_REMAINING = "NamespaceContentRemaining"
_WITHIN = tuple(info for info in KINDS if info.namespaced and info.stored and info.storage is None)

log = logging.getLogger(__name__)


async def adopt(objects: Objects) -> None:
    """Make the objects of all namespaces that hold something (those of older hubs have none) and of the default one.

    The default one is made last: where it is there, this has been done.
    """
    if await objects.find(Namespace, "", DEFAULT) is not None:
        return
    for name in (*sorted(await find(objects) - {DEFAULT}), DEFAULT):
        await _make(objects, name)


async def find(objects: Objects) -> set[str]:
    """Return the namespaces that have objects of any kind, by skipping from one to the next."""
    names: set[str] = set()
    for prefix in {prefix_of(info.type) for info in _WITHIN}:
        start = prefix
        while (page := await objects.store.list(prefix, limit=1, start=start)).records:
            name = page.records[0].key.removeprefix(prefix).split("/", 1)[0]
            names.add(name)
            start = f"{prefix}{name}{_AFTER_SLASH}"
    return names


async def delete(objects: Objects, clock: Clock, name: str) -> Namespace:
    """Mark the namespace and remove what is in it, as far as the time goes; return it as it is then.

    Raises NotFoundError, and ForbiddenError for the default namespace.
    """
    if name == DEFAULT:
        raise ForbiddenError("may not be deleted", element=f'namespaces "{name}"', hint="delete what is in it instead")

    def mark(current: Namespace) -> Namespace:
        going = removal.marked(current, clock.now())
        assert isinstance(going, Namespace)
        return msgspec.structs.replace(going, status=msgspec.structs.replace(going.status, phase="Terminating"))

    going = await objects.update_status(Namespace, "", name, mark)
    try:
        async with asyncio.timeout(SWEEP_SECONDS):
            await sweep(objects, clock, name)
    except TimeoutError:
        log.info("namespace.goes_on name=%s", name)
    except UNREADABLE as error:
        log.warning("namespace.sweep_failed name=%s cause=%s", name, error)
    return await objects.find(Namespace, "", name) or going


async def sweep(objects: Objects, clock: Clock, name: str) -> bool:
    """Remove what is in a namespace, then the namespace; returns whether it is gone."""
    left: dict[str, int] = {}
    for info in _WITHIN:
        if count := await _empty(objects, clock, info, name):
            left[info.resource] = count
    if left:
        with suppress(NotFoundError):
            await objects.update_status(Namespace, "", name, lambda current: _told(current, left, clock))
        return False
    current = await objects.find(Namespace, "", name)
    if current is not None and current.metadata.finalizers:
        return False
    if current is not None:
        try:
            await objects.delete(Namespace, "", name, resource_version=current.metadata.resource_version)
        except (ConflictError, NotFoundError):
            return False
    if await _holds(objects, name):  # made in between, by who had looked before the mark: it is named, so it is there
        await _make(objects, name)
    log.info("namespace.deleted name=%s", name)
    return True


async def run(objects: Objects, clock: Clock, *, round_seconds: float = ROUND_SECONDS) -> None:
    """Finish, forever, what calls had no time for and what waited for finalizers, also of a hub before this one."""
    while True:
        try:
            for item in (await objects.list(Namespace)).items:
                if item.metadata.deletion_timestamp is not None:
                    await sweep(objects, clock, item.metadata.name)
        except (SkerryError, OSError, *UNREADABLE) as error:
            log.warning("namespace.sweep_failed cause=%s", error)
        await asyncio.sleep(round_seconds)


async def _make(objects: Objects, name: str) -> None:
    with suppress(AlreadyExistsError):
        await objects.create(Namespace(metadata=ObjectMeta(name=name)))


async def _holds(objects: Objects, namespace: str) -> bool:
    for info in _WITHIN:
        if (await objects.store.list(prefix_of(info.type, namespace), limit=1)).records:
            return True
    return False


async def _empty(objects: Objects, clock: Clock, info: KindInfo, namespace: str) -> int:
    """Remove a kind's objects of a namespace; returns how many wait for their finalizers."""
    waiting, start = 0, ""
    while True:
        page = await objects.list(info.type, namespace, limit=PAGE, start=start)
        for item in page.items:
            waiting += not await _remove(objects, clock, item)
        if page.next_key is None:
            return waiting
        start = page.next_key


async def _remove(objects: Objects, clock: Clock, item: Resource) -> bool:
    meta = item.metadata
    with suppress(NotFoundError):
        if meta.finalizers:
            now = clock.now()
            await objects.update_status(type(item), meta.namespace, meta.name, lambda one: removal.marked(one, now))
            return False
        try:
            await removal.remove(objects, item)
        except ConflictError:
            return False  # somebody wrote meanwhile, a finalizer perhaps: the next round looks again
    return True


def _told(item: Namespace, left: Mapping[str, int], clock: Clock) -> Namespace:
    words = ", ".join(f"{resource} has {count} resource instances" for resource, count in left.items())
    old = next((one for one in item.status.conditions if one.type == _REMAINING), None)
    now = clock.now().replace(microsecond=0)
    told = NamespaceCondition(
        type=_REMAINING,
        status="True",
        reason="SomeResourcesRemain",
        message=f"Some resources are remaining: {words}",
        last_transition_time=old.last_transition_time if old is not None else now,
    )
    others = [one for one in item.status.conditions if one.type != _REMAINING]
    return msgspec.structs.replace(item, status=NamespaceStatus(phase="Terminating", conditions=[*others, told]))
