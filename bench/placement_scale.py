"""Placement and rollout decisions for up to a million devices, without a hub: what the pure functions cost.

A fleet of 5,000 hardware classes runs version 1; version 2, with 10 variants measured on every class, is rolled out in
three waves (1,000 devices, 10 %, all) with gates on success, accuracy and latency. For each size, in a process of its
own:

- place: the variant of every device; enter: all devices into a roster; first: the first step, which takes 1,000
- wave 2: the step that passes the first wave on 1,000 reports and takes a tenth of the fleet; settle: the one after it
- reports, next: 1,000 reports and the step after them, the mean of five; paced: all this with a rate of 1,000 a minute
- again: a new roster of all devices in the middle of the second wave, as after a restart of the hub
- peak: the highest resident memory of the process, devices included

`plain` goes through all devices each time: the reference, and how it was done before. Where both run, their actions are
compared.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec

from skerry.api.kinds.device import (
    DeviceStatus,
    EngineFacts,
    Hardware,
    Measurement,
    RunningRevision,
    WorkloadStatus,
)
from skerry.api.kinds.gates import AccuracyGate, Gates, LatencyGate
from skerry.api.kinds.model_deployment import Constraints, ModelDeploymentSpec, Strategy, Wave
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.pacing import Rate
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import placement, rollout
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.kinds import Fits, Kinds
from skerry.core.messages import WorkloadDesired
from skerry.core.placement import Cost
from skerry.core.roster import Roster
from skerry.core.steps import Assign, Frame, SetStatus, Step, View
from skerry.core.waves import Member

NAME, CLASSES, VARIANTS, REPORTS, PAGE = "digits", 5000, 10, 1000, 10_000
ROUNDS = 5
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MIB = 1 << 20


def blob(number: int) -> Blob:
    return Blob(digest=f"sha256:{number:064x}", size=10)


def make_model(name: str) -> ModelVersion:
    variants = [
        Variant(
            name=f"onnx-{number}",
            format="onnx",
            precision="fp32",
            needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=(10 + number) * MIB),
            blob=blob(number),
            metric=0.98,
            metric_drop=0,
            error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
            profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=10 * MIB, runs=1),
        )
        for number in range(VARIANTS)
    ]
    return ModelVersion(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"),
        spec=ModelVersionSpec(
            model=NAME,
            version=name,
            artifact=Artifact(repository="default/digits", digest=blob(99).digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=100, allowed_drop=0.01),
            golden=Golden(blob=blob(98), samples=64),
        ),
        status=ModelVersionStatus(phase="Ready", variants=variants),
    )


class Fleet:
    """Devices as a hub would have them: each with what it said and what it holds, the workload shared."""

    def __init__(self, size: int, *, paced: bool) -> None:
        self.size, self.now = size, START
        self.models = {name: make_model(name) for name in ("v1", "v2")}
        rate = Rate(base=1000, factor=2.0, max_per_minute=REPORTS) if paced else None
        strategy = Strategy(
            waves=[Wave(count=1000), Wave(percent=10), Wave(percent=100)],
            gates=Gates(accuracy=AccuracyGate(min=0.9), latency_p95=LatencyGate(max="50ms")),
            rate=rate,
            device_timeout="1h",
        )
        spec = ModelDeploymentSpec(
            model_version="v2",
            device_selector=LabelSelector(),
            constraints=Constraints(max_latency="50ms"),
            strategy=strategy,
        )
        self.frame = Frame(rollout=self.rollout(2, spec), spec=spec, generation=2, previous="digits-1")
        old = self.rollout(1, msgspec.structs.replace(spec, model_version="v1"))
        self.workloads = {1: self.workload(old, "v1"), 2: self.workload(self.frame.rollout, "v2")}
        self.costs = [self.measured(number) for number in range(CLASSES)]

    @staticmethod
    def rollout(revision: int, template: ModelDeploymentSpec) -> Rollout:
        name = f"{NAME}-{revision}"
        spec = RolloutSpec(deployment=NAME, deployment_uid="dep", revision=revision, template=template)
        return Rollout(metadata=ObjectMeta(name=name, namespace="default", uid=f"r-{name}"), spec=spec)

    def workload(self, item: Rollout, model: str) -> WorkloadDesired:
        return placement.build_workload(item, self.models[model], self.models[model].status.variants[0])

    @staticmethod
    def measured(number: int) -> dict[str, Cost]:
        return {
            f"onnx-{variant}": Cost(
                latency_p95_ms=1 + (number * 7 + variant * 13) % 60,
                peak_memory_bytes=(10 + variant) * MIB,
                measured_on=f"class-{number}",
                devices=3,
            )
            for variant in range(VARIANTS)
        }

    def facts(self, number: int) -> DeviceStatus:
        """Made anew for each device, as a decoder does."""
        kind = number % CLASSES
        return DeviceStatus(
            phase="Online",
            hardware=Hardware(arch="arm64", cores=4 + kind % 4, memory_bytes=(512 + kind) * MIB),
            engines=[EngineFacts(name="onnxruntime", version="1.30.0", precisions=["fp32", "int8"])],
            runtimes=["process"],
        )

    def pages(self) -> Iterator[list[tuple[DeviceStatus, DesiredRecord, Member]]]:
        for start in range(0, self.size, PAGE):
            yield [self.device(number) for number in range(start, min(start + PAGE, self.size))]

    def device(self, number: int) -> tuple[DeviceStatus, DesiredRecord, Member]:
        uid, name = f"0197a000-0000-7000-8000-{number:012x}", f"till-{number}"
        held = Assignment(
            workload=self.workloads[1],
            deployment_uid="dep",
            wave=2,
            reason="",
            assigned_at=START - timedelta(seconds=10**5 + number),
            manifest_version=1,
        )
        record = DesiredRecord(uid=uid, namespace="default", device=name, manifest_version=1, assignments=[held])
        labels = {"site": f"site-{number % 1000}"}
        member = Member(uid=uid, name=name, labels=labels, assignment=held, observed=1, report=report(1, number))
        return self.facts(number), record, member

    def on_two(self, member: Member, wave: int) -> Member:
        assert member.assignment is not None
        held = msgspec.structs.replace(
            member.assignment, workload=self.workloads[2], wave=wave, assigned_at=self.now, manifest_version=2
        )
        return dataclasses.replace(member, assignment=held)


def report(revision: int, number: int) -> WorkloadStatus:
    name = f"{NAME}-{revision}"
    measurement = Measurement(
        samples=64,
        accuracy=0.95 + number % 5 / 100,
        agreement=1,
        max_abs_error=0,
        latency_p50_ms=1,
        latency_p95_ms=1 + number % 4000 / 100,
        peak_memory_bytes=MIB,
    )
    running = RunningRevision(
        rollout=name, revision=revision, model_version=f"v{revision}", variant="onnx-0", port=8000, since=START
    )
    return WorkloadStatus(
        name=NAME, rollout=name, revision=revision, variant="onnx-0", phase="Running", measurement=measurement,
        running=running, served=True,
    )  # fmt: skip


class Watch:
    """Seconds by name, printed as they come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, call):
        began = time.perf_counter()
        found = call()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return found


class Fast:
    """How a controller uses the core: a roster, and kinds of machines."""

    def __init__(self, fleet: Fleet) -> None:
        self.roster, self.kinds = Roster(fleet.frame), Kinds()
        spec = fleet.frame.spec
        self.fits = Fits(fleet.models["v2"].status.variants, spec)

    def place(self, fleet: Fleet, page, start: int) -> list[str]:
        kinds, fits, costs = self.kinds, self.fits, fleet.costs
        return [
            fits.place(kinds.of(facts, record, NAME), costs[(start + index) % CLASSES]).reason
            for index, (facts, record, _) in enumerate(page)
        ]

    def put(self, members: list[Member]) -> None:
        for member in members:
            self.roster.put(member)

    def get(self, uid: str) -> Member:
        found = self.roster.get(uid)
        assert found is not None
        return found

    def step(self, fleet: Fleet) -> Step:
        self.roster.turn(fleet.frame)
        return self.roster.step(fleet.now)


class Plain:
    """Everything anew, each time."""

    def __init__(self, _fleet: Fleet) -> None:
        self.members: dict[str, Member] = {}
        self.answers: dict[object, str] = {}

    def place(self, fleet: Fleet, page, start: int) -> list[str]:
        return [self.find(fleet, facts, record, (start + i) % CLASSES) for i, (facts, record, _) in enumerate(page)]

    def find(self, fleet: Fleet, facts: DeviceStatus, record: DesiredRecord, kind: int) -> str:
        machine, measured = placement.machine_of(facts, record, NAME), fleet.costs[kind]
        key = (machine, tuple(sorted(measured.items())))
        if key not in self.answers:
            spec = fleet.frame.spec
            self.answers[key] = placement.place(machine, fleet.models["v2"].status.variants, spec, measured).reason
        return self.answers[key]

    def put(self, members: list[Member]) -> None:
        self.members.update((member.uid, member) for member in members)

    def get(self, uid: str) -> Member:
        return self.members[uid]

    def step(self, fleet: Fleet) -> Step:
        fields = {field.name: getattr(fleet.frame, field.name) for field in dataclasses.fields(Frame)}
        return rollout.step(View(members=list(self.members.values()), **fields), fleet.now)


def measure(size: int, way: type[Fast] | type[Plain], *, paced: bool) -> tuple[dict[str, float], list[int]]:
    fleet, watch = Fleet(size, paced=paced), Watch()
    hub, start = way(fleet), 0
    for page in fleet.pages():
        watch.time("place", lambda page=page, start=start: hub.place(fleet, page, start))
        watch.time("enter", lambda page=page: hub.put([member for _, _, member in page]))
        start += len(page)
    digest: list[int] = []

    def step(name: str) -> list[str]:
        found = watch.time(name, lambda: hub.step(fleet))
        digest.append(len(found.actions))
        return carry_out(fleet, hub, found)

    taken = step("first")
    assert len(taken) == min(1000, size)
    digest.append(sum(int(uid[-12:], 16) for uid in taken))
    hear(fleet, hub, watch, taken, "wave 1")
    fleet.now += timedelta(seconds=61)
    taken = step("wave 2")
    step("settle")
    rounds = min(len(taken) // REPORTS, ROUNDS)
    for number in range(rounds):
        hear(fleet, hub, watch, taken[number * REPORTS : (number + 1) * REPORTS], "reports")
        taken += step("next")
        fleet.now += timedelta(seconds=61 if paced else 0)
    for name in ("reports", "next"):
        if rounds:
            watch.seconds[name] /= rounds
    if isinstance(hub, Fast):
        members = list(hub.roster)
        watch.time("again", lambda: Roster(fleet.frame, members).step(fleet.now))
    return watch.seconds, digest


def hear(fleet: Fleet, hub: Fast | Plain, watch: Watch, uids: list[str], name: str) -> None:
    fleet.now += timedelta(seconds=1)
    heard = [
        dataclasses.replace(hub.get(uid), report=report(2, int(uid[-12:], 16)), observed=2, online=True) for uid in uids
    ]
    watch.time(name, lambda: hub.put(heard))


def carry_out(fleet: Fleet, hub: Fast | Plain, found: Step) -> list[str]:
    changed: list[Member] = []
    for action in found.actions:
        if isinstance(action, SetStatus):
            item = msgspec.structs.replace(fleet.frame.rollout, status=action.status)
            fleet.frame = dataclasses.replace(fleet.frame, rollout=item)
        elif isinstance(action, Assign):
            changed.append(fleet.on_two(hub.get(action.uid), action.wave))
    hub.put(changed)
    return [member.uid for member in changed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,100000", help="numbers of devices, as in 10000,100000,1000000")
    parser.add_argument("--plain", type=int, default=100_000, help="largest size that the reference is measured at")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        way, size, paced = wanted.one.split(",")
        seconds, digest = measure(int(size), {"fast": Fast, "plain": Plain}[way], paced=paced == "paced")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "digest": digest, "peak": peak}))
        return
    for size in map(int, wanted.sizes.split(",")):
        print(f"{size} devices, {CLASSES} classes, {VARIANTS} variants")
        ways = ["fast", "plain"] if size <= wanted.plain else ["fast"]
        for paced in ("free", "paced"):
            found = {way: one(way, size, paced) for way in ways}
            show(found, paced)
            if len(found) == 2:
                same = found["fast"]["digest"] == found["plain"]["digest"]
                print(f"  {paced:6} the same actions: {'yes' if same else 'NO'}", flush=True)


def one(way: str, size: int, paced: str) -> dict:
    command = [sys.executable, __file__, "--one", f"{way},{size},{paced}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(found: dict[str, dict], paced: str) -> None:
    for way, figures in found.items():
        seconds = figures["seconds"]
        for name, value in seconds.items():
            print(f"  {paced:6} {way:6} {name:10} {value:10.4f} s")
        if "next" in seconds:
            rate = REPORTS / (seconds["next"] + seconds["reports"])
            print(f"  {paced:6} {way:6} {'a second':10} {rate:10.0f} reports")
        print(f"  {paced:6} {way:6} {'peak':10} {figures['peak']:10.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
