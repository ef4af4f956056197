"""Benchmarks: before a wave takes devices of a class, one of them measures the candidates. Pure.

`plan` looks at the devices that a rollout has still to take, by class, and returns whom to ask for what, and whether
the rollout waits. The rules:

- Worth measuring are the variants that such a device can run as far as facts go, where there is something to decide:
  more than one of them, or a limit on latency or memory.
- One device of each class is asked at a time: online, not cordoned, unmetered before metered, with the fewest
  workloads, then by a hash. One that leaves, or answers for less than all, is followed by another, at most `MAX_ASKED`.
- The rollout waits while somebody who is online has still to answer, at most `placement.timeout` from the first
  request on. Then, and for a class of which nobody could answer, the factory's numbers count, and the reason says so.
- What was asked for is kept until the rollout is over, so that what was fetched is still there when it is installed.

Lives here: these decisions, and the names of what is measured. Must not live here: what is learnt (`core.classes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

import msgspec

from skerry.api import duration
from skerry.api.kinds.device import BenchmarkStatus, Device
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.model_deployment import PlacementPolicy
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.pacing import UpdateWindows
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.variants import Variant
from skerry.core import classes, placement, steps, windows
from skerry.core.desired import BenchmarkRequest, DesiredRecord
from skerry.core.messages import BENCHMARK_PREFIX, MAX_BENCHMARKS, WindowsDesired, WorkloadDesired
from skerry.core.placement import Cost, Machine
from skerry.core.steps import Hold

MAX_ASKED = 3
"""Devices of one class that one rollout asks, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One device as the plan sees it."""

    device: Device
    record: DesiredRecord | None
    device_class: str
    waits: bool = True
    """The rollout has still to take it."""

    @property
    def uid(self) -> str:
        """Of the device."""
        return self.device.metadata.uid


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """The rollout that is about to go on, and when."""

    rollout: Rollout
    model: ModelVersion
    """The rollout's, ready."""
    policy: PlacementPolicy
    windows: UpdateWindows
    """The deployment's: what is to be measured is fetched when other downloads may be."""
    now: datetime
    seen: dict[Machine, list[Variant]] = field(default_factory=dict, compare=False)
    """What each kind of machine can run, found once: a fleet has few kinds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Have one device measure these."""

    uid: str
    requests: tuple[BenchmarkRequest, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to ask for, whether the rollout waits, and until when; and by class what its reasons are to say."""

    asks: tuple[Ask, ...] = ()
    hold: Hold | None = None
    wake_at: datetime | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What became of one class: whom to ask, whether somebody has still to answer, or why nobody could."""

    ask: Ask | None = None
    waits: str = ""
    """Name of the device that is waited for."""
    note: str = ""


def workload_of(rollout: Rollout, model: ModelVersion, variant: Variant) -> WorkloadDesired:
    """Return what a device is told to measure: the variant as the rollout would serve it, on a port of its own.

    Equal content kept and served alike has an equal name, whatever rollout asks for it. How it is fetched, checked and
    kept is the deployment's: only what ties it to one rollout, or promises it room, is left out.
    """
    built = placement.build_workload(rollout, model, variant)
    about = f"{variant.blob.digest}/{built.serving.threads}/{built.cpu_limit_millis}"
    if built.protection != "none":  # it lies in another form, which one of the same name would not
        about = f"{about}/{built.protection}"
    return msgspec.structs.replace(
        built,
        name=f"{BENCHMARK_PREFIX}{sha256(about.encode()).hexdigest()}",
        rollout="",
        revision=0,
        deployment_uid="",
        serving=msgspec.structs.replace(built.serving, port=0),
        memory_request_bytes=0,
        cpu_request_millis=0,
    )


def costs_for(item: DeviceClass | None, rollout: Rollout, variants: Iterable[Variant]) -> Mapping[str, Cost]:
    """Return what the class knows of variants served as this rollout serves them, by variant name."""
    threads, millis = placement.serving_of(rollout.spec.template)
    return classes.costs_of(item, variants, threads=threads, cpu_limit_millis=millis)


def plan(occasion: Occasion, candidates: Sequence[Candidate], known: Mapping[str, DeviceClass]) -> Plan:
    """Return what to do before the rollout goes on. `known` are the classes there are, by name.

    `candidates` are the deployment's devices. Raises InvalidError when a duration or quantity cannot be read.
    """
    if not occasion.policy.benchmark:
        return Plan()
    requested = [b.requested_at for c in candidates for b in _own(c, occasion.rollout)]
    end = min(requested, default=occasion.now) + duration.parse(occasion.policy.timeout)
    over = occasion.now >= end
    classed = _by_class(candidates)
    verdicts = {name: _look(occasion, members, known.get(name), over=over) for name, members in classed.items()}
    waited = sorted(verdict.waits for verdict in verdicts.values() if verdict.waits)
    notes = {name: f"class {name} was not measured{v.note}" for name, v in verdicts.items() if v.note}
    if not waited:
        return Plan(notes=notes)
    asks = tuple(verdict.ask for verdict in verdicts.values() if verdict.ask is not None)
    measures = "measures" if len(waited) == 1 else "measure"
    message = f"{steps.names(waited)} {measures} the variants, waited for until {end:%H:%M:%S} UTC at most"
    return Plan(asks=asks, hold=Hold(reason="Benchmarking", message=message), wake_at=end, notes=notes)


def _by_class(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Return all devices of those classes of which the rollout has still to take one."""
    found: dict[str, list[Candidate]] = {}
    wanted = {c.device_class for c in candidates if c.waits and c.device_class}
    for candidate in candidates:
        if candidate.device_class in wanted:
            found.setdefault(candidate.device_class, []).append(candidate)
    return dict(sorted(found.items()))


def _look(occasion: Occasion, members: Sequence[Candidate], item: DeviceClass | None, *, over: bool) -> _Verdict:
    missing = _missing(occasion, members, item)
    if not missing:
        return _Verdict()
    asked = [member for member in members if _own(member, occasion.rollout)]
    names = steps.names(sorted(member.device.metadata.name for member in asked))
    if over:
        return _Verdict(note=f" within {occasion.policy.timeout}")
    for member in asked:
        if _online(member) and _owes(member, occasion.rollout, missing):
            return _Verdict(waits=member.device.metadata.name)
    free = [member for member in members if member not in asked and member.waits and _able(member)]
    offers = [(member, [missing[v.name] for v in _runs(member, occasion) if v.name in missing]) for member in free]
    able = {member.uid: (member, wanted) for member, wanted in offers if wanted}
    if not able or len(asked) >= MAX_ASKED:
        return _Verdict(note=f": {names} could not" if asked else ": no device of it could be asked")
    member, wanted = min(able.values(), key=lambda pair: _order(pair[0], occasion.rollout))
    return _Verdict(ask=_ask(occasion, member, wanted), waits=member.device.metadata.name)


def _ask(occasion: Occasion, member: Candidate, wanted: Sequence[WorkloadDesired]) -> Ask:
    spec = occasion.rollout.spec
    requests = [
        BenchmarkRequest(
            deployment=spec.deployment,
            deployment_uid=spec.deployment_uid,
            rollout=occasion.rollout.metadata.name,
            workload=msgspec.structs.replace(workload, windows=_downloads(occasion, member)),
            requested_at=occasion.now,
        )
        for workload in wanted[:MAX_BENCHMARKS]
    ]
    return Ask(uid=member.uid, requests=tuple(requests))


def _downloads(occasion: Occasion, member: Candidate) -> WindowsDesired | None:
    """A benchmark switches nothing over, so that the windows for downloads are all it has to keep to."""
    told = windows.desired_of(occasion.windows, member.uid)
    if told is None or not told.download:
        return None
    return msgspec.structs.replace(told, switch_over=[], issued_at=occasion.now)


def _missing(occasion: Occasion, members: Sequence[Candidate], item: DeviceClass | None) -> dict[str, WorkloadDesired]:
    """What some member that is still to be taken can run, and the class knows nothing of, by variant name."""
    wish = occasion.rollout.spec.template.constraints
    limited = wish.max_latency is not None or wish.max_memory is not None
    candidates: dict[str, Variant] = {}
    for member in members:
        runs = _runs(member, occasion) if member.waits else []
        if len(runs) > 1 or limited:
            candidates.update({variant.name: variant for variant in runs})
    costs = costs_for(item, occasion.rollout, candidates.values())
    unknown = [v for name, v in candidates.items() if name not in costs or costs[name].failure]
    wanted = {variant.name: workload_of(occasion.rollout, occasion.model, variant) for variant in unknown}
    return {name: one for name, one in wanted.items() if one.golden is not None and not classes.exhausted(item, one)}


def _owes(member: Candidate, rollout: Rollout, missing: Mapping[str, WorkloadDesired]) -> bool:
    """Whether it has still to answer for something, or has answered and the class has not learnt it yet."""
    names = {workload.name for workload in missing.values()}
    said = {one.name: one for one in member.device.status.benchmarks}
    for request in _own(member, rollout):
        if request.workload.name in names:
            answer = said.get(request.workload.name)
            if answer is None or answer.phase in ("Pending", "Running") or _learnable(answer):
                return True
    return False


def _learnable(answer: BenchmarkStatus) -> bool:
    return answer.measurement is not None and not classes.fault_of(answer.measurement)


def _runs(member: Candidate, occasion: Occasion) -> list[Variant]:
    machine = placement.machine_of(member.device.status, member.record, occasion.rollout.spec.deployment)
    found = occasion.seen.get(machine)
    if found is None:
        found = placement.runnable(machine, occasion.model.status.variants, occasion.rollout.spec.template)
        occasion.seen[machine] = found
    return found


def _own(member: Candidate, rollout: Rollout) -> list[BenchmarkRequest]:
    requests = member.record.benchmarks if member.record is not None else []
    uid, name = rollout.spec.deployment_uid, rollout.metadata.name
    return [one for one in requests if (one.deployment_uid, one.rollout) == (uid, name)]


def _online(member: Candidate) -> bool:
    return member.device.status.phase == "Online"


def _able(member: Candidate) -> bool:
    full = member.record is not None and len(member.record.benchmarks) >= MAX_BENCHMARKS
    return _online(member) and not member.device.spec.cordoned and not full


def _order(member: Candidate, rollout: Rollout) -> tuple[bool, int, bytes]:
    held = len(member.record.assignments) if member.record is not None else 0
    digest = sha256(f"{rollout.metadata.uid}/benchmark/{member.uid}".encode()).digest()
    return member.device.status.network.metered, held, digest
