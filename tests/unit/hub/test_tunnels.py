"""Who may bring a tunnel's other end, and what clients are told of its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skerry.api.errors import ExpiredError, ForbiddenError, UnavailableError
from skerry.api.kinds.device import Device
from skerry.api.meta import ObjectMeta
from skerry.core import channels
from skerry.core.access import Identity
from skerry.core.messages import CommandResult, RemoteSession
from skerry.hub import tunnels as module
from skerry.hub.tunnels import Splice, Tunnels
from skerry.hub.upgrade import Gone

DEVICE = Device(metadata=ObjectMeta(name="till", namespace="shop", uid="u1"))
SESSION = RemoteSession(tunnel="", purpose="exec")
WAIT_SECONDS = 20.0


class Gateway:
    """Carries the question; `answer` is what the device says, if anything."""

    def __init__(self, answer: CommandResult | Exception | None = None) -> None:
        self.answer = answer
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def command(self, uid: str, verb: str, workload: str, *, remote: RemoteSession, **_: Any) -> CommandResult:
        self.asked.put_nowait(remote.tunnel)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        assert self.answer is not None
        return self.answer


def device(uid: str = "u1", role: Any = "device") -> Identity:
    return Identity(role=role, name=uid)


class End:
    """One end of a splice."""

    def __init__(self, *messages: bytes, code: int = 1000) -> None:
        self.messages, self.sent, self.code, self.reason = list(messages), list[bytes](), code, ""
        self.closed: tuple[int, str] | None = None
        self.quiet = asyncio.Event()
        self.stays = False
        self.left = asyncio.Event()

    async def receive(self) -> bytes | None:
        if self.messages:
            return self.messages.pop(0)
        if self.stays:
            await self.quiet.wait()
        return None

    async def send(self, data: bytes) -> None:
        if self.closed is not None:
            raise Gone
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str = "", **_: Any) -> None:
        self.closed = (code, reason)

    async def gone(self) -> None:
        await self.left.wait()


async def test_a_tunnel_is_for_one_connection_of_the_device_that_was_asked() -> None:
    tunnels, gateway = Tunnels(), Gateway()

    async def use() -> str:
        async with tunnels.open(gateway, DEVICE, "digits", SESSION) as tunnel:  # type: ignore[arg-type]
            starting = asyncio.create_task(tunnel.start())
            await asyncio.sleep(0)
            tunnel.ready.set_result("the connection")  # type: ignore[arg-type]
            return str(await starting)

    using = asyncio.create_task(use())
    async with asyncio.timeout(WAIT_SECONDS):
        known = await gateway.asked.get()
        assert len(known) >= 32
        for who, which in (
            (device("u2"), known),
            (device("u1", "user"), known),
            (device("u1", "admin"), known),
            (device(), "guessed"),
            (device(), ""),
        ):
            with pytest.raises(ExpiredError):
                await tunnels.arrive(who, which)
        arriving = asyncio.create_task(tunnels.arrive(device(), known))
        await asyncio.sleep(0)
        with pytest.raises(ExpiredError):
            await tunnels.arrive(device(), known)
        assert await using == "the connection"
        assert (await arriving).id == known
        with pytest.raises(ExpiredError):
            await tunnels.arrive(device(), known)


async def test_one_that_nobody_wants_any_more_is_refused() -> None:
    tunnels, gateway = Tunnels(), Gateway()

    async def use() -> None:
        async with tunnels.open(gateway, DEVICE, "digits", SESSION):  # type: ignore[arg-type]
            raise RuntimeError("the client has left")

    using = asyncio.create_task(use())
    async with asyncio.timeout(WAIT_SECONDS):
        arriving = asyncio.create_task(tunnels.arrive(device(), await gateway.asked.get()))
        with pytest.raises(RuntimeError):
            await using
        with pytest.raises(ExpiredError):
            await arriving


async def test_what_the_device_has_against_it_is_what_clients_hear() -> None:
    tunnels = Tunnels()
    with pytest.raises(ForbiddenError, match="switched off"):
        async with tunnels.open(Gateway(ForbiddenError("switched off")), DEVICE, "digits", SESSION):  # type: ignore[arg-type]
            raise AssertionError("it is not open")
    for _ in range(2 * module.MAX_OF_DEVICE):  # none of them is left
        with pytest.raises(ForbiddenError):
            async with tunnels.open(Gateway(ForbiddenError("no")), DEVICE, "digits", SESSION):  # type: ignore[arg-type]
                pass


async def test_a_device_has_no_more_than_its_share() -> None:
    tunnels, gateway = Tunnels(), Gateway()

    async def use() -> None:
        async with tunnels.open(gateway, DEVICE, "digits", SESSION):  # type: ignore[arg-type]
            pass

    using = [asyncio.create_task(use()) for _ in range(module.MAX_OF_DEVICE)]
    async with asyncio.timeout(WAIT_SECONDS):
        for _ in using:
            await gateway.asked.get()
    with pytest.raises(UnavailableError, match="too many conversations"):
        await use()
    for task in using:
        task.cancel()
    await asyncio.gather(*using, return_exceptions=True)


def splice(client: End, far: End, *, known: bool = True, status: bool = True) -> Splice:
    return Splice(client=client, device=far, known=lambda: known, status_channel=status)  # type: ignore[arg-type]


async def test_messages_pass_as_they_are_and_a_good_end_is_one() -> None:
    client, far = End(b"\0in"), End(b"\1out", channels.ended(3))
    client.stays = True
    one = splice(client, far)
    await one.run()
    assert client.sent == [b"\1out", channels.ended(3)]
    assert far.sent in ([b"\0in"], [])
    assert client.closed == (1000, "ended")
    assert one.received == len(b"\1out") + len(channels.ended(3))


async def test_a_device_that_is_lost_is_no_success() -> None:
    client, far = End(), End(b"\1out", code=1006)
    client.stays = True
    await splice(client, far).run()
    assert client.closed is not None
    assert client.closed[0] == module.FAILED
    with pytest.raises(UnavailableError, match="the connection to the device broke"):
        channels.exit_code(client.sent[-1][1:])
    client, far = End(), End(code=1006)
    client.stays = True
    await splice(client, far, status=False).run()
    assert client.sent == [], "ports have no status"
    assert client.closed == (module.FAILED, "the connection to the device broke")


async def test_an_end_without_a_status_is_no_success_either() -> None:
    client, far = End(), End(b"\1out")
    client.stays = True
    await splice(client, far).run()
    with pytest.raises(UnavailableError):
        channels.exit_code(client.sent[-1][1:])


async def test_the_device_hears_that_the_client_has_left() -> None:
    client, far = End(b"\0bye"), End()
    far.stays = True
    one = splice(client, far)
    await one.run()
    assert (far.sent, far.closed) == ([b"\0bye"], (module.GOING, "the client has left"))


async def test_silence_and_deletion_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    for known, why in ((False, "the device was deleted"), (True, "nothing was said for too long")):
        client, far = End(), End()
        client.stays = far.stays = True
        one = splice(client, far, known=known)
        one.idle_seconds = 0.02
        async with asyncio.timeout(WAIT_SECONDS):
            await one.run()
        assert one.why == why
        assert far.closed == (module.GOING, why)


async def test_a_device_s_last_words_do_nothing_to_a_terminal() -> None:
    client, far = End(), End(code=1011)
    far.reason = "\x1b[2Jall is well\n"
    client.stays = True
    await splice(client, far).run()
    assert client.closed == (module.FAILED, "?[2Jall is well")
