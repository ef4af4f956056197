"""The rules of a workload's current slot: it serves, it ends, it is started again or gives way.

Lives here: one function for each rule of `core.workload.SERVING`. Must not live here: which event leads to which rule
(that table), what the rules share (`core.slots`). Pure.
"""

from __future__ import annotations

from skerry.api.kinds.device import ShadowReport, WorkloadPhase
from skerry.core import slots
from skerry.core.journal import (
    Action,
    Exited,
    Faulted,
    Launched,
    Moment,
    Observed,
    Ready,
    Slot,
    State,
    Trusting,
    Vouched,
)
from skerry.core.slots import Outcome

MAX_CRASHES = 5
SETTLED_SECONDS = 60.0
"""A server that answered this long starts with a clean record."""


def launched_again(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its server runs, and may have another private port."""
    current = slots.current_of(state)
    verified_at = current.verified_at or event.verified_at
    current = slots.replace(current, port=event.port, verified_at=verified_at)
    return slots.replace(state, current=current, distrusted=False), []


def answers(state: State, event: Ready, now: Moment) -> Outcome:
    """It serves."""
    current, seconds = slots.current_of(state), slots.installed_within(state, now)
    up = slots.replace(
        state,
        up=True,
        endpoint=event.endpoint or state.endpoint,
        current=slots.replace(current, since=current.since or now.wall),
        install_seconds=seconds,
    )
    return (up if state.candidate is not None else slots.replace(up, phase="Running", message="")), []


def observed(state: State, event: Observed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """A window of its observation is worth keeping."""
    about = state.up and state.observation is not None and slots.current_of(state).desired == state.desired
    return (slots.replace(state, observation=event.observation) if about else state), []


def vouched(state: State, event: Vouched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """It is judged by the signatures that its wish names now, at the time they were found good."""
    current = slots.current_of(state)
    if current.desired != event.desired:
        return state, []  # there are newer ones by now, and they are on their way
    current = slots.replace(current, kept=None, verified_at=event.verified_at or current.verified_at)
    return slots.replace(state, current=current), [slots.serve(state, current)] if state.distrusted else []


def trusting(state: State, event: Trusting, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """What was refused by what this device trusted before is tried again, at once."""
    if state.phase == "Removing":
        return state, []
    current, desired, actions = state.current, state.desired, list[Action]()
    if current is not None:
        actions += slots.vouch(current)
        if state.distrusted:
            state = slots.replace(state, crashes=0)
            actions.append(slots.serve(state, current))
    if state.refusal != "Trust" or state.candidate is not None or desired is None:
        return state, actions
    begun, work = slots.begin(slots.replace(state, failure="", refusal=""), desired)
    return begun, [*actions, *work]


def went_down(state: State, event: Faulted | Exited, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Start it again, ever slower; after too many ends in a row the previous version takes its place."""
    current, fault = slots.current_of(state), slots.as_fault(state, event)
    if fault.refusal == "Trust":
        return _distrusted(state, current, fault)
    settled = isinstance(event, Exited) and event.uptime_seconds >= SETTLED_SECONDS
    crashes = 1 if settled else min(state.crashes + 1, 1000)
    phase: WorkloadPhase = "Running" if isinstance(event, Exited) else "Starting"
    message = slots.sentence(phase, fault)
    down = slots.replace(state, up=False, crashes=crashes, restarts=state.restarts + 1, distrusted=False)
    again = slots.serve(down, current, delay_ceiling=slots.backoff(0.5, crashes, slots.RESTART_CEILING_SECONDS))
    if fault.damaged and crashes < MAX_CRASHES and (state.previous is not None or state.candidate is None):
        return _give_way(down, current)
    spent = crashes >= MAX_CRASHES
    if state.candidate is not None:
        return _beside_candidate(down, current, again, spent=spent)
    if spent and state.previous is not None:
        return _fall(down, state.previous, message)
    after: WorkloadPhase = "Failed" if spent else "Starting"
    if state.phase == "RollingBack" and after != "Failed":
        after = "RollingBack"
    return slots.replace(down, phase=after, message=message), [again]


def _distrusted(state: State, current: Slot, fault: Faulted) -> Outcome:
    """No server was started, so none has failed: it is asked again now and then, and when the policy changes.

    A policy that does not cover it has the version before serve. Without any policy that version is no better.
    """
    down = slots.replace(state, up=False, distrusted=True)
    again = slots.serve(down, current, delay_ceiling=slots.RESTART_CEILING_SECONDS)
    if state.candidate is not None:
        return _beside_candidate(down, current, again, spent=not fault.passing)
    message = slots.sentence("Starting", fault)
    if state.previous is not None and not fault.passing:
        if current.kept is not None:  # what it is signed with by now has not come yet
            return _give_way(down, current)
        refusal = "Trust" if state.desired == current.desired else state.refusal
        return _fall(slots.replace(down, distrusted=False, refusal=refusal), state.previous, message)
    phase: WorkloadPhase = "Starting" if fault.passing else "Failed"
    return slots.replace(down, phase=phase, message=message), [again]


def _beside_candidate(down: State, current: Slot, again: Action, *, spent: bool) -> Outcome:
    if spent and down.phase == "Shadowing" and down.shadow is None:
        # What it is compared with does not work any more: better the one that has answered its golden samples.
        let, switch = slots.switch(slots.replace(down, shadow=ShadowReport(beside=current.desired.model_version)))
        return let, [again, *switch]
    return down, [again]


def _fall(down: State, previous: Slot, message: str) -> Outcome:
    fallen = slots.replace(
        down, current=previous, previous=None, phase="RollingBack", crashes=0, message="", failure=message
    )
    return fallen, [slots.tidy(fallen), slots.serve(fallen, previous), *slots.vouch(previous)]


def _give_way(down: State, damaged: Slot) -> Outcome:
    """The version before a damaged one serves while that one is fetched again, or another is being installed."""
    good = down.previous
    given = slots.replace(down, current=good, previous=None, crashes=0, distrusted=False)
    work: list[Action] = []
    if given.candidate is None:
        given, [_, *work] = slots.begin(given, damaged.desired)
    serving = [] if good is None else [slots.serve(given, good)]
    return given, [slots.tidy(given), *serving, *work]
