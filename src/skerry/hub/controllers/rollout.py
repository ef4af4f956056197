"""Rollouts: deployments become rollouts, and rollouts become assignments, as `core.rollout` decides.

Event-driven: whatever changes is looked at within milliseconds; the only timers are those a step asks for (the end of a
bake, a device's timeout). Everything is derived from the store, so a hub may die between any two writes.
Must not live here: rules (`core`), local copies (`fleet`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from skerry.api.errors import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
)
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentStatus
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.meta import API_VERSION, ObjectMeta, OwnerReference
from skerry.core import assignment, steps, trusted
from skerry.core import deployment as deployments
from skerry.core.assignment import Target
from skerry.core.deployment import Census
from skerry.core.desired import DesiredRecord, tell_trust
from skerry.core.desired import withdraw as withdraw_from
from skerry.core.roster import Roster
from skerry.core.steps import Action, Assign, Hold, Return, SetStatus, Withdraw
from skerry.hub.context import HubContext
from skerry.hub.controllers.benchmarking import Benchmarking
from skerry.hub.controllers.fleet import Key
from skerry.hub.controllers.reconciler import Reconciler
from skerry.hub.controllers.rosters import Rosters

log = logging.getLogger(__name__)

_WRITERS = 16  # records written at the same time; the store commits what comes together in one transaction


async def run(context: HubContext) -> None:
    """Carry out deployments, for ever."""
    await Rollouts(context).run()


class Rollouts:
    """The controller; see `run`."""

    def __init__(self, context: HubContext) -> None:
        self._objects, self._clock = context.objects, context.clock
        self._work: Reconciler[Key] = Reconciler("rollout", self.reconcile, self._failed)
        context.health.workers.add(self._work)
        self._rosters = Rosters(context.objects.store, self._work.add)
        self._fleet = self._rosters.fleet
        self._benchmarking = Benchmarking(context.objects, context.clock, self._fleet)

    async def run(self) -> None:
        """Watch and reconcile."""
        async with self._fleet.follow():
            await self._work.run()

    async def reconcile(self, key: Key) -> float | None:
        """Do the next step of one deployment; returns the seconds until it wants to be looked at again."""
        unreadable = self._fleet.unreadable_of(key)
        if unreadable:
            raise IntegrityError("cannot be read, so nothing is done", element=unreadable, hint="repair or delete it")
        found = self._fleet.deployments.get("/".join(key))
        if found is None:
            await self._clear(key)
            return None
        rollouts = await self._own_rollouts(found)
        hold = self._fleet.hold_of_wish(key[0], found.spec)
        newest = deployments.newest_of(rollouts)
        waits = newest is None or not deployments.same_template(newest.spec.template, found.spec)
        if waits and hold is None:
            newest, waits = await self._begin(found, rollouts), False
            rollouts = [*rollouts, newest]
        elif newest is not None and not waits:
            digest = newest.spec.model_digest
            hold = self._fleet.hold_of(key[0], newest.spec.template.model_version, digest=digest)
        if newest is None:
            await self._report(found, deployments.count(self._rosters.selected(found)), hold if waits else None)
            return None
        for old in rollouts:
            if old is not newest and old.status.phase not in steps.ENDED:
                await self._supersede(found, old, newest, rollouts)
        hold, wake_at = await self._step(found, newest, rollouts, hold)
        shown = hold if waits or newest.status.phase not in steps.ENDED else None
        roster = self._rosters.of(found, newest, self._previous_of(newest, rollouts), hold)
        await self._report(found, roster.census(), shown)
        return None if wake_at is None else max((wake_at - self._clock.now()).total_seconds(), 0.0)

    async def _step(
        self, found: ModelDeployment, newest: Rollout, rollouts: Sequence[Rollout], hold: Hold | None
    ) -> tuple[Hold | None, datetime | None]:
        """Do the newest rollout's next step; returns what it waits for, and when to look again.

        Refusals are answered and measurements asked for before anything is judged by them.
        """
        previous = self._previous_of(newest, rollouts)
        roster = self._rosters.of(found, newest, previous, hold)
        await self._benchmarking.answer_refusals(found, newest, roster)
        roster = self._rosters.of(found, newest, previous, hold)
        plan = await self._benchmarking.prepare(found, newest, roster)
        hold = hold or plan.hold
        roster = self._rosters.of(found, newest, previous, hold)
        step = roster.step(self._clock.now())
        await self._carry_out(newest, previous, step.actions, roster)
        return hold, steps.earliest(step.wake_at, plan.wake_at)

    # --- rollouts come and go ----------------------------------------------------------------------------------------

    async def _own_rollouts(self, found: ModelDeployment) -> list[Rollout]:
        """The deployment's rollouts; those of an earlier deployment of that name, and the oldest, are deleted."""
        key = (found.metadata.namespace, found.metadata.name)
        everything = self._fleet.rollouts_of(key)
        own = [item for item in everything if item.spec.deployment_uid == found.metadata.uid]
        drop = [item for item in everything if item not in own] + deployments.superfluous(own)
        for item in drop:
            await self._delete(item)
        return [item for item in own if item not in drop]

    async def _begin(self, found: ModelDeployment, rollouts: Sequence[Rollout]) -> Rollout:
        """Create the rollout of the deployment's generation."""
        meta, stable = found.metadata, deployments.stable_of(rollouts)
        owner = OwnerReference(
            api_version=API_VERSION, kind="ModelDeployment", name=meta.name, uid=meta.uid, controller=True
        )
        item = Rollout(
            metadata=ObjectMeta(
                name=f"{meta.name}-{meta.generation}",
                namespace=meta.namespace,
                labels=dict(meta.labels),
                owner_references=[owner],
            ),
            spec=RolloutSpec(
                deployment=meta.name,
                deployment_uid=meta.uid,
                revision=meta.generation,
                template=found.spec,
                model_digest=self._fleet.digest_of(meta.namespace, found.spec.model_version),
                previous=stable.metadata.name if stable else "",
            ),
        )
        try:
            created = await self._objects.create(item)
        except AlreadyExistsError as error:  # the local copy is behind
            raise ConflictError(error.cause, element=error.element) from None
        self._observe(created)
        log.info("rollout.started namespace=%s name=%s", meta.namespace, created.metadata.name)
        return created

    async def _supersede(
        self, found: ModelDeployment, old: Rollout, newest: Rollout, rollouts: Sequence[Rollout]
    ) -> None:
        previous = self._previous_of(old, rollouts)
        roster = self._rosters.once(found, old, previous)
        step = roster.supersede(newest.metadata.name, self._clock.now())
        await self._carry_out(old, previous, step.actions, roster)

    async def _clear(self, key: Key) -> None:
        """The deployment is gone: take its workload off every device and delete its rollouts."""
        self._rosters.forget(key)  # one that was made while it was deleted
        namespace, name = key
        for record in self._fleet.records_of(key):
            stored = await self._objects.update_desired(
                DesiredRecord(uid=record.uid, namespace=namespace, device=record.device),
                lambda current: withdraw_from(current, name),
            )
            self._fleet.records.observe(record.uid, stored.record, stored.revision)
        for item in self._fleet.rollouts_of(key):
            await self._delete(item)

    async def _delete(self, item: Rollout) -> None:
        meta = item.metadata
        with contextlib.suppress(NotFoundError):
            await self._objects.delete(Rollout, meta.namespace, meta.name, uid=meta.uid)
        self._fleet.rollouts.forget(f"{meta.namespace}/{meta.name}")
        self._benchmarking.forget(item)

    # --- one step ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _previous_of(item: Rollout | None, rollouts: Sequence[Rollout]) -> Rollout | None:
        name = item.spec.previous if item else ""
        return next((other for other in rollouts if other.metadata.name == name), None)

    async def _carry_out(
        self, item: Rollout, previous: Rollout | None, actions: Sequence[Action], roster: Roster
    ) -> None:
        """Do the actions in their order; those of one kind on different devices at the same time."""
        for kind, group in itertools.groupby(actions, key=type):
            batch = list(group)
            if kind is not SetStatus:
                await self._change_records(item, previous, batch, roster)
            for action in batch:
                if isinstance(action, SetStatus):
                    item = await self._set_status(item, action)

    async def _change_records(
        self, item: Rollout, previous: Rollout | None, actions: Sequence[Action], roster: Roster
    ) -> None:
        """Change the records of different devices at the same time; one that fails does not stop the others."""
        gate = asyncio.Semaphore(_WRITERS)
        async with asyncio.TaskGroup() as tasks:
            writes = [
                tasks.create_task(
                    self._change_record(gate, action, previous if isinstance(action, Return) else item, roster)
                )
                for action in actions
                if not isinstance(action, SetStatus)
            ]
        for error in [write.result() for write in writes]:
            if error is not None:
                raise error

    async def _set_status(self, item: Rollout, action: SetStatus) -> Rollout:
        meta = item.metadata

        def change(current: Rollout) -> Rollout:
            if current.metadata.uid != meta.uid or current.status != item.status:
                raise ConflictError(element=f'rollouts "{meta.name}"')
            return msgspec.structs.replace(current, status=action.status)

        try:
            written = await self._objects.update_status(Rollout, meta.namespace, meta.name, change)
        except NotFoundError as error:
            raise ConflictError(error.cause, element=error.element) from None
        self._observe(written)
        if action.status.phase != item.status.phase:
            log.info("rollout.phase namespace=%s name=%s phase=%s", meta.namespace, meta.name, action.status.phase)
        return written

    async def _change_record(
        self,
        gate: asyncio.Semaphore,
        action: Assign | Return | Withdraw,
        target: Rollout | None,
        roster: Roster,
    ) -> SkerryError | None:
        """Change one device's record; an error is returned, not raised."""
        member, device = roster.get(action.uid), self._fleet.device(action.uid)
        if target is None or member is None or device is None:  # a device that was deleted meanwhile
            return None
        model = self._fleet.model_of(target)
        bound, now = Target(rollout=target, model=model), self._clock.now()
        empty = DesiredRecord(uid=member.uid, namespace=device.metadata.namespace, device=member.name)
        trust = self._fleet.trust_of(device.metadata.namespace)
        try:
            async with gate:
                stored = await self._objects.update_desired(
                    empty,
                    lambda record: assignment.carry_out(
                        action,
                        tell_trust(record, trust),  # with what the device is to judge it by
                        device.status,
                        bound,
                        now,
                        measured=self._fleet.costs_of(device, target),
                        note=self._benchmarking.note_of(target, device),
                    ),
                )
        except SkerryError as error:
            return error
        if stored.revision:
            self._fleet.records.observe(member.uid, stored.record, stored.revision)
        return None

    # --- what people see ---------------------------------------------------------------------------------------------

    async def _report(self, found: ModelDeployment, census: Census, hold: Hold | None) -> None:
        """Write the deployment's status from what is known after the step."""
        meta = found.metadata
        rollouts = [
            r for r in self._fleet.rollouts_of((meta.namespace, meta.name)) if r.spec.deployment_uid == meta.uid
        ]
        now = self._clock.now()
        model = self._fleet.models.get(f"{meta.namespace}/{found.spec.model_version}")

        def status(item: ModelDeployment) -> ModelDeploymentStatus:
            summary = deployments.summarize(item, rollouts, census, now, hold=hold)
            return trusted.with_condition(summary, item, model, now)

        await self._write(found, status)

    async def _failed(self, key: Key, error: Exception) -> None:
        found = self._fleet.deployments.get("/".join(key))
        if found is None:
            return
        known = isinstance(error, SkerryError)
        reason = "Invalid" if isinstance(error, InvalidError) else "Error"
        message = str(error)[:1000] if known else f"the hub failed with {type(error).__name__}; its log says more"
        now = self._clock.now()
        await self._write(found, lambda item: deployments.failing(item, reason, message, now))

    async def _write(self, found: ModelDeployment, status: Callable[[ModelDeployment], ModelDeploymentStatus]) -> None:
        meta = found.metadata

        def change(current: ModelDeployment) -> ModelDeployment:
            if (current.metadata.uid, current.metadata.generation) != (meta.uid, meta.generation):
                return current  # a newer one is looked at next
            return msgspec.structs.replace(current, status=status(current))

        try:
            written = await self._objects.update_status(ModelDeployment, meta.namespace, meta.name, change)
        except NotFoundError:  # deleted meanwhile, which is looked at next
            return
        key = f"{meta.namespace}/{meta.name}"
        self._fleet.deployments.observe(key, written, int(written.metadata.resource_version))

    def _observe(self, item: Rollout) -> None:
        meta = item.metadata
        self._fleet.rollouts.observe(f"{meta.namespace}/{meta.name}", item, int(meta.resource_version))
