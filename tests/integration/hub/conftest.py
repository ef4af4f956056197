"""Real hub processes on loopback, and raw HTTPS clients for them."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

START_SECONDS = 30
API = "/apis/skerry.dev/v1alpha1/namespaces/default"


class HubProcess:
    """One hub as one process; warnings in it are errors."""

    def __init__(self, state_dir: Path, *options: str) -> None:
        self.state_dir = state_dir
        command = [sys.executable, "-W", "error", "-m", "skerry.hub", "--state-dir", str(state_dir)]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self.announced = ""

    def wait_ready(self) -> HubProcess:
        """Wait until it announces itself, which it does when it answers."""
        os.set_blocking(self.process.stdout.fileno(), False)  # type: ignore[union-attr]
        deadline = time.monotonic() + START_SECONDS
        while "get devices" not in self.announced:
            piece = self.process.stdout.read()  # type: ignore[union-attr]
            self.announced += piece.decode() if piece else ""
            if not piece and (self.process.poll() is not None or time.monotonic() > deadline):
                raise AssertionError(f"the hub did not start: {self.failure() if self.process.poll() else 'too slow'}")
            time.sleep(0.005)
        return self

    def failure(self) -> str:
        """Wait for its end by itself, which must not be a success, and return what it said."""
        _, said = self.process.communicate(timeout=START_SECONDS)
        assert self.process.returncode == 1
        return said.decode()

    def terminate(self, number: signal.Signals = signal.SIGTERM, *, refusals: int = 0) -> None:
        """End it in order: exit code 0, and a word about refused connections only, if there were any."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        lines = said.decode().splitlines()
        assert (self.process.returncode, len(lines)) == (0, refusals), said.decode()
        assert all(" WARNING link.dropped reason=refused " in line for line in lines), said.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)

    def end(self) -> None:
        """Leave nothing of it behind."""
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state_dir / "hub.json").read_bytes())
        return found

    def context(self, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this hub's CA."""
        context = ssl.create_default_context(cafile=self.state_dir / "pki" / "ca.crt")
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    @property
    def admin(self) -> ssl.SSLContext:
        return self.context(self.state_dir / "pki" / "admin.crt", self.state_dir / "pki" / "admin.key")

    def connect(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.record["apiPort"], context=context, timeout=20)

    def call(
        self, context: ssl.SSLContext, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Make one call on a connection of its own; return the status and the answer, parsed if it is JSON."""
        connection = self.connect(context)
        try:
            raw = None if body is None else json.dumps(body)
            connection.request(method, path, raw, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            content = answer.read()
            is_json = "json" in (answer.headers.get("content-type") or "")
            return answer.status, json.loads(content) if is_json else content
        finally:
            connection.close()

    def create_token(self, *, uses: int = 1, **labels: str) -> str:
        token = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
        token["spec"] = {"ttl": "1h", "uses": uses, "labels": labels}  # type: ignore[assignment]
        status, created = self.call(self.admin, "POST", f"{API}/jointokens", token)
        assert status == 201, created
        text: str = created["status"]["token"]
        return text

    def items(self, plural: str, query: str = "") -> list[Any]:
        status, found = self.call(self.admin, "GET", f"{API}/{plural}{query}")
        assert status == 200, found
        listed: list[Any] = found["items"]
        return listed


class RawDevice:
    """A device that knows a URL and a token, and speaks TLS and HTTP itself."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.file = directory / "device.pem"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca = ""

    def pin(self, token: str) -> None:
        """Fetch the CA over a connection that proves nothing, and compare its fingerprint with the token's."""
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=blind, timeout=20)
        try:
            connection.request("GET", "/cacerts")
            pem = connection.getresponse().read().decode()
        finally:
            connection.close()
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == token.rsplit(".", 1)[1]
        self.ca = pem

    def request(self, name: str = "till") -> bytes:
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self.key, hashes.SHA256())
        text = csr.public_bytes(serialization.Encoding.PEM).decode()
        body = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Enrollment", "metadata": {}}
        body["spec"] = {"deviceName": name, "csr": text, "facts": {"hostname": name}}
        return json.dumps(body).encode()

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca)
        if self.file.exists():
            context.load_cert_chain(self.file)
        return context

    def ask(self, token: str = "", name: str = "till") -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context(), timeout=20)
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        try:
            connection.request("POST", f"{API}/enrollments", self.request(name), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ask_and_hang_up(self, token: str) -> None:
        """Send the whole request and go away without the answer."""
        body = self.request()
        head = (
            f"POST {API}/enrollments HTTP/1.1\r\nHost: hub\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {token}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=20) as line,
            self.context().wrap_socket(line, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(head.encode() + body)

    def keep(self, enrollment: Any) -> None:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.file.write_bytes(pem + enrollment["status"]["certificate"].encode())


@pytest.fixture
def start_hub(tmp_path: Path) -> Iterator[Callable[..., HubProcess]]:
    """Return a starter of hubs; whatever is left of them at the end is killed."""
    started: list[HubProcess] = []

    def start(*options: str, state_dir: Path | None = None, ports: bool = True) -> HubProcess:
        chosen = ("--api-port", "0", "--mqtt-port", "0") if ports else ()
        started.append(HubProcess(state_dir or tmp_path / "hub", *chosen, *options))
        return started[-1]

    yield start
    for hub in started:
        hub.end()


@pytest.fixture
def hub(start_hub: Callable[..., HubProcess]) -> HubProcess:
    return start_hub().wait_ready()


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """One hub for all tests of a module; in the end it may have said only whom it refused."""
    hub = HubProcess(tmp_path_factory.mktemp("shared") / "hub", "--api-port", "0", "--mqtt-port", "0")
    try:
        yield hub.wait_ready()
        hub.terminate(refusals=1)  # the first of a kind; what follows within its interval is counted only
    finally:
        hub.end()


@pytest.fixture
def new_device(shared_hub: HubProcess, tmp_path: Path) -> Callable[[], RawDevice]:
    count = iter(range(100))

    def make() -> RawDevice:
        directory = tmp_path / f"device-{next(count)}"
        directory.mkdir()
        return RawDevice(directory, shared_hub.record["apiPort"])

    return make
