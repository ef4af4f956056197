"""Chance, seeded: the same seed and the same device's name give the same machine and faults.

A device is, and measures (`measurements`), what its name says and nothing else. When something happens to it depends on
the order of events too, so two runs with one seed are alike, not equal. Pure. Must not live here: how often things go
wrong (`profiles`).
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import skerry
from skerry.api.kinds.device import DeviceFacts
from skerry.sim.profiles import Machine, Profile, Span

RETRANSMISSION_SECONDS = 0.2
"""TCP's shortest timeout on Linux; each further one is twice as long (RFC 6298)."""
MAX_RETRANSMISSIONS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a device is, for good."""

    machine: Machine
    bandwidth: float
    """Bytes a second."""
    crash_looping: bool
    inaccurate: bool
    slow: bool


def dice(seed: int, *what: str) -> random.Random:
    """Return a source of chance for one purpose."""
    return random.Random("/".join((str(seed), *what)))  # noqa: S311 - a simulation, not a secret


def traits(profile: Profile, seed: int, name: str) -> Traits:
    """Return what the device of that name is."""
    chance = dice(seed, name, "traits")
    machine = chance.choices(profile.machines, weights=[one.share for one in profile.machines])[0]
    return Traits(
        machine=machine,
        bandwidth=between(chance, profile.bandwidth),
        crash_looping=chance.random() < profile.crash_looping,
        inaccurate=chance.random() < profile.inaccurate,
        slow=chance.random() < profile.slow,
    )


def facts(machine: Machine, name: str, *, boot_id: str) -> DeviceFacts:
    """Return what the device tells of itself."""
    return DeviceFacts(
        hostname=name,
        agent_version=skerry.__version__,
        boot_id=boot_id,
        hardware=machine.hardware,
        os=machine.os,
        engines=list(machine.engines),
        runtimes=["process"],
        network=machine.network,
    )


def spoiled(known: Traits) -> Traits:
    """Return the same device with a model that answers wrongly."""
    return dataclasses.replace(known, inaccurate=True)


def between(chance: random.Random, span: Span) -> float:
    """Draw from a range."""
    return chance.uniform(span.low, span.high)


def wait_for(chance: random.Random, mean: float) -> float | None:
    """Draw when something that happens every `mean` seconds happens next; None when it never does."""
    return chance.expovariate(1.0 / mean) if mean > 0 else None


def delay(chance: random.Random, profile: Profile) -> float | None:
    """Draw how long a message is under way; None when so many packets are lost that the connection ends."""
    seconds, timeout = between(chance, profile.latency), RETRANSMISSION_SECONDS
    for _ in range(MAX_RETRANSMISSIONS + 1):
        if chance.random() >= profile.loss:
            return seconds
        seconds, timeout = seconds + timeout, timeout * 2
    return None
