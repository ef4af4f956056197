"""Upgrades as a way to ask the hub for anything: answered as any request, or told what is wrong with it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.integration.agent.test_agent_hub import until
from tests.integration.remote.conftest import POD, Lab

from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.kit import websocket_client
from skerry.kit.websocket import RefusedError

HEAD = b"Host: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


def answered(lab: Lab, path: str, *, anonymous: bool = False) -> tuple[int, bytes]:
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))
    tls = ssl.create_default_context(cadata=connection.ca.decode()) if anonymous else connection.tls()

    async def ask() -> tuple[int, bytes]:
        try:
            async with websocket_client.connect(f"{connection.server}{path}", tls=tls, timeout_seconds=30):
                return 101, b""
        except RefusedError as error:
            return error.status, error.body

    return asyncio.run(ask())


def said(lab: Lab, raw: bytes) -> bytes:
    """What comes back of a request as it stands, until the hub closes the connection."""
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))
    parts = urlsplit(connection.server)
    with (
        socket.create_connection((parts.hostname or "", parts.port or 0), 30) as plain,
        connection.tls().wrap_socket(plain, server_hostname=parts.hostname) as secure,
    ):
        secure.sendall(raw)
        back = b""
        try:
            while data := secure.recv(65536):
                back += data
        except (ConnectionResetError, ssl.SSLEOFError):
            pass
        return back


def test_what_is_no_conversation_is_answered_as_ever(lab: Lab) -> None:
    assert answered(lab, "/healthz", anonymous=True) == (200, b"ok")
    status, body = answered(lab, "/apis/skerry.dev/v1alpha1/namespaces/default/devices/till-1")
    assert (status, b'"till-1"' in body) == (200, True)
    assert answered(lab, "/nowhere")[0] == 404


@pytest.mark.parametrize("path", ["/api/v1/nodes", f"/api/v1/namespaces/default/pods/{POD}/exec?command=ls&stdout=1"])
def test_nobody_comes_in_by_it(lab: Lab, path: str) -> None:
    assert answered(lab, path, anonymous=True)[0] == 401


def test_a_conversation_needs_a_protocol_that_is_spoken_here(lab: Lab) -> None:
    status, body = answered(lab, f"/api/v1/namespaces/default/pods/{POD}/exec?command=ls&stdout=1")
    assert status == 400
    assert b"offer v5.channel.k8s.io or v4.channel.k8s.io" in body


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /healthz HTTP/1.1\r\n" + HEAD + KEY + b"Content-Length: 0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HEAD.replace(b"13", b"8") + KEY + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HEAD + KEY + KEY + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Sec-WebSocket-Key: short\r\n\r\n",
    ],
)
def test_no_handshake_holds_a_connection(lab: Lab, raw: bytes) -> None:
    back = said(lab, raw)
    assert back.split(b" ", 2)[1] in (b"400", b"426"), back
    assert b"101" not in back.split(b"\r\n")[0]


# --- SPDY -------------------------------------------------------------------------------------------------------------

SPDY = b"Host: hub\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"
PODS = f"/api/v1/namespaces/default/pods/{POD}".encode()
EXEC = b"POST " + PODS + b"/exec?command=true&stdout=1 HTTP/1.1\r\n" + SPDY
FORWARD = b"POST " + PODS + b"/portforward HTTP/1.1\r\n" + SPDY


@pytest.mark.parametrize(
    ("request_", "code", "word"),
    [
        (EXEC + b"X-Stream-Protocol-Version: v9.channel.k8s.io\r\n\r\n", 400, b"offer v4.channel.k8s.io or v3"),
        (FORWARD + b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", 400, b"offer portforward.k8s.io"),
        (EXEC.replace(b"SPDY/3.1", b"SPDY/2") + b"\r\n", 400, b"WebSocket or SPDY/3.1 is required"),
        (EXEC.replace(POD.encode(), b"nobody.till-1") + b"\r\n", 404, b"nobody.till-1"),
        (EXEC.replace(b"command=true&", b"") + b"\r\n", 400, b"command"),
        (b"GET /apis/skerry.dev/v1alpha1/tunnels/x HTTP/1.1\r\n" + SPDY + b"\r\n", 400, b"asks for no WebSocket"),
        (b"GET /healthz HTTP/1.1\r\n" + SPDY + b"\r\n", 200, b"ok"),
    ],
)
def test_spdy_that_cannot_be_had_is_a_status(lab: Lab, request_: bytes, code: int, word: bytes) -> None:
    back = said(lab, request_.replace(b"Connection: Upgrade", b"Connection: Upgrade, close"))
    assert int(back.split(b" ", 2)[1]) == code, back
    assert word in back


@pytest.mark.parametrize("request_", [EXEC, FORWARD])
def test_garbage_after_the_switch_ends_a_conversation_and_holds_nothing(lab: Lab, request_: bytes) -> None:
    """More often than the device has conversations at a time."""
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))
    parts = urlsplit(connection.server)
    for _ in range(8):
        with (
            socket.create_connection((parts.hostname or "", parts.port or 0), 30) as plain,
            connection.tls().wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            secure.sendall(request_ + b"\r\n")
            back = b""
            while b"\r\n\r\n" not in back:
                back += secure.recv(65536)
            assert back.startswith(b"HTTP/1.1 101 "), back
            secure.sendall(b"\x80\x02" + bytes(30))
            try:
                while secure.recv(65536):
                    pass
            except (ConnectionResetError, ssl.SSLEOFError):
                pass
    log = (lab.site.directory / "hub.log").read_text()
    assert "Traceback" not in log


def test_who_leaves_before_the_switch_leaves_nothing(lab: Lab) -> None:
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))
    parts = urlsplit(connection.server)
    for _ in range(8):
        with (
            socket.create_connection((parts.hostname or "", parts.port or 0), 30) as plain,
            connection.tls().wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            secure.sendall(EXEC + b"\r\n")
    until(lambda: lab.kubectl("exec", POD, "--", "true").returncode == 0, "the device has room again")
    log = (lab.site.directory / "hub.log").read_text()
    assert "Traceback" not in log
    assert "api.failed" not in log
