"""The hub's sessions with its devices: desired states out, reports in, presence, commands and their answers.

`run` keeps everything going; the other methods are what the rest of the hub calls. Lives here: the connection's life,
the table of known devices, commands. Must not live here: the carrier (`drivers.link`), the statuses (`observer`), the
desired states (`publisher`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec

from skerry.api.errors import ExpiredError, InvalidError, TimedOutError, UnavailableError
from skerry.api.kinds.device import Device
from skerry.api.meta import Struct
from skerry.core import answers, messages, trust
from skerry.core.ports import Change, Clock, HubConnection, HubLink, Record
from skerry.core.shares import Shed
from skerry.hub.objects import UNREADABLE, Objects, key_of, prefix_of
from skerry.hub.observer import Observer
from skerry.hub.publisher import Publisher

log = logging.getLogger(__name__)

_DEVICES = prefix_of(Device)
_GOING = b'"deletionTimestamp"'
"""In a record that is worth reading again; a label may be called so too."""
_PAGE = 500
_RETRY_SECONDS = 1.0


class _Meta(Struct, frozen=True, kw_only=True):
    name: str
    namespace: str
    uid: str
    deletion_timestamp: str | None = None


class _Status(Struct, frozen=True, kw_only=True):
    phase: str = "Pending"


class _Known(Struct, frozen=True, kw_only=True):
    """A Device, as far as it concerns who may connect: there may be a million to read before the hub answers."""

    metadata: _Meta
    status: _Status = _Status()


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """How patient and how parallel the gateway is."""

    publishers: int = 16
    """Desired states on their way at the same time; a broker acknowledges in milliseconds."""
    writers: int = 16
    """Statuses being written at the same time; the store commits what comes together in one transaction."""
    offline_grace_seconds: float = 30.0
    """For devices to return after the hub did: longer than a device's first few attempts to reconnect."""
    last_seen_seconds: float = 30.0
    """`lastSeen` alone is written at most this often per device."""
    presence_seconds: float = 300.0
    """A device that is connected and silent counts as seen this often."""
    first_backoff_seconds: float = 0.2
    max_backoff_seconds: float = 15.0
    """Between attempts to reach the broker; each wait is random between nothing and the backoff (full jitter)."""
    max_commands: int = 1000
    """Waiting for their answers."""


class Gateway:
    """One hub's side of all devices' links."""

    def __init__(
        self,
        objects: Objects,
        link: HubLink,
        signing_key: trust.SigningKey,
        key_id: str,
        clock: Clock,
        *,
        settings: GatewaySettings | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
        shed: Shed | None = None,
    ) -> None:
        self.ready = asyncio.Event()
        """Set once it knows which devices there are."""
        self._objects = objects
        self._link = link
        self._key = signing_key
        self._key_id = key_id
        self._clock = clock
        self._settings = settings or GatewaySettings()
        self._jitter = jitter
        self._devices: dict[str, tuple[str, str]] = {}
        self._uids: dict[str, str] = {}
        """By the Device's key in the store."""
        self._waiting: dict[str, tuple[str, asyncio.Future[messages.CommandResult]]] = {}
        self._waited_for = Counter[str]()
        """How many of them there are of each namespace."""
        self._shed = shed or Shed()
        self._telemetry: dict[str, messages.Sample] = {}
        self._connection: HubConnection | None = None
        self._begin()
        self.elsewhere = ""
        """Whom devices are connected to instead, where several hubs share a store and another one leads."""

    def _begin(self) -> None:
        """Know nothing of what is published and what devices say."""
        self._publisher = Publisher(self._objects, self._clock, known=self.known, sign=self._sign)
        self._observer = Observer(
            self._objects,
            self._clock,
            self._devices.get,
            desired_version=self._publisher.version,
            last_seen_seconds=self._settings.last_seen_seconds,
            presence_seconds=self._settings.presence_seconds,
        )

    def known(self, uid: str, namespace: str | None = None) -> bool:
        """Return whether a Device with that uid exists, in that namespace if one is given; not one being deleted."""
        place = self._devices.get(uid)
        return place is not None and namespace in (None, place[0])

    def place(self, uid: str) -> tuple[str, str] | None:
        """Return namespace and name of the Device with that uid."""
        return self._devices.get(uid)

    def online(self, uid: str) -> bool:
        """Return whether the device is connected now."""
        return self._connection is not None and self.known(uid) and self._observer.online(uid)

    def telemetry(self, uid: str) -> messages.Sample | None:
        """Return the newest sample of a device since this hub started; None when none came."""
        return self._telemetry.get(uid)

    async def run(self) -> None:
        """Serve devices, forever: the store's and the broker's failures are logged and waited out."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follow_devices(), name="gateway-devices")
            group.create_task(self._serve(), name="gateway-serve")

    async def serve(self, link: HubLink) -> None:
        """Serve devices over this link, until cancelled, as a hub that takes over from another one.

        What was heard before may be long out of date. `follow_devices` must be running beside it.
        """
        self._link = link
        self._telemetry.clear()
        self._begin()
        await self.ready.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._introduce(), name="gateway-introduce")
            group.create_task(self._serve(), name="gateway-serve")

    async def _introduce(self) -> None:
        """Tell the observer which devices were online when somebody last looked."""
        while True:
            try:
                await self._go_through(lambda record: self._read(record, self._greet))
            except (ExpiredError, UnavailableError) as error:
                log.warning("gateway.introduction_failed cause=%s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.follow(), name="gateway-desired")
            group.create_task(self._observer.flush_last_seen(), name="gateway-last-seen")
            for number in range(self._settings.publishers):
                group.create_task(self._publisher.publish(), name=f"gateway-publish-{number}")
            for number in range(self._settings.writers):
                group.create_task(self._observer.write(), name=f"gateway-write-{number}")
            group.create_task(self._stay_connected(), name="gateway-link")

    async def command(
        self,
        uid: str,
        verb: Literal["logs", "infer", "remote"],
        workload: str,
        *,
        tail_lines: int = 200,
        log_query: messages.LogQuery | None = None,
        remote: messages.RemoteSession | None = None,
        request: dict[str, Any] | None = None,
        timeout_seconds: float = 30.0,
    ) -> messages.CommandResult:
        """Ask a device and return its answer.

        Raises UnavailableError when it is offline, TimedOutError when it does not answer in time, InvalidError or
        TooLargeError for a question that cannot be asked, and what the device answered when it could not.
        """
        element = f"device {self._devices.get(uid, ('', uid))[1]}"
        connection = self._connection
        if self.elsewhere:
            hint = f"ask that one: {self.elsewhere}"
            raise UnavailableError("is connected to the hub that leads, not to this one", element=element, hint=hint)
        if connection is None or not self.online(uid):
            raise UnavailableError("is offline", element=element, hint="ask again when it is connected")
        if not 0 <= tail_lines <= messages.MAX_TAIL_LINES:
            raise InvalidError(f"{tail_lines} is not between 0 and {messages.MAX_TAIL_LINES}", element="tailLines")
        namespace = self._devices[uid][0]
        self._make_room(namespace, element)
        command = messages.Command(
            uid=uid,
            id=secrets.token_hex(16),
            expires_at=self._clock.now() + timedelta(seconds=timeout_seconds),
            verb=verb,
            workload=workload,
            tail_lines=tail_lines,
            log=log_query or messages.LogQuery(),
            remote=remote,
            request=request or {},
        )
        answer: asyncio.Future[messages.CommandResult] = asyncio.get_running_loop().create_future()
        self._waiting[command.id] = (uid, answer)
        self._waited_for[namespace] += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                await connection.send_command(uid, self._sign(command))
                result = await answer
        except TimeoutError:
            raise TimedOutError(
                f"no answer within {timeout_seconds:g} s", element=element, hint="its link may be slow or broken"
            ) from None
        finally:
            self._leave(command.id, namespace)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # retrieved, or asyncio complains of an answer that came with the timeout
        if result.error:
            raise answers.error_of(result, element=element)
        return result

    def _make_room(self, namespace: str, element: str) -> None:
        """Have the newest command of the namespace that waits for most give way, where one has to.

        Raises UnavailableError where it is this very namespace that has most.
        """
        if len(self._waiting) < self._settings.max_commands:
            return
        ((greedy, most),) = self._waited_for.most_common(1)
        if most > self._waited_for[namespace] + 1:
            for command_id, (uid, answer) in reversed(self._waiting.items()):
                if not answer.done() and self._devices.get(uid, ("", ""))[0] == greedy:
                    self._leave(command_id, greedy)
                    self._shed.count("commands", greedy)
                    why = "gave way to other namespaces: too many commands wait for their answers"
                    answer.set_exception(UnavailableError(why, element=f"device {self._devices[uid][1]}"))
                    return
        self._shed.count("commands", namespace)
        raise UnavailableError("too many commands wait for their answers", element=element, hint="try again")

    def _leave(self, command_id: str, namespace: str) -> None:
        if self._waiting.pop(command_id, None) is not None:
            self._waited_for -= Counter((namespace,))  # which leaves out what is none

    def _sign(self, message: messages.DesiredState | messages.Command) -> bytes:
        return messages.encode(trust.sign(message, self._key, self._key_id))

    # --- devices ------------------------------------------------------------------------------------------------

    async def follow_devices(self) -> None:
        """Keep up with which devices there are, forever; that much every hub needs to know."""
        while True:
            try:
                revision = await self._list_devices()
                self.ready.set()
                async with self._objects.store.watch(_DEVICES, after=revision) as changes:
                    async for change in changes:
                        self._note_device(change)
            except ExpiredError:
                log.info("gateway.relist prefix=devices")
            except UnavailableError as error:
                log.warning("gateway.watch_failed prefix=devices cause=%s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _list_devices(self) -> int:
        """Meet all devices, forget those that are gone, and return the revision that is of."""
        found = set[str]()

        def meet(record: Record) -> None:
            self._read(record, self._meet)
            found.add(self._uids.get(record.key, ""))

        revision = await self._go_through(meet)
        for uid in self._devices.keys() - found:
            self._forget(uid)
        return revision

    async def _go_through(self, take: Callable[[Record], None]) -> int:
        start, revision = "", 0
        while True:
            page = await self._objects.store.list(_DEVICES, limit=_PAGE, start=start, revision=revision)
            for record in page.records:
                take(record)
            revision = page.revision
            if page.next_key is None:
                return revision
            start = page.next_key

    def _note_device(self, change: Change) -> None:
        record = change.record
        if record is None:
            return
        if change.type == "DELETED":
            self._forget(self._uids.get(record.key, ""))
        elif record.key not in self._uids or _GOING in record.value:
            self._read(record, self._meet)  # of a known one nothing changes in its life but that it ends

    def _read(self, record: Record, meet: Callable[[_Known], None]) -> None:
        """Take in a Device; one that cannot be read must not keep the others from being served."""
        try:
            meet(msgspec.json.decode(record.value, type=_Known))
        except UNREADABLE as error:
            log.error("gateway.unreadable key=%s cause=%s", record.key, error)

    def _meet(self, device: _Known) -> None:
        uid, place = device.metadata.uid, (device.metadata.namespace, device.metadata.name)
        known = self._devices.get(uid)
        if device.metadata.deletion_timestamp is not None:
            if known == place:
                self._forget(uid)
            return
        if known == place:
            return
        if known is not None:  # whoever has it keeps it: nobody becomes another device by having its uid
            log.error("gateway.uid_taken uid=%s by=%s/%s", uid, *place)
            return
        self._devices[uid] = place
        self._uids[key_of(Device, *place)] = uid
        self._greet(device)

    def _greet(self, device: _Known) -> None:
        uid, place = device.metadata.uid, (device.metadata.namespace, device.metadata.name)
        if self._devices.get(uid) == place:
            self._observer.meet(uid, was_online=device.status.phase == "Online")
            self._publisher.refresh(uid)

    def _forget(self, uid: str) -> None:
        place = self._devices.pop(uid, None)
        if place is None:
            return
        if self._uids.get(key_of(Device, *place)) == uid:
            del self._uids[key_of(Device, *place)]
        self._telemetry.pop(uid, None)
        self._observer.forget(uid)
        self._publisher.forget(uid)
        self._fail_commands("was deleted", uid)

    # --- the connection -----------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        await self.ready.wait()
        attempt = 0
        while True:
            try:
                async with self._link.connect() as connection:
                    log.info("gateway.connected")
                    attempt = 0
                    await self._converse(connection)
            except UnavailableError as error:
                log.warning("gateway.disconnected cause=%s", error)
            backoff = min(self._settings.max_backoff_seconds, self._settings.first_backoff_seconds * 2**attempt)
            attempt = min(attempt + 1, 30)
            await asyncio.sleep(self._jitter(0, backoff))

    async def _converse(self, connection: HubConnection) -> None:
        """Serve one connection until it ends, which it does by UnavailableError."""
        self._connection = connection
        self._publisher.connect(connection)
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._publish_all()),
                    group.create_task(self._observer.expire_absent(self._settings.offline_grace_seconds)),
                ]
                with suppress(UnavailableError):
                    async for uid, message in connection.incoming():
                        self._dispatch(uid, message)
                for helper in helpers:
                    helper.cancel()
        finally:
            self._connection = None
            self._publisher.disconnect()
            self._observer.lose_sight()
            self._fail_commands("the hub lost its connection to the broker")
        raise UnavailableError("the connection ended", element="device link")

    async def _publish_all(self) -> None:
        while True:
            try:
                return await self._publisher.publish_all()
            except (ExpiredError, UnavailableError) as error:
                log.warning("gateway.publish_all_failed cause=%s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _dispatch(self, uid: str, message: messages.FromDevice) -> None:
        if isinstance(message, messages.Telemetry):
            self._note_sample(uid, message)
            return
        if not isinstance(message, messages.CommandResult):
            self._observer.take(uid, message)
            if isinstance(message, messages.Online) and not message.online:
                self._fail_commands("went offline", uid)
            return
        asked, answer = self._waiting.get(message.id, ("", None))
        if answer is not None and asked == uid and not answer.done():
            answer.set_result(message)
        else:
            log.debug("gateway.unasked_result uid=%s id=%s", uid, message.id)

    def _note_sample(self, uid: str, message: messages.Telemetry) -> None:
        """Keep the newest: samples that waited on the device come late, and may come twice."""
        known = self._telemetry.get(uid)
        comparable = (sample for sample in message.samples if sample.at.tzinfo is not None)
        newest = max(comparable, key=lambda sample: sample.at, default=None)
        if newest is not None and self.known(uid) and (known is None or newest.at >= known.at):
            self._telemetry[uid] = newest
        if message.dropped:
            log.info("gateway.samples_lost uid=%s count=%d", uid, message.dropped)

    def _fail_commands(self, why: str, uid: str = "") -> None:
        """End the waiting for answers that will not come: one device's, or all."""
        for asked, answer in self._waiting.values():
            if (not uid or asked == uid) and not answer.done():
                answer.set_exception(UnavailableError(why, element=f"device {asked}"))
