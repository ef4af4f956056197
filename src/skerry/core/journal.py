"""What a workload's journal says, what can happen to the workload, and what can be done about it.

Lives here: the state that is journaled, events, actions; values only. Must not live here: what follows from them
(`core.workload`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from skerry.api.kinds.device import Measurement, WorkloadPhase
from skerry.api.meta import Struct
from skerry.core.messages import WorkloadDesired


class Slot(Struct, frozen=True, kw_only=True):
    """One installed or half-installed revision; its files and its server are named by the serial."""

    serial: int
    desired: WorkloadDesired
    port: int = 0
    """On the loopback; 0 until its server was launched."""
    measurement: Measurement | None = None
    since: datetime | None = None
    """When it first served what `desired` says; None before."""


class State(Struct, frozen=True, kw_only=True):
    """All that is known of one workload; the journal's content."""

    name: str
    phase: WorkloadPhase = "Pending"
    serial: int = 0
    """The newest slot's; never used twice."""
    desired: WorkloadDesired | None = None
    """What the hub last asked for, also when it failed."""
    current: Slot | None = None
    candidate: Slot | None = None
    previous: Slot | None = None
    up: bool = False
    """The current slot's server answers."""
    attempts: int = 0
    """Failed tries of the work in hand."""
    interruptions: int = 0
    """Times the agent went away while the candidate was starting."""
    crashes: int = 0
    """Ends of the current server in a row."""
    restarts: int = 0
    message: str = ""
    failure: str = ""
    """Why `desired` is not what runs; empty while there is hope."""
    fetched_bytes: int = 0
    install_seconds: float | None = None
    accepted_boot: str = ""
    accepted_monotonic: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """Now, on both clocks; `boot` names the boot that the monotonic one belongs to."""

    wall: datetime
    monotonic: float
    boot: str


# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """The hub wants this."""

    desired: WorkloadDesired


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The hub wants it gone."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The agent started and found this journal."""


@dataclass(frozen=True, slots=True)
class Tidied:
    """`Tidy` is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """All blobs of the slot are in the cache and verified."""

    serial: int
    network_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Laid:
    """The slot's files are complete and on the disk."""

    serial: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """The slot's server runs, on this port; it need not answer yet."""

    serial: int
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The slot's server answers."""

    serial: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """The golden samples went through the slot's server; None when the model brings none."""

    serial: int
    measurement: Measurement | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Faulted:
    """The work in hand for the slot failed."""

    serial: int
    component: str
    element: str
    cause: str
    hint: str = ""
    final: bool = True
    """Trying the same again cannot help."""
    damaged: bool = False
    """The slot's files are not what was verified."""
    network_bytes: int = 0
    """What a failed fetch brought all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exited:
    """The slot's server ended by itself after it had answered for so long."""

    serial: int
    cause: str
    uptime_seconds: float


SlotEvent = Fetched | Laid | Launched | Ready | Probed | Faulted | Exited
Event = Wanted | Unwanted | Resumed | Tidied | SlotEvent


# --- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Bring the slot's blobs into the cache: `Fetched` or `Faulted`. Wait up to `delay_ceiling` (full jitter) first."""

    slot: Slot
    delay_ceiling: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Install:
    """Lay the slot's files from the cache: `Laid` or `Faulted`."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Have the slot's server run and watch it: `Launched`, `Ready`, then `Exited`; or `Faulted`.

    A server that already runs on the slot's port is adopted. `ports` are preferred, in that order; with `strict` the
    first is the only one allowed.
    """

    slot: Slot
    ports: tuple[int, ...] = ()
    strict: bool = False
    delay_ceiling: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Run the golden samples through the slot's server: `Probed` or `Faulted`."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Tidy:
    """Stop every server of the workload but these slots', then erase every slot's files but these: `Tidied`."""

    running: frozenset[int]
    files: frozenset[int]


Action = Fetch | Install | Serve | Probe | Tidy
