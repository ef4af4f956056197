"""What a user reads when a link cannot be made: each cause told apart, with the broker's address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import access, messages
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings
from skerry.drivers.link.tls import server_context

SECONDS = 10.0


async def failure(settings: MqttSettings) -> str:
    with pytest.raises(UnavailableError) as caught:
        async with asyncio.timeout(SECONDS), MqttDeviceLink("dev-a", settings).connect(boot_id="b"):
            pass
    assert caught.value.element == f"MQTT broker {settings.host}:{settings.port}"
    return caught.value.sentence


@asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server that is no broker."""
    tasks: set[asyncio.Task[None]] = set()

    async def live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(live(reader, writer)))

    server = await asyncio.start_server(accept, "localhost", 0, ssl=tls, family=socket.AF_INET)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def silence(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_a_broker_of_another_ca(site: Any, tmp_path: Any) -> None:
    other = type(site.authority)(tmp_path / "other")
    assert "not from the trusted CA" in await failure(site.settings(other.device("dev-a")))


def certificates(authority: Any, other: Any) -> dict[str, ssl.SSLContext]:
    """Certificates that a broker refuses, by what it says of them."""
    return {
        "does not know our certificate's CA": authority.client(other.issue("a", ["dev-a"], [access.DEVICES])),
        "our certificate has expired": authority.client(
            authority.issue("old", ["dev-a"], [access.DEVICES], days=(-2, -1))
        ),
        "wants a client certificate": authority.client(None),
    }


async def test_what_a_broker_says_of_our_certificate_is_told_apart(
    authority: Any, server_tls: ssl.SSLContext, tmp_path: Any
) -> None:
    def shake_hands(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError), server_tls.wrap_socket(connection, server_side=True):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for expected, tls in certificates(authority, type(authority)(tmp_path / "other")).items():
            serving = asyncio.create_task(asyncio.to_thread(shake_hands, listener))
            sentence = await failure(MqttSettings(host="localhost", port=port, tls=tls))
            await serving
            assert expected in sentence


async def test_a_broker_that_refuses_our_certificate_without_a_word(site: Any, tmp_path: Any) -> None:
    for tls in certificates(site.authority, type(site.authority)(tmp_path / "other")).values():
        sentence = await failure(site.settings(tls))
        assert "the broker closed the connection; our certificate may have expired or be another hub's" in sentence


async def test_the_brokers_certificate_has_expired_or_is_for_another_name(authority: Any) -> None:
    cases = {"the broker's certificate has expired": (["localhost"], (-2, -1)), "is for another name": ([], (-1, 1))}
    for expected, (names, days) in cases.items():
        file = authority.issue("server", names, [], days=days)
        tls = server_context(certificate=file, key=file, ca=authority.ca_file)
        async with EmbeddedBroker(BrokerSettings(port=0), tls=tls, known=lambda *_: True) as broker:
            host = "localhost" if names else "127.0.0.1"
            assert expected in await failure(MqttSettings(host=host, port=broker.port, tls=authority.device("dev-a")))


async def test_a_device_that_was_deleted(site: Any) -> None:
    site.known.clear()
    sentence = await failure(site.settings(site.authority.device("dev-a")))
    assert sentence.endswith("refused us: Not authorized; was the device deleted from the hub?")


async def test_nobody_listens(site: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = MqttSettings(host="127.0.0.1", port=port, tls=site.authority.device("dev-a"))
    assert "nobody listens there; is the hub running?" in await failure(settings)


async def test_a_name_that_does_not_exist(authority: Any) -> None:
    settings = MqttSettings(host="no-such-host.invalid", port=8883, tls=authority.device("dev-a"))
    assert "cannot be resolved" in await failure(settings)


async def test_a_name_that_cannot_be_one(authority: Any) -> None:
    settings = MqttSettings(host="x" * 80, port=8883, tls=authority.device("dev-a"))
    assert await failure(settings)


async def test_a_port_without_tls(authority: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read(-1)

    async with serving(answer) as port:
        settings = MqttSettings(host="localhost", port=port, tls=authority.device("dev-a"))
        assert "does not speak TLS" in await failure(settings)


async def test_no_answer_to_tls_and_none_to_connect(authority: Any, server_tls: ssl.SSLContext) -> None:
    for tls in (None, server_tls):
        async with serving(silence, tls) as port:
            settings = MqttSettings(
                host="localhost", port=port, tls=authority.device("dev-a"), connect_timeout_seconds=0.3
            )
            assert "no answer" in await failure(settings)


async def test_an_attempt_that_is_cancelled_leaves_nothing_open(authority: Any, server_tls: ssl.SSLContext) -> None:
    async with serving(silence, server_tls) as port:
        settings = MqttSettings(host="localhost", port=port, tls=authority.device("dev-a"), connect_timeout_seconds=5)

        async def attempt() -> None:
            async with MqttDeviceLink("dev-a", settings).connect(boot_id="b"):
                pass

        task = asyncio.ensure_future(attempt())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, SECONDS)


async def test_a_broker_gone_mad_cannot_fill_our_memory(authority: Any, server_tls: ssl.SSLContext) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\x20\x02\x00\x00" + b"\x30\xff\xff\xff\x7f" + b"x" * 100_000)
        await writer.drain()
        await reader.read(-1)

    async with serving(answer, server_tls) as port:
        settings = MqttSettings(host="localhost", port=port, tls=authority.device("dev-a"), connect_timeout_seconds=5)
        assert f"a packet of {2**28 - 1} bytes" in await failure(settings)


async def test_a_connection_that_dies_fails_what_is_being_sent_at_once(
    authority: Any, server_tls: ssl.SSLContext
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (b"\x20\x02\x00\x00", b"\x90\x04\x00\x01\x01\x01", b"\x40\x02\x00\x02"):
            await reader.read(65536)
            writer.write(reply)
        await reader.read(65536)

    async with serving(answer, server_tls) as port:
        settings = MqttSettings(host="localhost", port=port, tls=authority.device("dev-a"))
        async with MqttDeviceLink("dev-a", settings).connect(boot_id="b") as device:
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(device.send(messages.CommandResult(uid="dev-a", id="1")), SECONDS)


def test_plain_mqtt_is_for_loopback_only() -> None:
    assert MqttSettings(host="127.0.0.1", port=1883).tls is None
    for host in ("10.0.0.1", "hub.example.org", "::"):
        with pytest.raises(InvalidError, match="plain MQTT"):
            MqttSettings(host=host, port=1883)
    for host, port in (("", 8883), ("localhost", 0), ("localhost", 70000)):
        with pytest.raises(InvalidError, match="no address"):
            MqttSettings(host=host, port=port)
