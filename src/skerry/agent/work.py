"""The long work of one workload: fetching, laying files, servers, probes, shadow mode; each tells what came of it.

Every piece of work is cancelled when nobody wants its result any more, and raises SkerryError where it fails.
Lives here: carrying one action of `core.journal` out. Must not live here: the order of things (`installer`), what an
error means (`faults`), decisions (`core.workload`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from skerry.agent import compare, inference, observe, probes
from skerry.agent.admission import RefusedError
from skerry.agent.disk import Disk, Freed
from skerry.agent.faults import element_of, fault_of
from skerry.agent.fetch import Ways
from skerry.agent.peers import Peers
from skerry.agent.policy import POLL_SECONDS, Policy, Wait
from skerry.agent.revealing import revealed, unlocked
from skerry.agent.room import Promise, Room
from skerry.agent.sealed import ENCRYPTED, SealedBlobs
from skerry.agent.servers import Server, Servers
from skerry.agent.trust import MAX_BUNDLE_BYTES, Trust
from skerry.api.errors import InvalidError, SkerryError, TimedOutError, UnavailableError, UnsupportedError
from skerry.api.kinds.device import Comparison
from skerry.api.kinds.variants import Blob
from skerry.core import slots
from skerry.core.card import MAX_CARD_BYTES
from skerry.core.journal import (
    Endpoint,
    Exited,
    Fetch,
    Fetched,
    Laid,
    Launched,
    Observed,
    Probe,
    Probed,
    Ready,
    Serve,
    ShadowBeside,
    Shadowed,
    Slot,
    SlotEvent,
    State,
    Switch,
    Switched,
    Vouched,
    Waits,
)
from skerry.core.messages import ShadowDesired, WorkloadDesired
from skerry.core.ports import ArtifactSource, Clock
from skerry.kit.loopback import LoopbackClient

log = logging.getLogger(__name__)

VOUCH_CEILING_SECONDS = 300.0
REFUSE_SECONDS = 5.0
"""Callers wait in the endpoint's queue while a server is started again; when that may take longer, they are refused."""

Say = Callable[[SlotEvent], None]
"""Takes what came of the work."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all workloads of one agent share."""

    disk: Disk
    source: ArtifactSource
    servers: Servers
    clock: Clock
    boot: str
    """The kernel's boot id."""
    engines: Callable[[], Iterable[str]]
    """Names of the engines of this device."""
    fetching: asyncio.Semaphore
    """How many artifacts may be on their way at a time."""
    blob_locks: WeakValueDictionary[str, asyncio.Lock]
    """One for each digest being fetched: two workloads may want the same blob."""
    prune: Callable[[], Coroutine[Any, Any, Freed]]
    """Remove what no workload names, and return what that was."""
    free: Callable[[], Coroutine[Any, Any, Freed]]
    """The same when there is no room: also what can be done without."""
    room: Room
    probe_samples: int
    probe_seconds: float
    probe_timeout_seconds: float
    changed: Callable[[], None]
    """Something that is reported has changed."""
    policy: Policy
    """What has to wait for now."""
    peers: Peers
    """Neighbours, who are asked first."""
    admit: Callable[[WorkloadDesired], None] = lambda _: None
    """Raises RefusedError for what this device does not take."""
    trust: Trust | None = None
    """None: this device asks for no signatures."""


class Work:
    """What can be done for one workload; `state` is the newest that is known of it."""

    def __init__(self, tools: Tools, state: Callable[[], State]) -> None:
        self._tools = tools
        self._state = state
        self._ways = Ways(tools.disk, tools.clock)
        self.servers: dict[int, Server] = {}
        """The servers that were launched or adopted, by their slot's serial."""

    async def _cleared(
        self,
        slot: Slot,
        say: Say,
        verdict: Callable[[], Wait | None],
        *,
        unless: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Wait until a policy lets the slot's work go on, or it need not; say so as long as it does not."""
        while (wait := verdict()) is not None and not (unless is not None and await unless()):
            known = self._state()
            if (known.waiting_for, known.message) != (wait.reason, wait.message):
                say(Waits(serial=slot.serial, waiting_for=wait.reason, message=wait.message))
            await self._tools.policy.until_changed()
        if self._state().waiting_for:
            say(Waits(serial=slot.serial, waiting_for=""))

    def _newest(self, slot: Slot) -> WorkloadDesired:
        """What is desired of the slot now: how it may be fetched can change while it waits."""
        candidate = self._state().candidate
        return candidate.desired if candidate is not None and candidate.serial == slot.serial else slot.desired

    def _may_switch(self, slot: Slot) -> Wait | None:
        return self._tools.policy.may_switch(self._newest(slot))

    def _may_fetch(self, slot: Slot) -> Wait | None:
        return self._tools.policy.may_fetch(self._newest(slot), self._missing(slot))

    def _missing(self, slot: Slot) -> int:
        """Bytes that have still to come over the network."""
        return self._ways.missing(self._newest(slot))

    async def fetch(self, action: Fetch, say: Say) -> None:
        """Bring the blobs into the cache, when policies let it and there is room: `Fetched` or `Faulted`."""
        slot, desired, tools = action.slot, action.slot.desired, self._tools
        await _pause(action.delay_ceiling)
        tools.admit(desired)
        if desired.needs.engine not in set(tools.engines()):
            raise UnsupportedError(
                f"the engine {desired.needs.engine} is not on this device",
                element=element_of(slot),
                hint="install it, or deploy a variant for another engine",
            )
        await self._cleared(slot, say, lambda: tools.policy.may_begin_to_fetch(self._newest(slot)))
        came, from_peers, promise, verified_at = 0, 0, Promise(0), None

        def progress(count: int) -> None:
            nonlocal came
            came += count
            promise.came(count)

        def near(count: int) -> None:
            nonlocal from_peers
            from_peers += count
            promise.came(count)

        try:
            if desired.protection == ENCRYPTED:
                await asyncio.to_thread(tools.disk.vault.check)
            await self._link_cleared(slot, say)
            needed, freed = await asyncio.to_thread(tools.room.needed, desired), None
            if not tools.room.fits(needed):
                freed = await tools.free()
            with tools.room.kept(needed, element_of(slot), freed=freed) as promise:
                for blob in (*self._signatures(desired), desired.blob, desired.golden):
                    if blob is desired.blob:
                        verified_at = await self._check_trust(desired)
                    if blob is not None:
                        await self._fetch_blob(slot, say, blob, progress, near)
        except SkerryError as error:
            say(replace(fault_of(slot, "the registry", error), network_bytes=came, peer_bytes=from_peers))
            return
        saved = self._ways.take_saved(desired.blob)
        say(
            Fetched(
                serial=slot.serial,
                network_bytes=came,
                saved_bytes=saved,
                peer_bytes=from_peers,
                verified_at=verified_at,
            )
        )

    async def _fetch_blob(
        self, slot: Slot, say: Say, blob: Blob, progress: Callable[[int], None], near: Callable[[int], None]
    ) -> None:
        """Fetch from a neighbour, or when it is allowed and this device's turn; who waits for the link keeps no others.

        `progress` gets counts of bytes that came over the line to the hub, `near` of those from neighbours.
        """
        tools, cache, done = self._tools, self._cache(slot.desired, blob), False
        lock = tools.blob_locks.setdefault(blob.digest, asyncio.Lock())
        while not done:
            await self._link_cleared(slot, say)
            async with lock:
                if await asyncio.to_thread(cache.has_blob, blob) or await asyncio.to_thread(cache.adopt, blob):
                    return
                with tools.peers.seeking(slot.desired, blob) as seeking:

                    def noted(count: int, note: Callable[[int], None] = seeking.note) -> None:
                        note(count)
                        progress(count)

                    allowed = partial(self._is_allowed, slot)
                    if cache is tools.disk and await seeking.brought(cache.blob(blob), near, allowed):
                        return
                    async with tools.fetching:
                        if allowed():
                            done = await self._ways.bring(self._newest(slot), blob, partial(self._bring, slot, noted))

    def _cache(self, desired: WorkloadDesired, blob: Blob) -> Disk | SealedBlobs:
        """What keeps a blob: signatures and the card are no secret, and read where there is no key."""
        disk = self._tools.disk
        return disk if blob == desired.card or blob in desired.signatures else disk.cache(desired)

    def _is_allowed(self, slot: Slot) -> bool:
        return self._may_fetch(slot) is None

    async def _link_cleared(self, slot: Slot, say: Say) -> None:
        """Wait until the link may carry what is missing and no neighbour has."""
        await self._cleared(slot, say, lambda: self._may_fetch(slot), unless=partial(self._is_near, slot))

    async def _is_near(self, slot: Slot) -> bool:
        """Whether neighbours have so much of it that the link may carry the rest."""
        tools, desired = self._tools, self._newest(slot)
        if desired.protection == ENCRYPTED:  # it comes from the hub alone, and is given to nobody
            return False
        blobs = [blob for blob in (desired.blob, desired.golden) if blob is not None]
        found = await tools.peers.offered(desired, [one for one in blobs if tools.disk.missing_bytes([one])])
        left = self._ways.missing(desired, elsewhere=found)
        return bool(found) and tools.policy.may_fetch(desired, left) is None

    async def _bring(self, slot: Slot, progress: Callable[[int], None], blob: Blob) -> bool:
        """Fetch into the cache; False when it must wait for the link."""
        tools, cache = self._tools, self._cache(slot.desired, blob)
        fetching = asyncio.ensure_future(
            tools.source.fetch(slot.desired.repository, blob, cache.blob(blob), progress=progress, part=cache.part)
        )
        try:
            return await self._ends_while_allowed(fetching, slot)
        finally:
            if not fetching.done():
                fetching.cancel()
                await asyncio.wait({fetching})

    async def _ends_while_allowed(self, fetching: asyncio.Future[None], slot: Slot) -> bool:
        """Return whether a fetch has ended; False as soon as the link must not be used for it any more."""
        while True:
            ended, _ = await asyncio.wait({fetching}, timeout=POLL_SECONDS)
            if ended:
                fetching.result()
                return True
            if self._may_fetch(slot) is not None:
                log.info("workload.fetch_broken_off workload=%s", slot.desired.name)
                return False

    def _signatures(self, desired: WorkloadDesired) -> list[Blob]:
        """What is fetched before all else, on a device that asks for it."""
        trust = self._tools.trust
        if trust is None or not trust.asks:
            return []
        return [*desired.signatures, *([] if desired.card is None else [desired.card])]

    async def _check_trust(self, desired: WorkloadDesired) -> datetime | None:
        trust = self._tools.trust
        return None if trust is None else await asyncio.to_thread(trust.check, desired)

    async def vouch(self, slot: Slot, say: Say) -> None:
        """Bring what a slot that serves was signed with since: `Vouched`, once it is here and good enough.

        Nothing that goes wrong with it is a fault of the slot's, which is judged by its earlier signatures until then.
        """
        attempts, name = 0, slot.desired.name
        while True:
            try:
                verified_at = await self._vouch(slot, say)
            except RefusedError as error:
                log.warning("workload.later_signatures_refused workload=%s error=%s", name, error)
                return  # until the policy changes
            except SkerryError as error:
                log.warning("workload.later_signatures_away workload=%s error=%s", name, error)
            except Exception:
                log.exception("workload.later_signatures_broke workload=%s", name)
                return
            else:
                say(Vouched(serial=slot.serial, desired=slot.desired, verified_at=verified_at))
                return
            attempts += 1
            await _pause(slots.backoff(1.0, attempts, VOUCH_CEILING_SECONDS))

    async def _vouch(self, slot: Slot, say: Say) -> datetime | None:
        trust, room = self._tools.trust, self._tools.room
        if trust is None or not trust.asks:
            return None
        blobs = self._signatures(slot.desired)
        large = [blob for blob in slot.desired.signatures if blob.size > MAX_BUNDLE_BYTES]
        large += [blob for blob in blobs if blob.size > MAX_CARD_BYTES]
        if large:
            raise RefusedError("Trust", f"{large[0].digest} has {large[0].size} bytes", element=element_of(slot))
        missing = await asyncio.to_thread(self._tools.disk.missing_bytes, blobs)
        with room.kept(missing, element_of(slot)) as promise:
            for blob in blobs:
                await self._fetch_blob(slot, say, blob, promise.came, promise.came)
        return await asyncio.to_thread(trust.vouch, slot)

    async def install(self, slot: Slot, say: Say) -> None:
        """Lay the files: `Laid`."""
        await unlocked(self._tools.disk, slot)
        await asyncio.to_thread(self._tools.disk.lay_slot, slot)
        say(Laid(serial=slot.serial))

    async def serve(self, action: Serve, say: Say) -> None:
        """Have the server run until it ends: `Launched`, `Ready`, `Exited`."""
        slot, servers, endpoint = action.slot, self._tools.servers, 0
        if action.endpoint is not None and action.delay_ceiling > REFUSE_SECONDS:
            await servers.refuse(slot.desired.name)
        await _pause(action.delay_ceiling)
        if self._is_new(slot):
            await self._cleared(slot, say, lambda: self._may_switch(slot))
        async with servers.launched(action) as server:
            self.servers[slot.serial] = server
            say(Launched(serial=slot.serial, port=server.port, verified_at=server.verified_at))
            await servers.until_ready(server)
        if action.endpoint is not None:
            endpoint = await self._admit(server, slot, action.endpoint)
        ready = self._tools.clock.monotonic()
        say(Ready(serial=slot.serial, endpoint=endpoint))
        cause = await servers.wait(server)
        say(Exited(serial=slot.serial, cause=cause, uptime_seconds=self._tools.clock.monotonic() - ready))

    async def _admit(self, server: Server, slot: Slot, endpoint: Endpoint) -> int:
        servers = self._tools.servers
        try:
            return await servers.admit(slot.desired.name, server, endpoint)
        except (TimedOutError, InvalidError):
            await servers.discard(server)  # or it would be adopted, and fail, for ever
            raise

    def _is_new(self, slot: Slot) -> bool:
        """Whether it is being installed; what served before is brought back at any time."""
        candidate = self._state().candidate
        return candidate is not None and candidate.serial == slot.serial

    async def switch(self, action: Switch, say: Say) -> None:
        """Admit the server to the endpoint: `Switched`."""
        slot, server = action.slot, self.servers[action.slot.serial]
        await self._cleared(slot, say, lambda: self._may_switch(slot))
        try:
            endpoint = await self._tools.servers.admit(slot.desired.name, server, action.endpoint)
        except (UnavailableError, TimedOutError):
            if not await self._tools.servers.alive(server):
                return  # its end is the news, and the serving lane tells it with the reason
            raise
        say(Switched(serial=slot.serial, endpoint=endpoint))

    async def probe(self, action: Probe, say: Say) -> None:
        """Run the golden samples through the server: `Probed`."""
        if action.slot.desired.golden is None:
            say(Probed(serial=action.slot.serial, measurement=None))
            return
        async with revealed(self._tools.disk, action.slot, action.slot.desired.golden) as golden:
            await self._probe(action, golden, say)

    async def _probe(self, action: Probe, golden: Path, say: Say) -> None:
        slot, tools = action.slot, self._tools
        desired, server = slot.desired, self.servers[slot.serial]
        client = LoopbackClient(
            server.port, max_body_bytes=inference.MAX_ANSWER_BYTES, timeout_seconds=tools.probe_timeout_seconds
        )
        try:
            async with client:
                measured = await probes.run(
                    client,
                    golden,
                    model=desired.model,
                    signature=desired.signature,
                    max_samples=tools.probe_samples,
                    max_seconds=tools.probe_seconds,
                )
                if desired.compare:
                    compared = await self._compare(client, golden, desired, action.beside)
                    measured = msgspec.structs.replace(measured, comparison=compared)
        except UnavailableError:
            if not await tools.servers.alive(server):
                return  # its end is the news, and the serving lane tells it with the reason
            raise
        peak = await tools.servers.peak_memory(server)
        say(
            Probed(serial=slot.serial, measurement=msgspec.structs.replace(measured, peak_memory_bytes=peak)),
        )

    async def _compare(
        self, client: LoopbackClient, golden: Path, desired: WorkloadDesired, beside: Slot | None
    ) -> Comparison:
        """Ask the version that serves the same, over its private port; one that is down is a reason."""
        tools = self._tools
        if beside is None:
            return Comparison()
        replaced, server = beside.desired.model_version, self.servers.get(beside.serial)
        if server is None:
            return Comparison(replaced=replaced, reason="it does not run")
        old = LoopbackClient(
            server.port, max_body_bytes=inference.MAX_ANSWER_BYTES, timeout_seconds=tools.probe_timeout_seconds
        )
        async with old:
            return await compare.run(
                compare.Side(client=client, model=desired.model),
                compare.Side(client=old, model=beside.desired.model),
                golden,
                signature=desired.signature,
                replaced=replaced,
                max_samples=tools.probe_samples,
                max_seconds=tools.probe_seconds,
            )

    async def shadow(self, action: ShadowBeside, say: Say) -> None:
        """Have it answer what the version that serves is asked: `Shadowed`."""
        slot, beside = action.slot, action.beside
        report = await observe.shadow(
            self._tools.servers.control(beside.desired.name, beside.serial),
            self.servers[slot.serial].port,
            slot.desired.shadow or ShadowDesired(),
            version=beside.desired.model_version,
            clock=self._tools.clock,
        )
        say(Shadowed(serial=slot.serial, report=report))

    async def observe(self, slot: Slot, say: Say) -> None:
        """Watch the server: `Observed`."""
        asked, server, tools = slot.desired.observe, self.servers.get(slot.serial), self._tools
        if asked is None or server is None:
            return
        try:
            await observe.watch(
                server.control.observe,
                partial(tools.servers.peak_memory, server),
                asked,
                tools.clock,
                lambda seen: say(Observed(serial=slot.serial, observation=seen)),
            )
        except Exception:  # a server that cannot be watched serves all the same
            log.exception("workload.not_observed workload=%s", slot.desired.name)


async def _pause(ceiling: float) -> None:
    """Full jitter: anything up to the ceiling."""
    if ceiling > 0:
        await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret
