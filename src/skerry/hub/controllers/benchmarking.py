"""Benchmarks and refusals of one rollout: asks devices to measure what `core.benchmarks` plans, and gives devices that
refused a variant the next best.

A part of the rollout controller, called before each step. Must not live here: the plan and the choice (`core`), what is
learnt from the answers (`device_class`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout
from skerry.core import benchmarks, refusals, steps
from skerry.core.assignment import Target
from skerry.core.benchmarks import Ask, Candidate, Occasion, Plan
from skerry.core.desired import DesiredRecord, Refused, request_benchmarks, withdraw_benchmarks
from skerry.core.ports import Clock
from skerry.core.roster import Roster
from skerry.core.waves import Member, belongs
from skerry.hub.controllers.fleet import Fleet
from skerry.hub.objects import Objects

log = logging.getLogger(__name__)


class Benchmarking:
    """What the rollout controller does about measurements before it steps."""

    def __init__(self, objects: Objects, clock: Clock, fleet: Fleet) -> None:
        self._objects, self._clock, self._fleet = objects, clock, fleet
        self._notes: dict[str, tuple[str, Mapping[str, str]]] = {}  # by deployment: of which rollout, by class

    def note_of(self, rollout: Rollout, device: Device) -> str:
        """Return why the device's class was not measured for the rollout; empty when it was, or was not to be."""
        about, notes = self._notes.get(rollout.spec.deployment_uid, ("", {}))
        return notes.get(self._fleet.class_of(device), "") if about == rollout.metadata.uid else ""

    def forget(self, rollout: Rollout) -> None:
        """The rollout was deleted."""
        about, _ = self._notes.get(rollout.spec.deployment_uid, ("", {}))
        if about == rollout.metadata.uid:
            del self._notes[rollout.spec.deployment_uid]

    async def prepare(self, found: ModelDeployment, rollout: Rollout, roster: Roster) -> Plan:
        """Ask for what is to be measured, take back what nobody waits for any more, and say whether to wait.

        Raises InvalidError when a duration or quantity of the deployment cannot be read.
        """
        wanted = found.spec.placement.benchmark and rollout.status.phase not in (*steps.ENDED, "RollingBack")
        await self._withdraw(rollout, roster, keep=wanted)
        if not wanted:
            self._notes.pop(rollout.spec.deployment_uid, None)
            return Plan()
        plan = self._plan(found, rollout, roster)
        self._notes[rollout.spec.deployment_uid] = (rollout.metadata.uid, plan.notes)
        for ask in plan.asks:
            await self._ask(ask, roster)
        return plan

    async def answer_refusals(self, found: ModelDeployment, rollout: Rollout, roster: Roster) -> bool:
        """Give the next best variant to devices that refused theirs; returns whether any record was changed."""
        if found.spec.placement.on_refusal != "nextBest" or rollout.status.phase in ("RollingBack", "RolledBack"):
            return False
        changed = False
        for member in roster.refusing():
            refusal = refusals.refused(member) if belongs(member, rollout) else None
            device = self._fleet.device(member.uid)
            if refusal is None or device is None:
                continue
            await self._replace(rollout, member, device, refusal)
            log.info("rollout.refused device=%s variant=%s refusal=%s", member.name, refusal.variant, refusal.refusal)
            changed = True
        return changed

    async def _replace(self, rollout: Rollout, member: Member, device: Device, refusal: Refused) -> None:
        model = self._fleet.model_of(rollout)
        target, costs = Target(rollout=rollout, model=model), self._fleet.costs_of(device, rollout)
        now = self._clock.now()
        stored = await self._objects.update_desired(
            _empty(member, device),
            lambda record: refusals.next_best(record, refusal, device.status, target, now, measured=costs),
        )
        self._fleet.records.observe(member.uid, stored.record, stored.revision)

    def _plan(self, found: ModelDeployment, rollout: Rollout, roster: Roster) -> Plan:
        namespace = rollout.metadata.namespace
        model = self._fleet.model_of(rollout)
        if model is None:
            return Plan()
        candidates = [
            Candidate(
                device=device,
                record=self._fleet.records.get(member.uid),
                device_class=self._fleet.class_of(device),
                waits=member.selected and not member.cordoned and not belongs(member, rollout),
            )
            for member, device in ((member, self._fleet.device(member.uid)) for member in roster)
            if member.selected and device is not None and not self._fleet.doubt_of(member.uid)
        ]
        known = {item.metadata.name: item for item in self._fleet.classes.values(f"{namespace}/")}
        occasion = Occasion(
            rollout=rollout,
            model=model,
            policy=found.spec.placement,
            windows=found.spec.strategy.windows,
            now=self._clock.now(),
        )
        return benchmarks.plan(occasion, candidates, known)

    async def _ask(self, ask: Ask, roster: Roster) -> None:
        member, device = roster.get(ask.uid), self._fleet.device(ask.uid)
        if member is None or device is None:  # deleted meanwhile
            return
        stored = await self._objects.update_desired(
            _empty(member, device), lambda record: request_benchmarks(record, ask.requests)
        )
        self._fleet.records.observe(member.uid, stored.record, stored.revision)
        variants = ",".join(request.workload.variant for request in ask.requests)
        log.info("benchmark.requested device=%s variants=%s", member.name, variants)

    async def _withdraw(self, rollout: Rollout, roster: Roster, *, keep: bool) -> None:
        """Take back what was asked for by another rollout of the deployment, or by this one when it is over."""
        name = rollout.spec.deployment
        kept = (rollout.spec.deployment_uid, rollout.metadata.name) if keep else None
        for uid in sorted(self._fleet.measuring):
            member, device, record = roster.get(uid), self._fleet.device(uid), self._fleet.records.get(uid)
            if member is None or device is None or record is None:
                continue
            own = kept if member.selected else None
            if withdraw_benchmarks(record, name, keep=own) != record:
                await self._take_back(member, device, name, own)

    async def _take_back(self, member: Member, device: Device, name: str, keep: tuple[str, str] | None) -> None:
        stored = await self._objects.update_desired(
            _empty(member, device), lambda record: withdraw_benchmarks(record, name, keep=keep)
        )
        self._fleet.records.observe(member.uid, stored.record, stored.revision)


def _empty(member: Member, device: Device) -> DesiredRecord:
    return DesiredRecord(uid=member.uid, namespace=device.metadata.namespace, device=member.name)
