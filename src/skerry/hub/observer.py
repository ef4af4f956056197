"""What devices say of themselves, on its way into their status: late messages dropped, the rest coalesced and written.

Lives here: presence, the order of messages, the writers. Must not live here: which field a report becomes
(`device_status`), connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import msgspec

from skerry.api.errors import IntegrityError, InvalidError, NotFoundError, SkerryError, TooLargeError
from skerry.api.kinds.device import Device
from skerry.core.messages import Online, Reported
from skerry.core.ports import Clock
from skerry.hub.device_status import News, is_behind, observe
from skerry.hub.objects import UNREADABLE, Objects
from skerry.kit.workqueue import WorkQueue

log = logging.getLogger(__name__)

MAX_STRANGERS = 10_000
"""Devices heard of whose Device object has not been seen; beyond, strangers are ignored."""
_RETRY_SECONDS = 1.0

Locate = Callable[[str], tuple[str, str] | None]
"""From a uid to its Device's namespace and name."""


@dataclass(kw_only=True)
class _Heard:
    """What one device said, and what of it is not written yet."""

    boot_id: str = ""
    seq: int = -1
    past_boots: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    online: bool | None = None
    """None: not known, since the hub's own connection began."""
    why: str = ""
    report: Reported | None = None
    last_seen: datetime | None = None
    written_seen: datetime | None = None

    def is_late(self, boot_id: str, seq: int | None) -> bool:
        """Return whether the message is older than one heard before; remember it if it is not."""
        if boot_id in self.past_boots:
            return True
        if boot_id != self.boot_id:
            if self.boot_id:
                self.past_boots.append(self.boot_id)
            self.boot_id, self.seq = boot_id, -1
        if seq is not None:
            if seq <= self.seq:
                return True
            self.seq = seq
        return False


class Observer:
    """Takes messages at once, writes statuses as fast as the store goes: per device only the newest."""

    def __init__(
        self,
        objects: Objects,
        clock: Clock,
        locate: Locate,
        *,
        desired_version: Callable[[str], int],
        last_seen_seconds: float,
        presence_seconds: float,
    ) -> None:
        """`desired_version` is what the hub desires of a device, as far as it was heard of; it may lag."""
        self._objects = objects
        self._clock = clock
        self._locate = locate
        self._desired_version = desired_version
        self._resolution = timedelta(seconds=last_seen_seconds)
        self._presence = timedelta(seconds=presence_seconds)
        self._heard: dict[str, _Heard] = {}
        self._unconfirmed: set[str] = set()
        self._queue: WorkQueue[str] = WorkQueue()

    @property
    def idle(self) -> bool:
        """Everything heard is written."""
        return self._queue.idle

    def online(self, uid: str) -> bool:
        """Return whether the device is connected now, as far as is known."""
        heard = self._heard.get(uid)
        return heard is not None and heard.online is True

    def take(self, uid: str, message: Reported | Online) -> None:
        """Note a message; late ones are dropped."""
        if uid not in self._heard and self._locate(uid) is None and len(self._heard) >= MAX_STRANGERS:
            return
        heard = self._heard.setdefault(uid, _Heard())
        if heard.is_late(message.boot_id, message.seq if isinstance(message, Reported) else None):
            log.debug("gateway.late uid=%s boot_id=%s", uid, message.boot_id)
            return
        if isinstance(message, Online):
            self._unconfirmed.discard(uid)
            heard.online, heard.why = message.online, "the connection ended"
        else:
            unwritten = heard.report
            if message.facts is None and unwritten is not None and unwritten.facts is not None:
                message = msgspec.structs.replace(message, facts=unwritten.facts)
            heard.report = message
        if not isinstance(message, Online) or message.online:
            heard.last_seen = self._now()
        self._queue.add(uid)

    def meet(self, uid: str, *, was_online: bool) -> None:
        """A Device was seen in the store; what it said before that is written now."""
        if uid in self._heard:
            self._queue.add(uid)
        elif was_online:
            self._unconfirmed.add(uid)

    def forget(self, uid: str) -> None:
        """The Device was deleted."""
        self._heard.pop(uid, None)
        self._unconfirmed.discard(uid)

    def lose_sight(self) -> None:
        """The hub's own connection ended: whoever was there may be gone by now."""
        for uid, heard in self._heard.items():
            if heard.online:
                self._unconfirmed.add(uid)
            heard.online = None

    async def expire_absent(self, grace_seconds: float) -> None:
        """Declare offline whoever was online before and did not confirm it within the grace."""
        await asyncio.sleep(grace_seconds)
        for uid in self._unconfirmed:
            heard = self._heard.setdefault(uid, _Heard())
            heard.online, heard.why = False, "not heard of since the hub connected"
            self._queue.add(uid)
        self._unconfirmed.clear()

    async def write(self) -> None:
        """Write statuses, forever; run several for concurrency."""
        while True:
            async with self._queue.take() as uid:
                await self._write_one(uid)

    async def flush_last_seen(self) -> None:
        """Bring `lastSeen` up to date now and then; presence counts as being seen."""
        while True:
            await asyncio.sleep(self._resolution.total_seconds())
            now = self._now()
            for uid, heard in self._heard.items():
                written = heard.written_seen
                if heard.online and (written is None or now - written >= self._presence):
                    heard.last_seen = now
                if heard.last_seen is not None and heard.last_seen != written:
                    self._queue.add(uid)

    async def _write_one(self, uid: str) -> None:
        heard, place = self._heard.get(uid), self._locate(uid)
        if heard is None or place is None:
            return
        news = News(report=heard.report, online=heard.online, why=heard.why, last_seen=heard.last_seen)
        try:
            if news.report is not None:
                news = await self._compared(uid, news, news.report)
            device = await self._change_status(uid, place, news)
        except NotFoundError:
            return
        except (TooLargeError, InvalidError) as error:
            # It will not become smaller; the device's next report may be.
            log.warning("gateway.report_dropped uid=%s cause=%s", uid, error)
            if heard.report is news.report:
                heard.report = None
            return
        except UNREADABLE as error:
            # Nothing is lost: what it said last is tried again whenever its `lastSeen` is due.
            log.error("gateway.device_unreadable uid=%s cause=%s", uid, error)
            return
        except SkerryError as error:
            log.warning("gateway.status_not_written uid=%s cause=%s", uid, error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._queue.add, uid)  # the writer goes on meanwhile
            return
        heard.written_seen = device.status.last_seen
        if heard.report is news.report:
            heard.report = None

    async def _change_status(self, uid: str, place: tuple[str, str], news: News) -> Device:
        def change(device: Device) -> Device:
            if device.metadata.uid != uid:
                return device  # another device under the same name
            status = observe(device.status, news, now=self._now(), resolution=self._resolution)
            return msgspec.structs.replace(device, status=status)

        return await self._objects.update_status(Device, *place, change)

    async def _compared(self, uid: str, news: News, report: Reported) -> News:
        """Return the news with what is desired; without the report, for now, where that cannot be read."""
        try:
            return replace(news, desired_version=await self._version_for(uid, report))
        except IntegrityError as error:
            log.error("gateway.desired_unreadable uid=%s cause=%s", uid, error)
            return replace(news, report=None)

    async def _version_for(self, uid: str, report: Reported) -> int:
        """Return what is desired of the device; looked up only where what was heard of it would be an alarm."""
        heard = self._desired_version(uid)
        if not is_behind(report, heard):
            return heard
        record = await self._objects.get_desired(uid)
        return 0 if record is None else record.manifest_version

    def _now(self) -> datetime:
        return self._clock.now().replace(microsecond=0)
