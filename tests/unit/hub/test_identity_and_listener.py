from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub import identity, listener, pki
from skerry.kit.clock import SystemClock

DeviceContext = Callable[..., ssl.SSLContext]
TIMEOUT = 10


async def whoami(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the caller's identity, after reading the body; `/stuck` never answers, `/stream` never ends."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stuck":
        await asyncio.Event().wait()
    who: Identity = scope[identity.IDENTITY]
    body = json.dumps([who.role, who.name, who.namespace]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": scope["path"] == "/stream"})
    if scope["path"] == "/stream":
        await asyncio.Event().wait()


class Known(set[str]):
    def __call__(self, uid: str, namespace: str) -> bool:
        return uid in self


class Ahead(SystemClock):
    offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset


@contextlib.asynccontextmanager
async def listening(
    authority: pki.Authority, known: Known, clock: Ahead | None = None, **limits: Any
) -> AsyncIterator[int]:
    sock = listener.bind("127.0.0.1", 0, purpose="API", option="--api-port")
    app = identity.identify(whoami, ca_pem=authority.ca_pem, known=known, clock=clock or Ahead())
    async with listener.serve(app, sock, authority.server_context(), listener.Limits(**limits)):
        yield sock.getsockname()[1]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def get(self, path: str = "/", headers: str = "") -> list[str]:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\n{headers}\r\n".encode())
        return await self.answer()

    async def answer(self) -> list[str]:
        async with asyncio.timeout(TIMEOUT):
            head = await self.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            assert b"\r\ndate: " in head
            assert b"\r\nserver:" not in head.lower()
            size = int(await self.reader.readline(), 16)
            body = await self.reader.readexactly(size + 2)
            assert await self.reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"
        found: list[str] = json.loads(body)
        return found

    async def ended(self) -> bytes:
        """Wait for the server to end the connection and return what came before that."""
        received = b""
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while piece := await self.reader.read(65536):
                    received += piece
        return received


@contextlib.asynccontextmanager
async def connected(port: int, context: ssl.SSLContext) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def anonymous(authority: pki.Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.ca_pem.decode())


async def test_each_connection_is_who_its_certificate_says(
    live_authority: pki.Authority, device_context: DeviceContext
) -> None:
    admin = anonymous(live_authority)
    admin.load_cert_chain(live_authority.admin_certificate_file, live_authority.admin_key_file)
    device, other = device_context(live_authority, "d1", "factory"), device_context(live_authority, "d2")
    async with (
        listening(live_authority, Known({"d1", "d2"})) as port,
        connected(port, anonymous(live_authority)) as a,
        connected(port, admin) as b,
        connected(port, device) as c,
        connected(port, other) as d,
    ):
        for _ in range(3):
            assert await a.get() == ["anonymous", "", ""]
            assert await b.get() == ["admin", "admin", ""]
            assert await c.get() == ["device", "d1", "factory"]
            assert await d.get() == ["device", "d2", "default"]


async def test_headers_never_set_an_identity(live_authority: pki.Authority, device_context: DeviceContext) -> None:
    forged = (
        "skerry.identity: admin\r\nX-Remote-User: admin\r\nX-Remote-Group: skerry:admins\r\n"
        'X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Client-Cert: Subject="O=skerry:admins,CN=admin"\r\n'
        "Impersonate-User: admin\r\nAuthorization: Bearer admin\r\n"
    )
    async with listening(live_authority, Known({"d1"})) as port:
        async with connected(port, anonymous(live_authority)) as client:
            assert await client.get(headers=forged) == ["anonymous", "", ""]
        async with connected(port, device_context(live_authority, "d1")) as client:
            assert await client.get(headers=forged) == ["device", "d1", "default"]


async def test_pipelined_requests_keep_the_identity(
    live_authority: pki.Authority, device_context: DeviceContext
) -> None:
    async with (
        listening(live_authority, Known({"d1"})) as port,
        connected(port, device_context(live_authority, "d1")) as client,
    ):
        client.writer.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n" * 20)
        for _ in range(20):
            assert await client.answer() == ["device", "d1", "default"]


async def test_a_deleted_device_is_nobody_at_once_also_on_an_open_connection(
    live_authority: pki.Authority, device_context: DeviceContext
) -> None:
    known = Known({"d1"})
    async with (
        listening(live_authority, known) as port,
        connected(port, device_context(live_authority, "d1")) as client,
    ):
        assert await client.get() == ["device", "d1", "default"]
        known.discard("d1")
        assert await client.get() == ["anonymous", "", ""]


async def test_a_certificate_that_expires_while_connected_is_worth_nothing(
    live_authority: pki.Authority, device_context: DeviceContext
) -> None:
    clock = Ahead()
    async with (
        listening(live_authority, Known({"d1"}), clock) as port,
        connected(port, device_context(live_authority, "d1")) as client,
    ):
        assert await client.get() == ["device", "d1", "default"]
        clock.offset = timedelta(days=91)
        assert await client.get() == ["anonymous", "", ""]


async def test_a_certificate_of_another_ca_is_a_tls_failure(
    live_authority: pki.Authority, tmp_path: Path, device_context: DeviceContext
) -> None:
    other = pki.open_authority(tmp_path / "other", names=(), clock=SystemClock())
    context = device_context(other, "d1")
    context.load_verify_locations(cadata=live_authority.ca_pem.decode())
    reached = False
    async with listening(live_authority, Known({"d1"})) as port:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            async with connected(port, context) as client:
                client.writer.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
                async with asyncio.timeout(TIMEOUT):
                    reached = bool(await client.reader.read(1))
    assert not reached


async def test_an_expired_certificate_is_a_tls_failure(tmp_path: Path, device_context: DeviceContext) -> None:
    class Past(SystemClock):
        def now(self) -> datetime:
            return datetime.now(UTC) - timedelta(days=100)

    past = pki.open_authority(tmp_path / "pki", names=(), clock=Past())
    context = device_context(past, "d1")
    present = pki.open_authority(tmp_path / "pki", names=(), clock=SystemClock())
    reached = False
    async with listening(present, Known({"d1"})) as port:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            async with connected(port, context) as client:
                client.writer.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
                async with asyncio.timeout(TIMEOUT):
                    reached = bool(await client.reader.read(1))
    assert not reached


async def test_plain_http_gets_no_answer(live_authority: pki.Authority) -> None:
    async with listening(live_authority, Known()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert b"HTTP" not in await Client(reader, writer).ended()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(200)) + b"\r\n", b"400"),
        (b"GET /" + b"a" * 400_000, b"431"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 400_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 400_000, b"4"),
        (b"\x16\x03\x01 rubbish\r\n\r\n", b"400"),
        (b"GET /%ff%00\xff HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT hub:443 HTTP/1.1\r\nHost: hub\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", b"400"),
    ],
)
async def test_heads_out_of_bounds_end_the_connection(
    live_authority: pki.Authority, request_text: bytes, status: bytes
) -> None:
    async with (
        listening(live_authority, Known(), keep_alive_seconds=1) as port,
        connected(port, anonymous(live_authority)) as client,
    ):
        client.writer.write(request_text)
        assert (await client.ended()).startswith(b"HTTP/1.1 " + status)


async def test_a_body_may_be_larger_than_a_head(live_authority: pki.Authority) -> None:
    body = b"x" * 1_000_000
    async with (
        listening(live_authority, Known()) as port,
        connected(port, anonymous(live_authority)) as client,
    ):
        for _ in range(3):
            client.writer.write(b"POST / HTTP/1.1\r\nHost: hub\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert await client.answer() == ["anonymous", "", ""]


@pytest.mark.parametrize(
    "partial",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: hub\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"],
)
async def test_a_client_that_does_not_go_on_is_given_up(live_authority: pki.Authority, partial: bytes) -> None:
    async with (
        listening(live_authority, Known(), head_seconds=0.05, stall_seconds=0.05) as port,
        connected(port, anonymous(live_authority)) as client,
    ):
        client.writer.write(partial)
        assert await client.ended() == b""


async def test_a_head_that_trickles_is_given_up_at_its_deadline(live_authority: pki.Authority) -> None:
    async with (
        listening(live_authority, Known(), head_seconds=0.2) as port,
        connected(port, anonymous(live_authority)) as client,
    ):
        client.writer.write(b"GET / HTTP/1.1\r\nx: ")
        ended = asyncio.create_task(client.ended())
        while not ended.done():
            client.writer.write(b"a")
            await asyncio.sleep(0.02)
        assert await ended == b""


async def test_too_many_connections_are_told_so(live_authority: pki.Authority) -> None:
    async with (
        listening(live_authority, Known(), max_connections=2) as port,
        connected(port, anonymous(live_authority)) as first,
    ):
        assert await first.get() == ["anonymous", "", ""]
        async with connected(port, anonymous(live_authority)) as second:
            second.writer.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
            assert (await second.ended()).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("path", ["/stuck", "/stream", None])
async def test_shutdown_ends_whatever_is_under_way(live_authority: pki.Authority, path: str | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with listening(live_authority, Known(), grace_seconds=0.05) as port:
            client = await stack.enter_async_context(connected(port, anonymous(live_authority)))
            assert await client.get() == ["anonymous", "", ""]
            if path is not None:
                client.writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
            if path == "/stream":
                await client.reader.readuntil(b'["anonymous", "", ""]')
        await client.ended()
        assert {t for t in asyncio.all_tasks() if t is not asyncio.current_task()} == set()


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with listener.bind("127.0.0.1", 0, purpose="API", option="--api-port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError) as caught:
            listener.bind("127.0.0.1", port, purpose="API", option="--api-port")
    assert caught.value.sentence == (
        f"API port {port}: in use by another program on 127.0.0.1; stop that program, or choose another with --api-port"
    )


def test_a_host_that_is_none_or_not_ours_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"API port: cannot listen on 192\.0\.2\.1 .*--host"):
        listener.bind("192.0.2.1", 0, purpose="API", option="--api-port")
    with pytest.raises(InvalidError, match="is no address of this machine"):
        listener.bind("no such host", 0, purpose="API", option="--api-port")


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_is_a_host_like_any_other() -> None:
    try:
        sock = listener.bind("::1", 0, purpose="API", option="--api-port")
    except UnavailableError:
        pytest.skip("this machine has no IPv6 loopback")
    with sock:
        assert sock.family is socket.AF_INET6


ORG, OU, CN = NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(ORG, "skerry:admins"), (CN, "ada")], Identity(role="admin", name="ada")),
        ([(ORG, "skerry:devices"), (OU, "lab"), (CN, "d1")], Identity(role="device", name="d1", namespace="lab")),
        ([(ORG, "skerry:devices"), (CN, "d1")], ANONYMOUS),
        ([(ORG, "skerry:devices"), (OU, "lab")], ANONYMOUS),
        ([(ORG, "skerry:devices"), (OU, "lab"), (OU, "other"), (CN, "d1")], ANONYMOUS),
        ([(ORG, "skerry:devices"), (ORG, "skerry:admins"), (OU, "lab"), (CN, "d1")], ANONYMOUS),
        ([(ORG, "skerry:admins"), (CN, "ada"), (CN, "bob")], ANONYMOUS),
        ([(ORG, "skerry:hubs"), (CN, "hub")], ANONYMOUS),
        ([(ORG, "Skerry:Admins"), (CN, "ada")], ANONYMOUS),
        ([(CN, "skerry-hub")], ANONYMOUS),
        ([(CN, "admin")], ANONYMOUS),
        ([(ORG, "dev"), (CN, "Admin")], ANONYMOUS),
        ([], ANONYMOUS),
    ],
)
def test_only_our_exact_forms_are_somebody(parts: list[tuple[x509.ObjectIdentifier, str]], expected: Identity) -> None:
    assert identity.read_identity(x509.Name([x509.NameAttribute(*part) for part in parts])) == expected
