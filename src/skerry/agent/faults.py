"""What an error means for a workload: whether trying again can help, whether files are lost, whether it is a refusal.

Lives here: errors of components as `core.journal.Faulted`. Must not live here: what follows from one (`core.workload`).
"""

from __future__ import annotations

from skerry.agent.admission import RefusedError
from skerry.api.errors import (
    IntegrityError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.device import Refusal
from skerry.core.journal import Faulted, Slot


def element_of(slot: Slot) -> str:
    """Return what the slot holds, as sentences name it."""
    return f"{slot.desired.model_version} {slot.desired.variant}"[:200]


def fault_of(slot: Slot, component: str, error: SkerryError) -> Faulted:
    """Return what the state machine is told of an error that a component met with."""
    lost = isinstance(error, IntegrityError | NotFoundError)
    about_slot, refusal = component != "the registry", _refusal(component, error)
    return Faulted(
        serial=slot.serial,
        component=f"the device's own check ({refusal})" if refusal else component,
        refusal=refusal,
        passing=isinstance(error, RefusedError) and error.passing,
        element=error.element[:300] or element_of(slot),
        cause=error.cause[:1000],
        hint=error.hint[:300],
        final=_is_final(component, error),
        damaged=lost and about_slot,
    )


def _refusal(component: str, error: SkerryError) -> Refusal:
    """Which refusal an error is: the device's word, or a disk that had no room before anything was fetched."""
    if isinstance(error, RefusedError):
        return error.refusal
    return "Disk" if isinstance(error, StorageFullError) and component == "the registry" else ""


def _is_final(component: str, error: SkerryError) -> bool:
    if isinstance(error, RefusedError):
        return True
    if component == "the inference server":
        return isinstance(error, UnsupportedError)
    if component == "the registry":
        return not isinstance(error, UnavailableError | TimedOutError)
    return True
