"""A real hub process inside a cluster that is played: its API server, and the proxy that passes requests on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.integration.aggregated.cluster import Cluster
from tests.integration.aggregated.proxy import Connector, headers_of

START_SECONDS = 40.0
API = "/apis/skerry.dev/v1alpha1"
ALICE = headers_of("alice", ("dev", "system:authenticated"))


class HubProcess:
    """One hub as one process, as it runs in a pod; warnings in it are errors."""

    def __init__(self, state_dir: Path, options: Sequence[str], environment: dict[str, str]) -> None:
        self.state_dir = state_dir
        self._log = state_dir.with_name(f"{state_dir.name}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "skerry.hub", "--state-dir", str(state_dir), *options],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> HubProcess:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline, announced = time.monotonic() + START_SECONDS, b""
        while b"get devices" not in announced:
            announced += self.process.stdout.read() or b""
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)
        return self

    def fail(self) -> str:
        """Wait for the end that it comes to by itself, and return what it said."""
        assert self.process.wait(START_SECONDS) == 1
        return self.log

    def wait_for(self, said: str, times: int = 1) -> None:
        """Wait until it has said this in its log, so many times."""
        deadline = time.monotonic() + START_SECONDS
        while self.log.count(said) < times:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def port(self) -> int:
        record: dict[str, Any] = json.loads((self.state_dir / "hub.json").read_bytes())
        return int(record["apiPort"])

    @property
    def ca(self) -> str:
        return (self.state_dir / "pki" / "ca.crt").read_text()

    def as_(self, certificate: Path | None) -> Connector:
        """A way to it with this certificate."""
        return Connector(self.port, self.ca, certificate)

    @property
    def as_admin(self) -> Connector:
        connector = self.as_(None)
        pki = self.state_dir / "pki"
        connector.context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        return connector


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    directory = tmp_path / "cluster"
    directory.mkdir()
    cluster = Cluster(directory)
    try:
        yield cluster
    finally:
        cluster.stop()


StartHub = Callable[..., HubProcess]


@pytest.fixture
def start_hub(tmp_path: Path, cluster: Cluster) -> Iterator[StartHub]:
    started: list[HubProcess] = []

    def start(*options: str, name: str = "hub", delegated: bool = True) -> HubProcess:
        given = options_of(cluster) if delegated else ["--api-port", "0", "--mqtt-port", "0"]
        started.append(HubProcess(tmp_path / name, [*given, *options], cluster.environment))
        return started[-1]

    yield start
    for hub in started:
        hub.end()


def options_of(cluster: Cluster) -> list[str]:
    """What a hub is started with in that cluster."""
    ports = ["--api-port", "0", "--mqtt-port", "0", "--log-level", "info"]
    return [*ports, "--delegated", "--cluster-credentials", str(cluster.credentials)]


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, shared_cluster: Cluster) -> Iterator[HubProcess]:
    """One hub for all tests of a module that leave it as it was."""
    directory = tmp_path_factory.mktemp("hub") / "hub"
    hub = HubProcess(directory, options_of(shared_cluster), shared_cluster.environment)
    try:
        yield hub.wait_ready()
    finally:
        hub.end()
