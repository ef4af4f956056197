"""From desired records in the store to signed messages with the broker: each change at once, everything on connecting.

Lives here: following the records, the order per device, retries. Must not live here: what is desired (rollouts), the
connection's life (`gateway`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from skerry.api.errors import ExpiredError, SkerryError, UnavailableError
from skerry.core import messages
from skerry.core.desired import DesiredRecord, render
from skerry.core.ports import Change, Clock, HubConnection
from skerry.hub.objects import DESIRED_PREFIX, UNREADABLE, Objects
from skerry.kit.workqueue import WorkQueue

log = logging.getLogger(__name__)

_PAGE = 500
_RETRY_SECONDS = 1.0


class Publisher:
    """Publishes for known devices, one message per device at a time, so that an older one never follows a newer."""

    def __init__(
        self,
        objects: Objects,
        clock: Clock,
        *,
        known: Callable[[str], bool],
        sign: Callable[[messages.DesiredState], bytes],
    ) -> None:
        self._objects = objects
        self._clock = clock
        self._known = known
        self._sign = sign
        self._connection: HubConnection | None = None
        self._newest: dict[str, DesiredRecord] = {}
        self._published: dict[str, int] = {}
        self._versions: dict[str, int] = {}
        self._deleted: set[str] = set()
        self._queue: WorkQueue[str] = WorkQueue()

    @property
    def idle(self) -> bool:
        """Everything known is published."""
        return self._queue.idle

    def connect(self, connection: HubConnection) -> None:
        """Publish to this connection from now on; follow it by `publish_all`."""
        self._connection = connection
        self._published.clear()
        for uid in self._deleted:
            self._queue.add(uid)

    def disconnect(self) -> None:
        """Publish nothing until the next connection, which gets everything."""
        self._connection = None

    def version(self, uid: str) -> int:
        """Return the newest version desired of a device that was heard of; 0 when none was."""
        return self._versions.get(uid, 0)

    def refresh(self, uid: str) -> None:
        """A device became known: publish what is desired of it."""
        self._deleted.discard(uid)
        self._queue.add(uid)

    def forget(self, uid: str) -> None:
        """A device was deleted: clear what the broker keeps for it."""
        self._newest.pop(uid, None)
        self._published.pop(uid, None)
        self._versions.pop(uid, None)
        self._deleted.add(uid)
        self._queue.add(uid)

    async def publish_all(self) -> None:
        """Queue every record there is."""
        await self._list()

    async def follow(self) -> None:
        """Queue every record that changes, forever; lists anew when the watch falls behind."""
        while True:
            try:
                revision = await self._list()
                async with self._objects.store.watch(DESIRED_PREFIX, after=revision) as changes:
                    async for change in changes:
                        self._note(change)
            except ExpiredError:
                log.info("gateway.relist prefix=%s", DESIRED_PREFIX)
            except UnavailableError as error:
                log.warning("gateway.watch_failed prefix=%s cause=%s", DESIRED_PREFIX, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def publish(self) -> None:
        """Publish what is queued, forever; run several for concurrency."""
        while True:
            async with self._queue.take() as uid:
                connection = self._connection
                if connection is None:
                    continue
                try:
                    await self._publish_one(connection, uid)
                except UnavailableError as error:
                    if connection is self._connection:  # else the next connection gets everything anyway
                        log.warning("gateway.not_published uid=%s cause=%s", uid, error)
                        await asyncio.sleep(_RETRY_SECONDS)
                        self._queue.add(uid)
                except SkerryError as error:
                    log.error("gateway.not_publishable uid=%s cause=%s", uid, error)

    async def _publish_one(self, connection: HubConnection, uid: str) -> None:
        if uid in self._deleted:
            await connection.forget(uid)
            self._deleted.discard(uid)
            return
        if not self._known(uid):
            return  # its Device comes with the other watch, and `refresh`
        record = self._newest.pop(uid, None) or await self._objects.get_desired(uid)
        if record is not None:
            self._versions[uid] = max(record.manifest_version, self._versions.get(uid, 0))
        if record is None or not record.manifest_version or record.manifest_version <= self._published.get(uid, 0):
            return
        envelope = self._sign(render(record, issued_at=self._clock.now()))
        await connection.publish_desired(uid, envelope)
        self._published[uid] = record.manifest_version
        log.info("gateway.published uid=%s version=%d bytes=%d", uid, record.manifest_version, len(envelope))

    async def _list(self) -> int:
        """Queue all records and return the revision they are of."""
        self._newest.clear()  # what was noted before may be older than what is there now
        start, revision = "", 0
        while True:
            page = await self._objects.store.list(DESIRED_PREFIX, limit=_PAGE, start=start, revision=revision)
            for record in page.records:
                self._queue.add(record.key.removeprefix(DESIRED_PREFIX))
            revision = page.revision
            if page.next_key is None:
                return revision
            start = page.next_key

    def _note(self, change: Change) -> None:
        if change.record is None or change.type == "DELETED":
            return
        uid = change.record.key.removeprefix(DESIRED_PREFIX)
        try:
            self._newest[uid] = msgspec.json.decode(change.record.value, type=DesiredRecord)
        except UNREADABLE as error:
            log.error("gateway.record_unreadable key=%s cause=%s", change.record.key, error)
            return
        self._versions[uid] = self._newest[uid].manifest_version
        self._queue.add(uid)
