"""What a workload's journal says, what can happen to the workload, and what can be done about it.

Lives here: the state that is journaled, events, actions; values only. Must not live here: what follows from them
(`core.workload`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from skerry.api.kinds.device import Measurement, Observation, Refusal, ShadowReport, WaitReason, WorkloadPhase
from skerry.api.kinds.variants import Blob
from skerry.api.meta import Struct
from skerry.core.messages import WorkloadDesired


class Signed(Struct, frozen=True, kw_only=True):
    """What a model's signatures are, and the card that they are over."""

    signatures: list[Blob] = []
    card: Blob | None = None


class Slot(Struct, frozen=True, kw_only=True):
    """One installed or half-installed revision; its files and its server are named by the serial."""

    serial: int
    desired: WorkloadDesired
    port: int = 0
    """Its server's private one on the loopback, where it is probed; 0 until it was launched."""
    measurement: Measurement | None = None
    since: datetime | None = None
    """When it first served what `desired` says; None before."""
    admitted: bool = False
    """Its server may accept connections at the workload's endpoint."""
    verified_at: datetime | None = None
    """The time by which certificates were judged when its signatures were first found good here; None: never."""
    kept: Signed | None = None
    """What its signatures were when it was taken, as long as those that `desired` names now are not here; else None."""

    @property
    def signed(self) -> Signed:
        """What it is judged by."""
        return self.kept or Signed(signatures=self.desired.signatures, card=self.desired.card)


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
    endpoint: int = 0
    """The workload's port on the loopback, where applications find whichever version serves; 0 until one did."""
    up: bool = False
    """The current slot's server answers, at the endpoint too."""
    attempts: int = 0
    """Failed tries of the work in hand."""
    interruptions: int = 0
    """Times the agent went away while the candidate was starting."""
    crashes: int = 0
    """Ends of the current server in a row."""
    distrusted: bool = False
    """The current slot's server was not started, for the device's trust policy does not let it."""
    restarts: int = 0
    message: str = ""
    waiting_for: WaitReason = ""
    """What holds the candidate up by policy; `message` says more."""
    waiting_since: datetime | None = None
    waiting_boot: str = ""
    waiting_monotonic: float = 0.0
    waited_seconds: float = 0.0
    """Of `desired`, in waits that have ended."""
    failure: str = ""
    """Why `desired` is not what runs; empty while there is hope."""
    refusal: Refusal = ""
    """Why the device would not take `desired`; empty when it did not refuse."""
    observation: Observation | None = None
    """How `desired` fares since it serves."""
    shadow: ShadowReport | None = None
    """What shadow mode showed of `desired`, once it is over."""
    fetched_bytes: int = 0
    saved_bytes: int = 0
    """What of `desired` did not have to be fetched, thanks to deltas."""
    peer_bytes: int = 0
    """What of `desired` came from neighbours."""
    install_seconds: float | None = None
    accepted_boot: str = ""
    accepted_monotonic: float = 0.0

    @property
    def slots(self) -> list[Slot]:
        """Those that are named, whose files and blobs must stay."""
        return [slot for slot in (self.current, self.candidate, self.previous) if slot is not None]


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
class Trusting:
    """What this device trusts may be other than before."""


@dataclass(frozen=True, slots=True)
class Tidied:
    """`Tidy` is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """All blobs of the slot are in the cache and verified."""

    serial: int
    network_bytes: int
    saved_bytes: int = 0
    peer_bytes: int = 0
    verified_at: datetime | None = None
    """See `Slot`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Laid:
    """The slot's files are complete and on the disk."""

    serial: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """The slot's server runs, on this private port; it need not answer yet."""

    serial: int
    port: int
    verified_at: datetime | None = None
    """See `Slot`; None also where that was not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The slot's server answers; at this endpoint, if it was given one."""

    serial: int
    endpoint: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """The golden samples went through the slot's server; None when the model brings none."""

    serial: int
    measurement: Measurement | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Switched:
    """The slot's server accepts connections on the workload's endpoint, which is this port."""

    serial: int
    endpoint: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadowed:
    """The slot's time in the shadow is over."""

    serial: int
    report: ShadowReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """A window of the slot's observation is worth reporting."""

    serial: int
    observation: Observation


@dataclass(frozen=True, kw_only=True, slots=True)
class Vouched:
    """The signatures that `desired` of the slot names are here, and good enough where somebody asks for them."""

    serial: int
    desired: WorkloadDesired
    verified_at: datetime | None = None
    """See `Slot`."""


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
    refusal: Refusal = ""
    """The device would not even try, and this is why."""
    passing: bool = False
    """The refusal is of whatever comes, as long as nothing says what is trusted."""
    network_bytes: int = 0
    """What a failed fetch brought all the same."""
    peer_bytes: int = 0
    """The same, from neighbours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exited:
    """The slot's server ended by itself after it had answered for so long."""

    serial: int
    cause: str
    uptime_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """The work in hand for the slot waits for a policy to let it go on; with an empty reason it goes on now."""

    serial: int
    waiting_for: WaitReason
    message: str = ""


SlotEvent = (
    Waits | Fetched | Laid | Launched | Ready | Probed | Shadowed | Switched | Observed | Vouched | Faulted | Exited
)
Event = Wanted | Unwanted | Resumed | Trusting | Tidied | SlotEvent


# --- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Bring the slot's blobs into the cache: `Fetched` or `Faulted`. Wait up to `delay_ceiling` (full jitter) first."""

    slot: Slot
    delay_ceiling: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Vouch:
    """Bring the signatures and the card that the slot's `desired` names into the cache: `Vouched`, when they are good.

    It serves meanwhile, and goes on if they are not.
    """

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Install:
    """Lay the slot's files from the cache: `Laid` or `Faulted`."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """The port at which applications shall find the workload."""

    port: int = 0
    """0: any that is free."""
    strict: bool = False
    """No other will do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Have the slot's server run on a private port, and watch it: `Launched`, `Ready`, then `Exited`; or `Faulted`.

    A server that already runs on the slot's port is adopted. With an `endpoint` it counts as ready when it accepts
    connections there.
    """

    slot: Slot
    endpoint: Endpoint | None = None
    delay_ceiling: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Run the golden samples through the slot's server: `Probed` or `Faulted`."""

    slot: Slot
    beside: Slot | None = None
    """The one to compare it with, if that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowBeside:
    """Have the slot's server answer a share of what the one beside it is asked: `Shadowed`."""

    slot: Slot
    beside: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Observe:
    """Watch the slot's server from now on: `Observed`, at most once a window."""

    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """Let the slot's server accept connections on the workload's endpoint, beside who does already: `Switched` or
    `Faulted`.
    """

    slot: Slot
    endpoint: Endpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Tidy:
    """Stop every server of the workload but these slots', then erase every slot's files but these: `Tidied`.

    As long as another one stays, those that are stopped first answer what they have; that is not waited for.
    """

    running: frozenset[int]
    files: frozenset[int]


Action = Fetch | Vouch | Install | Serve | Probe | ShadowBeside | Switch | Observe | Tidy
