"""The embedded MQTT broker: for a hub without another one. Who is at the other end is what the certificate says.

amqtt reads and writes the packets; sessions, routing and access are here, because amqtt's own broker cannot be closed
where it has to be (docs/adr/0002-embedded-broker.md has what was measured). It carries this protocol and nothing else:
MQTT 3.1.1 with QoS 0 and 1, clean sessions for devices, one hub whose messages are kept while it is away.

Lives here: listening, admission, one connection's life, routing. Must not live here: TLS (`tls`), the access rules
(`topics`), the packets (`packets`), the queues (`outbox`). Nothing is stored: after a restart the hub publishes all
desired states again and devices announce themselves.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import access
from skerry.drivers.link import packets, tls, topics
from skerry.drivers.link.admission import Admission, Waiter, Waiting
from skerry.drivers.link.inbox import Drops
from skerry.drivers.link.outbox import Message, Outbox
from skerry.drivers.link.topics import Peer

_log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_POLL_SECONDS = 0.02
_HUB = Peer(role="hub", name="hub")
"""The hub of this process."""


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """Where to listen, and the bounds of what clients may cost."""

    host: str = "127.0.0.1"
    port: int = 8883
    """0 lets the system choose."""
    connect_timeout_seconds: float = 10.0
    """For TLS, and again for CONNECT: longer than a slow link needs, short for somebody who only holds the line."""
    unknown_grace_seconds: float = 1.0
    """A device may connect before the hub's watch has shown its new Device."""
    max_keepalive_seconds: int = 1200
    """Whoever wants no keepalive, or a longer one, is held to this."""
    admissions_per_second: float = 300.0
    """New connections; a handshake takes 1 to 2 ms of one core, and those who are connected must not wait for all."""
    admission_burst: int = 600
    """New connections at once, after a quiet time."""
    max_connections: int = 10_000
    """Admitted at the same time."""
    max_waiting: int = 2000
    """Connections that are in their TLS handshake or have not sent CONNECT; beyond, the one that waits longest ends.
    With the rate above nobody is put out sooner than some seconds after it came."""
    max_waiting_each: int = 4
    """Of these, with one certificate's subject: whoever holds a certificate may hold the line no more often."""
    hub_buffer_bytes: int = 64 * _MIB
    """Waiting for the hub; when it is full, devices wait with sending."""
    device_buffer_bytes: int = 16 * _MIB
    """Waiting for one device; when it is full, the device is disconnected and finds its newest state on return."""
    hub_window: int = 64
    device_window: int = 16
    """QoS 1 messages sent and not acknowledged."""


class _RefusedError(Exception):
    """The peer may not do this; its connection ends."""

    def __init__(self, reason: str, *, code: int = packets.NOT_AUTHORIZED) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(kw_only=True, eq=False)
class _Session:
    """One admitted connection."""

    peer: Peer
    writer: asyncio.StreamWriter
    outbox: Outbox
    will: packets.Will | None
    read_timeout: float
    valid_seconds: float
    """Until the certificate expires."""
    filters: set[str] = field(default_factory=set)
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = "certificate expired"
    scope: asyncio.Timeout | None = None

    def end(self, reason: str) -> None:
        """End the connection from outside, whatever it waits for."""
        self.reason = reason
        if self.scope is not None and not self.finished.is_set():
            with suppress(RuntimeError):  # its scope is being left already
                self.scope.reschedule(asyncio.get_running_loop().time())

    def write(self, data: bytes) -> None:
        """Write an acknowledgement. Raises _RefusedError for a client that sends without ever reading."""
        if self.writer.transport.get_write_buffer_size() > topics.MAX_PACKET_BYTES + _MIB:
            raise _RefusedError("does not read")
        self.writer.write(data)


@dataclass(kw_only=True, eq=False)
class Seat:
    """The hub's place, taken by the hub of this process; see `local`."""

    outbox: Outbox
    reason: str = ""
    """Why it was lost; empty while it is held."""
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """Take the place away: whoever holds it finds out when it next asks."""
        self.reason = self.reason or reason
        self.outbox.wake()

    async def next(self) -> packets.Publish:
        """Return the next message for the hub. Raises UnavailableError once the place is lost."""
        while True:
            if self.reason:
                raise UnavailableError(self.reason, element="embedded broker")
            packet = self.outbox.take()
            if packet is not None:
                return packet
            await self.outbox.wait_changed()


class EmbeddedBroker:
    """A context manager; it listens inside the block. `known` tells which devices exist, by uid and namespace."""

    def __init__(self, settings: BrokerSettings, *, tls: ssl.SSLContext, known: Callable[[str, str], bool]) -> None:
        if tls.verify_mode != ssl.CERT_REQUIRED or tls.minimum_version < ssl.TLSVersion.TLSv1_2:
            raise InvalidError(
                "must require client certificates and TLS 1.2", element="tls", hint="make it with server_context"
            )
        self.drops = Drops(_log)
        self._settings = settings
        self._tls = tls
        self._known = known
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._admission = Admission(
            rate=settings.admissions_per_second, burst=settings.admission_burst, monotonic=time.monotonic
        )
        self._waiting = Waiting(in_all=settings.max_waiting, each=settings.max_waiting_each)
        self._hub: _Session | Seat | None = None
        self._devices: dict[str, _Session] = {}
        self._hub_outbox = Outbox(max_bytes=settings.hub_buffer_bytes, window=settings.hub_window)
        self._desired: dict[str, bytes] = {}
        self._online: dict[str, bytes] = {}

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the broker is not running")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def is_serving(self) -> bool:
        """Whether it listens."""
        return self._server is not None and self._server.is_serving()

    async def __aenter__(self) -> EmbeddedBroker:
        """Listen, knowing nothing of an earlier time. Raises UnavailableError when the port is taken."""
        settings = self._settings
        self._desired.clear()
        self._online.clear()
        self._hub_outbox = Outbox(max_bytes=settings.hub_buffer_bytes, window=settings.hub_window)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: tls.Door(self._arrived), settings.host, settings.port, backlog=1024
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot listen: {error.strerror or error}",
                element=f"MQTT port {settings.host}:{settings.port}",
                hint="is another hub or broker running? choose another port",
            ) from error
        _log.info("broker.listening host=%s port=%d", settings.host, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening and end all connections."""
        if self._server is not None:
            self._server.close()
        if isinstance(self._hub, Seat):
            self._hub.end("the broker was closed")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self._server.wait_closed()

    def disconnect(self, uid: str, reason: str) -> None:
        """End a device's connection, if it has one."""
        session = self._devices.get(uid)
        if session is not None:
            session.end(reason)

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[Seat]:
        """Be the hub, in this process. Raises UnavailableError when it does not run, or another hub does not leave."""
        if not self.is_serving:
            raise UnavailableError("is not running", element="embedded broker")
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                await self._make_room(_HUB)
        except TimeoutError:
            raise UnavailableError("another hub does not leave its place", element="embedded broker") from None
        seat = Seat(outbox=self._hub_outbox)
        seat.outbox.rewind()
        self._hub = seat
        for uid, payload in self._online.items():
            seat.outbox.force(Message(topic=topics.topic(uid, "online"), payload=payload, qos=1, retain=True))
        try:
            yield seat
        finally:
            self._hub = None
            seat.end("left")
            seat.finished.set()

    def carry(self, packet: packets.Publish) -> None:
        """Carry a message of the hub's. Raises UnavailableError for one that a hub may not send."""
        try:
            self._carry_down(_HUB, packet)
        except _RefusedError as error:
            raise UnavailableError(str(error), element="embedded broker") from None

    def _arrived(self, transport: asyncio.Transport) -> None:
        """Take a connection in, or send it away before it has cost a handshake."""
        address = str((transport.get_extra_info("peername") or ("?",))[0])
        if not (self._admission.admit() or self._may_be_the_hub(transport)):
            self.drops.add("busy", source=address, detail="too many connections at a time")
            transport.abort()
            return
        waiter = Waiter(end=lambda reason: self._put_out(transport, address, reason))
        self._waiting.enter(waiter)
        task = asyncio.get_running_loop().create_task(self._greet(transport, address, waiter))
        task.add_done_callback(lambda _: self._waiting.leave(waiter))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_be_the_hub(self, transport: asyncio.Transport) -> bool:
        """The hub itself, on this machine, must not wait behind its devices: without it nobody is served."""
        ends = (transport.get_extra_info(end) for end in ("peername", "sockname"))
        return self._hub is None and len({end[0] if end else "" for end in ends}) == 1

    def _put_out(self, transport: asyncio.Transport, address: str, reason: str) -> None:
        self.drops.add("waiting", source=address, detail=reason)
        transport.abort()

    async def _greet(self, transport: asyncio.Transport, address: str, waiter: Waiter) -> None:
        """Do the TLS handshake, then live the connection."""
        try:
            streams = await tls.secure(transport, self._tls, seconds=self._settings.connect_timeout_seconds)
        except OSError as error:  # SSLError is one
            transport.abort()
            _log.debug("broker.handshake_failed address=%s cause=%s", address, error)
            return
        if streams is not None:
            await self._live(*streams, waiter)

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiter: Waiter) -> None:
        """Live one connection's life; nothing it does reaches the others."""
        address = str((writer.get_extra_info("peername") or ("?",))[0])
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert()
            self._waiting.identify(waiter, certificate["subject"])
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                session = await self._admit(reader, writer, certificate)
            self._waiting.leave(waiter)
            with self._registered(session):
                writer.write(packets.connack(packets.ACCEPTED))
                await self._serve(session, reader)
        except _RefusedError as error:
            self.drops.add("refused", source=address, detail=str(error))
            writer.write(packets.connack(error.code))
        except packets.MalformedError as error:
            self.drops.add("malformed", source=address, detail=str(error))
        except TimeoutError:
            self.drops.add("timeout", source=address, detail="no CONNECT in time")
        except OSError as error:
            _log.debug("broker.connection_lost address=%s cause=%s", address, error)
        except Exception:  # noqa: BLE001 - one connection's bug must not end the others
            _log.exception("broker.connection_failed address=%s", address)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            await tls.close(writer)

    async def _admit(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, certificate: dict[str, Any]
    ) -> _Session:
        """Read CONNECT and return the session, or raise. Nobody else is touched before the identity is checked."""
        try:
            connect = await packets.read(reader, limit=packets.MAX_CONNECT_BYTES, only=packets.CONNECT)
        except packets.UnknownProtocolError as error:
            raise _RefusedError(str(error), code=packets.BAD_PROTOCOL_VERSION) from error
        if not isinstance(connect, packets.Connect):
            raise packets.MalformedError("the connection ended before CONNECT")
        peer = identify(certificate, connect.client_id)
        if connect.will is not None:
            refusal = topics.refuse_will(peer, connect.will.topic, size=len(connect.will.payload))
            if refusal:
                raise _RefusedError(refusal)
        if peer.role == "device" and not await self._becomes_known(peer):
            raise _RefusedError(f"device {peer.name} is not known")
        if len(self._devices) >= self._settings.max_connections and peer.name not in self._devices:
            raise _RefusedError("too many connections", code=packets.SERVER_UNAVAILABLE)
        await self._make_room(peer)
        settings = self._settings
        keepalive = min(connect.keepalive_seconds or settings.max_keepalive_seconds, settings.max_keepalive_seconds)
        return _Session(
            peer=peer,
            writer=writer,
            outbox=self._hub_outbox
            if peer.role == "hub"
            else Outbox(max_bytes=settings.device_buffer_bytes, window=settings.device_window),
            will=connect.will,
            read_timeout=1.5 * keepalive,
            valid_seconds=ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time(),
        )

    async def _becomes_known(self, peer: Peer) -> bool:
        """Return whether the device exists, allowing a moment for the news of a new one to arrive here."""
        deadline = time.monotonic() + self._settings.unknown_grace_seconds
        while not self._known(peer.name, peer.namespace):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def _make_room(self, peer: Peer) -> None:
        """End the peer's older connection, and wait until it has ended."""
        while (old := self._session_of(peer)) is not None:
            old.end("taken over")
            await old.finished.wait()

    def _session_of(self, peer: Peer) -> _Session | Seat | None:
        return self._hub if peer.role == "hub" else self._devices.get(peer.name)

    @contextmanager
    def _registered(self, session: _Session) -> Iterator[None]:
        """Make the session the peer's; at the end leave its will, first of all."""
        if session.peer.role == "hub":
            session.outbox.rewind()
            self._hub = session
        else:
            self._devices[session.peer.name] = session
        _log.info("broker.connected role=%s name=%s", session.peer.role, session.peer.name)
        try:
            yield
        finally:
            if session.peer.role == "hub":
                self._hub = None
            else:
                del self._devices[session.peer.name]
            self._leave_will(session)
            session.finished.set()
            _log.info(
                "broker.disconnected role=%s name=%s reason=%r", session.peer.role, session.peer.name, session.reason
            )

    async def _serve(self, session: _Session, reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(session.valid_seconds) as session.scope, asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(session))
                session.reason = await self._converse(session, reader)
                writing.cancel()
        except TimeoutError:  # its scope was ended: by `end`, or by the certificate's
            session.writer.transport.abort()

    async def _write(self, session: _Session) -> None:
        await session.listening.wait()
        with suppress(OSError):  # the reading side says what happened
            while True:
                message = await session.outbox.next()
                session.writer.write(packets.publish(message))
                await session.writer.drain()

    async def _converse(self, session: _Session, reader: asyncio.StreamReader) -> str:
        """Return why the conversation ended."""
        try:
            return await self._read(session, reader)
        except (_RefusedError, packets.MalformedError) as error:
            self.drops.add("violation", source=session.peer.name, detail=str(error))
            session.writer.transport.abort()
            return str(error)
        except OSError as error:
            return f"connection lost: {error}"

    async def _read(self, session: _Session, reader: asyncio.StreamReader) -> str:
        """Handle the client's packets one after the other until it leaves; return why."""
        while True:
            try:
                async with asyncio.timeout(session.read_timeout):
                    packet = await packets.read(reader)
            except TimeoutError:
                session.writer.transport.abort()
                return "silent for longer than its keepalive"
            if packet is None:
                return "connection lost"
            if isinstance(packet, packets.Disconnect):
                session.will = None
                return "left"
            await self._handle(session, packet)

    async def _handle(self, session: _Session, packet: packets.Packet) -> None:
        match packet:
            case packets.Publish():
                await self._route(session, packet)
                if packet.packet_id:
                    session.write(packets.puback(packet.packet_id))
            case packets.Acknowledge():
                session.outbox.acknowledge(packet.packet_id)
            case packets.Ping():
                session.write(packets.pingresp())
            case packets.Subscribe():
                self._subscribe(session, packet)
            case packets.Unsubscribe():
                session.filters.difference_update(packet.filters)
                session.write(packets.unsuback(packet.packet_id))
            case _:
                raise packets.MalformedError("a second CONNECT")

    async def _route(self, session: _Session, packet: packets.Publish) -> None:
        """Carry one message. Raises _RefusedError."""
        if session.peer.role == "hub":
            self._carry_down(session.peer, packet)
            return
        uid, channel, message = self._keep(session.peer, packet)
        if message.qos:
            await self._hub_outbox.put(message)
        elif not self._hub_outbox.offer(message):
            self.drops.add("full", source=uid, detail=f"QoS 0 on {channel}")

    def _carry_down(self, hub: Peer, packet: packets.Publish) -> None:
        uid, _, message = self._keep(hub, packet)
        self._to_device(uid, message)

    def _keep(self, peer: Peer, packet: packets.Publish) -> tuple[str, topics.Channel, Message]:
        """Return a message that the peer may publish, with its device and channel; what is retained is kept."""
        refusal = topics.refuse_publish(peer, packet.topic, size=len(packet.payload), retain=packet.retain)
        parsed = topics.parse(packet.topic)
        if refusal or parsed is None:
            raise _RefusedError(f"may not publish to {packet.topic[:200]!r}: {refusal}")
        uid, channel = parsed
        if packet.retain:
            _keep(self._online if channel == "online" else self._desired, uid, packet.payload)
        return uid, channel, Message(topic=packet.topic, payload=packet.payload, qos=1 if packet.packet_id else 0)

    def _to_device(self, uid: str, message: Message) -> None:
        device = self._devices.get(uid)
        if device is None:
            return
        if not self._known(uid, device.peer.namespace):
            device.end("deleted")
        elif message.topic in device.filters and not device.outbox.offer(message):
            device.end("too slow for what it is sent")

    def _subscribe(self, session: _Session, packet: packets.Subscribe) -> None:
        """Grant what is allowed, then send what is kept for it, then what comes."""
        codes = []
        for name, qos in packet.filters:
            refusal = topics.refuse_subscribe(session.peer, name)
            if refusal:
                self.drops.add("subscription", source=session.peer.name, detail=f"{name[:200]}: {refusal}")
            codes.append(packets.FAILURE if refusal else min(qos, 1))
        session.write(packets.suback(packet.packet_id, codes))
        granted = [name for (name, _), code in zip(packet.filters, codes, strict=True) if code != packets.FAILURE]
        session.filters.update(granted)
        for name in dict.fromkeys(granted):
            self._send_kept(session, name)
        if granted:
            session.listening.set()

    def _send_kept(self, session: _Session, name: str) -> None:
        if session.peer.role == "hub":
            kept = self._online if name.endswith("/online") else {}
            for uid, payload in kept.items():
                session.outbox.force(Message(topic=topics.topic(uid, "online"), payload=payload, qos=1, retain=True))
        elif name.endswith("/desired") and session.peer.name in self._desired:
            payload = self._desired[session.peer.name]
            if not session.outbox.offer(Message(topic=name, payload=payload, qos=1, retain=True)):
                session.end("too slow for what it is sent")  # subscribing again and again must not fill the memory

    def _leave_will(self, session: _Session) -> None:
        """Announce an unexpected end; a deleted device leaves nothing behind."""
        will = session.will
        if will is None:
            return
        uid = session.peer.name
        if will.retain and self._known(uid, session.peer.namespace):
            _keep(self._online, uid, will.payload)
        if not self._hub_outbox.offer(Message(topic=will.topic, payload=will.payload, qos=1)) and self._hub:
            self._hub.end("too slow for what it is sent")  # on return it finds what is kept


def identify(certificate: Any, client_id: str) -> Peer:
    """Return who the verified certificate (`getpeercert`) says is there. Raises an error that ends the connection."""
    names: dict[str, list[str]] = {}
    for attribute in (pair for part in (certificate or {}).get("subject", ()) for pair in part):
        names.setdefault(attribute[0], []).append(attribute[1])
    organisations, commons = names.get("organizationName", []), names.get("commonName", [])
    if len(organisations) != 1 or len(commons) != 1:
        raise _RefusedError("a certificate without exactly one O and one CN")
    if organisations[0] == access.HUBS:
        return Peer(role="hub", name=client_id[:128])
    if organisations[0] != access.DEVICES:
        raise _RefusedError(f"a certificate of {organisations[0][:64]!r}, not a device's or a hub's")
    if client_id != commons[0] or not topics.is_uid(client_id):
        raise _RefusedError(
            f"client id {client_id[:128]!r} with the certificate of {commons[0][:128]!r}",
            code=packets.IDENTIFIER_REJECTED,
        )
    units = names.get("organizationalUnitName", [])
    return Peer(role="device", name=client_id, namespace=units[0] if len(units) == 1 else "")


def _keep(kept: dict[str, bytes], uid: str, payload: bytes) -> None:
    if payload:
        kept[uid] = payload
    else:
        kept.pop(uid, None)
