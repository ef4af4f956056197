"""Callers of one endpoint that never pause: some keep their connection, some take a new one for each request."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}]}).encode()
TIMEOUT_SECONDS = 30.0
"""A bound, not a claim about speed."""


@dataclass
class Load:
    """What came of it."""

    port: int
    answered: dict[str, int] = field(default_factory=dict)
    """Requests by the version that answered."""
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _progress: threading.Condition = field(default_factory=threading.Condition)

    @property
    def total(self) -> int:
        return sum(self.answered.values())

    def until(self, more: int) -> None:
        """Wait for so many more answers or failures, or until the callers have given up."""
        with self._progress:
            goal = self.total + len(self.failures) + more
            self._progress.wait_for(lambda: self.total + len(self.failures) >= goal, TIMEOUT_SECONDS)

    def call(self, *, keep: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            while not self._stop.is_set():
                began = time.perf_counter()
                try:
                    connection.request("POST", "/v2/models/digits/infer", BODY, {} if keep else {"Connection": "close"})
                    response = connection.getresponse()
                    raw = response.read()
                    if response.status != 200:
                        raise ConnectionError(f"{response.status} {raw[:200]!r}")
                    outcome, failure = str(json.loads(raw)["model_version"]), None
                except (OSError, http.client.HTTPException, ValueError) as error:
                    outcome, failure = "", f"{type(error).__name__}: {error}"
                    connection.close()
                self._note(outcome, failure, time.perf_counter() - began)
        finally:
            connection.close()

    def _note(self, version: str, failure: str | None, seconds: float) -> None:
        with self._progress:
            self.longest_seconds = max(self.longest_seconds, seconds)
            if failure is None:
                self.answered[version] = self.answered.get(version, 0) + 1
            else:
                self.failures.append(failure)
            self._progress.notify_all()

    def end(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def calling(port: int, *, keeping: int = 2, fresh: int = 2) -> Iterator[Load]:
    load = Load(port)
    kinds = [True] * keeping + [False] * fresh
    threads = [threading.Thread(target=load.call, kwargs={"keep": keep}) for keep in kinds]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.end()
        for thread in threads:
            thread.join()
