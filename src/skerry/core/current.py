"""The rules of a workload's current slot: it serves, it ends, it is started again or gives way.

Lives here: one function for each rule of `core.workload.SERVING`. Must not live here: which event leads to which rule
(that table), what the rules share (`core.slots`). Pure.
"""

from __future__ import annotations

from skerry.api.kinds.device import ShadowReport, WorkloadPhase
from skerry.core import slots
from skerry.core.journal import Action, Exited, Faulted, Launched, Moment, Observed, Ready, Slot, State
from skerry.core.slots import Outcome

MAX_CRASHES = 5
SETTLED_SECONDS = 60.0
"""A server that answered this long starts with a clean record."""


def launched_again(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Its server runs, and may have another private port."""
    return slots.replace(state, current=slots.replace(slots.current_of(state), port=event.port)), []


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


def went_down(state: State, event: Faulted | Exited, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    """Start it again, ever slower; after too many ends in a row the previous version takes its place."""
    current, fault = slots.current_of(state), slots.as_fault(state, event)
    settled = isinstance(event, Exited) and event.uptime_seconds >= SETTLED_SECONDS
    crashes = 1 if settled else min(state.crashes + 1, 1000)
    phase: WorkloadPhase = "Running" if isinstance(event, Exited) else "Starting"
    message = slots.sentence(phase, fault)
    down = slots.replace(state, up=False, crashes=crashes, restarts=state.restarts + 1)
    again = slots.serve(down, current, delay_ceiling=slots.backoff(0.5, crashes, slots.RESTART_CEILING_SECONDS))
    if fault.damaged and crashes < MAX_CRASHES and (state.previous is not None or state.candidate is None):
        return _give_way(down, current)
    if state.phase == "Shadowing" and state.candidate and state.shadow is None and crashes >= MAX_CRASHES:
        # What it is compared with does not work any more: better the one that has answered its golden samples.
        down, switch = slots.switch(slots.replace(down, shadow=ShadowReport(beside=current.desired.model_version)))
        return down, [again, *switch]
    if state.candidate is not None:
        return down, [again]
    if crashes >= MAX_CRASHES and state.previous is not None:
        fallen = slots.replace(
            down, current=state.previous, previous=None, phase="RollingBack", crashes=0, message="", failure=message
        )
        return fallen, [slots.tidy(fallen), slots.serve(fallen, state.previous)]
    after: WorkloadPhase = "Failed" if crashes >= MAX_CRASHES else "Starting"
    if state.phase == "RollingBack" and after != "Failed":
        after = "RollingBack"
    return slots.replace(down, phase=after, message=message), [again]


def _give_way(down: State, damaged: Slot) -> Outcome:
    """The version before a damaged one serves while that one is fetched again, or another is being installed."""
    good = down.previous
    given = slots.replace(down, current=good, previous=None, crashes=0)
    work: list[Action] = []
    if given.candidate is None:
        given, [_, *work] = slots.begin(given, damaged.desired)
    serving = [] if good is None else [slots.serve(given, good)]
    return given, [slots.tidy(given), *serving, *work]
