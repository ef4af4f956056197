"""One MQTT connection on aiomqtt, with what it leaves open closed: bounds, prompt failure, and causes told apart.

What aiomqtt 2.5 does not do by itself: notice a connection that dies before CONNACK (it waits the timeout out), end a
pending publish when the connection dies, bound what it reads, and acknowledge a message only after it was taken. Lives
here: these, and the sentences for failures. Must not live here: topics and messages.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from skerry.api.errors import UnavailableError
from skerry.drivers.link.topics import MAX_PACKET_BYTES

MAX_QUEUED = 4096
"""Received and not yet taken. Brokers keep at most their in-flight window of unacknowledged QoS 1 messages here."""
MAX_INFLIGHT = 64
"""Sent with QoS 1 and not yet acknowledged; the rest waits in the callers."""
_CLOSE_SECONDS = 2.0

_T = TypeVar("_T")


class MqttClient(aiomqtt.Client):
    """A connection: `open`, then `listen`, `send`, `received`, then `close`; every failure is an UnavailableError."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        client_id: str,
        tls: ssl.SSLContext | None,
        will: aiomqtt.Will | None,
        clean_session: bool,
        keepalive_seconds: int,
        connect_timeout_seconds: float,
        send_timeout_seconds: float,
    ) -> None:
        self.address = f"{host}:{port}"
        self.failure = _LastError()
        if tls is not None:
            tls.sslsocket_class = _ClosingSocket
        # Its own, without handlers: what matters of it ends in our errors. The level spares a record for each packet.
        logger = logging.Logger("paho", logging.ERROR)
        logger.addHandler(self.failure)
        super().__init__(
            host,
            port,
            identifier=client_id,
            tls_context=tls,
            will=will,
            clean_session=clean_session,
            keepalive=keepalive_seconds,
            timeout=connect_timeout_seconds,
            max_queued_incoming_messages=MAX_QUEUED,
            max_inflight_messages=MAX_INFLIGHT,
            max_concurrent_outgoing_calls=MAX_INFLIGHT,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # else Nagle adds up to 40 ms
            logger=logger,
        )
        self.pending_calls_threshold = 2 * MAX_INFLIGHT
        self._send_timeout = send_timeout_seconds
        self._check_seconds = max(1.0, keepalive_seconds / 12)  # so late may a ping be; brokers wait half a keepalive
        self._broken: aiomqtt.MqttError | None = None
        self._client.connect_timeout = connect_timeout_seconds
        self._client.manual_ack_set(True)

    @property
    def lost(self) -> bool:
        """Whether the connection is over."""
        return self._disconnected.done()

    async def open(self) -> None:
        """Connect, in a thread for TCP and TLS. Raises aiomqtt.MqttError; a cancelled attempt leaves nothing open."""
        entering = asyncio.ensure_future(self.__aenter__())
        try:
            await asyncio.shield(entering)
            if self._broken is not None:  # since CONNACK; aiomqtt has forgotten it by now
                raise self._broken
        except asyncio.CancelledError:
            self.timeout = 0.1  # the thread cannot be interrupted; do not wait for more than it
            entering.add_done_callback(self._abandon)
            await asyncio.wait([entering])
            raise
        except ValueError as error:  # a host name that cannot be one
            raise aiomqtt.MqttError(str(error)) from error
        except aiomqtt.MqttError:
            self._client.disconnect()  # aiomqtt leaves the socket open when CONNACK did not come in time
            raise

    def _abandon(self, entering: asyncio.Future[Any]) -> None:
        if not entering.cancelled():
            entering.exception()
        self._client.disconnect()

    async def close(self) -> None:
        """Say goodbye if there is still somebody to say it to; never raises."""
        self.timeout = _CLOSE_SECONDS
        with suppress(aiomqtt.MqttError, OSError):
            await self.__aexit__(None, None, None)
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # retrieved, or asyncio complains
        if self._client.socket() is not None:
            self._client.disconnect()  # aiomqtt leaves it open when it was not paho that saw the end

    async def listen(self, filters: list[tuple[str, int]]) -> None:
        """Subscribe. Raises UnavailableError, also when the broker grants less than asked."""
        granted = await self._while_connected(self.subscribe(filters, timeout=self._send_timeout))
        for (name, _), code in zip(filters, granted, strict=True):
            if isinstance(code, ReasonCode) and code.is_failure:
                raise UnavailableError(
                    f"the broker at {self.address} does not allow to subscribe to {name}",
                    element="link",
                    hint="compare its access rules with docs/protocol.md",
                )

    async def send(self, name: str, payload: bytes, *, retain: bool = False, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Publish with QoS 1 and wait for the acknowledgement. Raises UnavailableError."""
        limit = self._send_timeout if timeout is None else timeout
        await self._while_connected(self.publish(name, payload, qos=1, retain=retain, timeout=limit))

    async def received(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield topic and payload; a message is acknowledged when the next is asked for. Ends by UnavailableError."""
        try:
            async for message in self.messages:
                yield message.topic.value, bytes(message.payload)
                self._client.ack(message.mid, message.qos)
        except aiomqtt.MqttError as error:
            raise explain(self._why_lost(), self) from error

    async def _while_connected(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Return the call's result, or raise as soon as the connection is lost (aiomqtt waits its timeout out)."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait((task, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise explain(self._why_lost(), self)
        except aiomqtt.MqttError as error:
            raise explain(error, self) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # retrieved, or asyncio complains of a failure that came with the connection's end

    def _why_lost(self) -> aiomqtt.MqttError:
        if self._broken is None or isinstance(self._broken, aiomqtt.MqttCodeError):  # its codes explain nothing
            return aiomqtt.MqttError("the connection was lost")
        return self._broken

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        super()._on_socket_open(client, userdata, sock)
        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), self._read)  # in place of aiomqtt's

    def _read(self) -> None:
        """Let paho read what there is, but no packet longer than any of ours, whatever the broker announces."""
        try:
            while True:
                self._client.loop_read()
                length = self._client._in_packet["remaining_length"]  # noqa: SLF001 - paho has no bound, and no other place
                if length > MAX_PACKET_BYTES:
                    raise aiomqtt.MqttError(
                        f"the broker sends a packet of {length} bytes, more than {MAX_PACKET_BYTES}"
                    )
                sock = self._client.socket()
                if not isinstance(sock, ssl.SSLSocket) or not sock.pending():
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is over
            self._break(aiomqtt.MqttError(str(error)))

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's shape
        """Paho writes right after this; aiomqtt polls for each packet all the same, even a socket closed by then."""
        here = asyncio._get_running_loop() is self._loop  # noqa: SLF001 - None in the thread that connects
        (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(self._await_room)

    def _await_room(self) -> None:
        sock = self._client.socket()
        if sock is not None and sock.fileno() >= 0 and self._client.want_write():
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is over
            self._break(aiomqtt.MqttError(str(error)))

    async def _misc_loop(self) -> None:
        """Look after the keepalive; aiomqtt does every second, which wakes an idle device as often for nothing."""
        while self._client.loop_misc() == paho.MQTT_ERR_SUCCESS:  # noqa: ASYNC110 - paho signals nothing
            await asyncio.sleep(self._check_seconds)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.qos and self._queue.full():  # aiomqtt would drop it in silence, and the broker wait for its PUBACK
            self._break(aiomqtt.MqttError(f"more than {MAX_QUEUED} messages came before they could be handled"))
        else:
            super()._on_message(client, userdata, message)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._connected.done() and self._connected.exception() is None:
            self._broken = self._broken or aiomqtt.MqttCodeError(reason_code)
            super()._on_disconnect(client, userdata, flags, reason_code, properties)
        else:
            self._break(_HungUpError("the broker closed the connection"))

    def _break(self, error: aiomqtt.MqttError) -> None:
        """End the connection for whoever waits for it, at whatever stage it is."""
        self._broken = error
        for future in (self._connected, self._disconnected):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting, and asyncio complains then
                return


class _HungUpError(aiomqtt.MqttError):
    """The connection ended before CONNECT was answered."""


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _LastError(logging.Handler):
    """Keeps paho's last complaint: the only place where it says why a connection died."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


_BUSY = "it may be taking on many devices; try again after a random pause"
_SOCKET_CAUSES: tuple[tuple[type[OSError], str, str], ...] = (
    (ConnectionRefusedError, "nobody listens there", "is the hub running?"),
    (ConnectionError, "the broker cut the connection", _BUSY),
    (socket.gaierror, "the name cannot be resolved", "check the name and the DNS"),
    (TimeoutError, "no answer", "check the address, the network and the firewall"),
)
_TLS_CAUSES: tuple[tuple[str, str, str], ...] = (
    # In what OpenSSL says, the cause, the hint. The first four are our verdict on the broker, the others its on us.
    ("certificate has expired", "the broker's certificate has expired", "renew it; check this machine's clock too"),
    ("certificate is not yet valid", "the broker's certificate is not valid yet", "check this machine's clock"),
    (
        "certificate is not valid for",
        "the broker's certificate is for another name",
        "use a name that is in it, or have the hub advertise this one",
    ),
    ("certificate verify failed", "the broker's certificate is not from the trusted CA", "check the CA file"),
    ("certificate expired", "the broker says that our certificate has expired", "enrol again"),
    ("unknown ca", "the broker does not know our certificate's CA", "enrol at this hub"),
    ("certificate required", "the broker wants a client certificate", "enrol first"),
    ("handshake failure", "the broker refused our certificate or our TLS version", "enrol at this hub; need TLS 1.2"),
    ("bad certificate", "the broker refused our certificate", "enrol at this hub"),
    ("certificate unknown", "the broker refused our certificate", "enrol at this hub"),
    ("unexpected eof", "the broker cut the connection in the handshake", _BUSY),
    ("has been closed (eof)", "the broker cut the connection in the handshake", _BUSY),  # as older Pythons say it
    ("wrong version number", "this port does not speak TLS", "check the port"),
)


def explain(error: aiomqtt.MqttError, client: MqttClient) -> UnavailableError:
    """Return the failure as a user reads it: the broker's address, the cause told apart, a hint."""
    origin = error.__context__ if isinstance(error.__context__, OSError) else None
    text = f"{origin or error} {client.failure.text}".strip()
    cause, hint = _cause(error, origin, client.failure.text) or _tls_cause(text) or (text[:300], "")
    return UnavailableError(cause, element=f"MQTT broker {client.address}", hint=hint)


def _tls_cause(text: str) -> tuple[str, str] | None:
    flat = text.lower().replace("_", " ")
    if "ssl" not in flat and "certificate" not in flat:
        return None
    found = next(((cause, hint) for mark, cause, hint in _TLS_CAUSES if mark in flat), None)
    return found or (f"TLS failed: {text[:300]}", "")


def _cause(error: aiomqtt.MqttError, origin: OSError | None, failure: str) -> tuple[str, str] | None:
    known = next(((cause, hint) for kind, cause, hint in _SOCKET_CAUSES if isinstance(origin, kind)), None)
    if known is not None:
        return known
    if isinstance(error, _HungUpError) and not failure:
        # asyncio's TLS servers, our embedded broker too, refuse a certificate without saying so (no alert is sent).
        return str(error), "our certificate may have expired or be another hub's; if so, enrol again"
    if isinstance(error, MqttConnectError):
        return f"refused us: {error.rc}", "was the device deleted from the hub?"
    return None
