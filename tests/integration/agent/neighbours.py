"""A site: devices with certificates of one hub that know each other, and a registry that counts its bytes."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.agent import identity, peers_tls
from skerry.agent.disk import Disk
from skerry.agent.identity import Identity
from skerry.api.kinds.enrollment import Endpoints
from skerry.hub import pki
from skerry.hub.pki import Authority
from skerry.kit.clock import SystemClock

NAMESPACE = "default"


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def open_authority(directory: Path) -> Authority:
    """A hub's own CA, as a hub has it."""
    return pki.open_authority(directory / "pki", names=[], clock=SystemClock())


def enrolled(
    directory: Path, authority: Authority, uid: str, *, url: str, namespace: str = NAMESPACE, peer: bool = True
) -> Identity:
    """Make a state directory that of an enrolled device, as a hub's answer leaves it behind."""
    disk, key = Disk(directory), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    known = Identity(
        uid=uid,
        name=uid,
        endpoints=Endpoints(mqtt_host="127.0.0.1", mqtt_port=9, hub_url=url),
        ca=authority.ca_pem.decode(),
        desired_keys={authority.desired_key_id: authority.desired_public_pem.decode()},
        not_before=now,
        not_after=now + datetime.timedelta(days=30),
        namespace=namespace,
    )
    if peer:
        certificate = authority.issue_peer(request_of(key), uid, namespace)
        disk.write(peers_tls.PEER_PEM_FILE, private_pem(key) + certificate)
    identity.save(disk, known, pem=private_pem(key) + authority.issue_device(request_of(key), uid, namespace))
    return known


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Keep ports that only those get who ask for them by number."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in held]


@dataclass
class CountingRegistry:
    """A hub's registry behind TLS that counts what it gives; a blob's middle can be held back."""

    authority: Authority
    blobs: dict[str, bytes] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    """Bytes by digest."""
    askers: list[str] = field(default_factory=list)
    """Uids of the devices that asked for the held blob, in order."""
    held: str = ""
    hold: threading.Event = field(default_factory=threading.Event)
    """Not set: of the blob `held` half is given, then nothing more until it is set."""
    holding: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[CountingRegistry]:
        registry = self
        context = self.authority.server_context(client_certificate=ssl.CERT_REQUIRED)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nobody reads it."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, Any]:
                line, address = super().get_request()
                return context.wrap_socket(line, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that was killed is no news."""

        with Server(("127.0.0.1", 0), Handler) as server:
            self.url = f"https://127.0.0.1:{server.server_address[1]}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                self.hold.set()
                server.shutdown()
                thread.join()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        digest = handler.path.rsplit("/", 1)[-1]
        content = self.blobs.get(digest)
        if content is None:
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start, whole = int(handler.headers.get("Range", "bytes=0-")[6:].rstrip("-")), len(content)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        handler.send_header("Content-Length", str(whole - start))
        handler.end_headers()
        middle = max(whole // 2, start) if digest == self.held else whole
        self._give(handler, digest, content[start:middle])
        if digest == self.held:
            der = handler.connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            self.askers.append(common_name(der))
            self.holding.set()
            self.hold.wait(60)
            self._give(handler, digest, content[middle:])

    def _give(self, handler: http.server.BaseHTTPRequestHandler, digest: str, content: bytes) -> None:
        handler.wfile.write(content)
        handler.wfile.flush()
        self.given[digest] = self.given.get(digest, 0) + len(content)


def common_name(der: bytes) -> str:
    [name] = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


def settings_text(own: int, ports: Sequence[int], *, more: str = "") -> str:
    """Return an agent.toml whose neighbours are all of these ports, its own among them."""
    listed = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    return f'[peers]\nlisten = "127.0.0.1:{own}"\nneighbours = [{listed}]\n{more}'
