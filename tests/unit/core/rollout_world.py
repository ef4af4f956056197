"""A simulated fleet in virtual time that obeys, lags and fails, and a hub's loop over the pure functions that may die.

Lives here: the world that tests of rollouts share. Must not live here: tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from skerry.api.kinds.device import (
    Device,
    DeviceSpec,
    DeviceStatus,
    EngineFacts,
    Hardware,
    Measurement,
    RunningRevision,
    WorkloadPhase,
    WorkloadStatus,
)
from skerry.api.kinds.gates import AccuracyGate, Gates
from skerry.api.kinds.model_deployment import (
    ModelDeployment,
    ModelDeploymentSpec,
    Strategy,
    Wave,
)
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.pacing import UpdateWindows
from skerry.api.kinds.rollout import Rollout, RolloutSpec, RolloutStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector, ObjectMeta, find_condition
from skerry.core import assignment, deployment, placement, promotion, rollout, waves, windows
from skerry.core.assignment import Target
from skerry.core.desired import DesiredRecord
from skerry.core.messages import WindowDesired, WindowsDesired, WorkloadDesired
from skerry.core.steps import Assign, Hold, Return, SetStatus, View, Withdraw
from skerry.core.waves import Member

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NAME = "digits"
MIB = 1024 * 1024


def blob(letter: str) -> Blob:
    return Blob(digest=f"sha256:{letter * 64}", size=10)


def make_model(name: str, *, memory: int = 10 * MIB) -> ModelVersion:
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=memory),
        blob=blob("a"),
        metric=0.98,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=memory, runs=1),
    )
    return ModelVersion(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}"),
        spec=ModelVersionSpec(
            model=NAME,
            version=name,
            artifact=Artifact(repository="default/digits", digest=blob("b").digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=100, allowed_drop=0.01),
            golden=Golden(blob=blob("c"), samples=64),
        ),
        status=ModelVersionStatus(phase="Ready", variants=[variant]),
    )


def make_spec(model: str = "v1", **strategy: object) -> ModelDeploymentSpec:
    return ModelDeploymentSpec(
        model_version=model,
        device_selector=LabelSelector(match_labels={"site": "lab"}),
        strategy=msgspec.convert({"deviceTimeout": "60s", **strategy}, Strategy, from_attributes=True),
    )


WAVES = [Wave(name="canary", count=1), Wave(name="half", percent=50), Wave(name="all", percent=100)]
ACCURACY = Gates(accuracy=AccuracyGate(min=0.9, min_samples=10))


@dataclass
class Sim:
    """One simulated device: what it is, and how it behaves with each model version."""

    name: str
    online: bool = True
    cordoned: bool = False
    selected: bool = True
    memory: int = 100 * MIB
    delay: float = 1.0
    site: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    """Model versions whose server never starts here: it falls back."""
    silent: frozenset[str] = frozenset()
    """Model versions about which it never reports."""
    portless: frozenset[str] = frozenset()
    """Model versions that are measured here, and then cannot have the port they are to serve on."""
    accuracy: dict[str, float] = field(default_factory=dict)
    accepted: DesiredRecord | None = None
    accepted_at: datetime = START
    report: WorkloadStatus | None = None
    proven: WorkloadStatus | None = None
    """What it said when it last became Running."""
    running: RunningRevision | None = None
    versions: list[int] = field(default_factory=list)
    ready_at: datetime | None = None
    """When it began to fetch what it accepted last."""
    waited: float = 0.0
    wakes_at: datetime | None = None
    switched: list[tuple[datetime, WorkloadDesired]] = field(default_factory=list)

    def tick(self, record: DesiredRecord | None, now: datetime) -> None:
        """Do what an agent does: accept, install for a while, report."""
        if not self.online or record is None:
            return
        self.accept(record, now)
        wanted = self.accepted.find(NAME) if self.accepted is not None else None
        if wanted is None:
            self.report, self.running = None, None
        elif wanted.workload.model_version in self.silent:
            return
        elif self.running is not None and _told(self.running) == _told(wanted.workload):
            if self.report is not None and self.report.rollout != wanted.workload.rollout:
                self.report = self.proven
        elif self.installs(wanted.workload, now):
            self.switch(wanted.workload, now)

    def accept(self, record: DesiredRecord, now: datetime) -> None:
        if self.accepted is not None and record.manifest_version <= self.accepted.manifest_version:
            return
        before, self.accepted, self.accepted_at = self.accepted, record, now
        self.versions.append(record.manifest_version)
        if before is None or not _same_wish(before, record):
            self.ready_at, self.waited = None, 0.0

    def installs(self, workload: WorkloadDesired, now: datetime) -> bool:
        """Fetch and lay it, each in its window; true when it may be switched to."""
        told = workload.windows or WindowsDesired()
        fetching = self.about(workload, "Fetching")
        if self.ready_at is None and self.waits(fetching, told.download, told.issued_at, now):
            return False
        self.ready_at = self.ready_at or now
        if (now - self.ready_at).total_seconds() < self.delay:
            self.report = fetching
            return False
        return not self.waits(self.about(workload, "Installed"), told.switch_over, told.issued_at, now)

    def switch(self, workload: WorkloadDesired, now: datetime) -> None:
        self.switched.append((now, workload))
        if workload.model_version in self.broken:
            fallen = self.about(workload, "Running" if self.running else "Failed")
            self.report = msgspec.structs.replace(fallen, message="the server died")
            return
        running = RunningRevision(
            rollout=workload.rollout,
            revision=workload.revision,
            model_version=workload.model_version,
            variant=workload.variant,
            port=8000,
            since=now,
            deployment_uid=workload.deployment_uid,
        )
        measurement = Measurement(
            samples=64,
            accuracy=self.accuracy.get(workload.model_version, 0.97),
            agreement=1,
            max_abs_error=0,
            latency_p50_ms=1,
            latency_p95_ms=2,
            peak_memory_bytes=MIB,
        )
        if workload.model_version in self.portless:
            self.report = msgspec.structs.replace(
                self.about(workload, "Starting"), measurement=measurement, running=None
            )
            return
        self.running = running
        self.report = self.proven = msgspec.structs.replace(
            self.about(workload, "Running"), measurement=measurement, served=True
        )

    def about(self, workload: WorkloadDesired, phase: WorkloadPhase) -> WorkloadStatus:
        return WorkloadStatus(
            name=NAME,
            rollout=workload.rollout,
            deployment_uid=workload.deployment_uid,
            revision=workload.revision,
            variant=workload.variant,
            phase=phase,
            running=self.running,
            waited_seconds=self.waited,
        )

    def waits(
        self, fresh: WorkloadStatus, listed: list[WindowDesired], issued_at: datetime | None, now: datetime
    ) -> bool:
        """Report that it waits for a window, if it has to."""
        closed = windows.closed(listed, now, issued_at=issued_at, what="update")
        self.wakes_at = closed.until if closed is not None else None
        if closed is not None:
            self.waited = (now - self.accepted_at).total_seconds()
            self.report = msgspec.structs.replace(fresh, waiting_for="Window", message=closed.message)
        return closed is not None


def _same_wish(one: DesiredRecord, other: DesiredRecord) -> bool:
    old, new = one.find(NAME), other.find(NAME)
    return old is not None and new is not None and _told(old.workload) == _told(new.workload)


def _told(what: RunningRevision | WorkloadDesired) -> tuple[str, str]:
    return what.rollout, what.deployment_uid


class HubDiedError(Exception):
    """The hub was killed."""


class World:
    """A store in memory, a fleet, and the hub's loop over the pure functions, as the controller runs it."""

    def __init__(self, sims: list[Sim], spec: ModelDeploymentSpec | None = None) -> None:
        self.now = START
        self.sims = {sim.name: sim for sim in sims}
        self.records: dict[str, DesiredRecord] = {}
        self.models = {name: make_model(name) for name in ("v1", "v2", "v3")}
        self.rollouts: dict[str, Rollout] = {}
        self.deployment = ModelDeployment(
            metadata=ObjectMeta(name=NAME, namespace="default", uid="dep", generation=1), spec=spec or make_spec()
        )
        self.writes_left: int | None = None
        self.writes = 0
        self.wake_at: datetime | None = None
        self.given: dict[tuple[str, str], set[bytes]] = {}
        self.approvals: dict[str, set[str]] = {}
        self.fits: dict[tuple[int, str, int], str] = {}
        """All that tells the fleet's machines apart is their memory."""

    # -- what the controller does ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Count one write; the hub may die just before it."""
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise HubDiedError
            self.writes_left -= 1
        self.writes += 1

    def device(self, sim: Sim) -> Device:
        status = DeviceStatus(
            phase="Online" if sim.online else "Offline",
            hardware=Hardware(arch="amd64", memory_bytes=sim.memory),
            engines=[EngineFacts(name="onnxruntime", version="1.30.0")],
            observed_manifest_version=sim.accepted.manifest_version if sim.accepted else 0,
            workloads=[sim.report] if sim.report else [],
        )
        return Device(
            metadata=ObjectMeta(
                name=sim.name,
                namespace="default",
                uid=f"u-{sim.name}",
                labels={**sim.labels, **({"site": sim.site} if sim.site else {})},
            ),
            spec=DeviceSpec(cordoned=sim.cordoned),
            status=status,
        )

    def unfit(self, device: Device, target: Rollout | None) -> str:
        model = self.models.get(target.spec.template.model_version) if target else None
        if target is None or model is None:
            return "the model version is missing"
        key = (device.status.hardware.memory_bytes, target.metadata.name, model.status.variants[0].needs.memory_bytes)
        if key not in self.fits:
            machine = placement.machine_of(device.status, self.records.get(device.metadata.uid), NAME)
            found = placement.place(machine, model.status.variants, target.spec.template)
            self.fits[key] = "" if found.variant else found.reason
        return self.fits[key]

    def view(self, of: Rollout) -> View:
        previous = self.rollouts.get(of.spec.previous)
        members: list[Member] = []
        for sim in self.sims.values():
            device = self.device(sim)
            record = self.records.get(device.metadata.uid)
            if sim.selected or (record and record.find(NAME)):
                members.append(
                    waves.member_of(
                        device,
                        record,
                        NAME,
                        selected=sim.selected,
                        unfit=self.unfit(device, of),
                        previous_unfit=self.unfit(device, previous),
                    )
                )
        missing = self.deployment.spec.model_version not in self.models
        return View(
            rollout=of,
            spec=self.deployment.spec,
            generation=self.deployment.metadata.generation,
            members=members,
            previous=previous.metadata.name if previous else "",
            hold=Hold(reason="ModelVersionMissing", message="no model version") if missing else None,
        )

    def execute(self, of: Rollout, actions: tuple[object, ...]) -> None:
        for action in actions:
            if isinstance(action, SetStatus):
                self.write()
                name = of.metadata.name
                self.rollouts[name] = msgspec.structs.replace(self.rollouts[name], status=action.status)
                self.check_status(self.rollouts[name])
                continue
            assert isinstance(action, Assign | Return | Withdraw)
            target = self.rollouts[action.rollout] if isinstance(action, Return) else of
            sim = self.sims[action.uid.removeprefix("u-")]
            empty = DesiredRecord(uid=action.uid, namespace="default", device=sim.name)
            before = self.records.get(action.uid, empty)
            model = self.models.get(target.spec.template.model_version)
            after = assignment.carry_out(
                action, before, self.device(sim).status, Target(rollout=target, model=model), self.now
            )
            if after == before:
                continue
            self.write()
            self.check_pace(of, action, before, after)
            assert (after.manifest_version > before.manifest_version) == (
                [a.workload for a in after.assignments] != [a.workload for a in before.assignments]
            )
            self.records[action.uid] = after
            held = after.find(NAME)
            if held is not None:
                contents = self.given.setdefault((action.uid, held.workload.rollout), set())
                contents.add(msgspec.json.encode(msgspec.structs.replace(held.workload, windows=None)))
                assert len(contents) == 1, "one rollout gave one device two different workloads"
            self.check_targets()

    def reconcile(self) -> None:
        """One pass of the hub, until nothing is left to do at this moment."""
        for _ in range(200):
            before = self.writes
            self.reconcile_once()
            if self.writes == before:
                return
        raise AssertionError("the hub does not come to rest")

    def reconcile_once(self) -> None:
        spec, generation = self.deployment.spec, self.deployment.metadata.generation
        newest = deployment.newest_of(self.rollouts.values())
        ready = spec.model_version in self.models
        if (newest is None or not deployment.same_template(newest.spec.template, spec)) and ready:
            stable = deployment.stable_of(self.rollouts.values())
            name = f"{NAME}-{generation}"
            self.write()
            self.rollouts[name] = newest = Rollout(
                metadata=ObjectMeta(name=name, namespace="default", uid=f"r-{name}"),
                spec=RolloutSpec(
                    deployment=NAME,
                    deployment_uid=self.deployment.metadata.uid,
                    revision=generation,
                    template=spec,
                    previous=stable.metadata.name if stable else "",
                ),
            )
        if newest is None:
            return
        for old in list(self.rollouts.values()):
            if old is not newest:
                self.execute(old, rollout.supersede(self.view(old), newest.metadata.name, self.now).actions)
        step = rollout.step(self.view(newest), self.now)
        self.wake_at = step.wake_at
        self.execute(newest, step.actions)

    # -- invariants ------------------------------------------------------------------------------------------------

    def check_targets(self) -> None:
        for item in self.rollouts.values():
            if item.status.phase in ("Pending", "Progressing", "Paused") and item.status.waves:
                allowed = max((w.target for w in item.status.waves if w.phase != "Pending"), default=0)
                assert self.count(item.metadata.name) <= allowed

    def check_pace(
        self, of: Rollout, action: Assign | Return | Withdraw, before: DesiredRecord, after: DesiredRecord
    ) -> None:
        """Nothing new is assigned outside of the windows, beyond the rate or the budget, or before an approval."""
        strategy, held, old = self.deployment.spec.strategy, after.find(NAME), before.find(NAME)
        moved = held is not None and (old is None or old.workload.rollout != held.workload.rollout)
        if isinstance(action, Withdraw) or held is None or not moved:
            return
        if isinstance(action, Return) and (action.returned_from or old is not None):
            assert held.workload.windows is None, "the way back waits for no window"
            return
        for window in strategy.windows.download:
            told = windows.desired_of(UpdateWindows(download=[window]), action.uid)
            assert told is not None
            if windows.opening(told.download, self.now) == self.now:
                break
        else:
            assert not strategy.windows.download, "assigned outside of the download windows"
        if isinstance(action, Assign):
            self.check_rate(of, action.wave, strategy)
            self.check_budget(self.sims[action.uid.removeprefix("u-")], strategy, before)
            self.check_promotion(of, action.wave, strategy)

    def check_rate(self, of: Rollout, wave: int, strategy: Strategy) -> None:
        name, rate = of.metadata.name, strategy.rate
        if rate is None or self.rollouts[name].status.phase == "Succeeded":
            return
        held = {uid: record.find(NAME) for uid, record in self.records.items()}
        own = {uid: a for uid, a in held.items() if a is not None and a.workload.rollout == name}
        recent = sum(abs(self.now - a.assigned_at).total_seconds() < 60 for a in own.values()) + 1
        running = [self.sims[uid.removeprefix("u-")].running for uid, a in own.items() if a.wave == wave]
        successes = sum(one is not None and one.rollout == name for one in running)
        allowed = float(rate.base)
        for _ in range(successes // rate.base):
            allowed = min(allowed * rate.factor, rate.max_per_minute)
        assert recent <= allowed + 1e-6, "the rate was exceeded"

    def check_budget(self, taken: Sim, strategy: Strategy, before: DesiredRecord) -> None:
        budget = strategy.disruption
        if budget is None or not self.undisturbed(taken, before):
            return
        group = [sim for sim in self.sims.values() if sim.selected and (not budget.group_by or sim.site == taken.site)]
        down = sum(not self.undisturbed(sim, self.records.get(f"u-{sim.name}")) for sim in group) + 1
        if budget.max_unavailable is not None:
            share = budget.max_unavailable.endswith("%")
            number = int(budget.max_unavailable.rstrip("%"))
            assert down <= (max(number * len(group) // 100, 1) if share else number), "the budget was exceeded"
        if budget.min_available is not None:
            share = budget.min_available.endswith("%")
            number = int(budget.min_available.rstrip("%"))
            assert len(group) - down >= (number * len(group) / 100 if share else number), "the budget was exceeded"

    @staticmethod
    def undisturbed(sim: Sim, record: DesiredRecord | None) -> bool:
        if not sim.online or sim.running is None or sim.report is None or sim.report.running is None:
            return False
        held = record.find(NAME) if record is not None else None
        if held is None:
            return True
        accepted = sim.accepted.manifest_version if sim.accepted is not None else 0
        current = accepted >= held.manifest_version and sim.report.rollout == held.workload.rollout
        return current and sim.report.phase in ("Running", "Failed")

    def check_promotion(self, of: Rollout, wave: int, strategy: Strategy) -> None:
        item = self.rollouts[of.metadata.name]
        if wave == 0 or item.status.phase == "Succeeded":
            return
        asked = strategy.waves[wave - 1].promotion if wave - 1 < len(strategy.waves) else None
        if (asked or strategy.promotion) == "manual" and item.status.waves[wave].phase == "Progressing":
            names = [row.name for row in item.status.waves][wave - 1 :]
            started = self.approvals.get(item.metadata.name, set())
            assert started & set(names), "a wave did not wait for its approval"

    @staticmethod
    def check_status(item: Rollout) -> None:
        raw = msgspec.json.encode(item.status)
        assert msgspec.json.decode(raw, type=RolloutStatus) == item.status
        assert all(len(wave.devices) <= waves.MAX_LISTED for wave in item.status.waves)

    # -- what a test says and asks ---------------------------------------------------------------------------------

    def change(self, **fields: object) -> None:
        meta = self.deployment.metadata
        self.deployment = msgspec.structs.replace(
            self.deployment,
            metadata=msgspec.structs.replace(meta, generation=meta.generation + 1),
            spec=msgspec.structs.replace(self.deployment.spec, **fields),
        )

    def annotate(self, key: str, value: str, *, on: str = "") -> None:
        """Say something to a rollout, as `kubectl annotate` does."""
        item = self.rollouts[on] if on else self.newest
        annotations = {**item.metadata.annotations, key: value}
        self.rollouts[item.metadata.name] = msgspec.structs.replace(
            item, metadata=msgspec.structs.replace(item.metadata, annotations=annotations)
        )
        if key == promotion.APPROVED:
            self.approvals.setdefault(item.metadata.name, set()).add(value)

    def run(self, seconds: float = 600, *, tick: float = 1.0) -> Rollout:
        end = self.now + timedelta(seconds=seconds)
        while True:
            self.reconcile()
            if self.now >= end:
                return self.newest
            self.now = self.next_moment(min(self.now + timedelta(seconds=tick), end))
            for sim in self.sims.values():
                sim.tick(self.records.get(f"u-{sim.name}"), self.now)

    def next_moment(self, latest: datetime) -> datetime:
        """When the hub or a device asked to be woken, at the latest then."""
        asked = [self.wake_at, *(sim.wakes_at for sim in self.sims.values() if sim.online)]
        return min([moment for moment in asked if moment is not None and moment > self.now] + [latest])

    @property
    def newest(self) -> Rollout:
        found = deployment.newest_of(self.rollouts.values())
        assert found is not None
        return found

    def on(self, name: str) -> list[str]:
        held = {uid: record.find(NAME) for uid, record in self.records.items()}
        return sorted(uid.removeprefix("u-") for uid, a in held.items() if a and a.workload.rollout == name)

    def count(self, name: str) -> int:
        return len(self.on(name))

    def serving(self, name: str) -> list[str]:
        return sorted(s.name for s in self.sims.values() if s.running and s.running.rollout == name)

    def condition(self) -> tuple[str, str]:
        found = find_condition(self.newest.status.conditions, "Progressing")
        assert found is not None
        return found.status, found.reason


def fleet(count: int, **fields: object) -> list[Sim]:
    return [Sim(name=f"till-{index}", **fields) for index in range(count)]  # type: ignore[arg-type]


def upgraded(sims: list[Sim], **strategy: object) -> World:
    """A world where v1 has succeeded and v2 was just asked for."""
    world = World(sims, make_spec(waves=WAVES, gates=ACCURACY))
    assert world.run(60).status.phase == "Succeeded"
    spec = make_spec("v2", waves=WAVES, gates=ACCURACY, **strategy)
    world.change(model_version="v2", strategy=spec.strategy)
    return world
