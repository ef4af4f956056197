"""Kinds of machines: a fleet has many devices and few kinds, so that what is found for one is found for all. Pure.

    kinds, fits = Kinds(), Fits(variants, template)
    placement = fits.place(kinds.of(device.status, record, name), measured)

Equal to `placement.place(placement.machine_of(...), ...)` for each device, which is the reference. Must not live here:
the choice itself (`core.placement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from skerry.api.kinds.device import DeviceFacts, DeviceStatus
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.variants import Variant
from skerry.core import placement
from skerry.core.desired import DesiredRecord
from skerry.core.placement import Cost, Load, Machine, Placement

MAX_KINDS = 20_000
"""Kinds that are remembered: devices choose what they say of themselves."""
_MAX_ANSWERS = 20_000  # kept with all their reasons

_NOTHING: Mapping[str, Cost] = {}
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """One kind of machine; compared by identity."""

    machine: Machine


class Kinds:
    """The kinds of machines that were met, each made once."""

    def __init__(self) -> None:
        self._bare: dict[bytes, Kind] = {}
        self._loaded: dict[tuple[Kind, Load], Kind] = {}

    def __len__(self) -> int:
        return len(self._bare) + len(self._loaded)

    def of(self, facts: DeviceFacts | DeviceStatus, record: DesiredRecord | None = None, deployment: str = "") -> Kind:
        """Return the kind of `placement.machine_of` for the same device."""
        hardware = facts.hardware
        said = (hardware.arch, hardware.memory_bytes, hardware.cores, facts.engines, facts.runtimes)
        key = _encoder.encode(said)
        bare = self._bare.get(key)
        if bare is None:
            self._make_room()
            bare = self._bare[key] = Kind(placement.machine_of(facts))
        load = placement.load_of(record, deployment)
        if not any(load):
            return bare
        kind = self._loaded.get((bare, load))
        if kind is None:
            self._make_room()
            kind = Kind(placement.machine_of(facts, record, deployment))
            self._loaded[bare, load] = kind
        return kind

    def _make_room(self) -> None:
        if len(self) >= MAX_KINDS:
            self._bare.clear()
            self._loaded.clear()


class Fits:
    """The placements of one template and model version, each made once for a kind of machine."""

    def __init__(self, variants: Iterable[Variant], template: ModelDeploymentSpec) -> None:
        self._variants, self._template = list(variants), template
        self._answers: dict[tuple[Kind, int], tuple[Mapping[str, Cost], Placement]] = {}

    def place(self, kind: Kind, measured: Mapping[str, Cost] = _NOTHING) -> Placement:
        """Return `placement.place` for a machine of that kind. Raises InvalidError as that.

        Costs are known again by being the same object, which must not change.
        """
        if not measured:
            measured = _NOTHING
        key = (kind, id(measured))
        known = self._answers.get(key)
        if known is None:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            found = placement.place(kind.machine, self._variants, self._template, measured)
            known = self._answers[key] = (measured, found)  # kept, so that no other object gets its id
        return known[1]
