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

Lives here: the tables, and the rules about a workload as a whole; those about its candidate are in `core.candidate`,
about what serves in `core.current`; states, events and actions in `core.journal`. Must not live here: time, randomness
(the caller draws the jitter), I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skerry.api.kinds.device import RunningRevision, WorkloadPhase, WorkloadStatus
from skerry.core import candidate, current, slots, trial
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
    Observed,
    Probed,
    Ready,
    Resumed,
    Serve,
    Shadowed,
    Slot,
    State,
    Switched,
    Tidied,
    Trusting,
    Unwanted,
    Vouched,
    Waits,
    Wanted,
)
from skerry.core.messages import WorkloadDesired
from skerry.core.slots import Outcome

MAX_INTERRUPTIONS = 5


# --- the tables ---------------------------------------------------------------------------------------------------

WISHES: Mapping[type[Any], str] = {
    Wanted: "want",
    Unwanted: "remove",
    Resumed: "resume",
    Trusting: "trusting",
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
    Vouched: "vouched",
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
        after = slots.go_on(after, now)
    if after is None:
        return None, actions
    after, begun = trial.follow(state, event, after)
    return after, [*actions, *begun]


def report(state: State) -> WorkloadStatus:
    """Return the workload as the hub is told of it."""
    desired, serving = state.desired, state.current
    slot = next((s for s in (state.candidate, serving) if s is not None and s.desired == desired), None)
    running = None
    if serving is not None and state.up and serving.since is not None:
        running = RunningRevision(
            rollout=serving.desired.rollout,
            revision=serving.desired.revision,
            model_version=serving.desired.model_version,
            variant=serving.desired.variant,
            port=state.endpoint,
            since=serving.since,
            deployment_uid=serving.desired.deployment_uid,
        )
    return WorkloadStatus(
        name=state.name,
        rollout="" if desired is None else desired.rollout,
        deployment_uid="" if desired is None else desired.deployment_uid,
        revision=0 if desired is None else desired.revision,
        variant="" if desired is None else desired.variant,
        phase=state.phase,
        message=(state.message or state.failure)[: slots.MAX_MESSAGE],
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
        saved_bytes=state.saved_bytes,
        peer_bytes=state.peer_bytes,
        install_seconds=state.install_seconds,
    )


def same_content(one: WorkloadDesired, other: WorkloadDesired) -> bool:
    """Return whether two wishes differ at most in the rollout that carries them, and in how they come and are tried."""
    how = {
        "rollout": "",
        "revision": 0,
        "deployment_uid": "",
        "require_unmetered": False,
        "windows": None,
        "deltas": [],
        "signatures": [],
        "card": None,
    }
    return bool(slots.replace(trial.plain(one), **how) == slots.replace(trial.plain(other), **how))


def _same_rollout(one: WorkloadDesired, other: WorkloadDesired) -> bool:
    """Whether one rollout wishes both; a deployment that is made again has rollouts of the same names."""
    told = bool(one.deployment_uid and other.deployment_uid)
    return one.rollout == other.rollout and (not told or one.deployment_uid == other.deployment_uid)


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


# --- rules: wishes ------------------------------------------------------------------------------------------------


def _find_rule(state: State, event: Event) -> str | None:
    if isinstance(event, Wanted | Unwanted | Resumed | Trusting | Tidied):
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
    fresh = slots.replace(
        state,
        desired=desired,
        message="",
        failure="",
        refusal="",
        attempts=0,
        fetched_bytes=0,
        saved_bytes=0,
        peer_bytes=0,
        waited_seconds=0.0,
        install_seconds=None,
        accepted_boot=now.boot,
        accepted_monotonic=now.monotonic,
    )
    anew = state.desired is None or not _same_rollout(state.desired, desired)
    if anew:
        fresh = slots.replace(fresh, observation=None, shadow=None)
    if removing:
        fresh = slots.replace(fresh, current=None, previous=None, up=False)
    if fresh.candidate is not None and same_content(fresh.candidate.desired, desired):
        return slots.replace(
            fresh,
            candidate=_as_wished(fresh, fresh.candidate, desired),
            fetched_bytes=state.fetched_bytes,
            saved_bytes=state.saved_bytes,
            peer_bytes=state.peer_bytes,
        ), []
    if fresh.current is not None and same_content(fresh.current.desired, desired):
        # One that is down has not served for this wish yet.
        slot = slots.named(fresh.current, desired)
        slot = slots.replace(slot, since=slot.since if fresh.up else None)
        kept = slots.replace(
            fresh,
            current=trial.replacing_nothing(slot) if anew else slot,
            shadow=trial.no_shadow(desired) if anew else fresh.shadow,
            candidate=None,
            phase="Running" if fresh.up else "Starting",
            install_seconds=0.0 if fresh.up else None,
        )
        return kept, [slots.tidy(kept), *slots.vouch(slot)]
    return slots.begin(fresh, desired)


def _as_wished(state: State, candidate: Slot, desired: WorkloadDesired) -> Slot:
    """One that is still being fetched takes everything from the wish; one that is here is judged by what came."""
    return slots.named(candidate, desired) if state.phase != "Fetching" else slots.replace(candidate, desired=desired)


def _remove(state: State, event: Unwanted, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    removing = slots.replace(
        state, phase="Removing", desired=None, current=None, candidate=None, previous=None, up=False, message=""
    )
    return removing, [slots.tidy(removing)]


def _tidied(state: State, event: Tidied, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    if state.phase == "Removing":
        return None, []
    if state.phase == "RollingBack" and state.current is None:
        return slots.replace(state, phase="Failed"), []
    if state.candidate is None and state.current is not None and state.up and state.phase != "Running":
        return slots.replace(state, phase="Running", install_seconds=slots.installed_within(state, now)), []
    return state, []


def _resume(state: State, event: Resumed, now: Moment) -> Outcome:  # noqa: ARG001 - a rule's shape
    state = slots.replace(state, up=False, distrusted=False)
    actions: list[Action] = []
    if state.current is not None:
        actions = [slots.serve(state, state.current), *slots.vouch(state.current)]
    slot = state.candidate
    if slot is None:
        if state.current is not None and state.phase in ("Running", "Probing", "Shadowing"):
            state = slots.replace(state, phase="Starting")
        return state, [slots.tidy(state), *actions]
    if state.phase in ("Starting", "Probing", "Shadowing"):  # it may be what took the agent, or the machine, down
        if state.interruptions + 1 >= MAX_INTERRUPTIONS:
            fault = Faulted(
                serial=slot.serial,
                component="the inference server",
                element=state.name,
                cause=f"the agent was interrupted {MAX_INTERRUPTIONS} times while it started",
                hint="look at the device's memory and power supply",
            )
            rolled, tidy = slots.roll_back(state, fault, now)
            return rolled, [*tidy, *actions]
        state = slots.replace(state, phase="Starting", interruptions=state.interruptions + 1)
    work = RESUME[state.phase]
    resumed: Action = slots.serve(state, slot) if work is Serve else work(slot=slot)
    return state, [slots.tidy(state), *actions, resumed]


_RULES: Mapping[str, Callable[[State, Any, Moment], Outcome]] = {
    "want": _want,
    "remove": _remove,
    "resume": _resume,
    "tidied": _tidied,
    "waits": candidate.waits,
    "verified": candidate.verified,
    "fetch_failed": candidate.fetch_failed,
    "installed": candidate.installed,
    "install_failed": candidate.install_failed,
    "starting": candidate.starting,
    "start_failed": candidate.start_failed,
    "probing": candidate.probing,
    "probed": candidate.probed,
    "shadowed": candidate.shadowed,
    "observed": current.observed,
    "vouched": current.vouched,
    "trusting": current.trusting,
    "promoted": candidate.promoted,
    "roll_back": slots.roll_back,
    "launched_again": current.launched_again,
    "answers": current.answers,
    "went_down": current.went_down,
}

_MOVES = frozenset({"want", "remove", "resume", *INSTALLING.values()} - {"waits"})
"""Rules after which the candidate no longer waits for what it waited for."""
