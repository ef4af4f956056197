"""Trying a new version beside the old one and watching it afterwards: what is asked, begun, counted and refused. Pure.

The hub asks (`ask`), the device's state machine follows (`follow`): when shadow mode and windows of observation begin,
and which ends of a server count. The device alone decides whether shadow mode lets a version serve (`refusal`), by the
number that the hub sent along: it cannot wait for a hub that may be away.

Lives here: these rules, for both sides. Must not live here: verdicts of the hub (`core.gates`), the life of a workload
(`core.workload`), reading counters (`agent.observe`).
"""

from __future__ import annotations

import msgspec

from skerry.api import duration
from skerry.api.kinds.device import Comparison, Observation, ShadowReport
from skerry.api.kinds.model_deployment import Strategy
from skerry.core.journal import Action, Event, Exited, Observe, ShadowBeside, Slot, State
from skerry.core.messages import ObserveDesired, ShadowDesired, WorkloadDesired


def ask(workload: WorkloadDesired, strategy: Strategy) -> WorkloadDesired:
    """Return what a device is told, with what this strategy's gates want measured; unchanged when they want nothing."""
    gates, shadow = strategy.gates, strategy.shadow
    observes = gates.health is not None or gates.error_rate is not None
    ratio = gates.latency_p95 is not None and gates.latency_p95.max_ratio is not None
    gate = gates.shadow_agreement
    asked = ShadowDesired()
    if shadow is not None:
        asked = ShadowDesired(
            share=shadow.share,
            seconds=duration.to_seconds(shadow.duration),
            min_requests=shadow.min_requests,
            min_agreement=None if gate is None else gate.min,
            missing="ignore" if gate is None else gate.missing,
        )
    return msgspec.structs.replace(
        workload,
        compare=gates.agreement is not None or ratio,
        observe=ObserveDesired(
            seconds=duration.to_seconds(strategy.bake_time),
            min_requests=0 if gates.error_rate is None else gates.error_rate.min_samples,
        )
        if observes
        else None,
        shadow=None if shadow is None else asked,
    )


def plain(workload: WorkloadDesired) -> WorkloadDesired:
    """Return it with nothing to be tried or measured beyond the golden samples: going back is no trial."""
    return msgspec.structs.replace(workload, compare=False, observe=None, shadow=None)


def replacing_nothing(slot: Slot) -> Slot:
    """Return the slot that serves on as another revision: it was compared with nothing this time."""
    measured = slot.measurement
    if measured is None:
        return slot
    comparison = Comparison() if slot.desired.compare else None
    return msgspec.structs.replace(slot, measurement=msgspec.structs.replace(measured, comparison=comparison))


def no_shadow(desired: WorkloadDesired) -> ShadowReport | None:
    """Return what is reported of shadow mode where nothing is replaced."""
    return None if desired.shadow is None else ShadowReport()


def message(slot: Slot, beside: Slot) -> str:
    """Return what goes on in shadow mode, in one sentence."""
    asked = slot.desired.shadow or ShadowDesired()
    old, new = beside.desired.model_version, slot.desired.model_version
    return f"{new} answers {asked.share:.4g} of the requests of {old} in its shadow for {asked.seconds:.6g} s"


def follow(before: State, event: Event, after: State) -> tuple[State, list[Action]]:
    """Return the state after a step, with what the trial adds to it, and what begins now.

    Derived from the two states alone, so that a restart of agent or server begins anew whatever was under way.
    """
    if _observed(before) and isinstance(event, Exited) and before.current and event.serial == before.current.serial:
        seen = after.observation or Observation()
        after = msgspec.structs.replace(
            after, observation=msgspec.structs.replace(seen, restarts=min(seen.restarts + 1, 1_000_000))
        )
    actions: list[Action] = []
    if _shadowed(after) and _shadowed(before) != _shadowed(after) and after.candidate and after.current:
        actions.append(ShadowBeside(slot=after.candidate, beside=after.current))
    current = after.current
    if current is not None and _observed(after) and _observed(before) != _observed(after):
        after = msgspec.structs.replace(after, observation=after.observation or Observation())
        actions.append(Observe(slot=current))
    return after, actions


def _shadowed(state: State) -> tuple[int, int] | None:
    """Which slot runs in the shadow of which; None while none does."""
    if state.phase != "Shadowing" or not state.up or state.current is None or state.candidate is None:
        return None
    if state.shadow is not None:
        return None  # it is over
    return state.candidate.serial, state.current.serial


def _observed(state: State) -> tuple[int, str, str, ObserveDesired] | None:
    """What is to be watched: the slot that serves, when it is what is desired and the hub asked for it."""
    current, desired = state.current, state.desired
    if not state.up or current is None or desired is None or current.desired != desired or desired.observe is None:
        return None
    return current.serial, desired.rollout, desired.deployment_uid, desired.observe


def compared(report: ShadowReport) -> int:
    """Return how many requests can be judged: answered by both, or failed by the new version alone."""
    return report.answered + report.errors


def enough(asked: ShadowDesired, report: ShadowReport) -> bool:
    """Return whether there are as many requests as were asked for; a threshold needs one at least."""
    return compared(report) >= max(asked.min_requests, 0 if asked.min_agreement is None else 1)


def refusal(asked: ShadowDesired, report: ShadowReport) -> str:
    """Return why the new version must not serve after its time in the shadow; empty when it may."""
    count = compared(report)
    if not enough(asked, report) and asked.missing == "fail":
        needed = max(asked.min_requests, 1)
        return f"{count} requests were answered by both in {report.seconds:.3g} s, at least {needed} are needed"
    if asked.min_agreement is None or not count:
        return ""
    agreement = report.agreed / count
    if agreement >= asked.min_agreement:
        return ""
    failed = f", it failed {report.errors}" if report.errors else ""
    share = f"{agreement:.4g} of {count} requests"
    return f"it agreed with {report.beside} on {share}, below {asked.min_agreement:.4g}{failed}"
