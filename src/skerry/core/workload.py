"""The life of one workload on one device: what to do next, as a function of what is known and what just happened.

Rules:

1. `State` is the journal. The caller writes and fsyncs it before it carries out the actions that came with it (on a
   full disk it may go on where `must_be_durable` is false). Every action may be carried out twice, so a power cut
   between any two instructions is healed by stepping `Resumed`.
2. Each phase has one piece of work in hand (`RESUME`), whose outcome is the next event.
3. Two slots live side by side. `current` serves; `candidate` is being installed, on a port of its own. Only a candidate
   that has answered its golden samples becomes current, in one journal write; what it replaces stays on the disk as
   `previous` until the next success. Nothing is stopped before that. A candidate that asks for a fixed port is started
   on it, unless the current server holds it: then it moves there when it has become current.
4. Whatever a state does not name is stopped and erased (`Tidy`).
5. A network that is away is waited for without end; damaged or missing content is final; a candidate's server gets
   `MAX_STARTS` starts. As current it is started again for ever, ever slower; after `MAX_CRASHES` in a row the
   previous version takes its place.
6. What serves and turns out damaged gives way to the previous version, if there is one, and is fetched again.
7. Accuracy is measured here and judged by the hub. A server that does not answer as its signature says is a failure.
8. An event about a slot that is no longer named is void.

Lives here: the tables and the rules. States, events and actions are in `core.journal`. Must not live here: time,
randomness (the caller draws the jitter), I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from skerry.api.kinds.device import RunningRevision, WorkloadPhase, WorkloadStatus
from skerry.core.journal import (
    Action,
    Event,
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
    Resumed,
    Serve,
    Slot,
    State,
    Tidied,
    Tidy,
    Unwanted,
    Wanted,
)
from skerry.core.messages import WorkloadDesired

MAX_STARTS = 3
MAX_INTERRUPTIONS = 5
MAX_CRASHES = 5
SETTLED_SECONDS = 60.0
"""A server that answered this long starts with a clean record."""
FETCH_CEILING_SECONDS = 300.0
RESTART_CEILING_SECONDS = 60.0
MAX_MESSAGE = 2000
"""Characters of a sentence that is kept and reported."""

Outcome = tuple[State | None, list[Action]]

_LAUNCHED: tuple[WorkloadPhase, ...] = ("Installed", "Starting", "Probing")


# --- the tables ---------------------------------------------------------------------------------------------------

WISHES: Mapping[type[Any], str] = {
    Wanted: "want",
    Unwanted: "remove",
    Resumed: "resume",
    Tidied: "tidied",
}
"""Events about the workload as a whole, in any phase."""

INSTALLING: Mapping[tuple[WorkloadPhase, type[Any]], str] = {
    ("Fetching", Fetched): "verified",
    ("Fetching", Faulted): "fetch_failed",
    ("Verified", Laid): "installed",
    ("Verified", Faulted): "install_failed",
    ("Installed", Launched): "starting",
    ("Installed", Faulted): "start_failed",
    ("Starting", Launched): "starting",
    ("Starting", Ready): "probing",
    ("Starting", Faulted): "start_failed",
    ("Starting", Exited): "start_failed",
    ("Probing", Probed): "promoted",
    ("Probing", Faulted): "roll_back",
    ("Probing", Exited): "start_failed",
}
"""Events about the candidate, by phase; all others are void."""

SERVING: Mapping[type[Any], str] = {
    Launched: "launched_again",
    Ready: "answers",
    Faulted: "went_down",
    Exited: "went_down",
}
"""Events about the current slot, in any phase."""

RESUME: Mapping[WorkloadPhase, type[Any]] = {
    "Fetching": Fetch,
    "Verified": Install,
    "Installed": Serve,
    "Starting": Serve,
    "Probing": Serve,
}
"""The candidate's work in hand in each phase, taken up again after a restart of the agent."""


def step(state: State, event: Event, now: Moment) -> Outcome:
    """Return the state after the event and the actions to carry out, in order, once that state is on the disk.

    None instead of a state: the workload is gone and its journal may be deleted. An event that means nothing in this
    state changes nothing.
    """
    rule = _find_rule(state, event)
    return (state, []) if rule is None else _RULES[rule](state, event, now)


def report(state: State) -> WorkloadStatus:
    """Return the workload as the hub is told of it."""
    desired, current = state.desired, state.current
    slot = next((s for s in (state.candidate, current) if s is not None and s.desired == desired), None)
    running = None
    if current is not None and state.up and current.since is not None:
        running = RunningRevision(
            rollout=current.desired.rollout,
            revision=current.desired.revision,
            model_version=current.desired.model_version,
            variant=current.desired.variant,
            port=current.port,
            since=current.since,
        )
    return WorkloadStatus(
        name=state.name,
        rollout="" if desired is None else desired.rollout,
        revision=0 if desired is None else desired.revision,
        variant="" if desired is None else desired.variant,
        phase=state.phase,
        message=(state.message or state.failure)[:MAX_MESSAGE],
        measurement=None if slot is None else slot.measurement,
        running=running,
        served=slot is not None and slot.since is not None,
        restarts=state.restarts,
        fetched_bytes=state.fetched_bytes,
        install_seconds=state.install_seconds,
    )


def sentence(phase: WorkloadPhase, fault: Faulted) -> str:
    """Return what failed, as people read it: `While <phase>, <component> failed for "<element>": <cause>; <hint>`."""
    text = f'While {phase}, {fault.component} failed for "{fault.element}": {fault.cause}'
    return (f"{text}; {fault.hint}" if fault.hint else text)[:MAX_MESSAGE]


def same_content(one: WorkloadDesired, other: WorkloadDesired) -> bool:
    """Return whether two wishes differ at most in the rollout that carries them."""
    return msgspec.structs.replace(one, rollout="", revision=0) == msgspec.structs.replace(
        other, rollout="", revision=0
    )


def must_be_durable(before: State, after: State) -> bool:
    """Return whether this step may be acted on only once it is on the disk: it names a new slot, or another wish.

    All else is done again from the state before, so a full disk need not keep what is installed from being served.
    """
    roles = ((before.current, after.current), (before.candidate, after.candidate), (before.previous, after.previous))
    named = any(new is not None and (old is None or old.serial != new.serial) for old, new in roles)
    return named or before.desired != after.desired or (before.phase != after.phase and after.phase == "Removing")


def slots(state: State) -> list[Slot]:
    """Return the slots that are named, whose files and blobs must stay."""
    return [slot for slot in (state.current, state.candidate, state.previous) if slot is not None]


# --- rules: wishes ------------------------------------------------------------------------------------------------


def _find_rule(state: State, event: Event) -> str | None:
    if isinstance(event, Wanted | Unwanted | Resumed | Tidied):
        return WISHES[type(event)]
    if state.candidate is not None and event.serial == state.candidate.serial:
        return INSTALLING.get((state.phase, type(event)))
    if state.current is not None and event.serial == state.current.serial:
        return SERVING.get(type(event))
    return None


def _want(state: State, event: Wanted, now: Moment) -> Outcome:
    desired = event.desired
    removing = state.phase == "Removing"
    if state.desired == desired and not removing:
        return state, []
    fresh = _replace(
        state,
        desired=desired,
        message="",
        failure="",
        attempts=0,
        fetched_bytes=0,
        install_seconds=None,
        accepted_boot=now.boot,
        accepted_monotonic=now.monotonic,
    )
    if removing:
        fresh = _replace(fresh, current=None, previous=None, up=False)
    if fresh.candidate is not None and same_content(fresh.candidate.desired, desired):
        return _replace(
            fresh, candidate=_replace(fresh.candidate, desired=desired), fetched_bytes=state.fetched_bytes
        ), []
    if fresh.current is not None and same_content(fresh.current.desired, desired):
        kept = _replace(
            fresh,
            current=_replace(fresh.current, desired=desired, since=fresh.current.since if fresh.up else None),
            candidate=None,
            phase="Running" if fresh.up else "Starting",
            install_seconds=0.0 if fresh.up else None,
        )
        return kept, [_tidy(kept)]
    return _begin(fresh, desired)


def _begin(state: State, desired: WorkloadDesired) -> Outcome:
    slot = Slot(serial=state.serial + 1, desired=desired)
    begun = _replace(
        state, serial=slot.serial, candidate=slot, phase="Fetching", attempts=0, interruptions=0, message=""
    )
    return begun, [_tidy(begun), Fetch(slot=slot)]


def _remove(state: State, event: Unwanted, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    removing = _replace(
        state, phase="Removing", desired=None, current=None, candidate=None, previous=None, up=False, message=""
    )
    return removing, [_tidy(removing)]


def _tidied(state: State, event: Tidied, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    if state.phase == "Removing":
        return None, []
    if state.phase == "RollingBack" and state.current is None:
        return _replace(state, phase="Failed"), []
    if state.phase == "RollingBack" and state.up:
        return _replace(state, phase="Running"), []
    return state, []


def _resume(state: State, event: Resumed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    state = _replace(state, up=False)
    actions: list[Action] = [] if state.current is None else [_serve(state, state.current)]
    slot = state.candidate
    if slot is None:
        if state.phase == "Running":
            state = _replace(state, phase="Starting")
        return state, [_tidy(state), *actions]
    if state.phase in ("Starting", "Probing"):  # it may be what took the agent, or the machine, down
        if state.interruptions + 1 >= MAX_INTERRUPTIONS:
            fault = Faulted(
                serial=slot.serial,
                component="the inference server",
                element=state.name,
                cause=f"the agent was interrupted {MAX_INTERRUPTIONS} times while it started",
                hint="look at the device's memory and power supply",
            )
            rolled, tidy = _roll_back(state, fault, now)
            return rolled, [*tidy, *actions]
        state = _replace(state, phase="Starting", interruptions=state.interruptions + 1)
    work = RESUME[state.phase]
    resumed: Action = _serve(state, slot) if work is Serve else work(slot=slot)
    return state, [_tidy(state), *actions, resumed]


# --- rules: the candidate -----------------------------------------------------------------------------------------


def _verified(state: State, event: Fetched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    slot = _candidate(state)
    fetched = state.fetched_bytes + event.network_bytes
    return _replace(state, phase="Verified", fetched_bytes=fetched, attempts=0, message=""), [Install(slot=slot)]


def _fetch_failed(state: State, event: Faulted, now: Moment) -> Outcome:
    state = _replace(state, fetched_bytes=state.fetched_bytes + event.network_bytes)
    if event.final:
        return _roll_back(state, event, now)
    message = f"{sentence(state.phase, event)}; trying again"[:MAX_MESSAGE]
    attempts = min(state.attempts + 1, 1000)
    again = Fetch(slot=_candidate(state), delay_ceiling=_backoff(1.0, attempts, FETCH_CEILING_SECONDS))
    return _replace(state, attempts=attempts, message=message), [again]


def _installed(state: State, event: Laid, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    state = _replace(state, phase="Installed", attempts=0, message="")
    return state, [_serve(state, _candidate(state))]


def _install_failed(state: State, event: Faulted, now: Moment) -> Outcome:
    attempts = state.attempts + 1
    if not event.damaged or attempts >= MAX_STARTS:
        return _roll_back(state, event, now)
    again = _replace(state, phase="Fetching", attempts=attempts, message=sentence(state.phase, event))
    return again, [Fetch(slot=_candidate(state))]


def _starting(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    return _replace(state, phase="Starting", candidate=_replace(_candidate(state), port=event.port)), []


def _start_failed(state: State, event: Faulted | Exited, now: Moment) -> Outcome:
    fault = _as_fault(state, event)
    attempts = state.attempts + 1
    if attempts >= MAX_STARTS or (fault.final and not fault.damaged):
        return _roll_back(state, fault, now)
    slot = _replace(_candidate(state), port=0)
    message = f"{sentence(state.phase, fault)}; trying again"[:MAX_MESSAGE]
    if fault.damaged:
        again = _replace(state, phase="Fetching", candidate=slot, attempts=attempts, message=message)
        return again, [_tidy(again), Fetch(slot=slot)]
    again = _replace(state, phase="Installed", candidate=slot, attempts=attempts, message=message)
    return again, [_serve(again, slot, delay_ceiling=_backoff(0.5, attempts, RESTART_CEILING_SECONDS))]


def _probing(state: State, event: Ready, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    return _replace(state, phase="Probing", message=""), [Probe(slot=_candidate(state))]


def _promoted(state: State, event: Probed, now: Moment) -> Outcome:
    slot = _replace(_candidate(state), measurement=event.measurement, since=now.wall)
    promoted = _replace(
        state, current=slot, candidate=None, previous=state.current, attempts=0, crashes=0, restarts=0, message=""
    )
    fixed = slot.desired.serving.port
    if fixed not in (0, slot.port):
        # The old server held the port that was asked for. The new one has proved itself, so it moves there now.
        moving = _replace(promoted, phase="Starting", up=False, current=_replace(slot, port=0, since=None))
        return moving, [_tidy(moving), _serve(moving, _replace(slot, port=0))]
    promoted = _replace(promoted, phase="Running", up=True, install_seconds=_since_accepted(state, now))
    return promoted, [_tidy(promoted)]


def _roll_back(state: State, event: Faulted, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    failure = sentence(state.phase, event)
    rolled = _replace(state, phase="RollingBack", candidate=None, attempts=0, message="", failure=failure)
    return rolled, [_tidy(rolled)]


# --- rules: the current slot --------------------------------------------------------------------------------------


def _launched_again(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    return _replace(state, current=_replace(_current(state), port=event.port)), []


def _answers(state: State, event: Ready, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    current = _current(state)
    seconds = state.install_seconds
    if seconds is None and current.desired == state.desired:
        seconds = _since_accepted(state, now)
    up = _replace(state, up=True, current=_replace(current, since=current.since or now.wall), install_seconds=seconds)
    return (up if state.candidate is not None else _replace(up, phase="Running", message="")), []


def _went_down(state: State, event: Faulted | Exited, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    current, fault = _current(state), _as_fault(state, event)
    settled = isinstance(event, Exited) and event.uptime_seconds >= SETTLED_SECONDS
    crashes = 1 if settled else min(state.crashes + 1, 1000)
    phase: WorkloadPhase = "Running" if isinstance(event, Exited) else "Starting"
    message = sentence(phase, fault)
    down = _replace(state, up=False, crashes=crashes, restarts=state.restarts + 1)
    again = _serve(down, current, delay_ceiling=_backoff(0.5, crashes, RESTART_CEILING_SECONDS))
    if fault.damaged and crashes < MAX_CRASHES and (state.previous is not None or state.candidate is None):
        return _give_way(down, current)
    if state.candidate is not None:
        return down, [again]
    if crashes >= MAX_CRASHES and state.previous is not None:
        fallen = _replace(
            down, current=state.previous, previous=None, phase="RollingBack", crashes=0, message="", failure=message
        )
        return fallen, [_tidy(fallen), _serve(fallen, state.previous)]
    after: WorkloadPhase = "Failed" if crashes >= MAX_CRASHES else "Starting"
    if state.phase == "RollingBack" and after != "Failed":
        after = "RollingBack"
    return _replace(down, phase=after, message=message), [again]


def _give_way(down: State, damaged: Slot) -> Outcome:
    """The version before a damaged one serves while that one is fetched again, or another is being installed."""
    good = down.previous
    given = _replace(down, current=good, previous=None, crashes=0)
    work: list[Action] = []
    if given.candidate is None:
        given, [_, *work] = _begin(given, damaged.desired)
    serving = [] if good is None else [_serve(given, good)]
    return given, [_tidy(given), *serving, *work]


# --- parts of rules -----------------------------------------------------------------------------------------------


def _tidy(state: State) -> Tidy:
    running = set() if state.current is None else {state.current.serial}
    if state.candidate is not None and state.phase in _LAUNCHED:
        running.add(state.candidate.serial)
    return Tidy(running=frozenset(running), files=frozenset(slot.serial for slot in slots(state)))


def _serve(state: State, slot: Slot, *, delay_ceiling: float = 0.0) -> Serve:
    """The port asked for, else the slot's own, else the one before the current: two ports take turns."""
    fixed, current = slot.desired.serving.port, state.current
    others = [slot.port, 0 if state.previous is None else state.previous.port]
    ports = dict.fromkeys(port for port in (fixed, *others) if port)
    # Only our own old server is waited for to leave the fixed port; who cannot have it otherwise replaces nothing.
    ours = (
        current is not None and current.serial != slot.serial and fixed in (current.port, current.desired.serving.port)
    )
    return Serve(slot=slot, ports=tuple(ports), strict=bool(fixed) and not ours, delay_ceiling=delay_ceiling)


def _as_fault(state: State, event: Faulted | Exited) -> Faulted:
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


def _since_accepted(state: State, now: Moment) -> float | None:
    return round(now.monotonic - state.accepted_monotonic, 3) if now.boot == state.accepted_boot else None


def _backoff(first: float, attempts: int, ceiling: float) -> float:
    return float(min(ceiling, first * 2 ** min(attempts - 1, 30)))


def _candidate(state: State) -> Slot:
    if state.candidate is None:
        raise AssertionError("the table leads here only with a candidate")
    return state.candidate


def _current(state: State) -> Slot:
    if state.current is None:
        raise AssertionError("the table leads here only with a current slot")
    return state.current


def _replace(struct: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(struct, **changes)


_RULES: Mapping[str, Callable[[State, Any, Moment], Outcome]] = {
    "want": _want,
    "remove": _remove,
    "resume": _resume,
    "tidied": _tidied,
    "verified": _verified,
    "fetch_failed": _fetch_failed,
    "installed": _installed,
    "install_failed": _install_failed,
    "starting": _starting,
    "start_failed": _start_failed,
    "probing": _probing,
    "promoted": _promoted,
    "roll_back": _roll_back,
    "launched_again": _launched_again,
    "answers": _answers,
    "went_down": _went_down,
}
