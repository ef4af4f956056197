"""The rules of a workload's candidate: from its first byte until it serves, or is given up.

Lives here: one function for each rule of `core.workload.INSTALLING`. Must not live here: which event leads to which
rule (that table), what the rules share (`core.slots`), the rules of shadow mode (`core.trial`). Pure.
"""

from __future__ import annotations

from skerry.core import slots, trial
from skerry.core.journal import (
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Install,
    Laid,
    Launched,
    Moment,
    Probe,
    Probed,
    Ready,
    Shadowed,
    State,
    Switched,
    Waits,
)
from skerry.core.slots import Outcome

MAX_STARTS = 3
FETCH_CEILING_SECONDS = 300.0


def waits(state: State, event: Waits, now: Moment) -> Outcome:
    """A policy keeps it waiting, or does not any more."""
    message = event.message[: slots.MAX_MESSAGE]
    if (state.waiting_for, state.message) == (event.waiting_for, message):
        return state, []
    if not event.waiting_for:
        return slots.replace(slots.go_on(state, now), message=message), []
    if not state.waiting_for:
        since = {"waiting_since": now.wall, "waiting_boot": now.boot, "waiting_monotonic": now.monotonic}
        state = slots.replace(state, **since)
    return slots.replace(state, waiting_for=event.waiting_for, message=message), []


def verified(state: State, event: Fetched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its blobs are there: lay its files."""
    slot = slots.candidate_of(state)
    fetched = state.fetched_bytes + event.network_bytes
    saved = state.saved_bytes + event.saved_bytes
    came = {"fetched_bytes": fetched, "saved_bytes": saved, "peer_bytes": state.peer_bytes + event.peer_bytes}
    slot = slots.replace(slot, verified_at=event.verified_at or slot.verified_at)
    after = slots.replace(state, phase="Verified", candidate=slot, **came, attempts=0, message="")
    return after, [Install(slot=slot)]


def fetch_failed(state: State, event: Faulted, now: Moment) -> Outcome:
    """Without a network try for ever, ever slower; all else is final."""
    came = {
        "fetched_bytes": state.fetched_bytes + event.network_bytes,
        "peer_bytes": state.peer_bytes + event.peer_bytes,
    }
    state = slots.replace(state, **came)
    if event.final:
        return slots.roll_back(state, event, now)
    message = f"{slots.sentence(state.phase, event)}; trying again"[: slots.MAX_MESSAGE]
    attempts = min(state.attempts + 1, 1000)
    again = Fetch(slot=slots.candidate_of(state), delay_ceiling=slots.backoff(1.0, attempts, FETCH_CEILING_SECONDS))
    return slots.replace(state, attempts=attempts, message=message), [again]


def installed(state: State, event: Laid, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its files are there: start its server."""
    state = slots.replace(state, phase="Installed", attempts=0, message="")
    return state, [slots.serve(state, slots.candidate_of(state))]


def install_failed(state: State, event: Faulted, now: Moment) -> Outcome:
    """What was damaged is fetched again; all else is final."""
    attempts = state.attempts + 1
    if not event.damaged or attempts >= MAX_STARTS:
        return slots.roll_back(state, event, now)
    again = slots.replace(state, phase="Fetching", attempts=attempts, message=slots.sentence(state.phase, event))
    return again, [Fetch(slot=slots.candidate_of(state))]


def starting(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its server runs; wait until it answers."""
    slot = slots.candidate_of(state)
    slot = slots.replace(slot, port=event.port, verified_at=slot.verified_at or event.verified_at)
    return slots.replace(state, phase="Starting", candidate=slot), []


def start_failed(state: State, event: Faulted | Exited, now: Moment) -> Outcome:
    """Start it again, a few times; fetch it again where it is damaged."""
    fault = slots.as_fault(state, event)
    attempts = state.attempts + 1
    if attempts >= MAX_STARTS or (fault.final and not fault.damaged):
        return slots.roll_back(state, fault, now)
    slot = slots.replace(slots.candidate_of(state), port=0)
    message = f"{slots.sentence(state.phase, fault)}; trying again"[: slots.MAX_MESSAGE]
    if fault.damaged:
        again = slots.replace(state, phase="Fetching", candidate=slot, attempts=attempts, message=message)
        return again, [slots.tidy(again), Fetch(slot=slot)]
    again = slots.replace(state, phase="Installed", candidate=slot, attempts=attempts, message=message)
    return again, [slots.serve(again, slot, delay_ceiling=slots.backoff(0.5, attempts, slots.RESTART_CEILING_SECONDS))]


def probing(state: State, event: Ready, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its server answers: run the golden samples."""
    return slots.replace(state, phase="Probing", message=""), [
        Probe(
            slot=slots.candidate_of(state), beside=state.current if slots.candidate_of(state).desired.compare else None
        )
    ]


def probed(state: State, event: Probed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """It has answered them: let it serve, or into the shadow first."""
    slot = slots.replace(slots.candidate_of(state), measurement=event.measurement)
    state = slots.replace(state, candidate=slot)
    if slot.desired.shadow is None or state.shadow is not None:
        return slots.switch(state)
    if state.current is None:
        return slots.switch(slots.replace(state, shadow=trial.no_shadow(slot.desired)))
    return slots.replace(state, phase="Shadowing", message=trial.message(slot, state.current)), []


def shadowed(state: State, event: Shadowed, now: Moment) -> Outcome:
    """Its time in the shadow is over: let it serve, or give it up."""
    slot = slots.candidate_of(state)
    state = slots.replace(state, shadow=event.report, message="")
    cause = "" if slot.desired.shadow is None else trial.refusal(slot.desired.shadow, event.report)
    if not cause:
        return slots.switch(state)
    element = f"{slot.desired.model_version} {slot.desired.variant}"
    fault = Faulted(serial=slot.serial, component="shadow mode", element=element, cause=cause)
    return slots.roll_back(state, fault, now)


def promoted(state: State, event: Switched, now: Moment) -> Outcome:
    """It serves; the one before it is kept."""
    slot = slots.replace(slots.candidate_of(state), since=now.wall)
    promoted = slots.replace(
        state,
        current=slot,
        candidate=None,
        previous=None if state.current is None else slots.protected_as(state.current, slot),
        endpoint=event.endpoint,
        attempts=0,
        crashes=0,
        distrusted=False,
        restarts=0,
        message="",
        up=True,
    )
    # It is Running once the one before it accepts nothing more.
    return promoted, [slots.tidy(promoted), *slots.vouch(slot)]
