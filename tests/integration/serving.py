"""A running inference server and what a client asks of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

WAIT_SECONDS = 30.0
LISTENING = re.compile(r"serve\.listening url=http://127\.0\.0\.1:(\d+)")
READY = re.compile(r"serve\.ready model=digits version=v1 url=http://127\.0\.0\.1:(\d+) load_seconds=\d+\.\d+")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, pattern: re.Pattern[str]) -> None:
        self.process = process
        self.log = log
        self.port = int(self.logged(pattern).group(1))

    def logged(self, pattern: re.Pattern[str]) -> re.Match[str]:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := pattern.search(self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        return found

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def infer(self, **request: Any) -> Answer:
        return self.ask("POST", "/v2/models/digits/infer", json.dumps(request).encode())

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.ask("GET", "/metrics").body.decode())
        return next(
            s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()
        )

    @contextlib.contextmanager
    def asked_for_ever(self) -> Iterator[None]:
        """A client of the slow model that asks for more than anybody can wait for."""
        body = json.dumps({"inputs": [{"name": "times", "datatype": "INT64", "shape": [1], "data": [10**12]}]})
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall((head + body).encode())
            yield

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)


def command(directory: Path, *arguments: str) -> list[str]:
    fixed = ["--model", "digits", "--version", "v1", "--file", str(directory / "model.onnx")]
    fixed += ["--signature", str(directory / "signature.json"), "--port", "0"]
    return [sys.executable, "-m", "skerry.serve", *fixed, *arguments]


@contextlib.contextmanager
def serving(
    directory: Path, *arguments: str, variables: Mapping[str, str] | None = None, pattern: re.Pattern[str] = READY
) -> Iterator[Served]:
    log, environment = directory / "serve.log", {**os.environ, **(variables or {})}
    argv = command(directory, *arguments)
    with log.open("wb") as output, subprocess.Popen(argv, stderr=output, env=environment) as process:
        try:
            yield Served(process, log, pattern)
        finally:
            process.kill()


def fails(directory: Path, *arguments: str) -> str:
    """Run a server that must give up, and return what it says; it must be one sentence.

    What an engine's native code prints ("[program.cpp:168] ...") is not the server's.
    """
    done = subprocess.run(command(directory, *arguments), capture_output=True, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 1
    said = [line for line in done.stderr.decode().splitlines() if " INFO " not in line and line[0] != "["]
    assert len(said) == 1, done.stderr
    assert done.stdout == b""
    return said[0]
