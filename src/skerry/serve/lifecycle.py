"""A running server's dealings with the agent: the endpoint it serves, retiring, mirroring, counters.

Lives here: what each question on the control socket does. Must not live here: the socket (`control`), connections
(`http1`), or when the agent asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import control
from skerry.core.control import Observation, Question, Reply
from skerry.serve.dataplane import DataPlane
from skerry.serve.http1 import Server
from skerry.serve.metrics import Metrics
from skerry.serve.shadow import Shadow
from skerry.serve.worker import Worker

log = logging.getLogger(__name__)


class Lifecycle:
    """Answers the agent. `retired` is set when a retiring server has seen its last connection off."""

    def __init__(self, server: Server, plane: DataPlane, worker: Worker, metrics: Metrics, shadow: Shadow) -> None:
        self._server = server
        self._plane = plane
        self._worker = worker
        self._metrics = metrics
        self._shadow = shadow
        self._endpoint: socket.socket | None = None
        self._boot = secrets.token_hex(8)
        self._retire = asyncio.Event()
        self._seconds = 0.0

    async def answer(self, question: Question, received: socket.socket | None) -> tuple[Reply, socket.socket | None]:
        """Do what is asked. Raises InvalidError, UnavailableError."""
        if received is not None and not isinstance(question, control.Accept):
            received.close()
        match question:
            case control.Accept():
                await self._accept(received)
            case control.Lend():
                return control.Done(), self._endpoint
            case control.Retire(idle_seconds=idle_seconds, seconds=seconds):
                self._begin_retirement(idle_seconds, seconds)
            case control.Mirror(port=port, share=share):
                if not self._server.retiring:
                    self._shadow.aim(port, share)
            case control.StopMirror():
                self._shadow.stop()
            case control.Observe():
                return self._observe(), None
        return control.Done(), None

    async def until_retired(self) -> bool:
        """Wait until it was told to retire and all is answered; False when something was not, in the time given."""
        await self._retire.wait()
        return await self._server.retired(self._seconds)

    async def _accept(self, received: socket.socket | None) -> None:
        if received is None:
            raise InvalidError("brings no listening socket", element="control message accept")
        try:
            if self._server.retiring or self._server.stopping:
                raise UnavailableError("it is retiring", element="server")
            if not _is_listening(received):
                raise InvalidError("brings something that is no listening socket", element="control message accept")
            if self._endpoint is not None and _same(self._endpoint, received):
                received.close()
                return
            await self._server.listen(received)
        except BaseException:
            received.close()
            raise
        before, self._endpoint = self._endpoint, received
        if before is not None:
            await self._server.withdraw(before)
        log.info("serve.accepting endpoint=%s:%s", *received.getsockname()[:2])

    def _begin_retirement(self, idle_seconds: float, seconds: float) -> None:
        if self._retire.is_set():
            return
        log.info("serve.retiring connections=%s", len(self._server.connections))
        self._shadow.stop()
        self._server.retire(idle_seconds)
        self._endpoint = None  # closed by the server
        self._seconds = seconds
        self._retire.set()

    def _observe(self) -> Observation:
        counts = self._metrics.outcomes
        errors = counts["failed"] + counts["unavailable"]
        return Observation(
            boot=self._boot,
            requests=counts["ok"] + errors,
            errors=errors,
            refused=counts["bad_request"] + counts["not_found"] + counts["too_large"],
            in_flight=self._worker.pending,
            ready=self._plane.ready,
            accepting=self._endpoint is not None,
            retiring=self._server.retiring,
            shadow=self._shadow.counts(),
        )


def _is_listening(found: socket.socket) -> bool:
    return (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.type == socket.SOCK_STREAM
        and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def _same(one: socket.socket, other: socket.socket) -> bool:
    """Whether two descriptors stand for one socket of the kernel."""
    mine, theirs = os.fstat(one.fileno()), os.fstat(other.fileno())
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)
