"""The hands of one workload: carries out what `core.workload` decides, and tells it what came of it.

One task takes events in order: step, journal, act. Long work runs in lanes, four a slot (installing, serving, watching,
later signatures), whose results are the next events; a lane that was replaced or tidied away has nothing more to say.
Lives here: that order. Must not live here: the work itself (`work`), what an error means (`faults`), decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from skerry.agent.faults import element_of, fault_of
from skerry.agent.work import Say, Tools, Work
from skerry.api.errors import SkerryError, StorageFullError
from skerry.api.kinds.device import WorkloadStatus
from skerry.core import workload
from skerry.core.journal import (
    Action,
    Event,
    Faulted,
    Fetch,
    Install,
    Moment,
    Observe,
    Probe,
    Serve,
    ShadowBeside,
    Slot,
    State,
    Switch,
    Tidied,
    Tidy,
    Unwanted,
    Vouch,
    Wanted,
)
from skerry.core.ports import Instance

log = logging.getLogger(__name__)

JOURNAL_RETRY_SECONDS = 5.0
STOP_ATTEMPTS = 3


@dataclass
class _Lane:
    """One piece of long work; `void` once nobody wants its result any more."""

    void: bool = False
    task: asyncio.Task[None] | None = None


class Installer:
    """One workload, from its first wish to its removal."""

    def __init__(self, state: State, tools: Tools) -> None:
        self.state = state
        self._tools = tools
        self._events: asyncio.Queue[tuple[_Lane | None, Event]] = asyncio.Queue()
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._work = Work(tools, lambda: self.state)
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._settled = asyncio.Event()
        self._wish: Event | None = None
        """The newest one that was posted."""
        self._postponed: asyncio.TimerHandle | None = None
        """Posts a wish again that the disk would not take: it must not hold up what the serving server has to say."""

    def post(self, event: Event) -> None:
        """Tell it what happened."""
        if isinstance(event, Wanted | Unwanted):
            self._wish = event
        self._events.put_nowait((None, event))

    def status(self) -> WorkloadStatus:
        """Return what is reported of it."""
        return workload.report(self.state)

    @property
    def server_port(self) -> int:
        """Where the current version answers; 0 while it does not."""
        return self.state.current.port if self.state.current is not None and self.state.up else 0

    @property
    def endpoint(self) -> int:
        """Where callers find it; 0 while it does not answer."""
        return self.state.endpoint if self.state.up else 0

    async def settled(self) -> None:
        """Wait until its server answers or is known not to."""
        await self._settled.wait()

    async def run(self) -> None:
        """Take events until the workload is gone."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                while True:
                    lane, event = await self._events.get()
                    if (lane is None or not lane.void) and not await self._handle(event):
                        return
            finally:
                self._settled.set()
                if self._postponed is not None:
                    self._postponed.cancel()
                for lane in self._lanes.values():
                    _cancel(lane)
                for task in self._leaving.values():
                    task.cancel()

    async def _handle(self, event: Event) -> bool:
        tools, before = self._tools, self.state
        now = Moment(wall=tools.clock.now(), monotonic=tools.clock.monotonic(), boot=tools.boot)
        after, actions = workload.step(before, event, now)
        if after is None:
            await asyncio.to_thread(tools.disk.delete_workload, before.name)
            log.info("workload.removed workload=%s", before.name)
            tools.changed()
            return False
        if after != before:
            if not await self._journal(after, wait=not isinstance(event, Wanted | Unwanted)):
                self._postpone(event)
                return True
            self.state = after
            if after.phase != before.phase or after.message != before.message:
                log.info(
                    "workload.phase workload=%s phase=%s message=%s", after.name, after.phase, after.message or "-"
                )
            tools.changed()
        if after.up or isinstance(event, Faulted) or after.current is None:
            self._settled.set()
        for action in actions:
            await self._carry_out(action)
        return True

    async def _journal(self, state: State, *, wait: bool) -> bool:
        """Nothing that names other slots is acted on before it is on the disk: when that is full, wait for room.

        Without `wait` it returns False then.
        """
        while True:
            try:
                await asyncio.to_thread(self._tools.disk.write_journal, state)
            except (StorageFullError, OSError) as error:
                log.error("journal.not_written workload=%s error=%s", state.name, error)
                await self._tools.free()
                if not workload.must_be_durable(self.state, state):
                    return True  # what is installed is served, full disk or not
                if not wait:
                    return False
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
            else:
                return True

    def _postpone(self, wish: Event) -> None:
        def again() -> None:
            if self._wish is wish:  # or a newer one has taken its place
                self.post(wish)

        self._postponed = asyncio.get_running_loop().call_later(JOURNAL_RETRY_SECONDS, again)

    async def _carry_out(self, action: Action) -> None:
        work = self._work
        match action:
            case Tidy():
                await self._tidy(action)
            case Fetch(slot=slot):
                self._start(slot, "install", "the registry", partial(work.fetch, action))
            case Install(slot=slot):
                self._start(slot, "install", "the disk", partial(work.install, slot))
            case Probe(slot=slot):
                self._start(slot, "install", "the probe", partial(work.probe, action))
            case ShadowBeside(slot=slot):
                self._start(slot, "install", "shadow mode", partial(work.shadow, action))
            case Observe(slot=slot):
                self._start(slot, "observe", "the observation", partial(work.observe, slot))
            case Switch(slot=slot):
                self._start(slot, "install", "the endpoint", partial(work.switch, action))
            case Vouch(slot=slot):
                self._start(slot, "vouch", "the registry", partial(work.vouch, slot))
            case Serve(slot=slot):
                self._start(slot, "serve", "the inference server", partial(work.serve, action))

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot, kind: str, component: str, work: Callable[[Say], Coroutine[Any, Any, None]]) -> None:
        replaced = self._lanes.pop((slot.serial, kind), None)
        if replaced is not None:
            _cancel(replaced)
        if self._tasks is None:
            raise AssertionError("actions are carried out while it runs")
        lane = self._lanes[slot.serial, kind] = _Lane()
        before = None if replaced is None else replaced.task
        lane.task = self._tasks.create_task(self._guard(lane, slot, component, work, before))

    async def _guard(
        self,
        lane: _Lane,
        slot: Slot,
        component: str,
        work: Callable[[Say], Coroutine[Any, Any, None]],
        before: asyncio.Task[None] | None,
    ) -> None:
        """Turn whatever goes wrong in a lane into an event: no failure of one workload may touch another."""
        if before is not None:
            await asyncio.wait({before})
        try:
            await work(partial(self._say, lane))
        except SkerryError as error:
            self._say(lane, fault_of(slot, component, error))
        except Exception as error:
            log.exception("workload.unexpected workload=%s", slot.desired.name)
            cause = f"{type(error).__name__}: {error}"[:500]
            self._say(
                lane,
                Faulted(serial=slot.serial, component=component, element=element_of(slot), cause=cause, final=False),
            )

    def _say(self, lane: _Lane, event: Event) -> None:
        if not lane.void:
            self._events.put_nowait((lane, event))

    async def _tidy(self, action: Tidy) -> None:
        name, running = self.state.name, []
        for key, lane in list(self._lanes.items()):
            serial, kind = key
            if serial not in (action.files if kind == "install" else action.running):
                _cancel(lane)
                del self._lanes[key]
                running += [lane.task] if lane.task is not None else []
        servers = self._work.servers
        for serial in set(servers) - action.running:
            del servers[serial]
        if running:
            await asyncio.wait(running)
        leaving = await self._tools.servers.retire(name, keep=action.running, leaving=self._leaving)
        for attempt in range(STOP_ATTEMPTS):
            try:
                await self._tools.servers.stop_all(
                    name, keep=action.running, leaving=leaving, endpoint=self.state.endpoint
                )
                break
            except SkerryError as error:
                log.error("workload.not_stopped workload=%s attempt=%d error=%s", name, attempt, error)
        for instance in leaving:
            self._see_off(instance)
        await asyncio.to_thread(self._tools.disk.erase_slots, name, keep=action.files)
        await self._settle()
        await self._tools.prune()
        self.post(Tidied())

    async def _settle(self) -> None:
        """Have the version before lie on the disk as the present one does; see `slots.protected_as`."""
        previous = self.state.previous
        if previous is not None:
            try:
                await asyncio.to_thread(self._tools.disk.settle_slot, previous)
            except (SkerryError, OSError) as error:  # without a key, or a disk that became read-only: at the next tidy
                log.error("protection.not_settled workload=%s error=%s", self.state.name, error)

    def _see_off(self, instance: Instance) -> None:
        """Behind the events' back: whoever still talks to the version before must not hold up what comes next."""
        if self._tasks is None or instance.id in self._leaving:
            return

        async def see_off() -> None:
            try:
                await self._tools.servers.see_off(instance)
            except SkerryError as error:
                log.error("workload.not_stopped workload=%s error=%s", self.state.name, error)
            finally:
                self._leaving.pop(instance.id, None)

        self._leaving[instance.id] = self._tasks.create_task(see_off())


def _cancel(lane: _Lane) -> None:
    lane.void = True
    if lane.task is not None:
        lane.task.cancel()
