"""`skerry device exec` and `skerry device forward`: a command on a device, a port of it on this machine.

Lives here: the terminal at this end. Must not live here: the protocol (`drivers.client.remote`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Annotated

import typer

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.device import Device
from skerry.cli import options, output
from skerry.core import channels
from skerry.drivers.client import remote
from skerry.drivers.client.api import Connection, HubClient
from skerry.drivers.client.remote import Pod, Running

_CHUNK = 32 * 1024
Deployment = Annotated[str, typer.Option("--deployment", "-d", help="NAME; the device's only one unless given.")]


def execute(
    device: Annotated[str, typer.Argument(help="device/NAME")],
    command: Annotated[list[str], typer.Argument(help="Behind --, as in -- ls -l")],
    deployment: Deployment = "",
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Pass this command's input on.")] = False,
    terminal: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Run a command beside a deployment's server on a device; its exit code is this command's.

    The device's owner must have allowed it: `allow = ["exec"]` in [remote] of its agent.toml.
    """
    with options.connect(kubeconfig, namespace) as client:
        pod, connection = _pod(client, device, deployment), client.connection
    terminal = terminal and os.isatty(0)
    with _raw() if terminal else contextlib.nullcontext():
        code = asyncio.run(_execute(connection, pod, command, stdin=stdin, terminal=terminal))
    raise typer.Exit(code)


def forward(
    device: Annotated[str, typer.Argument(help="device/NAME")],
    ports: Annotated[list[str], typer.Argument(help="LOCAL:REMOTE, or one number for both; :REMOTE takes any")],
    deployment: Deployment = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Make ports of a deployment's server on a device reachable on this machine's loopback, until Ctrl-C."""
    pairs = [_ports(text) for text in ports]
    with options.connect(kubeconfig, namespace) as client:
        pod, connection = _pod(client, device, deployment), client.connection
    asyncio.run(_forward(connection, pod, pairs))


def _pod(client: HubClient, device: str, deployment: str) -> Pod:
    name = options.reference(device, expected="device").name
    if deployment:
        workload = options.reference(deployment, expected="deployment").name
    else:
        known = [one.name for one in client.get(Device, name).status.workloads]
        if len(known) != 1:
            hint = f"name one of {', '.join(known[:20])} with --deployment" if known else "nothing runs on it"
            raise InvalidError(f"has {len(known)} workloads", element=f"device/{name}", hint=hint)
        workload = known[0]
    return Pod(namespace=client.namespace, device=name, workload=workload)


def _ports(text: str) -> tuple[int, int]:
    local, colon, distant = text.rpartition(":")
    words = (local or "0", distant) if colon else (distant, distant)
    if not all(word.isascii() and word.isdigit() and int(word) < 65536 for word in words) or int(words[1]) == 0:
        raise InvalidError(f'"{text[:40]}" is no pair of ports', element="PORTS", hint="as in 8080:443")
    return int(words[0]), int(words[1])


# --- commands ---------------------------------------------------------------------------------------------------------


async def _execute(connection: Connection, pod: Pod, command: list[str], *, stdin: bool, terminal: bool) -> int:
    async with remote.execute(connection, pod, command, stdin=stdin, terminal=terminal) as running:
        loop = asyncio.get_running_loop()
        if stdin:
            threading.Thread(target=_read, args=(running, loop), daemon=True).start()
        if terminal:
            resized = asyncio.Event()
            resized.set()
            loop.add_signal_handler(signal.SIGWINCH, resized.set)
            sizing = asyncio.ensure_future(_tell_size(running, resized))
        try:
            return await running.outcome(_show)
        finally:
            if terminal:
                sizing.cancel()
                await asyncio.gather(sizing, return_exceptions=True)


def _read(running: Running, loop: asyncio.AbstractEventLoop) -> None:
    """Pass input on as it is taken; in a thread that may be left behind, for a read cannot be called off."""
    with contextlib.suppress(SkerryError, RuntimeError, OSError, asyncio.CancelledError):
        while data := os.read(0, _CHUNK):
            asyncio.run_coroutine_threadsafe(running.write(data), loop).result()
        asyncio.run_coroutine_threadsafe(running.close_input(), loop).result()


async def _tell_size(running: Running, resized: asyncio.Event) -> None:
    while True:
        await resized.wait()
        resized.clear()
        columns, rows = os.get_terminal_size(0)
        await running.resize(rows, columns)


def _show(channel: int, data: bytes) -> None:
    stream = sys.stderr if channel == channels.STDERR else sys.stdout
    stream.buffer.write(data)
    stream.buffer.flush()


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Have the terminal pass everything on as it is typed."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


# --- ports ------------------------------------------------------------------------------------------------------------


async def _forward(connection: Connection, pod: Pod, pairs: list[tuple[int, int]]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for local, distant in pairs:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = distant) -> None:
                try:
                    await remote.forward(connection, pod, port, reader, writer)
                except SkerryError as error:
                    output.print_error(error)
                finally:
                    writer.close()

            try:
                server = await asyncio.start_server(serve, "127.0.0.1", local)
            except OSError as error:
                raise InvalidError(error.strerror or str(error), element=f"port {local} of this machine") from None
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            output.say(f"Forwarding from 127.0.0.1:{server.sockets[0].getsockname()[1]} -> {distant}")
        sys.stdout.flush()
        await asyncio.Event().wait()
