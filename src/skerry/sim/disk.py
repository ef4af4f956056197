"""A simulated device's disk: what was written survives a power cut, what was not is gone, and writing takes its time.

Must not live here: what is written.
"""

from __future__ import annotations

import asyncio
import random

import msgspec

from skerry.api.kinds.device import BenchmarkStatus
from skerry.core.journal import State
from skerry.sim import draws
from skerry.sim.profiles import Profile


class SimulatedDisk:
    """Journals, the accepted desired state, and the digests that are in the cache; kept as the bytes they would be."""

    def __init__(self, profile: Profile, chance: random.Random) -> None:
        self._profile = profile
        self._chance = chance
        self._journals: dict[str, bytes] = {}
        self._desired: tuple[int, bytes] | None = None
        self.cached: set[str] = set()
        self.benchmarks: dict[str, BenchmarkStatus] = {}

    async def write_journal(self, state: State) -> None:
        """Keep a workload's state."""
        raw = msgspec.json.encode(state)
        await self._spin()
        self._journals[state.name] = raw

    async def delete_workload(self, name: str) -> None:
        """Forget a workload."""
        await self._spin()
        self._journals.pop(name, None)

    def read_journals(self) -> list[State]:
        """Return every workload there is."""
        return [msgspec.json.decode(raw, type=State) for raw in self._journals.values()]

    async def write_desired(self, manifest_version: int, envelope: bytes) -> None:
        """Keep the desired state that was accepted."""
        await self._spin()
        self._desired = (manifest_version, envelope)

    def read_desired(self) -> tuple[int, bytes] | None:
        """Return the version and envelope of the desired state accepted last."""
        return self._desired

    def prune(self, keep: set[str]) -> None:
        """Drop what no workload names from the cache."""
        self.cached &= keep

    async def _spin(self) -> None:
        seconds = draws.between(self._chance, self._profile.disk_write)
        if seconds > 0:
            await asyncio.sleep(seconds)
