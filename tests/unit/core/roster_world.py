"""Fleets made up at random, and the step of a roster held against that of the plain fleet.

Lives here: how a device, a strategy and a change are made up. Must not live here: tests.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from random import Random

import msgspec
from tests.unit.core.rollout_world import NAME, START, make_model

from skerry.api.kinds.device import Comparison, Measurement, Observation, RunningRevision, ShadowReport, WorkloadStatus
from skerry.api.kinds.gates import (
    AccuracyGate,
    AgreementGate,
    ErrorRateGate,
    Gates,
    HealthGate,
    LatencyGate,
    MemoryGate,
    ShadowGate,
    SuccessGate,
)
from skerry.api.kinds.model_deployment import ModelDeploymentSpec, Strategy, Wave
from skerry.api.kinds.pacing import Disruption, Rate, UpdateWindows, Window
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import deployment, placement, promotion, refusals, rollout, windows
from skerry.core.desired import Assignment
from skerry.core.messages import ObserveDesired, ShadowDesired
from skerry.core.roster import Roster
from skerry.core.steps import ENDED, Assign, Frame, Hold, Return, SetStatus, Step, View, Withdraw
from skerry.core.waves import Member

DEPLOYMENT, ROLLOUTS = "dep", ("digits-1", "digits-2", "digits-0")
CURRENT, PREVIOUS = "digits-2", "digits-1"
MISSING = ["fail", "ignore", "wait"]
PHASES = ["Pending", "Fetching", "Installed", "Probing", "Shadowing", *["Running"] * 8, "RollingBack", "Failed"]
MODEL = make_model("v1")


def make_strategy(random: Random) -> Strategy:
    """Return a strategy in which anything may be set."""
    some = random.choice
    plan = [
        Wave(
            name=some(["", f"w{index}"]),
            count=random.randint(1, 9),
            selector=some([None, None, LabelSelector(match_labels={"site": some("ab")})]),
            promotion=some([None, None, None, "manual"]),
        )
        for index in range(random.randint(0, 3))
    ]
    daily = Window(
        schedule=some(["*/10 * * * *", "7,33 * * * *"]), duration=some(["1m", "4m"]), spread=some(["0s", "2m"])
    )
    budget = {some(["max_unavailable", "min_available"]): some(["1", "2", "30%", "60%"])}
    return Strategy(
        waves=[*plan, *some([[], [Wave(percent=100)]])],
        gates=make_gates(random),
        rate=some([None, Rate(base=random.randint(1, 3), factor=some([1.0, 1.5]), max_per_minute=some([3, 50]))]),
        disruption=some([None, Disruption(group_by=some(["", "site"]), **budget)]),
        windows=some([UpdateWindows(), UpdateWindows(download=[daily]), UpdateWindows(switch_over=[daily])]),
        success_threshold=some([None, None, "60%", "2"]),
        failure_threshold=some([None, None, "3", "80%"]),
        bake_time=some(["0s", "30s"]),
        device_timeout=some(["60s", "5m"]),
        on_failure=some(["rollback", "pause"]),
        promotion=some(["automatic", "automatic", "manual"]),
    )


def make_gates(random: Random) -> Gates:
    """Return gates, of which most let most devices pass."""

    def some(listed: list[object]) -> object:
        return random.choice([*listed[:1] * strict, *listed])

    strict, few = random.randrange(5), {"min_devices": random.randint(0, 3), "missing": random.choice(MISSING)}
    lenient = SuccessGate(min=some([0.0, 0.2, 0.5]), min_devices=1, missing=random.choice(MISSING))
    return Gates(
        success_ratio=random.choice([SuccessGate(), lenient, lenient, lenient]),
        health=some([None, HealthGate(min=some([0.1, 0.6]), **few)]),
        accuracy=some([None, AccuracyGate(min=some([0.1, 0.3]), min_samples=10, **few)]),
        agreement=some([None, AgreementGate(min=0.1, max_difference=some([None, 4.0]), **few)]),
        latency_p95=some([None, LatencyGate(max="9ms", max_ratio=some([None, 9.0]), **few)]),
        peak_memory=some([None, MemoryGate(max="1000", **few)]),
        error_rate=some([None, ErrorRateGate(max=some([0.2, 0.9]), min_samples=some([0, 40]), **few)]),
        shadow_agreement=some([None, None, ShadowGate(min=0.1, **few)]),
    )


def make_report(random: Random, about: str) -> WorkloadStatus:
    """Return what a device might say of a rollout, seldom a lie."""
    some, chance = random.choice, random.random
    running = RunningRevision(
        rollout=about if chance() < 0.9 else some(ROLLOUTS), revision=1, model_version="v1", variant=some("ab"),
        port=1, since=START,
    )  # fmt: skip
    return WorkloadStatus(
        name=NAME,
        rollout=about if chance() < 0.95 else some(ROLLOUTS),
        revision=1,
        variant="onnx-fp32",
        phase=some(PHASES),
        message=some(["", "so it is"]),
        refusal=some(["", "", "", "Policy"]),
        waiting_for=some(["", "", "", "", "Hold"]),
        waited_seconds=some([0.0, 0.0, 0.0, 20.0, 1000.0]),
        measurement=_measurement(random) if chance() < 0.9 else None,
        observation=_observation(random) if chance() < 0.9 else None,
        shadow=_shadow(random) if chance() < 0.7 else None,
        running=running if chance() < 0.8 else None,
        served=chance() < 0.7,
    )


def _measurement(random: Random) -> Measurement:
    some = random.choice
    comparison = Comparison(
        replaced=some(["", "v0"]), samples=some([0, 10]), agreement=some([0.5, 0.9]),
        max_abs_difference=some([0.0, 1.0, 3.0]), latency_p95_ms=some([1.0, 2.0]), replaced_latency_p95_ms=1.0,
    )  # fmt: skip
    return Measurement(
        samples=some([5, 10, 20, 20, 20]),
        accuracy=some([0.4, 0.8, 0.9, None]) if random.random() < 0.98 else 7.0,
        agreement=1,
        max_abs_error=0,
        latency_p50_ms=1,
        latency_p95_ms=some([1.0, 2.0, 8.0]),
        peak_memory_bytes=some([0, 10, 900]),
        comparison=some([None, comparison, comparison]),
    )


def _observation(random: Random) -> Observation:
    some = random.choice
    requests = some([0, 3, 10, 40, 900])
    return Observation(
        seconds=some([5.0, 30.0, 30.0]),
        requests=requests,
        errors=min(some([0, 0, 1, 7]), requests) if random.random() < 0.99 else 10**4,
        restarts=some([0, 0, 0, 0, 1]),
        checks=20,
        unready=some([0, 0, 0, 0, 0, 2]),
    )


def _shadow(random: Random) -> ShadowReport:
    some = random.choice
    return ShadowReport(beside=some(["", "v0"]), requests=9, answered=some([0, 5, 9]), agreed=some([0, 0, 5]))


class Mirror:
    """A fleet that changes at random, in a roster; each step of it is compared with the plain one."""

    def __init__(self, seed: int, devices: int) -> None:
        self.random = Random(seed)
        self.now = START
        self.devices = devices
        self.made = 0
        self.met: set[str] = set()
        """Phases and reasons that were come by."""
        self.rollouts = {name: self._rollout(name) for name in ROLLOUTS}
        strategy = make_strategy(self.random)
        self.frame = Frame(
            rollout=self.rollouts[CURRENT],
            spec=ModelDeploymentSpec(model_version="v1", device_selector=LabelSelector(), strategy=strategy),
            generation=2,
            previous=self.random.choice([PREVIOUS, PREVIOUS, ""]),
        )
        self.roster = Roster(self.frame)
        for _ in range(devices):
            self.roster.put(self._new())

    # --- what may happen --------------------------------------------------------------------------------------------

    def change(self) -> None:
        """Let something happen."""
        random, known = self.random, list(self.roster)
        if self.frame.rollout.status.phase in ENDED and random.random() < 0.2:
            self._begin()
        kind = random.choices(
            ["report", "fresh", "flag", "join", "leave", "replace", "time", "back", "strategy", "frame"],
            [40, 12, 10, 4, 4, 1, 20, 1, 1, 3],
        )[0]
        if kind == "join" or not known:
            self.roster.put(self._new())
        elif kind == "leave":
            self.roster.drop(random.choice(known).uid)
        elif kind == "replace":
            old = random.choice(known)
            self.roster.put(dataclasses.replace(self._new(), name=old.name))
        elif kind == "time":
            self.now += timedelta(seconds=random.choice([0, 1, 10, 30, 61, 300]))
        elif kind == "back":
            self.now -= timedelta(seconds=random.choice([1, 90]))
        elif kind == "strategy":
            spec = msgspec.structs.replace(self.frame.spec, strategy=make_strategy(random))
            self.frame = dataclasses.replace(self.frame, spec=spec, generation=self.frame.generation + 1)
        elif kind == "frame":
            self._turn()
        else:
            for member in random.sample(known, min(len(known), random.randint(1, 3))):
                self.roster.put(self._changed(member, kind))

    def taken(self, name: str) -> Member:
        """Return a device that is selected and on that rollout, made so if there is none."""
        member = next(iter(self.roster))
        held = msgspec.structs.replace(self._assignment(name, 0, self.now), deployment_uid=DEPLOYMENT)
        member = dataclasses.replace(member, selected=True, assignment=held)
        self.roster.put(member)
        return member

    def _begin(self) -> None:
        """The same rollout once more, from its beginning."""
        spec = msgspec.structs.replace(self.frame.spec, strategy=make_strategy(self.random), paused=False)
        self.frame = dataclasses.replace(self.frame, rollout=self.rollouts[CURRENT], spec=spec, hold=None)

    def _turn(self) -> None:
        random, frame = self.random, self.frame
        match random.randrange(5):
            case 0:
                hold = random.choice([None, None, Hold(reason="ModelVersionMissing", message="it is missing")])
                self.frame = dataclasses.replace(frame, hold=hold)
            case 1:
                spec = msgspec.structs.replace(frame.spec, paused=not frame.spec.paused)
                self.frame = dataclasses.replace(frame, spec=spec, generation=frame.generation + 1)
            case 2:
                self.frame = dataclasses.replace(frame, previous=random.choice([PREVIOUS, ""]))
            case _:
                names = [wave.name for wave in frame.rollout.status.waves] or [""]
                said = {promotion.APPROVED: random.choice(names)}
                if random.random() < 0.1:
                    said[promotion.ABORT] = "enough"
                meta = msgspec.structs.replace(frame.rollout.metadata, annotations=said)
                self.frame = dataclasses.replace(frame, rollout=msgspec.structs.replace(frame.rollout, metadata=meta))

    def _changed(self, member: Member, kind: str) -> Member:
        random = self.random
        if kind == "fresh":  # it does what it was told
            held = member.assignment
            observed = held.manifest_version if held is not None else member.observed
            report = None if held is None else make_report(random, held.workload.rollout)
            return dataclasses.replace(member, report=report, observed=observed, online=True)
        if kind == "report":
            report = make_report(random, member.rollout or CURRENT)
            return dataclasses.replace(member, report=report, observed=random.choice([member.observed, 3]))
        return dataclasses.replace(member, **{
            random.choice(["online", "cordoned", "selected"]): random.random() < 0.8,
            "labels": self._labels(),
            "unfit": random.choice(["", "", "", "it is too small"]),
            "previous_unfit": random.choice(["", "", "", "it was too small"]),
        })  # fmt: skip

    # --- how it is made up ------------------------------------------------------------------------------------------

    def _rollout(self, name: str) -> Rollout:
        template = ModelDeploymentSpec(model_version="v1", device_selector=LabelSelector())
        return Rollout(
            metadata=ObjectMeta(name=name, namespace="default", uid=f"r-{name}"),
            spec=RolloutSpec(
                deployment=NAME, deployment_uid=DEPLOYMENT, revision=2, template=template, previous=PREVIOUS
            ),
        )

    def _labels(self) -> dict[str, str]:
        site = self.random.choice(["a", "a", "b", "c", ""])
        return {"site": site} if site else {}

    def _new(self) -> Member:
        random, self.made = self.random, self.made + 1
        member = Member(
            uid=f"u-{self.made}",
            name=f"d{random.randrange(10**6):06}-{self.made}",
            online=random.random() < 0.8,
            cordoned=random.random() < 0.1,
            labels=self._labels(),
            unfit=random.choice(["", "", "", "", "it is too small"]),
        )
        about = random.choice(["", PREVIOUS, PREVIOUS, PREVIOUS, *ROLLOUTS])
        if not about:
            return member
        held = self._assignment(about, random.randrange(3), self.now - timedelta(seconds=random.choice([0, 30, 500])))
        return dataclasses.replace(member, assignment=held, report=make_report(random, about), observed=3)

    def _assignment(self, name: str, wave: int, at: object) -> Assignment:
        random = self.random
        workload = placement.build_workload(self.rollouts[name], MODEL, MODEL.status.variants[0])
        strategy = self.frame.spec.strategy if hasattr(self, "frame") else Strategy()
        workload = msgspec.structs.replace(
            workload,
            observe=random.choice([None, ObserveDesired(seconds=30.0), ObserveDesired(seconds=30.0)]),
            shadow=random.choice([None, None, None, ShadowDesired(seconds=20.0, missing=random.choice(MISSING))]),
            windows=windows.desired_of(strategy.windows, "told") if random.random() < 0.2 else None,
        )
        return Assignment(
            workload=workload,
            deployment_uid=random.choice([*[DEPLOYMENT] * 12, "an earlier one"]),
            wave=wave,
            reason="",
            assigned_at=at,
            returned_from=random.choice(["", "", CURRENT]),
            manifest_version=random.choice([3, 3, 3, 4]),
        )

    # --- what is compared -------------------------------------------------------------------------------------------

    def step(self) -> Step:
        """Compare the next step, and do a part of it, as a hub does that may die."""
        self.roster.turn(self.frame)
        view = View(
            members=list(self.roster),
            **{field.name: getattr(self.frame, field.name) for field in dataclasses.fields(Frame)},
        )
        right = rollout.step(view, self.now)
        found = self.roster.step(self.now)
        assert found == right
        assert self.roster.supersede("digits-3", self.now) == rollout.supersede(view, "digits-3", self.now)
        assert _plain(self.roster.census()) == _plain(deployment.count(view.members))
        refusing = sorted(member.uid for member in view.members if refusals.refused(member) is not None)
        assert sorted(member.uid for member in self.roster.refusing()) == refusing
        fresh = Roster(self.frame, view.members)
        assert fresh.step(self.now) == right
        self._carry_out(right)
        return right

    def _carry_out(self, step: Step) -> None:
        random = self.random
        for action in step.actions:
            if random.random() < 0.02:
                return
            if isinstance(action, SetStatus):
                self.met |= {action.status.phase, *(c.reason for c in action.status.conditions)}
                replaced = msgspec.structs.replace(self.frame.rollout, status=action.status)
                self.frame = dataclasses.replace(self.frame, rollout=replaced)
                continue
            member = self.roster.get(action.uid)
            assert member is not None
            if isinstance(action, Withdraw):
                self.roster.put(dataclasses.replace(member, assignment=None))
                continue
            assert isinstance(action, Assign | Return)
            wave = action.wave if isinstance(action, Assign) else 0
            held = self._assignment(CURRENT if isinstance(action, Assign) else action.rollout, wave, self.now)
            back = action.returned_from if isinstance(action, Return) else ""
            workload = msgspec.structs.replace(held.workload, windows=action.windows)
            held = msgspec.structs.replace(
                held, workload=workload, deployment_uid=DEPLOYMENT, returned_from=back, manifest_version=3
            )
            self.roster.put(dataclasses.replace(member, assignment=held))


def _plain(census: deployment.Census) -> tuple[object, ...]:
    return (census.selected, census.ready, dict(census.rollouts), dict(census.variants), list(census.idle))
