"""The roster of each deployment's newest rollout, kept from one look to the next: a look costs what has changed since.

`Fleet` says which devices were touched and which classes were learnt of; they are read again when the roster is next
asked for. Whatever else a member is made of (the rollout, the one before it, their model versions, the selector) is
compared then; where it differs, or the selector was changed in between, all devices are read anew: a few times in a
rollout. A device of which something is there but cannot be read stays, as it was last, and is given nothing new.
Must not live here: rules (`core`), copies of what is stored (`fleet`), writing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from skerry.api import selector
from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import LabelSelector
from skerry.core import waves
from skerry.core.placement import Cost
from skerry.core.ports import Store
from skerry.core.roster import Roster
from skerry.core.steps import Frame, Hold
from skerry.core.waves import Member
from skerry.hub.controllers import fleet
from skerry.hub.controllers.fleet import Fleet, Key


@dataclass(frozen=True, kw_only=True, slots=True)
class _Basis:
    """What all members depend on, besides their devices and records."""

    selector: LabelSelector
    """A look that was under way when it was changed has still the old one."""
    rollouts: tuple[str, str]
    """Uids of the newest and of the previous one."""
    models: tuple[str, str]
    """The versions of theirs, or empty where there is none that can be rolled out."""


@dataclass(kw_only=True, slots=True)
class _Ledger:
    """One deployment's roster and what is to be read again before it is used."""

    basis: _Basis
    roster: Roster
    touched: set[str] = field(default_factory=set)
    """Uids of devices."""
    learnt: set[str] = field(default_factory=set)
    """Names of classes."""
    costs: dict[str, tuple[Mapping[str, Cost], Mapping[str, Cost]]] = field(default_factory=dict)
    """What members were read with, by class: of the newest rollout and of the previous one."""


class Rosters:
    """Rosters by deployment, and the fleet whose listener they are; `concern` is told on."""

    def __init__(self, store: Store, concern: Callable[[Key], None]) -> None:
        self.concern = concern
        self.fleet = self._fleet = Fleet(store, self)
        self._ledgers: dict[Key, _Ledger] = {}

    def touch(self, key: Key, uid: str) -> None:
        """Something of a device or of its record has changed."""
        ledger = self._ledgers.get(key)
        if ledger is not None:
            ledger.touched.add(uid)

    def learn(self, namespace: str, name: str) -> None:
        """Something was learnt of a class."""
        for key, ledger in self._ledgers.items():
            if key[0] == namespace:
                ledger.learnt.add(name)

    def forget(self, key: Key) -> None:
        """The deployment came or went, or selects others."""
        self._ledgers.pop(key, None)

    def of(self, found: ModelDeployment, newest: Rollout, previous: Rollout | None, hold: Hold | None) -> Roster:
        """Return the roster of a deployment's newest rollout, brought up to date.

        Raises InvalidError when the selector or a quantity of a template cannot be read.
        """
        key = (found.metadata.namespace, found.metadata.name)
        frame, basis = frame_of(found, newest, previous, hold), self._basis(found, newest, previous)
        ledger = self._ledgers.get(key)
        if ledger is None or ledger.basis != basis:
            self.forget(key)  # it may raise
            ledger = _Ledger(basis=basis, roster=Roster(frame))
            ledger.touched.update(device.metadata.uid for device in self._fleet.devices_in(key[0]))
            self._refresh(ledger, found, newest, previous)
            self._ledgers[key] = ledger
        else:
            ledger.roster.turn(frame)
            self._refresh(ledger, found, newest, previous)
        return ledger.roster

    def once(self, found: ModelDeployment, rollout: Rollout, previous: Rollout | None) -> Roster:
        """Return the roster of a rollout that is not the newest. Raises InvalidError as `of`."""
        made = _Ledger(
            basis=self._basis(found, rollout, previous), roster=Roster(frame_of(found, rollout, previous, None))
        )
        made.touched.update(device.metadata.uid for device in self._fleet.devices_in(found.metadata.namespace))
        self._refresh(made, found, rollout, previous)
        return made.roster

    def selected(self, found: ModelDeployment) -> list[Member]:
        """Return the devices of a deployment that has no rollout yet. Raises InvalidError as `of`."""
        devices = self._fleet.devices_in(found.metadata.namespace)
        wanted = selector.requirements(found.spec.device_selector)
        chosen = [device for device in devices if selector.matches(wanted, device.metadata.labels)]
        return [
            waves.member_of(device, self._fleet.records.get(device.metadata.uid), found.metadata.name, selected=True)
            for device in chosen
        ]

    def _basis(self, found: ModelDeployment, newest: Rollout, previous: Rollout | None) -> _Basis:
        models = [self._fleet.model_of(rollout) if rollout is not None else None for rollout in (newest, previous)]
        first, second = (model.metadata.resource_version if model is not None else "" for model in models)
        return _Basis(
            selector=found.spec.device_selector,
            rollouts=(newest.metadata.uid, previous.metadata.uid if previous is not None else ""),
            models=(first, second),
        )

    def _refresh(self, ledger: _Ledger, found: ModelDeployment, newest: Rollout, previous: Rollout | None) -> None:
        wanted = selector.requirements(found.spec.device_selector)
        self._relearn(ledger, newest, previous)
        for uid in list(ledger.touched):
            device = self._fleet.device(uid)
            if device is None or device.metadata.namespace != found.metadata.namespace:
                ledger.roster.drop(uid)
            else:
                selected = selector.matches(wanted, device.metadata.labels)
                self._read(ledger, device, found.metadata.name, newest, previous, selected=selected)
            ledger.touched.discard(uid)

    def _relearn(self, ledger: _Ledger, newest: Rollout, previous: Rollout | None) -> None:
        """Have the members of those classes read again of which something was learnt that counts here."""
        known = ledger.learnt & ledger.costs.keys()
        changed = {name for name in known if ledger.costs[name] != self._costs(name, newest, previous)}
        if changed:
            devices = ((member.uid, self._fleet.device(member.uid)) for member in ledger.roster)
            ledger.touched.update(
                uid for uid, device in devices if device is not None and self._fleet.class_of(device) in changed
            )
        ledger.learnt.clear()

    def _read(
        self,
        ledger: _Ledger,
        device: Device,
        name: str,
        newest: Rollout,
        previous: Rollout | None,
        *,
        selected: bool,
    ) -> None:
        known, uid = self._fleet, device.metadata.uid
        record = known.records.get(uid)
        if not selected and (record is None or not fleet.holds(record, name)):
            ledger.roster.drop(uid)
            return
        kind, about = known.kinds.of(device.status, record, name), known.class_of(device)
        ledger.costs[about] = self._costs(about, newest, previous)
        member = waves.member_of(
            device,
            record,
            name,
            selected=selected,
            unfit=known.doubt_of(uid) or known.unfit(kind, newest, device),
            previous_unfit=known.unfit(kind, previous, device) and known.unfit(kind, previous, None),
        )
        ledger.roster.put(member)

    def _costs(
        self, about: str, newest: Rollout, previous: Rollout | None
    ) -> tuple[Mapping[str, Cost], Mapping[str, Cost]]:
        return self._fleet.costs_in(about, newest), self._fleet.costs_in(about, previous) if previous else {}


def frame_of(found: ModelDeployment, rollout: Rollout, previous: Rollout | None, hold: Hold | None) -> Frame:
    """Return what a step of the rollout looks at besides the devices."""
    return Frame(
        rollout=rollout,
        spec=found.spec,
        generation=found.metadata.generation,
        previous=previous.metadata.name if previous else "",
        hold=hold,
    )
