"""The device's side of the protocol, without a carrier: what to accept, what to refuse, when to report.

The caller brings bytes and the time and owns the disk: `offer` checks a desired state, the caller makes it durable,
then `accept` hands it over to be acted on. So a version is never acted on before it can no longer be forgotten.

Lives here: the protocol's decisions and counters. Must not live here: I/O, timers, what a workload does with a wish.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from skerry.api.errors import ForbiddenError, SkerryError
from skerry.api.kinds.device import BenchmarkStatus, DeviceFacts, HoldStatus, WorkloadStatus
from skerry.core import messages, trust

MAX_REMEMBERED_COMMANDS = 1024
MAX_COMMAND_LIFE = timedelta(hours=1)
"""A command that would be good for longer is refused: its id could not be remembered for as long."""
MAX_REFUSED = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A desired state that may be accepted; `raw` is what must be on the disk first."""

    raw: bytes
    desired: messages.DesiredState


class Session:
    """One device's conversation with its hub, over any number of connections."""

    def __init__(
        self,
        *,
        uid: str,
        boot_id: str,
        keys: Mapping[str, trust.VerifyingKey],
        heartbeat_seconds: float = 60.0,
        floor: int = 0,
        accepted: messages.DesiredState | None = None,
        commands: Mapping[str, datetime] | None = None,
    ) -> None:
        """`floor` is the highest manifest version ever accepted, `accepted` that state where it is still known.

        `commands` are those that were taken before (`taken_commands`): none of them is taken again.
        """
        self.uid = uid
        self.boot_id = boot_id
        self.accepted = accepted
        self.floor = max(floor, 0 if accepted is None else accepted.manifest_version)
        self._keys = dict(keys)
        self._heartbeat = heartbeat_seconds
        self._refused = ""
        self._refused_version = 0
        self._seq = 0
        self._connected = False
        self._facts_due = True
        self._facts = DeviceFacts()
        self._workloads: tuple[WorkloadStatus, ...] = ()
        self._benchmarks: tuple[BenchmarkStatus, ...] = ()
        self._holds: tuple[HoldStatus, ...] = ()
        self._dirty = True
        self._next_heartbeat = 0.0
        self._commands = OrderedDict(list((commands or {}).items())[-MAX_REMEMBERED_COMMANDS:])

    # --- from the hub ---------------------------------------------------------------------------------------------

    def replace_keys(self, keys: Mapping[str, trust.VerifyingKey]) -> None:
        """Trust these keys from now on."""
        self._keys = dict(keys)

    def offer(self, raw: bytes) -> Offer | None:
        """Check an envelope with a desired state. None: it is the very one accepted before.

        Raises InvalidError, UnsupportedError, IntegrityError, ForbiddenError; the sentence goes into the next report,
        with the version where a newer one, or the same with other content, was accepted before.
        """
        contested = 0
        try:
            desired = trust.open_envelope(raw, messages.DesiredState, uid=self.uid, keys=self._keys)
            contested = desired.manifest_version
            rises = trust.check_rises(self.floor, desired)
            if not rises and self.accepted is not None and not _same(self.accepted, desired):
                raise ForbiddenError(
                    f"version {desired.manifest_version} was accepted before with other content",
                    element="desired state",
                    hint="if the hub was restored from a backup, run `skerry device reconcile`",
                )
            contested = 0
            _check_jump(self.floor, desired)
            _check_names(desired)
        except SkerryError as error:
            self._set_refused(error.sentence[:MAX_REFUSED], contested)
            raise
        if not rises and self.accepted is not None:
            self._set_refused("")
            return None
        return Offer(raw=raw, desired=desired)

    def accept(self, offer: Offer) -> messages.DesiredState:
        """Take over a desired state that is on the disk now. Raises ForbiddenError when it was overtaken meanwhile."""
        if offer.desired.manifest_version < self.floor:
            raise ForbiddenError(f"version {offer.desired.manifest_version} was overtaken", element="desired state")
        self.accepted, self.floor = offer.desired, offer.desired.manifest_version
        self._refused, self._refused_version, self._dirty = "", 0, True
        return offer.desired

    def refuse(self, error: SkerryError) -> None:
        """Say in the next report why the last desired state was not accepted."""
        sentence = error.sentence[:MAX_REFUSED]
        self._set_refused(sentence, self._refused_version if sentence == self._refused else 0)

    def receive_command(self, raw: bytes, now: datetime) -> messages.Command | None:
        """Check an envelope with a command. None: a command with this id was received before.

        Raises InvalidError, UnsupportedError, IntegrityError, ForbiddenError.
        """
        command = trust.open_envelope(raw, messages.Command, uid=self.uid, keys=self._keys)
        if command.expires_at.tzinfo is None:
            raise ForbiddenError("its expiry has no time zone", element=f"command {command.id[:80]}")
        trust.check_fresh(command, now)
        if command.expires_at > now + MAX_COMMAND_LIFE:
            raise ForbiddenError(f"is good for more than {MAX_COMMAND_LIFE}", element=f"command {command.id[:80]}")
        self._forget_commands(now)
        if command.id in self._commands:
            return None
        if len(self._commands) >= MAX_REMEMBERED_COMMANDS:
            raise ForbiddenError("too many commands at a time", element=f"command {command.id[:80]}")
        self._commands[command.id] = command.expires_at
        return command

    def taken_commands(self, now: datetime) -> dict[str, datetime]:
        """Return the ids of the commands that could come again, each with its expiry; at most a bounded number."""
        self._forget_commands(now)
        return dict(self._commands)

    # --- to the hub -----------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """A connection stands: everything is told again, facts included."""
        self._connected, self._facts_due, self._dirty = True, True, True

    def disconnected(self) -> None:
        """The connection is gone; changes are kept until the next one."""
        self._connected = False

    def update(
        self,
        *,
        workloads: Sequence[WorkloadStatus] | None = None,
        facts: DeviceFacts | None = None,
        benchmarks: Sequence[BenchmarkStatus] | None = None,
        holds: Sequence[HoldStatus] | None = None,
    ) -> None:
        """Take note of what the device is and does now."""
        if holds is not None and tuple(holds) != self._holds:
            self._holds = tuple(holds[: messages.MAX_HOLDS])
            self._dirty = True
        if benchmarks is not None and tuple(benchmarks) != self._benchmarks:
            self._benchmarks = tuple(benchmarks[: messages.MAX_BENCHMARKS])
            self._dirty = True
        if workloads is not None and tuple(workloads) != self._workloads:
            self._workloads = tuple(workloads[: messages.MAX_WORKLOADS])
            self._dirty = True
        if facts is not None:
            if _without_free_space(facts) != _without_free_space(self._facts):
                self._facts_due = self._dirty = True
            self._facts = facts

    def poll(self, *, now: datetime, monotonic: float) -> messages.Reported | None:
        """Return the report that is due now, as already sent; None when nothing is due or nobody is there.

        Changes that pile up while one report is on its way go together in the next.
        """
        if not self._connected or not (self._dirty or monotonic >= self._next_heartbeat):
            return None
        self._seq += 1
        facts = self._facts if self._facts_due else None
        self._dirty, self._facts_due = False, False
        self._next_heartbeat = monotonic + self._heartbeat
        return messages.Reported(
            uid=self.uid,
            boot_id=self.boot_id,
            seq=self._seq,
            sent_at=now,
            observed_manifest_version=self.floor,
            facts=facts,
            workloads=list(self._workloads),
            benchmarks=list(self._benchmarks),
            holds=list(self._holds),
            refused=self._refused,
            refused_manifest_version=self._refused_version,
        )

    def seconds_to_heartbeat(self, monotonic: float) -> float:
        """Return how long nothing need be sent if nothing changes."""
        return max(0.0, self._next_heartbeat - monotonic)

    def _set_refused(self, sentence: str, version: int = 0) -> None:
        if (sentence, version) != (self._refused, self._refused_version):
            self._refused, self._refused_version, self._dirty = sentence, version, True

    def _forget_commands(self, now: datetime) -> None:
        for known in [known for known, expiry in self._commands.items() if expiry < now]:
            del self._commands[known]


def _same(one: messages.DesiredState, other: messages.DesiredState) -> bool:
    """The hub signs a version again after its restart, so the time of issue may differ; nothing else may."""
    return msgspec.structs.replace(one, issued_at=other.issued_at) == other


def _check_jump(floor: int, desired: messages.DesiredState) -> None:
    if desired.manifest_version > floor + messages.MAX_MANIFEST_JUMP:
        raise ForbiddenError(
            f"version {desired.manifest_version} is too far above {floor}, which was accepted before",
            element="desired state",
            hint="no hub issues so many; somebody else may have its signing key",
        )


def _check_names(desired: messages.DesiredState) -> None:
    names = [workload.name for workload in desired.workloads]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ForbiddenError(f'names the workload "{twice}" twice', element="desired state")


def _without_free_space(facts: DeviceFacts) -> DeviceFacts:
    """Free space changes all the time and is no news."""
    return msgspec.structs.replace(facts, hardware=msgspec.structs.replace(facts.hardware, storage_free_bytes=0))
