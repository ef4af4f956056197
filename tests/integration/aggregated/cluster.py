"""A Kubernetes API server, as much of it as an aggregated one asks: a ConfigMap with its watch, and two reviews.

What the hub's service account may is what its bindings give it, by the rules of Kubernetes' own roles.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.integration.aggregated.certificates import Ca

NAME = "extension-apiserver-authentication"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
GRANTS = {
    "system:auth-delegator": {("POST", REVIEWS), ("POST", TOKENS)},
    "extension-apiserver-authentication-reader": {("GET", f"{CONFIG_MAPS}/{NAME}"), ("GET", CONFIG_MAPS)},
}
"""What Kubernetes' own roles allow, as far as it is served here: methods and paths, whose ends may be open (`*`)."""
WAIT = 20.0


class Cluster:
    """One API server; `requests` has everything that was asked of it."""

    def __init__(self, directory: Path) -> None:
        self.ca = Ca(directory, "kubernetes")
        self.proxy_ca = Ca(directory, "front-proxy-ca")
        self.proxy_certificate = self.proxy_ca.issue("front-proxy-client")
        self.credentials = directory / "serviceaccount"
        self.credentials.mkdir()
        self.account_token = "first"
        self.grants: dict[str, set[tuple[str, str]]] = dict(GRANTS)
        """By role, those that the hub's account is bound to."""
        self.labels: dict[str, str] = {}
        """Of pods, what their role's label says."""
        self.data = self.config(self.proxy_ca.pem)
        self.users: dict[str, dict[str, Any]] = {}
        """By token, what a TokenReview says."""
        self.allows: Callable[[dict[str, Any]], bool] = lambda _: False
        """What of a SubjectAccessReview's spec is allowed."""
        self.requests: list[tuple[str, str, Any]] = []
        self.broken: int = 0
        """A code that everything is answered with."""
        self.changed = threading.Condition()
        self.watchers = 0
        self._revision = 1
        self._server: ThreadingHTTPServer | None = None
        self._thread = threading.Thread()
        self._serving = self.ca.issue("kube-apiserver", "127.0.0.1", server=True)
        self.give_token("first")
        (self.credentials / "ca.crt").write_text(self.ca.pem)
        (self.credentials / "namespace").write_text("skerry")
        self.port = 0
        self.start()

    @staticmethod
    def config(ca: str, *names: str) -> dict[str, str]:
        """The ConfigMap's data, as kubeadm's API server writes it."""
        return {
            "client-ca-file": "",
            "requestheader-client-ca-file": ca,
            "requestheader-allowed-names": json.dumps(names or ["front-proxy-client"]),
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            "requestheader-uid-headers": '["X-Remote-Uid"]',
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a pod finds in its environment."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def give_token(self, token: str) -> None:
        """Replace the account's token, as the kubelet does; the one before counts no more."""
        self.account_token = token
        (self.credentials / "token.new").write_text(token)
        (self.credentials / "token.new").rename(self.credentials / "token")

    def replace_config(self, data: dict[str, str]) -> None:
        """Change the ConfigMap; watchers are told."""
        with self.changed:
            self.data = data
            self._revision += 1
            self.changed.notify_all()

    def wait_for_watchers(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.watchers > 0, WAIT)

    def wait_for_leader(self, pod: str) -> None:
        """Wait until a pod is labelled as the one that leads."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.labels.get(pod) == "leader", 3 * WAIT), self.labels

    def asked(self, path: str) -> list[Any]:
        """The specs of the reviews that were posted there."""
        return [body["spec"] for method, asked, body in self.requests if (method, asked) == ("POST", path)]

    def start(self) -> None:
        """Serve, at the same port as before."""
        outer = self

        class Handler(_Handler):
            cluster = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._serving)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Be away; connections that are open end with their next request."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)
        self._server = None
        with self.changed:
            self.changed.notify_all()

    @property
    def running(self) -> bool:
        return self._server is not None

    @property
    def revision(self) -> str:
        return str(self._revision)

    @property
    def config_map(self) -> dict[str, Any]:
        meta = {"name": NAME, "namespace": "kube-system", "resourceVersion": self.revision}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": self.data}


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"
    timeout = WAIT

    def do_GET(self) -> None:
        """Serve the ConfigMap, or watch it."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if not self._admit("GET", parts.path, query):
            return
        if parts.path == f"{CONFIG_MAPS}/{NAME}":
            self._answer(200, self.cluster.config_map)
        elif query.get("watch") == "true" and query.get("fieldSelector") == f"metadata.name={NAME}":
            self._watch(query["resourceVersion"])
        else:
            self._answer(404, {"kind": "Status", "code": 404})

    def do_POST(self) -> None:
        """Answer a review."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._admit("POST", self.path, body):
            return
        if self.path == REVIEWS:
            assert body["kind"] == "SubjectAccessReview"
            status: dict[str, Any] = {"allowed": self.cluster.allows(body["spec"]), "reason": "the tests say so"}
        else:
            assert body["kind"] == "TokenReview"
            user = self.cluster.users.get(body["spec"]["token"])
            status = {"authenticated": True, "user": user} if user else {"error": "no such token"}
        self._answer(201, {**body, "status": status})

    def do_PATCH(self) -> None:
        """Change a pod's labels."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._admit("PATCH", self.path, body):
            return
        assert self.headers["content-type"] == "application/merge-patch+json"
        with self.cluster.changed:
            self.cluster.labels[self.path.rpartition("/")[2]] = body["metadata"]["labels"]["skerry.dev/role"]
            self.cluster.changed.notify_all()
        self._answer(200, {"kind": "Pod", **body})

    def _admit(self, method: str, path: str, body: Any) -> bool:
        cluster = self.cluster
        cluster.requests.append((method, path, body))
        rules = [rule for rules in cluster.grants.values() for rule in rules]
        granted = any(method == verb and fnmatchcase(path, pattern) for verb, pattern in rules)
        code = cluster.broken or (0 if granted else 403)
        if self.headers.get("authorization") != f"Bearer {cluster.account_token}":
            code = 401
        if not cluster.running:
            self.close_connection = True
            return False
        if code:
            self._answer(code, {"kind": "Status", "code": code})
        return not code

    def _watch(self, revision: str) -> None:
        cluster = self.cluster
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        with cluster.changed:
            cluster.watchers += 1
            cluster.changed.notify_all()
        seen = revision
        try:
            while cluster.running:
                with cluster.changed:
                    if cluster.running and cluster.revision == seen:
                        cluster.changed.wait(1)
                    now = cluster.config_map
                if now["metadata"]["resourceVersion"] != seen:
                    seen = now["metadata"]["resourceVersion"]
                    line = json.dumps({"type": "MODIFIED", "object": now}).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                    self.wfile.flush()
        except OSError:  # the watcher has gone
            pass
        finally:
            with cluster.changed:
                cluster.watchers -= 1
            self.close_connection = True

    def _answer(self, code: int, content: Any) -> None:
        raw = json.dumps(content).encode()
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Say nothing."""
