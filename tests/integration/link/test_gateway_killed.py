"""A hub that is killed at any point and started again: the device gets the newest desired state."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from skerry.api.errors import UnavailableError
from skerry.core import access, messages, trust
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings

SECONDS = 30.0
PROGRAM = Path(__file__).with_name("hub_process.py")
FOREVER = 1_000_000


async def start(directory: Path, port: int, assignments: int) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(directory), str(port), str(assignments), stdout=asyncio.subprocess.PIPE
    )
    return process, await number(process, "port")


async def number(process: asyncio.subprocess.Process, word: str) -> int:
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), SECONDS)).decode().split()
    assert line[0] == word, line
    return int(line[1])


async def kill(process: asyncio.subprocess.Process) -> list[int]:
    """Kill it and return the versions it still told."""
    process.kill()
    out, _ = await process.communicate()
    return [int(line.split()[1]) for line in out.decode().splitlines() if line.startswith("assigned ")]


async def test_a_killed_hub_loses_no_desired_state(authority: Any) -> None:
    directory = authority.directory
    authority.issue("server", ["localhost"], [])
    authority.issue("hub", ["hub"], [access.HUBS])
    key = ed25519.Ed25519PrivateKey.generate()
    (directory / "desired.key").write_bytes(key.private_bytes_raw())
    tls, versions, arrived = authority.device("dev-a"), [0], asyncio.Event()
    newest, port = 0, 0

    async def device() -> None:
        while True:
            with contextlib.suppress(UnavailableError):
                link = MqttDeviceLink("dev-a", MqttSettings(host="localhost", port=port, tls=tls))
                async with link.connect(boot_id="b") as connection:
                    async for _, raw in connection.incoming():
                        state = trust.open_envelope(
                            raw, messages.DesiredState, uid="dev-a", keys={"key": key.public_key()}
                        )
                        versions.append(state.manifest_version)
                        arrived.set()
            await asyncio.sleep(0.02)

    async def until(version: int) -> None:
        while versions[-1] < version:
            arrived.clear()
            await arrived.wait()

    process, port = await start(directory, 0, FOREVER)
    running = asyncio.ensure_future(device())
    try:
        for survived in (1, 7, 20):
            for _ in range(survived):
                newest = await number(process, "assigned")
            async with asyncio.timeout(SECONDS):
                await until(newest - survived + 1)
            newest = max([newest, *await kill(process)])
            process, port = await start(directory, port, FOREVER if survived != 20 else 0)
        async with asyncio.timeout(SECONDS):
            await until(newest)
        assert versions == sorted(versions)
        assert versions[-1] - newest in (0, 1)  # one may have been stored, and the hub killed before it said so
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await kill(process)
