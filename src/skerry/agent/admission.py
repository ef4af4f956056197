"""Admission: whether this device takes a variant at all, asked before anything of it is fetched.

In this order: the owner's rules, the temperature, the memory that what already runs leaves. (The disk is looked at when
it is known how much has still to be fetched.) A refusal is final for the revision, and told with its kind.

Lives here: the checks. Must not live here: what follows from a refusal (`core.workload`, `core.refusals` on the hub).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from skerry.agent.settings import PolicySettings, RefusalRule
from skerry.api import quantity
from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Refusal
from skerry.core.messages import WorkloadDesired

_MOST_ZONES = 64
_READ_BYTES = 64 * 1024


class RefusedError(SkerryError):
    """This device does not take it."""

    def __init__(
        self, refusal: Refusal, cause: str, *, element: str = "", hint: str = "", passing: bool = False
    ) -> None:
        """`passing`: it is not about what was offered; see `core.journal.Faulted`."""
        super().__init__(cause, element=element, hint=hint)
        self.refusal = refusal
        self.passing = passing


class Admission:
    """The door of one device. `taken(name)` is the memory that all workloads but that one need, in bytes."""

    def __init__(
        self,
        policy: PolicySettings,
        memory_bytes: Callable[[], int],
        taken: Callable[[str], int],
        *,
        root: Path = Path("/"),
    ) -> None:
        self._policy = policy
        self._memory_bytes = memory_bytes
        self._taken = taken
        self._root = root

    def check(self, desired: WorkloadDesired) -> None:
        """Return when the device takes it. Raises RefusedError."""
        element = f"{desired.model_version} {desired.variant}"[:200]
        rule = next((rule for rule in self._policy.refuse if matches(rule, desired)), None)
        if rule is not None:
            raise RefusedError("Policy", _owners_word(rule), element=element, hint="[policy] in its agent.toml says so")
        self._check_temperature(element)
        self._check_memory(desired, element)

    def _check_temperature(self, element: str) -> None:
        limit = self._policy.max_temperature
        hottest = max(temperatures(self._root), default=0.0) if limit else 0.0
        if limit and hottest > limit:
            raise RefusedError(
                "Thermal", f"the device has {hottest:.1f} °C, above {limit:.1f} °C", element=element, hint="let it cool"
            )

    def _check_memory(self, desired: WorkloadDesired, element: str) -> None:
        needs, memory = desired.needs.memory_bytes, self._memory_bytes()
        shadows = desired.shadow is not None  # the version that serves goes on meanwhile
        left = memory - self._taken("" if shadows else desired.name)
        text = f"it needs {quantity.human_bytes(needs)}" + (" beside the version it shadows" if shadows else "")
        if memory and needs > left:
            raise RefusedError(
                "Memory",
                f"{text}, and {quantity.human_bytes(max(left, 0))} of {quantity.human_bytes(memory)} are left for it",
                element=element,
            )
        available = available_memory(self._root)
        if available is not None and needs > available:
            raise RefusedError(
                "Memory", f"{text}, and {quantity.human_bytes(available)} are available just now", element=element
            )


def matches(rule: RefusalRule, desired: WorkloadDesired) -> bool:
    """Return whether a rule is about this."""
    models = (desired.model, desired.model_version)
    return (
        any(fnmatchcase(name, rule.model) for name in models)
        and fnmatchcase(desired.variant, rule.variant)
        and fnmatchcase(desired.name, rule.workload)
    )


def temperatures(root: Path = Path("/")) -> Iterable[float]:
    """Return the temperature of each thermal zone that tells one, in degrees Celsius."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))[:_MOST_ZONES]:
        text = _read(path).strip()
        if text.removeprefix("-").isdigit() and len(text) < 12:
            found.append(int(text) / 1000)
    return found


def available_memory(root: Path = Path("/")) -> int | None:
    """Return what the kernel says can be taken without swapping, in bytes; None where it does not say."""
    for line in _read(root / "proc/meminfo").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemAvailable:" and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _owners_word(rule: RefusalRule) -> str:
    return f"its owner refuses it: {rule.reason}" if rule.reason else "its owner refuses it"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
