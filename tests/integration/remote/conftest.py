"""A hub and an agent as processes, a tiny model that serves on it, and the real kubectl."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.agent.surroundings import make_model
from tests.integration.agent.test_agent_hub import Site, deployment, device, join, make_token, push, runs_at, until

from skerry.drivers.client.api import HubClient

KUBECTL = shutil.which("kubectl")
POD = "digits.till-1"
ALLOWED = """
[remote]
allow = ["logs", "forward", "exec"]
ports = [{port}]
max_sessions = 6
[telemetry]
interval = "1s"
send = "1s"
"""


@dataclass
class Lab:
    """The site with one device, and what is asked of it."""

    site: Site
    client: HubClient
    environment: dict[str, str]
    echo: int
    """A port of the device's loopback that says everything back; allowed to be forwarded."""
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def server_log(self) -> Path:
        return self.site.directory / "till-1/workloads/digits/server.log"

    @property
    def port(self) -> int:
        """Where the model answers on the device."""
        running = device(self.client, "till-1").status.workloads[0].running
        assert running is not None
        return running.port

    def kubectl(
        self, *arguments: str, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        assert KUBECTL is not None
        return subprocess.run(
            [KUBECTL, *arguments],
            env=self.environment | environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """Start kubectl, and end it with the test."""
        assert KUBECTL is not None
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        self.programs.append(subprocess.Popen([KUBECTL, *arguments], env=self.environment, **given))  # type: ignore[call-overload]
        return self.programs[-1]

    def skerry(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "skerry.cli", *arguments],
            env=os.environ | {"SKERRY_KUBECONFIG": self.environment["KUBECONFIG"]},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def restart_agent(self) -> None:
        self.site.start_agent("till-1")
        until(lambda: device(self.client, "till-1").status.phase == "Online", "online")


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := self.request.recv(65536):
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture(scope="session")
def _lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    directory = tmp_path_factory.mktemp("remote")
    site = Site(directory)
    with _EchoServer(("127.0.0.1", 0), _Echo) as echo:
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        try:
            client = site.start_hub()
            join(site, client, make_token(client, uses=5), "till-1")
            port = echo.server_address[1]
            (directory / "till-1/agent.toml").write_text(ALLOWED.format(port=port))
            site.start_agent("till-1")
            push(client, directory, make_model(directory, "v1", seed=1))
            client.apply(deployment("v1"))
            until(lambda: runs_at(client, "v1"), "the model serves")
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "KUBECONFIG": str(directory / "hub/kubeconfig"),
                "KUBECACHEDIR": str(directory / "cache"),
            }
            yield Lab(site, client, environment, port)
            client.close()
        finally:
            site.close()
            echo.shutdown()


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    yield _lab
    for program in _lab.programs:
        program.kill()
        program.communicate()
    _lab.programs.clear()


def processes(word: str) -> list[str]:
    """The processes that are `sleep <word>`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == f"sleep\0{word}\0".encode():
                found.append(path.parent.name)
    return found
