"""A hub as a program of its own, which can be killed, and the real kubectl beside it."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from skerry.drivers.client.api import load_kubeconfig
from skerry.drivers.client.kubeconfig import Connection

WAIT = 60.0
KUBECTL = shutil.which("kubectl")
NO_KUBECTL = "kubectl is not on PATH; install it (Debian: kubernetes-client) to see that the hub is what it expects"
GROUP = "/apis/skerry.dev/v1alpha1"
Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


class HubProgram:
    """One hub with a state directory of its own; it keeps its ports when it is started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._context: ssl.SSLContext | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "state" / "kubeconfig"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def connection(self) -> Connection:
        return load_kubeconfig(self.kubeconfig)

    def start(self) -> None:
        """Start it and return when it answers."""
        first = not self.kubeconfig.exists()
        command = [sys.executable, "-m", "skerry.hub", "--state-dir", str(self.directory / "state")]
        command += ["--api-port", "0", "--mqtt-port", "0"] if first else []
        with (self.directory / "hub.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "hub at" in line, (line, (self.directory / "hub.log").read_text()[-3000:])

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def client(self) -> httpx.Client:
        """A client with the admin's certificate and nothing between the test and HTTP."""
        return httpx.Client(base_url=self.connection.server, verify=self.context(), timeout=WAIT)

    def context(self) -> ssl.SSLContext:
        """What a client of one's own needs to be the admin."""
        if self._context is None:
            connection = self.connection
            self._context = ssl.create_default_context(cadata=connection.ca.decode())
            pair = self.directory / "admin.pem"
            pair.touch(mode=0o600)
            pair.write_bytes(connection.certificate + connection.key)
            self._context.load_cert_chain(pair)
        return self._context

    def environment(self) -> dict[str, str]:
        """For kubectl: this hub, and no caches of anybody else's."""
        home = self.directory / "home"
        return {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, namespace: str) -> Kubectl:
        """Return what runs kubectl in a namespace and says what it printed."""

        def run(
            *arguments: str, text: str | None = None, fails: bool = False, **environment: str
        ) -> subprocess.CompletedProcess[str]:
            assert KUBECTL is not None
            done = subprocess.run(
                [KUBECTL, "-n", namespace, *arguments],
                env=self.environment() | environment,
                input=text,
                capture_output=True,
                text=True,
                timeout=WAIT,
                check=False,
            )
            assert (done.returncode != 0) == fails, done
            return done

        return run


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that has no event to wait for."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT:g} s"
        time.sleep(0.02)
