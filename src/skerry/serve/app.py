"""The program: settings from the command line, wiring, signals, and the way in and out.

Lives here: what happens when. It listens at once (live), loads the model beside (then ready), and on SIGTERM or SIGINT,
or retired by the agent, answers what is under way and exits with 0. Must not live here: the protocol, or a model's
engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.api.errors import InvalidError, SkerryError, UnavailableError
from skerry.kit import logs
from skerry.serve import engines, http1
from skerry.serve.arguments import number, read_signature
from skerry.serve.control import ControlSocket
from skerry.serve.dataplane import DataPlane, ModelSettings
from skerry.serve.lifecycle import Lifecycle
from skerry.serve.limits import MIB, Limits
from skerry.serve.metrics import Metrics
from skerry.serve.rest import Rest
from skerry.serve.shadow import Shadow
from skerry.serve.worker import Worker

log = logging.getLogger(__name__)

MAX_VERSION_CHARACTERS = 253
_REOPENING = frozenset({"litert"})
"""Engines that open their file anew after a request of a size that does not fit."""
_INHERITED = re.compile(r"/proc/self/fd/([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All of the command line."""

    model: ModelSettings
    host: str
    port: int
    limits: Limits
    grace_seconds: float
    control: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Run until stopped; return the exit code. What goes wrong is one sentence on stderr."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which computes nothing here but would start threads
    logs.configure(level="info")
    try:
        settings = _settings(_parser().parse_args(argv))
        with _bound(settings.host, settings.port) as listener:
            return asyncio.run(_serve(settings, listener))
    except SkerryError as error:
        sys.stderr.write(f"skerry serve: {error.sentence}\n")
        return 1


async def _serve(settings: Settings, listener: socket.socket) -> int:
    limits = settings.limits
    plane = DataPlane(settings.model)
    worker = Worker(max_queued=limits.queued)
    metrics = Metrics(model=plane.name, version=plane.version)
    shadow = Shadow(plane.name)
    server = http1.Server(Rest(plane, worker, metrics, limits, shadow).handle, limits)
    stopping = _stop_signal()
    grace = settings.grace_seconds
    try:
        async with _controlled(settings.control, Lifecycle(server, plane, worker, metrics, shadow)) as retired:
            await server.listen(listener)
            url = _url(listener)
            log.info("serve.listening url=%s", url)
            loading = worker.submit(lambda: _load(plane, settings.model))
            await _first(loading, stopping, retired)
            if loading.done():
                loading.result()
                log.info(
                    "serve.ready model=%s version=%s url=%s load_seconds=%.3f",
                    plane.name,
                    plane.version,
                    url,
                    plane.load_seconds,
                )
            await _first(stopping, retired)
            if retired.done() and not retired.result():
                grace = 0.0  # what is still under way has had its time
    finally:
        shadow.stop()
        in_time = await server.stop(grace)
        worker.close()
        log.info("serve.stopped model=%s in_time=%s", plane.name, in_time)
    code = 0 if in_time else 1
    if worker.pending:  # native code still computes for nobody: an orderly end would pull the ground from under it
        logging.shutdown()
        os._exit(code)
    return code


@contextlib.asynccontextmanager
async def _controlled(path: Path | None, lifecycle: Lifecycle) -> AsyncIterator[asyncio.Task[bool]]:
    """Answer the agent while the context is open; the task ends when the server is to go (see `Lifecycle`)."""
    retired = asyncio.create_task(lifecycle.until_retired())
    tasks: set[asyncio.Task[Any]] = {retired}
    channel = None if path is None else ControlSocket(path)
    try:
        if channel is not None:
            tasks.add(asyncio.create_task(channel.run(lifecycle.answer)))
        yield retired
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if channel is not None:
            channel.close()


async def _first(*futures: asyncio.Future[Any]) -> None:
    """Wait for any of them."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _stop_signal() -> asyncio.Future[None]:
    """Return a future that SIGTERM and SIGINT fulfil."""
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopping.done():
            stopping.set_result(None)

    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, stop)
    return stopping


def _load(plane: DataPlane, settings: ModelSettings) -> None:
    """Load the model, then give back what only loading needed, and spare the collector what stays for good."""
    try:
        plane.load()
        if settings.engine not in _REOPENING:
            let_go(settings.file)
    except MemoryError:
        raise UnavailableError("not enough memory to load it", element=f"model {plane.name}") from None
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # a C library that has no such thing (musl)
        ctypes.CDLL(None).malloc_trim(0)


def let_go(file: Path) -> None:
    """Close a file that was handed over as an open descriptor; in memory, it is gone then."""
    found = _INHERITED.fullmatch(str(file))
    if found is not None:
        with contextlib.suppress(OSError):
            os.close(int(found[1]))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises UnavailableError."""
    element = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnavailableError(f"is not an address to listen on: {error.strerror}", element=element) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot be listened on: {os.strerror(error.errno or 0)}", element=element, hint="choose another --port"
        ) from error
    return listener


def _settings(arguments: argparse.Namespace) -> Settings:
    threads = arguments.threads or len(os.sched_getaffinity(0))
    if not 1 <= threads <= 1024:
        raise InvalidError(f"{threads} is not a number of threads", element="--threads")
    if not arguments.model or "/" in arguments.model or not 0 < len(arguments.version) <= MAX_VERSION_CHARACTERS:
        raise InvalidError("a model has a name without a slash and a version", element="--model, --version")
    model = ModelSettings(
        name=arguments.model,
        version=arguments.version,
        file=arguments.file,
        signature=read_signature(arguments.signature),
        engine=arguments.engine,
        threads=threads,
    )
    body = arguments.max_body_bytes
    limits = Limits(
        body_bytes=body,
        json_bytes=min(body, Limits().json_bytes),
        buffered_bytes=max(2 * body, 8 * MIB),
        queued=arguments.max_queued,
    )
    return Settings(
        model=model,
        host=arguments.host,
        port=arguments.port,
        limits=limits,
        grace_seconds=arguments.grace_seconds,
        control=arguments.control,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skerry serve", description="Serve one model (Open Inference Protocol v2).")
    add = parser.add_argument
    add("--model", required=True, help="its name in /v2/models/<name>")
    add("--version", required=True, help="its version in /v2/models/<name>/versions/<version>")
    add("--file", required=True, type=Path, help="the model file")
    add("--signature", required=True, type=Path, help="its tensors: JSON with inputs and outputs")
    add("--engine", default="onnxruntime", choices=engines.names())
    add("--host", default="127.0.0.1")
    add("--port", default=8080, type=number(0, 65535), help="0 lets the system choose; default 8080")
    add("--control", type=Path, help="Unix socket through which the agent hands over connections; default none")
    add("--threads", default=1, type=number(0, 1024), help="threads the engine computes with; 0 means all cores")
    add("--max-body-bytes", default=Limits().body_bytes, type=number(1024, 2**40), help="default 64 MiB")
    add("--max-queued", default=Limits().queued, type=number(0, 100_000), help="requests that may wait; default 64")
    add("--grace-seconds", default=20.0, type=float, help="how long requests under way may take to end; default 20")
    return parser
