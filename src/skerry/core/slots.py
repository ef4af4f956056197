"""What the rules of a workload's life have in common: beginning, switching, giving up, and what a state names.

Lives here: parts of rules. Must not live here: when they apply (`core.workload` and its tables, `core.candidate`,
`core.current`). Pure.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from skerry.api.kinds.device import WorkloadPhase
from skerry.core.journal import (
    Action,
    Endpoint,
    Exited,
    Faulted,
    Fetch,
    Moment,
    Serve,
    Signed,
    Slot,
    State,
    Switch,
    Tidy,
    Vouch,
)
from skerry.core.messages import WorkloadDesired

RESTART_CEILING_SECONDS = 60.0
MAX_MESSAGE = 2000
"""Characters of a sentence that is kept and reported."""

Outcome = tuple[State | None, list[Action]]
"""The state after an event, None when the workload is gone, and what to do once it is on the disk."""

_LAUNCHED: tuple[WorkloadPhase, ...] = ("Installed", "Starting", "Probing", "Shadowing")


def sentence(phase: WorkloadPhase, fault: Faulted) -> str:
    """Return what failed, as people read it: `While <phase>, <component> failed for "<element>": <cause>; <hint>`."""
    text = f'While {phase}, {fault.component} failed for "{fault.element}": {fault.cause}'
    return (f"{text}; {fault.hint}" if fault.hint else text)[:MAX_MESSAGE]


def begin(state: State, desired: WorkloadDesired) -> Outcome:
    """Install this in a new slot."""
    slot = Slot(serial=state.serial + 1, desired=desired)
    begun = replace(
        state, serial=slot.serial, candidate=slot, phase="Fetching", attempts=0, interruptions=0, message=""
    )
    return begun, [tidy(begun), Fetch(slot=slot)]


def switch(state: State) -> Outcome:
    """Let the candidate to the workload's endpoint."""
    slot = replace(candidate_of(state), admitted=True)
    return replace(state, candidate=slot), [Switch(slot=slot, endpoint=endpoint(state, slot))]


def roll_back(state: State, event: Faulted, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Give the candidate up, and keep the reason."""
    failure = sentence(state.phase, event)
    rolled = replace(
        state,
        phase="RollingBack",
        candidate=None,
        attempts=0,
        message="",
        failure=failure,
        refusal=event.refusal,
    )
    return rolled, [tidy(rolled)]


def go_on(state: State, now: Moment) -> State:
    """The wait is over; across a reboot only the wall clock can tell how long it was."""
    passed = now.monotonic - state.waiting_monotonic
    if now.boot != state.waiting_boot and state.waiting_since is not None:
        passed = (now.wall - state.waiting_since).total_seconds()
    waited = round(state.waited_seconds + max(passed, 0.0), 3) if state.waiting_for else state.waited_seconds
    return cast(State, replace(state, waiting_for="", waiting_since=None, waited_seconds=waited))


def tidy(state: State) -> Tidy:
    """Return the action that stops and erases whatever this state does not name."""
    running = set() if state.current is None else {state.current.serial}
    if state.candidate is not None and state.phase in _LAUNCHED:
        running.add(state.candidate.serial)
    return Tidy(running=frozenset(running), files=frozenset(slot.serial for slot in state.slots))


def protected_as(slot: Slot, other: Slot) -> Slot:
    """Return what a slot becomes beside one that is kept encrypted: encrypted too, for its disk is the same."""
    if other.desired.protection in ("none", slot.desired.protection):
        return slot
    return cast(Slot, replace(slot, desired=replace(slot.desired, protection=other.desired.protection)))


def named(slot: Slot, desired: WorkloadDesired) -> Slot:
    """Return the slot as of another wish for the same content; it is judged by what is here until more has come."""
    signed = slot.signed
    same = signed == Signed(signatures=desired.signatures, card=desired.card)
    return cast(Slot, replace(slot, desired=desired, kept=None if same else signed))


def vouch(slot: Slot) -> list[Action]:
    """Return what brings the signatures that a slot does not have yet; mostly nothing."""
    return [] if slot.kept is None else [Vouch(slot=slot)]


def serve(state: State, slot: Slot, *, delay_ceiling: float = 0.0) -> Serve:
    """Return the action that has a slot's server run; at the endpoint, if it is the current one."""
    is_current = state.current is not None and slot.serial == state.current.serial
    return Serve(slot=slot, endpoint=endpoint(state, slot) if is_current else None, delay_ceiling=delay_ceiling)


def endpoint(state: State, slot: Slot) -> Endpoint:
    """The port that was asked for and no other, else the workload's own for as long as it is to be had."""
    fixed = slot.desired.serving.port
    return Endpoint(port=fixed or state.endpoint, strict=bool(fixed))


def as_fault(state: State, event: Faulted | Exited) -> Faulted:
    """Return the end of a server as a failure."""
    if isinstance(event, Faulted):
        return event
    return Faulted(
        serial=event.serial,
        component="the inference server",
        element=state.name,
        cause=event.cause,
        hint="see its log",
        final=False,
    )


def installed_within(state: State, now: Moment) -> float | None:
    """Return the seconds from the wish to now; None where a reboot lies between."""
    if state.install_seconds is not None or current_of(state).desired != state.desired:
        return state.install_seconds
    return round(now.monotonic - state.accepted_monotonic, 3) if now.boot == state.accepted_boot else None


def backoff(first: float, attempts: int, ceiling: float) -> float:
    """Return the ceiling of the next wait, in seconds; it doubles with each attempt."""
    return float(min(ceiling, first * 2 ** min(attempts - 1, 30)))


def candidate_of(state: State) -> Slot:
    """Return the candidate that the table promises."""
    if state.candidate is None:
        raise AssertionError("the table leads here only with a candidate")
    return state.candidate


def current_of(state: State) -> Slot:
    """Return the current slot that the table promises."""
    if state.current is None:
        raise AssertionError("the table leads here only with a current slot")
    return state.current


def replace(struct: Any, **changes: Any) -> Any:
    """Return a struct with other values in some fields."""
    return msgspec.structs.replace(struct, **changes)
