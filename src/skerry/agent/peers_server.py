"""A device as a source for its neighbours: verified blobs by digest, over TLS with certificates at both ends.

One request a connection, HTTP/1.1, the path of an OCI registry:

    HEAD /v2/<namespace>/<model>/blobs/<digest>   200 or 404; `Skerry-Stand: <stand> <bytes that have come>[ busy]`
    GET  the same                                 200, 206 (Range, one part), 404, 416, 503 (too many at once)

Only blobs that a workload here names, that lie whole in the cache and are not under protection, are given away; nothing
else can be addressed. Connections, requests and bytes per second are bounded, and whoever has to wait is a neighbour,
never what this device serves. Lives here: the listener. Must not live here: what is asked of others (`peers`), who is
one (`peers_tls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skerry.api.errors import UnauthorizedError
from skerry.core.peering import Told
from skerry.core.ranges import wanted_part
from skerry.drivers.registry.bandwidth import Bandwidth
from skerry.kit.hangup import abort

log = logging.getLogger(__name__)

STAND_HEADER = "Skerry-Stand"
MAX_CONNECTIONS = 32
"""At a time, before anybody is known; more are hung up on."""
MAX_HEAD_BYTES = 8192
HEAD_SECONDS = 10.0
"""For the handshake, and again for the request."""
QUEUE_SECONDS = 5.0
"""How long a transfer waits for its turn before it is sent away."""
STALL_SECONDS = 10.0
LEAST_SPEED = 32 * 1024
"""A neighbour that keeps this device waiting for so long, and takes less than so many bytes a second, is hung up on."""
MAX_TURNS = 2
"""Of one neighbour at a time; more are sent away at once."""
_PIECE = 128 * 1024
_REQUEST = re.compile(
    r"(?P<method>GET|HEAD) /v2/(?P<repository>[a-z0-9._/-]{1,255})/blobs/(?P<digest>sha256:[0-9a-f]{64}) HTTP/1\.[01]"
)
_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 404: "Not Found", 416: "Range Not Satisfiable"}
_REASONS[503] = "Service Unavailable"


@dataclass(frozen=True, kw_only=True)
class Shop:
    """What there is to give, and to whom."""

    find: Callable[[str], Path | None]
    """Where a blob lies that may be given away; None where there is none."""
    stand: Callable[[str], Told]
    """Where this device stands towards a digest that it does not give away."""
    client: Callable[[ssl.SSLObject], str]
    """Who asks. Raises UnauthorizedError."""


class PeerServer:
    """The listener; `run` is all of its life."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext, shop: Shop, bandwidth: Bandwidth, *, transfers: int
    ) -> None:
        """`transfers` at a time, and `bandwidth` for all of them together."""
        self._host = host
        self._wanted_port = port
        self._tls = tls
        self._shop = shop
        self._bandwidth = bandwidth
        self._turns = asyncio.Semaphore(transfers)
        self._turns_of: Counter[str] = Counter()
        self._clients: set[asyncio.Task[None]] = set()
        self.port = 0
        """Where it listens; 0 while it does not."""
        self.sent = 0
        """Bytes of content that were given away."""

    @property
    def is_busy(self) -> bool:
        """Whether a further transfer would have to wait."""
        return self._turns.locked()

    async def run(self) -> None:
        """Answer until cancelled. Raises OSError where it cannot listen, now."""
        server = await asyncio.start_server(self._accept, self._host, self._wanted_port, limit=MAX_HEAD_BYTES)
        self.port = int(server.sockets[0].getsockname()[1])
        log.info("peers.listening address=%s:%d", self._host, self.port)
        try:
            await server.serve_forever()
        finally:
            self.port = 0
            server.close()
            for client in list(self._clients):
                client.cancel()
            if self._clients:
                await asyncio.wait(set(self._clients))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CONNECTIONS:
            abort(writer.transport)
            return
        self._clients.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("peers.hung_up error=%s", error)
        except UnauthorizedError as error:
            log.warning("peers.stranger error=%s", error)
        finally:
            self._clients.discard(task)
            abort(writer.transport)  # what was to be sent is sent, or nobody takes it

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            await writer.start_tls(self._tls)
        uid = self._shop.client(writer.get_extra_info("ssl_object"))
        async with asyncio.timeout(HEAD_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = await self._answer(head, uid, writer)
        log.debug("peers.answered device=%s status=%d", uid, status)
        async with asyncio.timeout(STALL_SECONDS):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _answer(self, head: str, uid: str, writer: asyncio.StreamWriter) -> int:
        first, _, rest = head.partition("\r\n")
        request = _REQUEST.fullmatch(first)
        if request is None:
            return _send(writer, 400, {})
        digest = request["digest"]
        path = self._shop.find(digest)  # whatever the repository: the certificate has said which namespace asks
        if path is None:
            told = self._shop.stand(digest)
            return _send(writer, 404, {STAND_HEADER: f"{told.stand} {told.came}"})
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                busy = " busy" if self.is_busy else ""
                stand = {STAND_HEADER: f"has {size}{busy}", "Accept-Ranges": "bytes"}
                if request["method"] == "HEAD":
                    return _send(writer, 200, stand, size=size)
                if self._turns_of[uid] >= MAX_TURNS:
                    return _send(writer, 503, {**stand, "Retry-After": "5"})
                self._turns_of[uid] += 1
                try:
                    return await self._give(file.fileno(), size, _range(rest), stand, writer)
                finally:
                    self._turns_of -= Counter([uid])
        except FileNotFoundError:  # it was pruned this moment
            return _send(writer, 404, {STAND_HEADER: "none 0"})

    async def _give(
        self, file: int, size: int, header: str, stand: dict[str, str], writer: asyncio.StreamWriter
    ) -> int:
        part = wanted_part(header, size)
        start, end = part or (0, size)
        if part is not None and start >= end:
            return _send(writer, 416, {**stand, "Content-Range": f"bytes */{size}"})
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            return _send(writer, 503, {**stand, "Retry-After": "5"})
        try:
            span = {} if part is None else {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            status = _send(writer, 200 if part is None else 206, {**stand, **span}, size=end - start)
            speed = _Speed()
            while start < end:
                piece = await asyncio.to_thread(os.pread, file, min(self._bandwidth.piece(_PIECE), end - start), start)
                if not piece:  # it became shorter: what was announced does not come, and the other end sees it
                    break
                start += len(piece)
                await self._pass_on(piece, writer, speed)
            return status
        finally:
            self._turns.release()

    async def _pass_on(self, piece: bytes, writer: asyncio.StreamWriter, speed: _Speed) -> None:
        while (pause := self._bandwidth.wait()) > 0:  # noqa: ASYNC110 - what is owed is paid by time alone
            await asyncio.sleep(pause)
        self._bandwidth.take(len(piece))
        writer.write(piece)
        began = time.monotonic()
        async with asyncio.timeout(STALL_SECONDS):
            await writer.drain()
        speed.note(len(piece), time.monotonic() - began)
        self.sent += len(piece)


class _Speed:
    """How fast a neighbour takes what it asked for; what this device waits for by its own bound does not count."""

    def __init__(self) -> None:
        self._taken = 0
        self._waited = 0.0

    def note(self, count: int, seconds: float) -> None:
        """Note a piece that was taken. Raises TimeoutError when it was too little for too long."""
        self._taken += count
        self._waited += seconds
        if self._waited >= STALL_SECONDS:
            if self._taken < LEAST_SPEED * self._waited:
                raise TimeoutError(f"took {self._taken} bytes in {self._waited:.0f} s")
            self._taken, self._waited = 0, 0.0


def _range(headers: str) -> str:
    """Return the `Range` among the lines of a head; "" where there is none, or more than one."""
    lines = [line.partition(":") for line in headers.split("\r\n")]
    found = [value for name, _, value in lines if name.lower() == "range"]
    return found[0] if len(found) == 1 else ""


def _send(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], *, size: int = 0) -> int:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Length: {size}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with contextlib.suppress(OSError):
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return status
