"""The control socket between a server and the agent: both real ends, real sockets; endpoint, retirement, counters."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.agent.endpoint import ServerControl
from skerry.agent.listeners import Listeners, reserve
from skerry.api.errors import InvalidError, SkerryError, TimedOutError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.core import control
from skerry.core.journal import Endpoint
from skerry.serve import control as server_side
from skerry.serve.control import ControlSocket
from skerry.serve.dataplane import DataPlane, ModelSettings
from skerry.serve.http1 import Request, Response, Server
from skerry.serve.lifecycle import Lifecycle
from skerry.serve.limits import Limits
from skerry.serve.metrics import Metrics
from skerry.serve.shadow import Shadow
from skerry.serve.worker import Worker

WAIT_SECONDS = 10.0
QUICK = Limits(sweep_seconds=0.01)
ASK = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Running:
    directory: Path
    lifecycle: Lifecycle
    server: Server
    metrics: Metrics
    name: bytes

    @property
    def agent(self) -> ServerControl:
        return ServerControl(self.directory)


def plane() -> DataPlane:
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1])
    signature = ModelSignature(inputs=[tensor], outputs=[tensor])
    return DataPlane(
        ModelSettings(name="m", version="v1", file=Path("-"), signature=signature, engine="onnxruntime", threads=1)
    )


@contextlib.asynccontextmanager
async def serving(directory: Path, name: bytes = b"one", limits: Limits = QUICK) -> AsyncIterator[Running]:
    os.makedirs(directory, exist_ok=True)

    def answer(request: Request) -> Response:
        return Response(body=(name,))

    worker, metrics, shadow = Worker(max_queued=1), Metrics(model="m", version="v1"), Shadow("m")
    server = Server(answer, limits)
    lifecycle = Lifecycle(server, plane(), worker, metrics, shadow)
    with contextlib.chdir(directory):
        channel = ControlSocket(Path(control.SOCKET_FILE))
        task = asyncio.create_task(channel.run(lifecycle.answer))
        try:
            yield Running(directory, lifecycle, server, metrics, name)
        finally:
            task.cancel()
            await asyncio.wait({task})
            shadow.stop()
            await server.stop(0)
            worker.close()
            channel.close()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path / "one") as made:
        yield made


@pytest.fixture
def listener() -> socket.socket:
    made = reserve([])
    made.listen()
    return made


@contextlib.asynccontextmanager
async def client(listener: socket.socket) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answered(reader: asyncio.StreamReader) -> bytes:
    """Head and a body of three bytes."""
    async with asyncio.timeout(WAIT_SECONDS):
        return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(3)


async def test_the_endpoint_is_handed_over_lent_and_shared(
    one: Running, tmp_path: Path, listener: socket.socket
) -> None:
    assert await one.agent.lent() is None
    assert not (await one.agent.observe()).accepting
    async with client(listener) as (reader, writer), serving(tmp_path / "two", b"two") as two:
        writer.write(ASK)  # it waits in the queue: nobody accepts yet
        await one.agent.handover(listener)
        await one.agent.handover(listener)
        assert (await answered(reader)).endswith(b"one")
        assert (await one.agent.observe()).accepting
        lent = await one.agent.lent()
        assert lent is not None
        with lent:
            assert lent.getsockname() == listener.getsockname()
            assert not os.get_inheritable(lent.fileno())
            listener.close()  # the agent was killed
            await two.agent.handover(lent)
            await one.agent.retire()
            async with client(lent) as (other, asking):
                asking.write(ASK)
                assert (await answered(other)).endswith(b"two")
            writer.write(ASK)
            last = await answered(reader)
            assert (b"Connection: close" in last, last[-3:]) == (True, b"one")
        assert await asyncio.wait_for(one.lifecycle.until_retired(), WAIT_SECONDS)
        seen = await one.agent.observe()
        assert (seen.accepting, seen.retiring) == (False, True)
        with reserve([]) as another:
            another.listen()
            with pytest.raises(InvalidError, match="it is retiring"):
                await one.agent.handover(another)


async def test_another_endpoint_takes_the_place_of_the_first(one: Running, listener: socket.socket) -> None:
    await one.agent.handover(listener)
    with reserve([]) as second:
        second.listen()
        async with client(listener) as (reader, writer):
            writer.write(ASK)
            await answered(reader)
            await one.agent.handover(second)
            writer.write(ASK)
            assert b"Connection: close" not in await answered(reader), "connections stay"
        async with client(second) as (reader, writer):
            writer.write(ASK)
            assert (await answered(reader)).endswith(b"one")
    listener.close()


async def test_what_was_received_is_answered_before_a_retiring_server_closes(
    one: Running, listener: socket.socket
) -> None:
    await one.agent.handover(listener)
    listener.close()
    async with client(listener_address(one)) as (reader, writer):
        writer.write(ASK[:-4])
        await until_connected(one, 1)
        await one.agent.retire()
        writer.write(ASK[-4:] + ASK[:5])
        first = await answered(reader)
        assert b"Connection: close" not in first, "the next one has begun"
        writer.write(ASK[5:])
        assert b"Connection: close" in await answered(reader)
        assert await reader.read() == b""
    assert await asyncio.wait_for(one.lifecycle.until_retired(), WAIT_SECONDS)


async def test_an_idle_connection_is_closed_in_time_and_a_stuck_one_given_up(
    one: Running, listener: socket.socket
) -> None:
    await one.agent.handover(listener)
    async with client(listener) as (idle, _), client(listener) as (reader, writer):
        writer.write(ASK[:-4])  # never ends
        await until_connected(one, 2)
        await one.lifecycle.answer(control.Retire(idle_seconds=0.05, seconds=0.3), None)
        await one.lifecycle.answer(control.Retire(idle_seconds=600, seconds=600), None)  # said once is said
        assert await asyncio.wait_for(idle.read(), WAIT_SECONDS) == b""
        assert not await asyncio.wait_for(one.lifecycle.until_retired(), WAIT_SECONDS)
        assert not reader.at_eof()
    listener.close()


def listener_address(running: Running) -> socket.socket:
    endpoint = running.lifecycle._endpoint
    assert endpoint is not None
    return endpoint


async def until_connected(running: Running, count: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while len(running.server.connections) < count:  # noqa: ASYNC110 - nobody announces a connection
            await asyncio.sleep(0.001)


async def test_counters_tell_whose_fault_it_was(one: Running) -> None:
    for outcome, times in (("ok", 5), ("failed", 2), ("unavailable", 1), ("bad_request", 4), ("cancelled", 9)):
        for _ in range(times):
            one.metrics.finished(outcome, 0.001)  # type: ignore[arg-type]
    seen = await one.agent.observe()
    assert (seen.requests, seen.errors, seen.refused, seen.ready, seen.shadow) == (8, 3, 4, False, None)
    again = await one.agent.observe()
    assert seen.boot == again.boot != ""


async def test_mistakes_are_refused_with_a_sentence(one: Running) -> None:
    with pytest.raises(InvalidError, match="brings no listening socket"):
        await one.agent._done(control.Accept())
    with socket.socket() as unbound, pytest.raises(InvalidError, match="no listening socket"):
        await one.agent.handover(unbound)
    for port, share in ((0, 0.5), (70000, 0.5), (8080, 1.5), (8080, -0.1), (8080, float("nan"))):
        with pytest.raises(InvalidError):
            await one.agent.shadow(port, share)
    with pytest.raises(InvalidError):
        await one.agent._done(control.Retire(seconds=1e9))
    await one.agent.stop_shadow()


@pytest.mark.parametrize("packet", [b"{}", b"\xff\xfe", b'{"type":"reboot"}', b"[" * 10_000, b"x" * 16_384])
async def test_garbage_is_refused_and_the_next_is_answered(one: Running, packet: bytes) -> None:
    with _raw(one.directory) as channel:
        channel.send(packet)
        reply = await asyncio.to_thread(channel.recv, 65536)
    assert isinstance(control.decode_reply(reply), control.Refused)
    assert (await one.agent.observe()).requests == 0


async def test_a_caller_that_says_nothing_holds_nobody_up_for_long(
    one: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_side, "EXCHANGE_SECONDS", 0.05)
    with _raw(one.directory), _raw(one.directory):
        assert (await one.agent.observe()).requests == 0


def _raw(directory: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = os.open(directory, os.O_PATH)
    try:
        channel.connect(f"/proc/self/fd/{place}/{control.SOCKET_FILE}")
    finally:
        os.close(place)
    channel.settimeout(WAIT_SECONDS)
    return channel


async def test_no_descriptor_is_left_behind(one: Running, listener: socket.socket) -> None:
    async def exchanges() -> int:
        for _ in range(5):
            await one.agent.handover(listener)
            lent = await one.agent.lent()
            assert lent is not None
            lent.close()
            with contextlib.suppress(SkerryError):
                await one.agent._done(control.StopMirror(), listener)
        return len(os.listdir("/proc/self/fd"))

    assert await exchanges() == await exchanges()
    listener.close()


async def test_something_else_than_a_socket_is_no_endpoint(one: Running) -> None:
    with _raw(one.directory) as channel, (one.directory / "file").open("wb") as file:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(channel, [control.encode(control.Accept())], [file.fileno(), file.fileno()])
        reply = control.decode_reply(await asyncio.to_thread(channel.recv, 65536))
        assert isinstance(reply, control.Refused)
        assert len(os.listdir("/proc/self/fd")) <= before + 1, "at most the server's end of this connection"


async def test_a_server_that_is_not_there_or_silent(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        await ServerControl(tmp_path / "nothing").observe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        with contextlib.chdir(tmp_path):
            silent.bind(control.SOCKET_FILE)
        with pytest.raises(UnavailableError, match="nothing listens there"):
            await ServerControl(tmp_path).observe()
        silent.listen()
        with pytest.raises(TimedOutError, match=r"no answer within 0\.05 s"):
            await ServerControl(tmp_path, timeout_seconds=0.05).observe()


async def test_the_socket_is_its_owners_alone_and_replaces_a_dead_ones(one: Running, tmp_path: Path) -> None:
    found = (one.directory / control.SOCKET_FILE).stat()
    assert found.st_mode & 0o777 == 0o600
    stale = tmp_path / control.SOCKET_FILE
    for _ in range(2):
        with contextlib.chdir(tmp_path):
            channel = ControlSocket(Path(control.SOCKET_FILE))
            channel._listener.close()  # killed: the file stays
        assert stale.is_socket()
    with pytest.raises(UnavailableError, match="cannot be listened on"):
        ControlSocket(tmp_path / ("x" * 120))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
async def test_a_disk_that_takes_no_socket_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(listener: socket.socket, path: Path) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(server_side, "_bind_path", refuse)
        stale = tmp_path / "slot" / control.SOCKET_FILE
        stale.parent.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead, contextlib.chdir(stale.parent):
            dead.bind(control.SOCKET_FILE)
        async with serving(tmp_path / "slot") as made:
            assert not (await made.agent.observe()).accepting
            assert stale.exists()
    with pytest.raises(UnavailableError, match="nothing listens there"):
        await made.agent.observe()


async def test_another_users_socket_is_not_talked_to(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    found = os.stat(tmp_path)
    name = control.abstract_name(found.st_dev, found.st_ino)
    code = (
        "import os, socket, sys; os.setuid(12345); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        f"s.bind({name!r}); s.listen(); print(flush=True); sys.stdin.read()"
    )
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert stranger.stdout is not None
    await stranger.stdout.readline()
    try:
        with pytest.raises(UnavailableError, match="another user listens there"):
            await ServerControl(tmp_path).observe()
    finally:
        await stranger.communicate(b"")


async def test_another_user_is_not_answered(one: Running) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    os.chmod(one.directory / control.SOCKET_FILE, 0o666)  # as if a mistake had opened it
    code = (
        "import os, socket; place = os.open('.', os.O_PATH); os.setuid(12345);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        f"s.connect('/proc/self/fd/%d/{control.SOCKET_FILE}' % place);"
        f"s.send({control.encode(control.Observe())!r}); print(s.recv(9999).decode())"
    )
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=one.directory, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asyncio.wait_for(stranger.communicate(), WAIT_SECONDS)
    reply = control.decode_reply(said)
    assert isinstance(reply, control.Refused)
    assert "only the server's own user may ask" in reply.error


async def test_a_deep_state_directory_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with serving(deep / "slot") as made:
        assert not (await made.agent.observe()).accepting


# --- the agent's side of the listening sockets --------------------------------------------------------------------


async def test_a_listener_is_taken_back_else_bound_anew_at_its_port(one: Running) -> None:
    first = Listeners()
    made = await first.obtain("w", Endpoint(), [])
    port = made.getsockname()[1]
    assert await first.obtain("w", Endpoint(port=port), []) is made
    await one.agent.handover(made)
    first.release_others([])
    with pytest.raises(UnavailableError, match=f"port {port} is taken"):
        await Listeners().obtain("w", Endpoint(port=port, strict=True), [])
    second = Listeners()
    back = await second.obtain("w", Endpoint(port=port, strict=True), [one.agent])
    assert back.getsockname()[1] == port
    second.release("w")
    elsewhere = Listeners()
    moved = await elsewhere.obtain("w", Endpoint(port=port), [])
    assert moved.getsockname()[1] != port, "not asked for by number: another will do"
    elsewhere.release_others([])
    await one.server.stop(0)
    third = Listeners()
    again = await third.obtain("w", Endpoint(port=port, strict=True), [])
    assert again.getsockname()[1] == port
    third.release_others([])


async def test_refused_callers_learn_it_at_once_and_the_port_stays() -> None:
    listeners = Listeners()
    made = await listeners.obtain("w", Endpoint(), [])
    port = made.getsockname()[1]
    async with client(made) as (reader, _):
        listeners.refuse("w")
        listeners.refuse("w")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), WAIT_SECONDS)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind(("127.0.0.1", port))
    assert await listeners.obtain("w", Endpoint(port=port, strict=True), []) is made
    async with client(made):
        listeners.release("w", keep=port)
        assert listeners.holds("w")
    listeners.release("w")
    assert not listeners.holds("w")


async def test_a_release_while_a_listener_is_taken_back_does_not_lose_it(one: Running, listener: socket.socket) -> None:
    await one.agent.handover(listener)
    port = listener.getsockname()[1]
    listeners = Listeners()
    taking = asyncio.create_task(listeners.obtain("w", Endpoint(port=port), [one.agent]))
    await asyncio.sleep(0)
    listeners.release("w", keep=port)
    assert (await taking).getsockname()[1] == port
    listeners.release_others([])
    listener.close()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoders(packet: bytes) -> None:
    for decode in (control.decode_question, control.decode_reply):
        with contextlib.suppress(InvalidError):
            decode(packet)


QUESTIONS: list[control.Question] = [
    control.Accept(),
    control.Lend(),
    control.Retire(idle_seconds=1),
    control.Mirror(port=1, share=1.0),
    control.StopMirror(),
    control.Observe(),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda one: type(one).__name__)
def test_questions_travel_whole(question: control.Question) -> None:
    assert control.decode_question(control.encode(question)) == question
