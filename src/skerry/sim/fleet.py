"""A whole simulated fleet: enrolled, connected, counted.

Lives here: putting the parts together, and the census. Must not live here: what one device does (`device`).
"""

from __future__ import annotations

import asyncio
import collections
import resource
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from skerry.api.errors import InvalidError
from skerry.core import trust
from skerry.kit.clock import SystemClock
from skerry.sim.artifacts import Catalogue
from skerry.sim.device import SimulatedDevice, World
from skerry.sim.enrolment import Member, Office, enroll_all
from skerry.sim.link import SharedTls, SimulatedLink
from skerry.sim.profiles import Profile

CONNECTING = 32
"""Devices that connect at the same time; the hub has its own opinion on how many it lets in."""
MAX_DEVICES = 100_000


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """What to simulate, and where."""

    hub_url: str
    tokens: tuple[str, ...]
    """Join tokens; devices take them in turn."""
    devices: int
    profile: Profile
    directory: Path
    """Keys and certificates; a fleet that is started again here is the same fleet."""
    seed: int = 7
    prefix: str = "sim"
    """Of the devices' names."""
    spoiled: frozenset[str] = frozenset()
    """Model versions (names of ModelVersion objects) that answer wrongly on every device."""

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated. Raises InvalidError."""
        check_size(self.devices)
        if not self.tokens:
            raise InvalidError("a join token is needed", element="--token")


class Census(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fleet, counted."""

    devices: int
    enrolled: int
    powered: int
    online: int
    phases: dict[str, int]
    """Workloads in each phase."""
    running: dict[str, int]
    """Workloads that serve, by model version."""
    boots: int
    connections: int
    broken_connections: int
    reports: int
    accepted: int
    """Desired states."""
    refused: int
    """Desired states."""
    cpu_seconds: float
    """Of this process so far."""
    peak_memory_bytes: int
    """Of this process so far."""


class Fleet:
    """Thousands of devices: `enroll`, then `run`."""

    def __init__(self, settings: FleetSettings) -> None:
        self.settings = settings
        self.enrolled = 0
        self._devices: list[SimulatedDevice] = []

    async def enroll(self) -> list[Member]:
        """Enrol every device that is not enrolled yet. Raises what `enrolment.enroll_all` raises."""
        settings = self.settings
        names = [f"{settings.prefix}-{number:05}" for number in range(1, settings.devices + 1)]
        office = Office(
            hub_url=settings.hub_url,
            tokens=settings.tokens,
            directory=settings.directory,
            profile=settings.profile,
            seed=settings.seed,
        )

        def done() -> None:
            self.enrolled += 1

        return await enroll_all(office, names, done)

    async def run(self, members: list[Member]) -> None:
        """Let these devices live, for ever; cancel it to end them."""
        tls = SharedTls(members[0].ca)
        catalogue = Catalogue(members[0].endpoints.hub_url, members[0].ca, self.settings.directory)
        world = World(
            seed=self.settings.seed,
            profile=self.settings.profile,
            clock=SystemClock(),
            keys=verifying_keys(members[0].desired_keys),
            catalogue=catalogue,
            door=asyncio.Semaphore(CONNECTING),
            spoiled=self.settings.spoiled,
        )
        self._devices = [self._device(member, world, tls) for member in members]
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CONNECTING, thread_name_prefix="connect"))
        async with asyncio.TaskGroup() as tasks:
            for device in self._devices:
                tasks.create_task(device.run())

    def census(self) -> Census:
        """Count."""
        phases: collections.Counter[str] = collections.Counter()
        running: collections.Counter[str] = collections.Counter()
        for device in self._devices:
            for one in device.workloads.values():
                phases[one.phase] += 1
                if one.state.up and one.state.current is not None:
                    running[one.state.current.desired.model_version] += 1
        counts = [device.counts for device in self._devices]
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Census(
            devices=self.settings.devices,
            enrolled=self.enrolled,
            powered=sum(device.powered for device in self._devices),
            online=sum(device.online for device in self._devices),
            phases=dict(phases),
            running=dict(running),
            boots=sum(one.boots for one in counts),
            connections=sum(one.connections for one in counts),
            broken_connections=sum(device.link.breaks for device in self._devices),
            reports=sum(one.reports for one in counts),
            accepted=sum(one.accepted for one in counts),
            refused=sum(one.refused for one in counts),
            cpu_seconds=round(used.ru_utime + used.ru_stime, 2),
            peak_memory_bytes=used.ru_maxrss * 1024,
        )

    def _device(self, member: Member, world: World, tls: SharedTls) -> SimulatedDevice:
        link = SimulatedLink(
            member.uid,
            host=member.endpoints.mqtt_host,
            port=member.endpoints.mqtt_port,
            tls=tls.of(self.settings.directory / f"{member.asked}.pem"),
            profile=world.profile,
            seed=world.seed,
            name=member.asked,
        )
        return SimulatedDevice(member.uid, member.asked, world, link)


def verifying_keys(pems: Mapping[str, str]) -> dict[str, trust.VerifyingKey]:
    """Return the hub's signing keys by id. Raises InvalidError."""
    keys: dict[str, trust.VerifyingKey] = {}
    for keyid, pem in pems.items():
        try:
            key = serialization.load_pem_public_key(pem.encode())
        except ValueError as error:
            raise InvalidError(f"cannot be read: {error}", element=f"signing key {keyid[:64]}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidError("is not an Ed25519 key", element=f"signing key {keyid[:64]}")
        keys[keyid] = key
    return keys


def check_size(devices: int) -> None:
    """Refuse a fleet that is none, or too large for one process. Raises InvalidError."""
    if not 1 <= devices <= MAX_DEVICES:
        raise InvalidError(f"{devices} is not between 1 and {MAX_DEVICES}", element="--devices")


def allow_files(devices: int) -> None:
    """Raise this process's limit of open files so far that every device has a connection. Raises InvalidError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = devices + 256
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InvalidError(
            f"needs {needed} open files, and {hard} are allowed", element="--devices", hint="raise `ulimit -Hn`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
