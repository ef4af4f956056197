"""Models from neighbours of the same site, and one of them alone to fetch what none has: this device's part in it.

Before a blob is fetched from the hub, neighbours are asked. What one has comes from there, verified by the same digest.
What several want and none has is fetched by one (`core.peering`), and the others wait for it, as long as it comes on. A
neighbour that lies, crawls or is silent is left alone for a while; the hub can be asked at any time. Bytes from
neighbours do not count as metered.
Lives here: what is sought and from whom. Must not live here: the rule (`core.peering`), sockets (`peers_asking`,
`peers_server`), when the line to the hub may be used (`policy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skerry.agent import peers_asking, settings
from skerry.agent.disk import Disk
from skerry.agent.peers_server import PeerServer, Shop
from skerry.agent.settings import PeerSettings
from skerry.api import duration, quantity
from skerry.api.errors import IntegrityError, SkerryError, StorageFullError, UnavailableError, UnsupportedError
from skerry.api.kinds.variants import Blob
from skerry.core import peering
from skerry.core.journal import Slot
from skerry.core.messages import WorkloadDesired
from skerry.core.peering import Go, Stand, Take, Told, Wait
from skerry.core.ports import ArtifactSource, Clock
from skerry.drivers.registry.bandwidth import Bandwidth
from skerry.drivers.registry.oci import BusyError

log = logging.getLogger(__name__)

LEAST_BYTES = 16 * 1024
"""Of a blob for which asking around is worth it."""
MAX_ASKED = 8
"""Neighbours for one blob, those that rank first: with more of them, all ask the same ones."""
ASK_AGAIN_SECONDS = 1.0
SILENT_SECONDS, SLOW_SECONDS, LIAR_SECONDS = 30.0, 600.0, 3600.0
"""How long a neighbour is left alone that could not be asked or broke off (the first times shorter: it may just be
starting), that crawled, that gave something else."""
SPEED_SECONDS = 10.0
LEAST_SPEED = 32 * 1024
"""Bytes per second, over any SPEED_SECONDS; slower is no help."""
BUSY_SECONDS = 5.0
"""How long one counts as busy that sent this device away for it."""
MAX_TAKING = 2
"""Blobs that are taken from neighbours at a time: each needs a thread, and others need them too."""
RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0
"""After how long listening and finding are tried again where they failed: the first time, and at most."""
PROGRESS = 100
"""A neighbour that fetches for all is waited for while it brings so little as one part of this many."""

Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """What it takes to be one of them."""

    uid: str
    asking: ssl.SSLContext
    serving: ssl.SSLContext | None
    """None: this device has no certificate to serve with."""
    server_uid: Callable[[ssl.SSLObject], str]
    """Who answers. Raises UnauthorizedError."""
    client_uid: Callable[[ssl.SSLObject], str]
    """Who asks. Raises UnauthorizedError."""
    source: Callable[[Address, str], ArtifactSource]
    """Fetches from the neighbour of that address and uid."""
    discovery: Callable[[PeerSettings, Callable[[], int]], contextlib.AbstractAsyncContextManager[Found]] | None = None
    """Finds others, and has them find this one's port, while the context lasts."""


Found = Mapping[str, Address]
"""Neighbours that were found, by the name that they announce: a uid, maybe with `-` and something; it changes."""


class Peers:
    """This device among its neighbours; without a neighbourhood, or settings that name one, it is alone."""

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        wanted: PeerSettings,
        hood: Neighbourhood | None,
        *,
        named: Callable[[], Mapping[str, Iterable[Slot]]],
    ) -> None:
        """`named` gives the slots of all workloads, whose blobs are what there is to give."""
        self._disk = disk
        self._clock = clock
        self._wanted = wanted
        self._named = named
        self._hood = hood if wanted.listen or wanted.neighbours or wanted.discover else None
        self._patience = duration.to_seconds(wanted.patience)
        self._addresses = [settings.address(one) for one in wanted.neighbours]
        self._found: Found = {}
        self._uids: dict[Address, str] = {}
        self._leave_until: dict[Address, float] = {}
        self._silences: dict[Address, int] = {}
        """Times in a row that a neighbour could not be asked."""
        self._seeking: dict[str, Seeking] = {}
        self.taking = asyncio.Semaphore(MAX_TAKING)
        self.server = self._server()

    @property
    def asks(self) -> bool:
        """Whether there may be anybody to ask."""
        return self._hood is not None and bool(self._addresses or self._wanted.discover)

    async def run(self) -> None:
        """Serve neighbours and find them, until cancelled. What prevents it is logged, and tried again."""
        async with asyncio.TaskGroup() as tasks:
            if self.server is not None:
                tasks.create_task(_kept_up("peers.not_listening", self.server.run), name="peers")
            if self._hood is not None and self._wanted.discover:
                finding = partial(self._discover, self._hood)
                tasks.create_task(_kept_up("peers.not_discovered", finding), name="peer discovery")

    async def _discover(self, hood: Neighbourhood) -> None:
        if hood.discovery is None:
            raise UnsupportedError("multicast DNS is not installed", element="peers", hint="install skerry[peers]")
        async with hood.discovery(self._wanted, lambda: 0 if self.server is None else self.server.port) as self._found:
            await asyncio.Event().wait()

    # --- giving -----------------------------------------------------------------------------------------------------

    def _server(self) -> PeerServer | None:
        hood, wanted = self._hood, self._wanted
        if hood is None or not wanted.listen:
            return None
        if hood.serving is None:
            log.error("peers.no_certificate hint=%s", "run `skerry agent renew`, then start the agent again")
            return None
        shop = Shop(find=self.find, stand=self.stand, client=hood.client_uid)
        bandwidth = Bandwidth(quantity.to_bytes(wanted.max_bandwidth))
        host, port = settings.address(wanted.listen)
        return PeerServer(host, port, hood.serving, shop, bandwidth, transfers=wanted.max_transfers)

    def find(self, digest: str) -> Path | None:
        """Return where a blob lies that may be given away."""
        for listed in self._named().values():
            for slot in listed:
                for blob in (slot.desired.blob, slot.desired.golden):
                    if blob is not None and blob.digest == digest and is_open(slot.desired):
                        path = self._disk.blob(blob)
                        with contextlib.suppress(OSError):
                            return path if path.stat().st_size == blob.size else None
        return None

    def stand(self, digest: str) -> Told:
        """Return where this device stands towards a blob that it does not give away."""
        seeking = self._seeking.get(digest)
        return Told(stand="none") if seeking is None else Told(stand=seeking.stand, came=seeking.came)

    # --- taking -----------------------------------------------------------------------------------------------------

    def is_worth(self, desired: WorkloadDesired, blob: Blob) -> bool:
        """Whether neighbours are asked for a blob."""
        return self.asks and blob.size >= LEAST_BYTES and is_open(desired)

    @contextlib.contextmanager
    def seeking(self, desired: WorkloadDesired, blob: Blob) -> Iterator[Seeking]:
        """Seek a blob inside the block: this device's stand towards it is told to whoever asks."""
        made = Seeking(self, desired, blob)
        if not self.is_worth(desired, blob):
            yield made
            return
        self._seeking[blob.digest] = made
        try:
            yield made
        finally:
            if self._seeking.get(blob.digest) is made:
                del self._seeking[blob.digest]

    async def offered(self, desired: WorkloadDesired, blobs: Iterable[Blob]) -> set[str]:
        """Return the digests that some neighbour gives away now."""
        sought = [blob for blob in blobs if self.is_worth(desired, blob)]
        told = [await self.ask(desired.repository, blob) for blob in sought]
        return {
            blob.digest for blob, one in zip(sought, told, strict=True) if any(t.stand == "has" for t in one.values())
        }

    async def ask(self, repository: str, blob: Blob) -> dict[str, Told]:
        """Ask the neighbours that count; return what those told that could be asked, by uid."""
        hood = self._hood
        if hood is None:
            return {}
        path = f"/v2/{repository}/blobs/{blob.digest}"
        asked = self._chosen(blob.digest, hood.uid)
        answers = await asyncio.gather(
            *(peers_asking.ask(*one, path, hood.asking, identify=hood.server_uid) for one in asked),
            return_exceptions=True,
        )
        told: dict[str, Told] = {}
        for address, answer in zip(asked, answers, strict=True):
            if isinstance(answer, UnavailableError):
                self._leave(address, self._silence(address), answer)
            elif isinstance(answer, SkerryError):
                self._leave(address, LIAR_SECONDS, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                uid, said = answer
                self._uids[address] = uid
                self._silences.pop(address, None)
                if uid != hood.uid:
                    told[uid] = said
        return told

    def _chosen(self, digest: str, own: str) -> list[Address]:
        now = self._clock.monotonic()
        known = {address: name.partition("-")[0] for name, address in self._found.items()}
        there = {one: known.get(one) or self._uids.get(one, f"{one[0]}:{one[1]}") for one in [*self._addresses, *known]}
        near = [one for one, uid in there.items() if uid != own and now >= self._leave_until.get(one, now)]
        return sorted(near, key=lambda one: peering.rank(digest, there[one]))[:MAX_ASKED]

    def _silence(self, address: Address) -> float:
        """Return for how long one that could not be asked is left alone: longer each time, up to SILENT_SECONDS."""
        times = self._silences[address] = min(self._silences.get(address, 0) + 1, 30)
        return min(SILENT_SECONDS, ASK_AGAIN_SECONDS * 2.0 ** (times - 1))

    def _leave(self, address: Address, seconds: float, error: SkerryError) -> None:
        log.info("peers.left_alone address=%s:%d seconds=%d error=%s", *address, seconds, error)
        self._leave_until[address] = self._clock.monotonic() + seconds

    def leave(self, uid: str, seconds: float, error: SkerryError) -> None:
        """Ask a neighbour nothing for a while."""
        for address, known in self._uids.items():
            if known == uid:
                self._leave(address, seconds, error)

    def source(self, uid: str) -> ArtifactSource | None:
        """Return what fetches from a neighbour that was asked; None when it is left alone since."""
        now, hood = self._clock.monotonic(), self._hood
        for address, known in self._uids.items():
            if known == uid and hood is not None and now >= self._leave_until.get(address, now):
                return hood.source(address, uid)
        return None

    @property
    def uid(self) -> str:
        """This device's; "" while it is alone."""
        return "" if self._hood is None else self._hood.uid

    @property
    def patience(self) -> float:
        """Seconds that a neighbour's fetch may stand still."""
        return self._patience

    @property
    def clock(self) -> Clock:
        """What time it is."""
        return self._clock


async def _kept_up(event: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run until cancelled, again and again; neighbours are never worth the agent, whatever is wrong with them."""
    pause = RETRY_SECONDS
    while True:
        try:
            await run()
        except UnsupportedError as error:
            log.error("%s error=%s", event, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent does not end with it
            log.error("%s error=%s", event, str(error) or type(error).__name__)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        pause = min(2 * pause, MOST_RETRY_SECONDS)


class Seeking:
    """One blob that is sought."""

    def __init__(self, peers: Peers, desired: WorkloadDesired, blob: Blob) -> None:
        self._peers = peers
        self._desired = desired
        self._blob = blob
        self._best: dict[str, int] = {}
        """How far those have come that fetched it."""
        self._most = 0
        """Neighbours that had it at the same time."""
        self._moved = peers.clock.monotonic()
        self._busy_until: dict[str, float] = {}
        """Of those that sent this device away, by uid."""
        self._sound = -1
        """Bytes that were there before any neighbour was asked for content; -1: none was yet."""
        self.stand: Stand = "none"
        self.came = 0

    def note(self, count: int) -> None:
        """Note bytes that came over the line to the hub."""
        self.came += count

    async def brought(self, target: Path, progress: Callable[[int], None], may_fetch: Callable[[], bool]) -> bool:
        """Bring the blob from a neighbour; False when nobody has it and it is this device's turn, or nobody's.

        Waits while another one's turn is. While `may_fetch` says no, this device is not to fetch it, so it takes what
        there is and waits for nobody. Raises StorageFullError.
        """
        if not self._peers.is_worth(self._desired, self._blob):
            return False
        while True:
            if not may_fetch():
                self.stand = "none"
            elif self.stand == "none":
                self.stand = "wants"
            told = self._noted(await self._peers.ask(self._desired.repository, self._blob))
            seen_as: Stand = "wants" if self.stand == "none" else self.stand
            choice = peering.choose(self._blob.digest, self._peers.uid, seen_as, told)
            if isinstance(choice, Take):
                async with self._peers.taking:
                    if await self._take_from(choice.peers, target, progress):
                        return True
            elif not await self._goes_on(choice, told):
                return False

    def _noted(self, told: Mapping[str, Told]) -> dict[str, Told]:
        """Return what was told, where those are busy that just sent this device away for it."""
        now = self._peers.clock.monotonic()
        away = {uid for uid, until in self._busy_until.items() if now < until}
        return {uid: replace(one, busy=one.busy or uid in away) for uid, one in told.items()}

    async def _goes_on(self, choice: Go | Wait, told: Mapping[str, Told]) -> bool:
        """Follow the rule where there is nothing to take; False when this device is to stop asking."""
        if self.stand == "none":  # it may not fetch: it only waits where somebody will soon have a hand free
            if not any(one.stand == "has" for one in told.values()):
                return False
        elif isinstance(choice, Go):
            self.stand = choice.stand
            return choice.stand != "fetches"
        elif self._has_waited_enough(told):
            log.warning("peers.waited_in_vain digest=%s peer=%s", self._blob.digest, choice.peer)
            self.stand = "fetches"
            return False
        else:
            self.stand = "wants"
        await asyncio.sleep(ASK_AGAIN_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        return True

    def _has_waited_enough(self, told: Mapping[str, Told]) -> bool:
        """Whether nobody who is ahead has come on for too long; next to nothing is no progress."""
        step, now = max(self._blob.size // PROGRESS, 1), self._peers.clock.monotonic()
        steps = {peer: min(one.came, self._blob.size) // step for peer, one in told.items() if one.stand == "fetches"}
        most = sum(one.stand == "has" for one in told.values())
        if most > self._most or any(count > self._best.get(peer, -1) for peer, count in steps.items()):
            self._moved = now
        self._most = max(most, self._most)
        self._best |= {peer: max(count, self._best.get(peer, -1)) for peer, count in steps.items()}
        return now - self._moved > self._peers.patience

    async def _take_from(self, peers: Iterable[str], target: Path, progress: Callable[[int], None]) -> bool:
        for uid in peers:
            source = self._peers.source(uid)
            if source is None:
                continue
            try:
                await self._judged(source, target, progress)
            except StorageFullError:
                raise
            except BusyError:
                self._busy_until[uid] = self._peers.clock.monotonic() + BUSY_SECONDS
            except _SlowError as error:
                self._peers.leave(uid, SLOW_SECONDS, error)
            except IntegrityError as error:
                log.warning("peers.lied peer=%s digest=%s error=%s", uid, self._blob.digest, error)
                self._peers.leave(uid, LIAR_SECONDS, error)
            except SkerryError as error:
                self._peers.leave(uid, SILENT_SECONDS, error)
            else:
                log.info("peers.brought peer=%s digest=%s bytes=%d", uid, self._blob.digest, self._blob.size)
                return True
        return False

    async def _judged(self, source: ArtifactSource, target: Path, progress: Callable[[int], None]) -> None:
        """Fetch from a neighbour. Where that comes to something else, it may not be the last one's doing.

        What other neighbours brought goes then, and this one is asked for all of it, beside what was there before.
        """
        begun = target.with_name(f"{target.name}.partial")
        before = await asyncio.to_thread(_size, begun)
        if self._sound < 0:
            self._sound = before
        try:
            await _at_speed(source, self._desired.repository, self._blob, target, progress)
        except IntegrityError:
            if not before:
                raise
            await asyncio.to_thread(_cut, begun, self._sound)
            beside = target.with_name(f"{target.name}.near")
            _forget(beside)  # a power cut may have left some of it
            try:
                await _at_speed(source, self._desired.repository, self._blob, beside, progress)
                await asyncio.to_thread(beside.replace, target)
                await asyncio.to_thread(begun.unlink, missing_ok=True)
            except StorageFullError as full:  # for both of them: what is there is worth more
                raise UnavailableError(f"cannot be judged: {full}", element=self._blob.digest) from full
            finally:
                _forget(beside)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _forget(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}.partial")):
        one.unlink(missing_ok=True)


def _cut(path: Path, size: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, min(size, path.stat().st_size))


class _SlowError(SkerryError):
    """Gives too slowly."""


async def _at_speed(
    source: ArtifactSource, repository: str, blob: Blob, target: Path, progress: Callable[[int], None]
) -> None:
    """Fetch as long as it comes on at least so fast, from its first answer on: what is here is read before.

    Raises what the source does, and _SlowError.
    """
    came, answers = 0, False

    def count(size: int) -> None:
        nonlocal came, answers
        came, answers = came + size, True
        progress(size)

    fetching = asyncio.ensure_future(source.fetch(repository, blob, target, progress=count))
    try:
        while True:
            before, answered = came, answers
            ended, _ = await asyncio.wait({fetching}, timeout=SPEED_SECONDS)
            if ended:
                fetching.result()
                return
            if answered and came - before < LEAST_SPEED * SPEED_SECONDS:
                raise _SlowError(f"gave {came - before} bytes in {SPEED_SECONDS:g} s", element=blob.digest)
    finally:
        if not fetching.done():
            fetching.cancel()
            await asyncio.wait({fetching})


def is_open(desired: WorkloadDesired) -> bool:
    """Whether a workload's model may lie about, and be given to neighbours: not where it is under protection."""
    return desired.protection == "none"


@contextlib.asynccontextmanager
async def nobody() -> AsyncIterator[Found]:
    """Find nobody."""
    yield {}
