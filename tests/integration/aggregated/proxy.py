"""A front proxy, as a cluster's API server is one to its aggregated servers: it knows who asks, and says so.

Headers and polls are those of Kubernetes' kube-aggregator (handler_proxy, remote_available_controller, the discovery
and OpenAPI aggregation controllers). Clients of this one need not log in: each proxy stands for one user.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

AGGREGATOR = ("system:kube-aggregator", ("system:masters",))
OPENAPI_AGGREGATOR = ("system:aggregator", ())
DISCOVERY = ",".join(
    f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList" for version in ("v2", "v2beta1")
)
SERVICE = "skerry-hub.skerry.svc"
_HOP_BY_HOP = ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
_KEPT_BACK = (*_HOP_BY_HOP, "host", "authorization", "content-length")
"""What of a client's headers does not go on: an aggregator has logged the client in, and takes its token away."""
WAIT = 20.0


def headers_of(
    user: str, groups: Sequence[str] = (), uid: str = "", extra: Mapping[str, Sequence[str]] | None = None
) -> list[tuple[str, str]]:
    """What the aggregator says of a user."""
    said = [("X-Remote-User", user), *([("X-Remote-Uid", uid)] if uid else [])]
    said += [("X-Remote-Group", group) for group in groups]
    for key, values in (extra or {}).items():
        said += [(f"X-Remote-Extra-{quote(key, safe='')}", value) for value in values]
    return said


class Connector:
    """A way to the hub: its port, whom to trust, which certificate to show, and which name to ask for."""

    def __init__(self, port: int, ca: str, certificate: Path | None = None, name: str = "localhost") -> None:
        self.port, self.name = port, name
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.load_verify_locations(cadata=ca)
        if certificate is not None:
            self.context.load_cert_chain(certificate)

    def connect(self) -> http.client.HTTPSConnection:
        connection = _Connection("127.0.0.1", self.port, timeout=WAIT, context=self.context)
        connection.name = self.name
        return connection

    def ask(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """Make one request on a connection of its own; what is JSON is parsed."""
        with contextlib.closing(self.connect()) as connection:
            send(connection, method, path, headers, body)
            answer = connection.getresponse()
            raw = answer.read()
            kind = answer.headers.get("content-type", "")
            return answer.status, answer.headers, json.loads(raw) if "json" in kind else raw


class _Connection(http.client.HTTPSConnection):
    name = ""

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        context: ssl.SSLContext = self._context  # type: ignore[attr-defined]
        self.sock = context.wrap_socket(self.sock, server_hostname=self.name)


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]],
    body: bytes | None,
) -> None:
    """Send a request whose headers may repeat."""
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value.encode())
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)


class FrontProxy:
    """Passes everything on to the hub as one user; discovery as a cluster's API server shows it."""

    def __init__(self, hub: Connector, user: str, groups: Sequence[str] = ()) -> None:
        outer = self
        self.hub, self.user, self.groups = hub, user, groups

        class Handler(_Handler):
            proxy = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)


class _Handler(BaseHTTPRequestHandler):
    proxy: FrontProxy
    protocol_version = "HTTP/1.1"
    timeout = WAIT

    def _serve(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size) if size else None
        path = self.path.partition("?")[0]
        if path == "/api":
            self._own({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        elif path == "/api/v1":
            one = {"name": "namespaces", "singularName": "", "namespaced": False, "kind": "Namespace", "verbs": ["get"]}
            self._own({"kind": "APIResourceList", "groupVersion": "v1", "resources": [one]})
        elif not path.startswith(("/apis", "/openapi", "/version")):
            self._own({"kind": "Status", "code": 404}, 404)
        else:
            self._forward(path, body)

    def _forward(self, path: str, body: bytes | None) -> None:
        polls = path == "/apis" or path.startswith("/openapi")
        user, groups = AGGREGATOR if polls else (self.proxy.user, self.proxy.groups)
        kept = [
            (name, value)
            for name, value in self.headers.items()
            if name.lower() not in _KEPT_BACK and not name.lower().startswith("x-remote-")
        ]
        with contextlib.closing(self.proxy.hub.connect()) as connection:
            said = [("Host", f"{self.proxy.hub.name}:443"), *headers_of(user, (*groups, "system:authenticated"))]
            send(connection, self.command, self.path, [*kept, *said, ("X-Forwarded-For", "127.0.0.1")], body)
            self._pass_on(connection.getresponse())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815 - the base's names

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in (*_HOP_BY_HOP, "date", "content-length"):
                self.send_header(name, value)
        if self.command == "HEAD" or answer.status in (204, 304):
            self.end_headers()
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError, http.client.HTTPException):  # either side may go away
            while piece := answer.read1(65536):  # as it comes: a watch never ends
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    def _own(self, content: Any, code: int = 200) -> None:
        raw = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Say nothing."""
