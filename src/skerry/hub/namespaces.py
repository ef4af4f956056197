"""Namespaces: there as soon as anybody names them, and gone with everything in them.

An object is made for each namespace with the first object in it (`Objects.create`), so that namespaces can be listed,
watched and labelled as anything else. A namespace that is being deleted takes nothing new; what is in it goes object by
object, each as if it had been deleted by itself, and the namespace last of all. All of that is of one namespace, not of
its name: each write happens only while the very namespace that was marked is there (`Guard`), as each creation only
while its namespace takes it. Must not live here: HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from skerry.api.errors import AlreadyExistsError, ConflictError, ForbiddenError, NotFoundError, SkerryError
from skerry.api.kinds import KINDS, KindInfo
from skerry.api.kinds.namespace import Namespace, NamespaceCondition, NamespaceStatus
from skerry.api.meta import ObjectMeta
from skerry.core.ports import Clock, Guard
from skerry.hub import removal
from skerry.hub.objects import UNREADABLE, Objects, key_of, prefix_of

DEFAULT = "default"
SWEEP_SECONDS = 10.0
"""How long a call that deletes a namespace works on it; what is left then goes in the background."""
ROUND_SECONDS = 5.0
"""Between two looks at namespaces that wait for somebody's finalizers."""
ORPHANS_SECONDS = 3600.0
"""Between two looks at what has no namespace any more, which take one step for each kind in each namespace."""
PAGE = 200
_ATTEMPTS = 20  # somebody who writes the namespace as often in the time of one write rests before the next round
_AFTER_SLASH = "0"  # the character that sorts right after "/", so that one key skips a whole namespace
_REMAINING = "NamespaceContentRemaining"
_FAILS = (SkerryError, OSError, *UNREADABLE)
_WITHIN = tuple(info for info in KINDS if info.namespaced and info.stored and info.storage is None)

log = logging.getLogger(__name__)


async def adopt(objects: Objects) -> None:
    """Make the objects of all namespaces that hold something (those of older hubs have none) and of the default one.

    The default one is made last: where it is there, though it cannot be read perhaps, this has been done.
    """
    if await objects.store.get(key_of(Namespace, "", DEFAULT)) is not None:
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


async def delete(objects: Objects, clock: Clock, namespace: Namespace) -> Namespace:
    """Mark exactly this namespace and remove what is in it, as far as the time goes; return it as it is then.

    Raises NotFoundError, ForbiddenError for the default namespace, and ConflictError when somebody wrote it meanwhile.
    """
    name = namespace.metadata.name
    if name == DEFAULT:
        raise ForbiddenError("may not be deleted", element=f'namespaces "{name}"', hint="delete what is in it instead")
    going = await removal.mark(objects, namespace, clock.now())
    await finish(objects, clock, going)
    left = await objects.find(Namespace, "", name)
    return left if left is not None and left.metadata.uid == going.metadata.uid else going


async def renew(objects: Objects, clock: Clock, name: str) -> Namespace:
    """Write a namespace anew whose object cannot be read, marked already, so that what is in it can go with it.

    The default one, which does not go, is only written anew. Raises NotFoundError, and ConflictError for one that can
    be read, by now perhaps.
    """
    fresh = Namespace(metadata=ObjectMeta(name=name))
    return await objects.renew(fresh if name == DEFAULT else removal.marked(fresh, clock.now()))


async def finish(objects: Objects, clock: Clock, namespace: Namespace) -> None:
    """Do as much of `sweep` as a caller waits for; the rest goes on in the background."""
    try:
        async with asyncio.timeout(SWEEP_SECONDS):
            await sweep(objects, clock, namespace)
    except TimeoutError:
        log.info("namespace.goes_on name=%s", namespace.metadata.name)
    except (ConflictError, *UNREADABLE) as error:
        log.warning("namespace.sweep_failed name=%s cause=%s", namespace.metadata.name, error)


async def sweep(objects: Objects, clock: Clock, namespace: Namespace) -> bool:
    """Remove what is in exactly this namespace, which was marked, then the namespace; returns whether it is gone.

    Raises ConflictError when somebody writes the namespace all the time; the others must not wait for that.
    """
    try:
        for info in _WITHIN:
            await _empty(objects, clock, info, namespace)
        current = await _going(objects, namespace)
        # Nothing comes into it since the mark, so what is counted here is all there will be.
        if left := await _count(objects, current.metadata.name):
            await _tell(objects, clock, current, left)
            return False
        return await _remove(objects, current)
    except NotFoundError:
        return True


async def run(
    objects: Objects, clock: Clock, *, round_seconds: float = ROUND_SECONDS, orphans_seconds: float = ORPHANS_SECONDS
) -> None:
    """Finish, forever, what calls had no time for and what waited for finalizers, also of a hub before this one."""
    due = clock.monotonic()
    while True:
        try:
            if clock.monotonic() >= due:
                await name_orphans(objects)
                due = clock.monotonic() + orphans_seconds
            found = (await objects.list(Namespace, leave_out_unreadable=True)).items
        except _FAILS as error:
            log.warning("namespace.sweep_failed cause=%s", error)
            found = []
        for item in found:
            try:
                if item.metadata.deletion_timestamp is not None:
                    await sweep(objects, clock, item)
            except _FAILS as error:  # one that cannot be finished must not keep the others
                log.warning("namespace.sweep_failed name=%s cause=%s", item.metadata.name, error)
        await asyncio.sleep(round_seconds)


async def name_orphans(objects: Objects) -> None:
    """Make the object of each namespace that holds something and has none: then it can be seen, and deleted."""
    held = await find(objects)
    page = await objects.list(Namespace, leave_out_unreadable=True)
    named = {*(one.metadata.name for one in page.items), *(name for _, name in page.unreadable)}
    for name in sorted(held - named):
        if await _count(objects, name):
            log.warning("namespace.orphan name=%s", name)
            await _make(objects, name)


async def _remove(objects: Objects, namespace: Namespace) -> bool:
    """Remove a namespace that nothing is in; returns whether it went. Raises NotFoundError."""
    for _ in range(_ATTEMPTS):
        if namespace.metadata.finalizers:
            return False
        try:
            await removal.remove(objects, namespace)
        except ConflictError:  # somebody wrote it meanwhile, a finalizer perhaps
            namespace = await _going(objects, namespace)
        else:
            log.info("namespace.deleted name=%s uid=%s", namespace.metadata.name, namespace.metadata.uid)
            return True
    return False


async def _make(objects: Objects, name: str) -> None:
    with suppress(AlreadyExistsError):
        await objects.create(Namespace(metadata=ObjectMeta(name=name)))


async def _going(objects: Objects, namespace: Namespace) -> Namespace:
    """Return the namespace as it is now. Raises NotFoundError once it is gone, also when another one has its name."""
    current = await objects.get(Namespace, "", namespace.metadata.name)
    if current.metadata.uid != namespace.metadata.uid or current.metadata.deletion_timestamp is None:
        raise NotFoundError(element=f'namespaces "{namespace.metadata.name}"')
    return current


async def _count(objects: Objects, name: str) -> dict[str, str]:
    """Return how many objects a namespace has of which kind, in words, also of those that cannot be read."""
    left: dict[str, str] = {}
    for info in _WITHIN:
        page = await objects.store.list(prefix_of(info.type, name), limit=1)
        if page.records:
            left[info.resource] = "very many" if page.remaining is None else str(1 + page.remaining)
    return left


async def _empty(objects: Objects, clock: Clock, info: KindInfo, namespace: Namespace) -> None:
    """Remove a kind's objects of exactly this namespace; those with finalizers are marked. Raises NotFoundError."""
    name, start = namespace.metadata.name, ""
    while True:
        current = await _going(objects, namespace)
        page = await objects.list(info.type, name, limit=PAGE, start=start, leave_out_unreadable=True)
        for _, unreadable in page.unreadable:
            discard = partial(objects.discard, info.type, name, unreadable)
            current = await _guarded(objects, current, discard)
        for item in page.items:
            current = await _guarded(objects, current, partial(removal.remove_or_mark, objects, item, clock.now()))
        if page.next_key is None:
            return
        start = page.next_key


async def _guarded(objects: Objects, namespace: Namespace, write: Callable[..., Awaitable[object]]) -> Namespace:
    """Write with a guard that it is in exactly this namespace; again where that was written meanwhile, and only that.

    What was written itself, a finalizer perhaps, is for the next round, which looks again. Returns the namespace as it
    was seen last. Raises NotFoundError when it is gone, or another one has its name, and ConflictError when it is
    written all the time.
    """
    for _ in range(_ATTEMPTS):
        guard = Guard(
            key=key_of(Namespace, "", namespace.metadata.name), revision=int(namespace.metadata.resource_version)
        )
        try:
            await write(guard=guard)
        except NotFoundError:  # somebody was faster
            return namespace
        except ConflictError:
            seen = await _going(objects, namespace)
            if seen.metadata.resource_version == namespace.metadata.resource_version:
                return namespace
            namespace = seen
        else:
            return namespace
    raise ConflictError("is written all the time", element=f'namespaces "{namespace.metadata.name}"')


async def _tell(objects: Objects, clock: Clock, namespace: Namespace, left: Mapping[str, str]) -> None:
    def change(current: Namespace) -> Namespace:
        if current.metadata.uid != namespace.metadata.uid:
            raise ConflictError(element=f'namespaces "{namespace.metadata.name}"')
        return _told(current, left, clock)

    with suppress(NotFoundError, ConflictError):
        await objects.update_status(Namespace, "", namespace.metadata.name, change)


def _told(item: Namespace, left: Mapping[str, str], clock: Clock) -> Namespace:
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
