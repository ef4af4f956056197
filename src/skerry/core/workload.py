"""The life of one workload on one device: what to do next, as a function of what is known and what just happened.

Rules:

1. `State` is the journal. The caller writes and fsyncs it before it carries out the actions that came with it (on a
   full disk it may go on where `must_be_durable` is false). Every action may be carried out twice, so a power cut
   between any two instructions is healed by stepping `Resumed`.
2. Each phase has one piece of work in hand (`RESUME`), whose outcome is the next event.
3. Two slots live side by side. `current` serves; `candidate` is being installed, on a private port. Only a candidate
   that has answered its golden samples is let to the workload's endpoint (`Switch`), beside the current one; once it
   accepts there it becomes current, in one journal write. What it replaces stays on the disk as `previous` until the
   next success. Nothing is stopped before that.
4. Whatever a state does not name is stopped and erased (`Tidy`).
5. A network that is away is waited for without end; damaged or missing content is final; a candidate's server gets
   `MAX_STARTS` starts. As current it is started again for ever, ever slower; after `MAX_CRASHES` in a row the
   previous version takes its place.
6. What serves and turns out damaged gives way to the previous version, if there is one, and is fetched again.
7. Accuracy is measured here and judged by the hub. A server that does not answer as its signature says is a failure.
8. An event about a slot that is no longer named is void.
9. A policy (a hold, a window, the link) may keep the work in hand waiting. That is told (`Waits`), fails nothing,
   counts as no attempt, and changes no phase.

Lives here: the tables and the rules. States, events and actions are in `core.journal`. Must not live here: time,
randomness (the caller draws the jitter), I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from skerry.api.kinds.device import RunningRevision, ShadowReport, WorkloadPhase, WorkloadStatus
from skerry.core import trial
from skerry.core.journal import (
    Action,
    Endpoint,
    Event,
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Install,
    Laid,
    Launched,
    Moment,
    Observed,
    Probe,
    Probed,
    Ready,
    Resumed,
    Serve,
    Shadowed,
    Slot,
    State,
    Switch,
    Switched,
    Tidied,
    Tidy,
    Unwanted,
    Waits,
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

_LAUNCHED: tuple[WorkloadPhase, ...] = ("Installed", "Starting", "Probing", "Shadowing")


# --- the tables ---------------------------------------------------------------------------------------------------

WISHES: Mapping[type[Any], str] = {
    Wanted: "want",
    Unwanted: "remove",
    Resumed: "resume",
    Tidied: "tidied",
}
"""Events about the workload as a whole, in any phase."""

INSTALLING: Mapping[tuple[WorkloadPhase, type[Any]], str] = {
    ("Fetching", Waits): "waits",
    ("Installed", Waits): "waits",
    ("Starting", Waits): "waits",
    ("Probing", Waits): "waits",
    ("Shadowing", Waits): "waits",
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
    ("Probing", Probed): "probed",
    ("Probing", Switched): "promoted",
    ("Probing", Faulted): "roll_back",
    ("Probing", Exited): "start_failed",
    ("Shadowing", Shadowed): "shadowed",
    ("Shadowing", Switched): "promoted",
    ("Shadowing", Faulted): "roll_back",
    ("Shadowing", Exited): "start_failed",
}
"""Events about the candidate, by phase; all others are void."""

SERVING: Mapping[type[Any], str] = {
    Launched: "launched_again",
    Ready: "answers",
    Faulted: "went_down",
    Exited: "went_down",
    Observed: "observed",
}
"""Events about the current slot, in any phase."""

RESUME: Mapping[WorkloadPhase, type[Any]] = {
    "Fetching": Fetch,
    "Verified": Install,
    "Installed": Serve,
    "Starting": Serve,
    "Probing": Serve,
    "Shadowing": Serve,
}
"""The candidate's work in hand in each phase, taken up again after a restart of the agent."""


def step(state: State, event: Event, now: Moment) -> Outcome:
    """Return the state after the event and the actions to carry out, in order, once that state is on the disk.

    None instead of a state: the workload is gone and its journal may be deleted. An event that means nothing in this
    state changes nothing.
    """
    rule = _find_rule(state, event)
    if rule is None:
        return state, []
    after, actions = _RULES[rule](state, event, now)
    if after is not None and after is not state and rule in _MOVES and after.waiting_for:
        after = _go_on(after, now)
    if after is None:
        return None, actions
    after, begun = trial.follow(state, event, after)
    return after, [*actions, *begun]


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
            port=state.endpoint,
            since=current.since,
        )
    return WorkloadStatus(
        name=state.name,
        rollout="" if desired is None else desired.rollout,
        revision=0 if desired is None else desired.revision,
        variant="" if desired is None else desired.variant,
        phase=state.phase,
        message=(state.message or state.failure)[:MAX_MESSAGE],
        refusal=state.refusal,
        waiting_for=state.waiting_for,
        waited_seconds=state.waited_seconds,
        measurement=None if slot is None else slot.measurement,
        observation=state.observation,
        shadow=state.shadow,
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
    """Return whether two wishes differ at most in the rollout that carries them, and in how they come and are tried."""
    how = {"rollout": "", "revision": 0, "require_unmetered": False, "windows": None}
    return bool(_replace(trial.plain(one), **how) == _replace(trial.plain(other), **how))


def must_be_durable(before: State, after: State) -> bool:
    """Return whether this step may be acted on only once it is on the disk: it names or admits a slot, or another wish.

    All else is done again from the state before, so a full disk need not keep what is installed from being served.
    """
    roles = ((before.current, after.current), (before.candidate, after.candidate), (before.previous, after.previous))
    named = any(
        new is not None and (old is None or (old.serial, old.admitted) != (new.serial, new.admitted))
        for old, new in roles
    )
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
        refusal="",
        attempts=0,
        fetched_bytes=0,
        waited_seconds=0.0,
        install_seconds=None,
        accepted_boot=now.boot,
        accepted_monotonic=now.monotonic,
    )
    anew = state.desired is None or state.desired.rollout != desired.rollout
    if anew:
        fresh = _replace(fresh, observation=None, shadow=None)
    if removing:
        fresh = _replace(fresh, current=None, previous=None, up=False)
    if fresh.candidate is not None and same_content(fresh.candidate.desired, desired):
        return _replace(
            fresh, candidate=_replace(fresh.candidate, desired=desired), fetched_bytes=state.fetched_bytes
        ), []
    if fresh.current is not None and same_content(fresh.current.desired, desired):
        # One that is down has not served for this wish yet.
        slot = _replace(fresh.current, desired=desired, since=fresh.current.since if fresh.up else None)
        kept = _replace(
            fresh,
            current=trial.replacing_nothing(slot) if anew else slot,
            shadow=trial.no_shadow(desired) if anew else fresh.shadow,
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
    if state.candidate is None and state.current is not None and state.up and state.phase != "Running":
        return _replace(state, phase="Running", install_seconds=_installed_within(state, now)), []
    return state, []


def _resume(state: State, event: Resumed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    state = _replace(state, up=False)
    actions: list[Action] = [] if state.current is None else [_serve(state, state.current)]
    slot = state.candidate
    if slot is None:
        if state.current is not None and state.phase in ("Running", "Probing", "Shadowing"):
            state = _replace(state, phase="Starting")
        return state, [_tidy(state), *actions]
    if state.phase in ("Starting", "Probing", "Shadowing"):  # it may be what took the agent, or the machine, down
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


def _waits(state: State, event: Waits, now: Moment) -> Outcome:
    message = event.message[:MAX_MESSAGE]
    if (state.waiting_for, state.message) == (event.waiting_for, message):
        return state, []
    if not event.waiting_for:
        return _replace(_go_on(state, now), message=message), []
    if not state.waiting_for:
        since = {"waiting_since": now.wall, "waiting_boot": now.boot, "waiting_monotonic": now.monotonic}
        state = _replace(state, **since)
    return _replace(state, waiting_for=event.waiting_for, message=message), []


def _go_on(state: State, now: Moment) -> State:
    """The wait is over; across a reboot only the wall clock can tell how long it was."""
    passed = now.monotonic - state.waiting_monotonic
    if now.boot != state.waiting_boot and state.waiting_since is not None:
        passed = (now.wall - state.waiting_since).total_seconds()
    waited = round(state.waited_seconds + max(passed, 0.0), 3) if state.waiting_for else state.waited_seconds
    return cast(State, _replace(state, waiting_for="", waiting_since=None, waited_seconds=waited))


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
    return _replace(state, phase="Probing", message=""), [
        Probe(slot=_candidate(state), beside=state.current if _candidate(state).desired.compare else None)
    ]


def _probed(state: State, event: Probed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    slot = _replace(_candidate(state), measurement=event.measurement)
    state = _replace(state, candidate=slot)
    if slot.desired.shadow is None or state.shadow is not None:
        return _switching(state)
    if state.current is None:
        return _switching(_replace(state, shadow=trial.no_shadow(slot.desired)))
    return _replace(state, phase="Shadowing", message=trial.message(slot, state.current)), []


def _shadowed(state: State, event: Shadowed, now: Moment) -> Outcome:
    slot = _candidate(state)
    state = _replace(state, shadow=event.report, message="")
    cause = "" if slot.desired.shadow is None else trial.refusal(slot.desired.shadow, event.report)
    if not cause:
        return _switching(state)
    element = f"{slot.desired.model_version} {slot.desired.variant}"
    fault = Faulted(serial=slot.serial, component="shadow mode", element=element, cause=cause)
    return _roll_back(state, fault, now)


def _switching(state: State) -> Outcome:
    slot = _replace(_candidate(state), admitted=True)
    return _replace(state, candidate=slot), [Switch(slot=slot, endpoint=_endpoint(state, slot))]


def _promoted(state: State, event: Switched, now: Moment) -> Outcome:
    slot = _replace(_candidate(state), since=now.wall)
    promoted = _replace(
        state,
        current=slot,
        candidate=None,
        previous=state.current,
        endpoint=event.endpoint,
        attempts=0,
        crashes=0,
        restarts=0,
        message="",
        up=True,
    )
    return promoted, [_tidy(promoted)]  # it is Running once the one before it accepts nothing more


def _roll_back(state: State, event: Faulted, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    failure = sentence(state.phase, event)
    rolled = _replace(
        state,
        phase="RollingBack",
        candidate=None,
        attempts=0,
        message="",
        failure=failure,
        refusal=event.refusal,
    )
    return rolled, [_tidy(rolled)]


# --- rules: the current slot --------------------------------------------------------------------------------------


def _launched_again(state: State, event: Launched, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    return _replace(state, current=_replace(_current(state), port=event.port)), []


def _answers(state: State, event: Ready, now: Moment) -> Outcome:
    current, seconds = _current(state), _installed_within(state, now)
    up = _replace(
        state,
        up=True,
        endpoint=event.endpoint or state.endpoint,
        current=_replace(current, since=current.since or now.wall),
        install_seconds=seconds,
    )
    return (up if state.candidate is not None else _replace(up, phase="Running", message="")), []


def _observed(state: State, event: Observed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    about = state.up and state.observation is not None and _current(state).desired == state.desired
    return (_replace(state, observation=event.observation) if about else state), []


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
    if state.phase == "Shadowing" and state.candidate and state.shadow is None and crashes >= MAX_CRASHES:
        # What it is compared with does not work any more: better the one that has answered its golden samples.
        down, switch = _switching(_replace(down, shadow=ShadowReport(beside=current.desired.model_version)))
        return down, [again, *switch]
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
    is_current = state.current is not None and slot.serial == state.current.serial
    return Serve(slot=slot, endpoint=_endpoint(state, slot) if is_current else None, delay_ceiling=delay_ceiling)


def _endpoint(state: State, slot: Slot) -> Endpoint:
    """The port that was asked for and no other, else the workload's own for as long as it is to be had."""
    fixed = slot.desired.serving.port
    return Endpoint(port=fixed or state.endpoint, strict=bool(fixed))


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


def _installed_within(state: State, now: Moment) -> float | None:
    if state.install_seconds is not None or _current(state).desired != state.desired:
        return state.install_seconds
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
    "waits": _waits,
    "verified": _verified,
    "fetch_failed": _fetch_failed,
    "installed": _installed,
    "install_failed": _install_failed,
    "starting": _starting,
    "start_failed": _start_failed,
    "probing": _probing,
    "probed": _probed,
    "shadowed": _shadowed,
    "observed": _observed,
    "promoted": _promoted,
    "roll_back": _roll_back,
    "launched_again": _launched_again,
    "answers": _answers,
    "went_down": _went_down,
}

_MOVES = frozenset({"want", "remove", "resume", *INSTALLING.values()} - {"waits"})
"""Rules after which the candidate no longer waits for what it waited for."""
