"""A real OpenID Connect issuer for tests: discovery and keys over TLS, in a thread, and tokens that it signs."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from skerry.hub import pki

CLIENT = "skerry"


class Issuer:
    """Everything can be changed while it runs; `asked` are the paths it was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.private: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {}
        self.changes: dict[str, Any] = {}
        self.answer: tuple[int, bytes] | None = None
        """Instead of whatever would be answered."""
        self.asked: list[str] = []
        self.add("first")

    def add(self, key_id: str, *, curve: ec.EllipticCurve | None = None, bits: int = 2048) -> None:
        self.private[key_id] = ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, bits)

    def token(self, *, key_id: str = "first", algorithm: str = "RS256", **claims: Any) -> str:
        now = int(time.time())
        good = {"iss": self.url, "aud": CLIENT, "sub": "ada", "exp": now + 300, "iat": now, "groups": ["dev"]}
        return jwt.encode({**good, **claims}, self.private[key_id], algorithm, headers={"kid": key_id})

    def public_pem(self, key_id: str = "first") -> bytes:
        return (
            self.private[key_id]
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def document(self, path: str) -> bytes | None:
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.changes}).encode()
        if path == "/keys":
            return json.dumps({"keys": [_jwk(name, key) for name, key in self.private.items()]}).encode()
        return None


def _jwk(name: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": name, "use": "sig"}


@contextlib.contextmanager
def serving(authority: pki.Authority) -> Iterator[Issuer]:
    """Serve an issuer with a certificate of this authority."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            found = issuer.document(self.path)
            status, content = issuer.answer or ((404, b"") if found is None else (200, found))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Location", f"{issuer.url}/keys")
            self.end_headers()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    directory: Path = authority.ca_file.parent
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    issuer = Issuer(f"https://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
