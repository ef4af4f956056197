"""The listening sockets of this device's workloads: made once, held, and after a restart taken back from a server.

A workload's endpoint is one socket, which the agent and the servers of all versions share. The kernel keeps its queue
of connections while any of them holds it, so that nothing is lost when one version takes over from another, and a
server that is started again finds the callers waiting.
Lives here: making, holding and giving up those sockets. Must not live here: when (`core.workload`), or talking to
servers (`endpoint`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Sequence

from skerry.agent.endpoint import ServerControl
from skerry.api.errors import SkerryError, UnavailableError
from skerry.core.journal import Endpoint

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BACKLOG = 512


class Listeners:
    """The sockets by workload and port."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, socket.socket]] = {}

    async def obtain(self, workload: str, endpoint: Endpoint, lenders: Sequence[ServerControl]) -> socket.socket:
        """Return the workload's listening socket; it stays ours. Taken back from a lender, or bound anew.

        Raises UnavailableError when the one port that is allowed is taken.
        """
        if self._find(workload, endpoint) is None:
            await self.recover(workload, lenders)
        found = self._find(workload, endpoint)
        if found is None:
            found = reserve([endpoint.port] if endpoint.port else [], strict=endpoint.strict)
            self._held.setdefault(workload, {})[_port(found)] = found
        found.listen(BACKLOG)
        return found

    async def recover(self, workload: str, lenders: Iterable[ServerControl]) -> None:
        """Take back what these servers hold; one that does not answer has nothing to lend."""
        for lender in lenders:
            try:
                lent = await lender.lent()
            except SkerryError as error:
                log.info("endpoint.not_lent workload=%s error=%s", workload, error)
                continue
            if lent is not None:
                held = self._held.setdefault(workload, {})  # as it is now: others may have let go of it meanwhile
                if held.setdefault(_port(lent), lent) is not lent:
                    lent.close()

    def holds(self, workload: str) -> bool:
        """Return whether there is any for this workload."""
        return bool(self._held.get(workload))

    def refuse(self, workload: str) -> None:
        """Refuse connections until it is obtained again, those that wait included; the port stays ours.

        Only for a socket that nobody accepts on. Linux keeps the port of a socket that was bound to it by number.
        """
        for one in self._held.get(workload, {}).values():
            with contextlib.suppress(OSError):  # it is so already
                one.shutdown(socket.SHUT_RDWR)

    def release(self, workload: str, *, keep: int = 0) -> None:
        """Let go of a workload's sockets but the one of this port; servers that share one keep it."""
        held = self._held.get(workload, {})
        for port in [port for port in held if port != keep]:
            held.pop(port).close()
        if not held:
            self._held.pop(workload, None)

    def release_others(self, workloads: Iterable[str]) -> None:
        """Let go of the sockets of all workloads but these."""
        for workload in set(self._held) - set(workloads):
            self.release(workload)

    def _find(self, workload: str, endpoint: Endpoint) -> socket.socket | None:
        held = self._held.get(workload, {})
        return held.get(endpoint.port) if endpoint.port else next(iter(held.values()), None)


def reserve(ports: Sequence[int], *, strict: bool = False, avoid: int = 0) -> socket.socket:
    """Return a socket bound to the first of these ports that is free, else to any but `avoid`; it does not listen yet.

    Bound with SO_REUSEADDR on both sides, another may listen on the same port, while the kernel gives it to nobody who
    asks for any port: several agents on one machine do not collide. It is bound by number, so that it keeps its port.
    Raises UnavailableError when the one port that is allowed is taken.
    """
    for port in [*ports, *([] if strict else [0, 0, 0])]:
        try:
            with _bound(port) as drawn:
                number = _port(drawn)
                if number != avoid:
                    return _bound(number)
        except OSError as error:
            if strict:
                raise UnavailableError(
                    f"port {port} is taken: {os.strerror(error.errno or 0)}",
                    element=f"{HOST}:{port}",
                    hint="set serving.port to another",
                ) from None
    raise UnavailableError("no port is free", element=HOST)


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
    except BaseException:
        made.close()
        raise
    return made


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])
