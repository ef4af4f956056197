"""Which device is asked to measure what, how long a rollout waits for it, and what a refusal leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.class_world import MIB, NOW, VARIANTS, device, measured, model, rollout, variant

from skerry.api.kinds.device import BenchmarkStatus, Network, WorkloadStatus
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.model_deployment import PlacementPolicy
from skerry.api.kinds.pacing import UpdateWindows, Window
from skerry.api.kinds.variants import Variant
from skerry.api.meta import ObjectMeta
from skerry.core import assignment, benchmarks, classes, desired, placement, refusals, waves
from skerry.core.assignment import Target
from skerry.core.benchmarks import Candidate, Occasion, Plan
from skerry.core.classes import Finding, Served
from skerry.core.desired import DesiredRecord
from skerry.core.placement import Cost
from skerry.core.steps import Assign, Return

POLICY = PlacementPolicy(benchmark=True, timeout="5m")


@dataclass
class Fleet:
    """Devices that obey or do not, and a hub that learns at once."""

    candidates: dict[str, Candidate] = field(default_factory=dict)
    known: dict[str, DeviceClass] = field(default_factory=dict)
    policy: PlacementPolicy = POLICY
    variants: Sequence[Variant] = VARIANTS
    wish: dict[str, Any] = field(default_factory=dict)
    windows: UpdateWindows = field(default_factory=UpdateWindows)
    now: datetime = NOW

    def add(self, name: str, **changes: Any) -> None:
        made = device(name, **changes)
        record = DesiredRecord(uid=made.metadata.uid, namespace="default", device=name)
        about = classes.class_name_of(made.status)
        self.candidates[name] = Candidate(device=made, record=record, device_class=about)

    def plan(self) -> Plan:
        """Plan, and put what is asked into the records."""
        occasion = Occasion(
            rollout=rollout(**self.wish),
            model=model(*self.variants),
            policy=self.policy,
            windows=self.windows,
            now=self.now,
        )
        made = benchmarks.plan(occasion, list(self.candidates.values()), self.known)
        for ask in made.asks:
            name = ask.uid.removeprefix("u-")
            record = self.candidates[name].record
            assert record is not None
            after = desired.request_benchmarks(record, ask.requests)
            assert after != record, "what is asked is always new"
            self.change(name, record=after)
        return made

    def change(self, name: str, **changes: Any) -> None:
        old = self.candidates[name]
        plain = {"device": old.device, "record": old.record, "device_class": old.device_class, "waits": old.waits}
        self.candidates[name] = Candidate(**{**plain, **changes})

    def say(self, name: str, **changes: Any) -> None:
        one = self.candidates[name].device
        self.change(name, device=msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, **changes)))

    def answer(self, name: str, p95: dict[str, float | str]) -> None:
        """The device measures (a number), fails (a sentence) or refuses (a sentence that begins with Memory)."""
        record = self.candidates[name].record
        assert record is not None
        said, findings = [], []
        for request in record.benchmarks:
            word = p95[request.workload.variant]
            found = measured(word) if isinstance(word, float) else None
            text = word if isinstance(word, str) else ""
            refusal = "Memory" if text.startswith("Memory") else ""
            plain = {
                "name": request.workload.name,
                "phase": "Measured" if found else "Failed",
                "message": text,
                "refusal": refusal,
            }
            said.append(msgspec.structs.replace(msgspec.convert(plain, BenchmarkStatus), measurement=found))
            if not refusal:
                findings.append(
                    Finding(
                        device=name,
                        uid=f"u-{name}",
                        source="benchmark",
                        workload=msgspec.convert(request.workload, Served, from_attributes=True),
                        measurement=found,
                        failure=text,
                    )
                )
        self.say(name, benchmarks=said)
        self.learn(self.candidates[name].device_class, findings)

    def learn(self, about: str, findings: list[Finding]) -> None:
        item = self.known.get(about, DeviceClass(metadata=ObjectMeta(name=about, namespace="default")))
        self.known[about] = msgspec.structs.replace(item, status=classes.learn(item.status, findings, self.now))

    def asked(self, name: str) -> list[str]:
        record = self.candidates[name].record
        return [] if record is None else [request.workload.variant for request in record.benchmarks]


ALL = {"onnx-fp32": 1.0, "onnx-fp16": 5.0, "onnx-int8": 9.0}


def test_one_device_of_each_class_measures_everything_that_could_run_and_then_the_rollout_goes_on() -> None:
    fleet = Fleet()
    for name in ("a", "b"):
        fleet.add(name)
        fleet.add(f"big-{name}", memory=2048)
    first = fleet.plan()
    assert len(first.asks) == 2
    assert first.hold is not None
    assert first.hold.reason == "Benchmarking"
    assert first.wake_at == NOW + timedelta(minutes=5)
    asked = [name for name in fleet.candidates if fleet.asked(name)]
    assert sorted(name.partition("-")[0] for name in asked) in (["a", "big"], ["b", "big"])
    assert fleet.asked(asked[0]) == ["onnx-fp16", "onnx-fp32", "onnx-int8"]
    assert not fleet.plan().asks, "asking again would be no news"
    fleet.answer(asked[0], dict(ALL))
    assert fleet.plan().hold is not None, "the other class is waited for"
    fleet.answer(asked[1], dict(ALL))
    assert fleet.plan() == Plan()


def test_what_is_measured_decides() -> None:
    fleet = Fleet()
    fleet.add("a")
    fleet.plan()
    fleet.answer("a", dict(ALL))
    one = fleet.candidates["a"]
    costs = benchmarks.costs_for(fleet.known[one.device_class], rollout(), VARIANTS)
    machine = placement.machine_of(one.device.status)
    found = placement.place(machine, VARIANTS, rollout().spec.template, costs)
    assert found.variant is not None
    assert found.variant.name == "onnx-fp32", "the factory would have taken onnx-int8"
    assert f"measured on class {one.device_class} by 1 device" in found.reason


def test_nothing_is_measured_where_there_is_nothing_to_decide() -> None:
    fleet = Fleet(variants=VARIANTS[:1])
    fleet.add("a")
    assert fleet.plan() == Plan()
    fleet.wish = {"max_latency": "10ms"}
    assert fleet.plan().asks, "a limit may not hold there"
    off = Fleet(policy=PlacementPolicy())
    off.add("a")
    assert off.plan() == Plan()


def test_devices_that_are_on_the_rollout_already_are_not_waited_for() -> None:
    fleet = Fleet()
    fleet.add("a")
    fleet.change("a", waits=False)
    assert fleet.plan() == Plan()


def test_offline_and_cordoned_devices_are_not_asked_and_the_reason_says_so() -> None:
    fleet = Fleet()
    fleet.add("a", phase="Offline")
    fleet.add("b", cordoned=True)
    fleet.change("b", waits=False)
    made = fleet.plan()
    assert made.hold is None
    [note] = made.notes.values()
    assert note.endswith("was not measured: no device of it could be asked")
    found = placement.place(
        placement.machine_of(fleet.candidates["a"].device.status), VARIANTS, rollout().spec.template, {}, note=note
    )
    assert found.reason.endswith(f"measured in the factory; {note}")


def test_unmetered_devices_are_asked_before_metered_ones() -> None:
    fleet = Fleet()
    for name in "abcdef":
        fleet.add(name, network=Network(kind="cellular", metered=name != "d"))
    fleet.plan()
    assert [name for name in fleet.candidates if fleet.asked(name)] == ["d"]


def test_one_that_leaves_is_followed_by_another_and_three_are_enough() -> None:
    fleet = Fleet()
    for name in "abcde":
        fleet.add(name)
    for count in range(1, benchmarks.MAX_ASKED + 1):
        assert fleet.plan().hold is not None
        asked = [name for name in fleet.candidates if fleet.asked(name)]
        assert len(asked) == count
        for name in asked:
            fleet.say(name, phase="Offline")
    made = fleet.plan()
    assert (made.hold, made.asks) == (None, ())
    assert "could not" in next(iter(made.notes.values()))


def test_a_device_that_refuses_is_followed_by_another_and_is_not_held_against_the_class() -> None:
    fleet = Fleet()
    fleet.add("a")
    fleet.add("b")
    fleet.plan()
    [first] = [name for name in fleet.candidates if fleet.asked(name)]
    fleet.answer(first, dict.fromkeys(ALL, "Memory: no room"))
    fleet.plan()
    [other] = [name for name in fleet.candidates if fleet.asked(name) and name != first]
    fleet.answer(other, dict(ALL))
    assert fleet.plan() == Plan()
    [item] = fleet.known.values()
    assert all(cost.devices == 1 for cost in item.status.variants)


def test_a_variant_that_cannot_be_measured_ranks_behind_those_that_can() -> None:
    fleet = Fleet()
    fleet.add("a")
    fleet.plan()
    fleet.answer("a", {**ALL, "onnx-int8": "the engine died"})
    assert fleet.plan().hold is None
    one = fleet.candidates["a"]
    costs = benchmarks.costs_for(fleet.known[one.device_class], rollout(), VARIANTS)
    found = placement.place(placement.machine_of(one.device.status), VARIANTS, rollout().spec.template, costs)
    assert [c.variant for c in found.candidates] == ["onnx-fp32", "onnx-fp16", "onnx-int8"]
    assert found.candidates[2].reason == "fits, but could not be measured on the class: the engine died"


def test_silence_ends_with_the_timeout_counted_from_the_first_request() -> None:
    fleet = Fleet()
    fleet.add("a")
    first = fleet.plan()
    fleet.now = NOW + timedelta(minutes=4)
    fleet.add("late", memory=4096)
    second = fleet.plan()
    assert second.asks, "a class that comes later is asked too"
    assert (first.wake_at, second.wake_at) == (NOW + timedelta(minutes=5), NOW + timedelta(minutes=5))
    fleet.now = NOW + timedelta(minutes=5)
    over = fleet.plan()
    assert (over.hold, over.asks) == (None, ())
    assert {note.partition("was not measured")[2] for note in over.notes.values()} == {" within 5m"}


def test_what_other_rollouts_or_deployments_asked_for_is_not_this_ones() -> None:
    fleet = Fleet()
    fleet.add("a")
    fleet.plan()
    record = fleet.candidates["a"].record
    assert record is not None
    old = [msgspec.structs.replace(b, rollout="digits-0") for b in record.benchmarks]
    fleet.change("a", record=msgspec.structs.replace(record, benchmarks=old))
    again = fleet.plan()
    assert len(again.asks) == 1
    asked = fleet.candidates["a"].record
    assert asked is not None
    assert asked.manifest_version == record.manifest_version, "the device is told nothing new: it measures each once"
    assert desired.withdraw_benchmarks(record, "other") == record
    assert desired.withdraw_benchmarks(record, "digits", keep=("dep", "digits-1")) == record
    taken_back = desired.withdraw_benchmarks(record, "digits")
    assert (taken_back.benchmarks, taken_back.manifest_version) == ([], record.manifest_version + 1)


def test_what_is_measured_is_fetched_when_downloads_may_be_and_waits_for_no_switch_over() -> None:
    window = Window(schedule="0 2 * * *", duration="1h")
    fleet = Fleet(windows=UpdateWindows(download=[window], switch_over=[window]))
    fleet.add("a")
    [ask] = fleet.plan().asks
    for request in ask.requests:
        told = request.workload.windows
        assert told is not None
        assert (len(told.download), told.switch_over, told.issued_at) == (1, [], NOW)


def test_what_is_measured_has_a_name_of_its_own_and_serves_nobody() -> None:
    made = benchmarks.workload_of(rollout(threads=2), model(), VARIANTS[0])
    other = benchmarks.workload_of(rollout("other-7", threads=2), model(), VARIANTS[0])
    assert made.name == other.name, "equal content served alike is measured once"
    assert made.name != benchmarks.workload_of(rollout(threads=1), model(), VARIANTS[0]).name
    assert len(made.name) > 63, "longer than any deployment's"
    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made
    assert (made.rollout, made.serving.port, made.serving.threads, made.shadow, made.windows) == ("", 0, 2, None, None)


ANSWERS: dict[str, dict[str, float | str]] = {
    "measure": dict(ALL),
    "fail": dict.fromkeys(ALL, "broken"),
    "refuse": dict.fromkeys(ALL, "Memory"),
}


def happen(fleet: Fleet, word: str, place: int) -> None:
    name = sorted(fleet.candidates)[place % len(fleet.candidates)]
    if word in ANSWERS:
        fleet.answer(name, ANSWERS[word])
    elif word in ("leave", "return"):
        fleet.say(name, phase="Offline" if word == "leave" else "Online")
    elif word == "join":
        fleet.add(f"x{len(fleet.candidates)}", memory=512 << place % 3)
    elif word == "wait":
        fleet.now += timedelta(seconds=30)


_WORDS = st.sampled_from(["measure", "fail", "refuse", "leave", "return", "silent", "join", "wait"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_WORDS, st.integers(0, 7)), max_size=40), st.integers(1, 6))
def test_whatever_devices_do_the_rollout_goes_on_in_time_and_few_are_asked(
    moves: list[tuple[str, int]], count: int
) -> None:
    fleet = Fleet()
    for number in range(count):
        fleet.add(f"d{number}", memory=512 << number % 2)
    for word, place in moves:
        plan = fleet.plan()
        if plan.hold is None:
            break
        assert plan.wake_at is not None
        assert plan.wake_at <= NOW + timedelta(minutes=5)
        happen(fleet, word, place)
        for about in {one.device_class for one in fleet.candidates.values()}:
            asked = [n for n, one in fleet.candidates.items() if one.device_class == about and fleet.asked(n)]
            assert len(asked) <= benchmarks.MAX_ASKED
    fleet.now = NOW + timedelta(hours=1)
    requested = any(fleet.asked(name) for name in fleet.candidates)
    assert fleet.plan().hold is None or not requested


# --- refusals -------------------------------------------------------------------------------------------------------

TARGET = Target(rollout=rollout(), model=model())
EMPTY = DesiredRecord(uid="u-a", namespace="default", device="a")


def assigned(**changes: Any) -> DesiredRecord:
    return assignment.carry_out(Assign(uid="u-a", wave=2), EMPTY, device("a").status, TARGET, NOW, **changes)


def report(record: DesiredRecord, refusal: str, **changes: Any) -> waves.Member:
    [held] = record.assignments
    plain = {
        "name": "digits",
        "rollout": held.workload.rollout,
        "revision": 1,
        "variant": held.workload.variant,
        "phase": "Failed",
        "refusal": refusal,
        "message": "its owner refuses it",
        **changes,
    }
    said = msgspec.convert(plain, WorkloadStatus)
    status = device("a", workloads=[said], observed_manifest_version=record.manifest_version)
    return waves.member_of(status, record, "digits", selected=True)


def test_a_device_that_refuses_gets_the_next_best_until_nothing_is_left() -> None:
    record, given_out = assigned(), []
    facts = device("a").status
    for number in range(10):
        [held] = record.assignments
        given_out.append(held.workload.variant)
        refusal = refusals.refused(report(record, "Policy"))
        if refusal is None:
            break
        later = NOW + timedelta(minutes=number)
        record = refusals.next_best(record, refusal, facts, TARGET, later)
        assert refusals.next_best(record, refusal, facts, TARGET, later) == record, "twice is once"
    assert given_out == ["onnx-int8", "onnx-fp16", "onnx-fp32", "onnx-fp32"]
    [held] = record.assignments
    assert held.wave == 2
    assert [(r.variant, r.refusal) for r in held.refusals] == [
        ("onnx-int8", "Policy"),
        ("onnx-fp16", "Policy"),
        ("onnx-fp32", "Policy"),
    ]


def test_why_a_refused_variant_is_not_taken_is_said() -> None:
    record = assigned()
    refusal = refusals.refused(report(record, "Thermal"))
    assert refusal is not None
    [held] = refusals.next_best(record, refusal, device("a").status, TARGET, NOW).assignments
    reasons = {c.variant: c.reason for c in held.candidates}
    assert reasons["onnx-int8"] == "refused by the device (Thermal): its owner refuses it"
    assert held.manifest_version == record.manifest_version + 1
    assert held.assigned_at == NOW


def test_what_a_device_says_of_a_variant_it_refused_counts_for_nothing_once_it_has_the_next() -> None:
    """Its first report after accepting the next variant may still be about the one before: the observed is ahead."""
    record = assigned()
    older = {
        "rollout": "digits-0",
        "revision": 0,
        "modelVersion": "v0",
        "variant": "onnx-fp32",
        "port": 1,
        "since": NOW,
    }
    back = {"phase": "Running", "running": older}
    member = report(record, "Policy", **back)
    refusal = refusals.refused(member)
    assert refusal is not None
    after = refusals.next_best(record, refusal, device("a").status, TARGET, NOW)
    [held] = after.assignments
    assert held.workload.variant != refusal.variant
    late = report(after, "Policy", variant=refusal.variant, **back)
    assert late.observed == held.manifest_version
    assert late.current_report is None
    stands = waves.stand(late, index=0, timeout=timedelta(seconds=60), now=NOW, measured=False)
    assert (stands.state, stands.message) == ("Waiting", "")
    again = report(after, "Policy", **back)
    stands = waves.stand(again, index=0, timeout=timedelta(seconds=60), now=NOW, measured=False)
    assert stands.state == "Failed", "the next one fell back as well"


def test_what_a_device_says_of_an_earlier_deployment_of_that_name_counts_for_nothing() -> None:
    """It was deleted and made again, so its rollouts have the names that those of the earlier one had."""
    record = assigned()
    [held] = record.assignments
    own = held.deployment_uid
    assert own
    assert held.workload.deployment_uid == own
    running = {"rollout": "digits-1", "revision": 1, "modelVersion": "v0", "variant": "v", "port": 1, "since": NOW}

    def stands(said: str, serves: str) -> tuple[str, str]:
        told = {
            "phase": "Running",
            "message": "",
            "deploymentUid": said,
            "running": {**running, "deploymentUid": serves},
        }
        found = waves.stand(report(record, "", **told), index=0, timeout=timedelta(seconds=60), now=NOW, measured=False)
        return found.state, found.message

    assert stands(own, own) == ("Running", "")
    assert stands("", "") == ("Running", ""), "an older agent does not say"
    assert stands(own, "") == ("Running", ""), "what serves was installed by an older agent"
    assert stands("another", "another") == ("Waiting", "")
    assert stands(own, "another") == ("Failed", "it fell back to digits-1 of an earlier deployment")


def test_only_a_current_report_on_what_is_assigned_refuses() -> None:
    record = assigned()
    assert refusals.refused(report(record, "")) is None
    assert refusals.refused(report(record, "Policy", rollout="digits-0")) is None
    assert refusals.refused(report(record, "Policy", variant="onnx-fp32")) is None
    stale = msgspec.structs.replace(record, assignments=[msgspec.structs.replace(record.assignments[0])])
    newer = desired.assign(stale, msgspec.structs.replace(stale.assignments[0], manifest_version=99))
    member = report(newer, "Policy")
    behind = msgspec.structs.replace(newer.assignments[0], manifest_version=newer.manifest_version + 1)
    assert (
        refusals.refused(waves.Member(uid="u", name="a", assignment=behind, observed=1, report=member.report)) is None
    )


# --- ranking --------------------------------------------------------------------------------------------------------


def cost(p95: float, memory: int = 40, failure: str = "") -> Cost:
    return Cost(latency_p95_ms=p95, peak_memory_bytes=memory * MIB, measured_on="pi", devices=2, failure=failure)


def place(measured: dict[str, Cost], **wish: Any) -> placement.Placement:
    machine = placement.machine_of(device("a", memory=100).status)
    return placement.place(machine, VARIANTS, rollout(**wish).spec.template, measured)


def test_numbers_of_two_machines_are_never_ranked_against_each_other() -> None:
    found = place({"onnx-int8": cost(50.0)})
    assert found.variant is not None
    assert found.variant.name == "onnx-int8", "slower on the class than the others in the factory means nothing"
    assert {c.measured_on for c in found.candidates} == {"factory"}


def test_a_limit_is_held_against_the_class_where_it_is_known() -> None:
    found = place({"onnx-int8": cost(50.0)}, max_latency="10ms")
    assert found.variant is not None
    assert found.variant.name == "onnx-fp16"
    reasons = {c.variant: (c.measured_on, c.reason) for c in found.candidates}
    assert reasons["onnx-int8"] == ("pi", "p95 50 ms is above the limit 10 ms")


def test_a_peak_that_hardly_differs_evicts_nothing_and_one_that_does_is_believed() -> None:
    tight = [variant("onnx-fp32", memory=98)]
    machine = placement.machine_of(device("a", memory=100).status)
    template = rollout().spec.template
    assert placement.place(machine, tight, template, {"onnx-fp32": cost(1, 105)}).variant is not None
    grown = placement.place(machine, tight, template, {"onnx-fp32": cost(1, 120)})
    assert grown.variant is None
    assert "onnx-fp32 needs 120.0 MiB" in grown.reason


def test_what_another_deployment_was_placed_with_is_taken() -> None:
    record = assigned(measured={v.name: cost(1.0, 90) for v in VARIANTS})
    [held] = record.assignments
    assert held.memory_bytes == 90 * MIB
    assert placement.machine_of(device("a").status, record, "other").taken_bytes == 90 * MIB


def test_what_has_been_measured_since_does_not_keep_a_device_from_returning() -> None:
    slow = {v.name: cost(5000.0) for v in VARIANTS}
    target = Target(rollout=rollout("digits-1", max_latency="1s"), model=model())
    back = Return(uid="u-a", rollout="digits-1", returned_from="digits-2")
    facts = device("a").status
    assert assignment.carry_out(Assign(uid="u-a", wave=0), EMPTY, facts, target, NOW, measured=slow).assignments == []
    [held] = assignment.carry_out(back, EMPTY, facts, target, NOW, measured=slow).assignments
    assert held.workload.variant == "onnx-int8"


@given(
    st.dictionaries(st.sampled_from([v.name for v in VARIANTS]), st.tuples(st.floats(0.1, 100), st.booleans())),
    st.sets(st.sampled_from([v.name for v in VARIANTS])),
)
def test_every_variant_is_judged_once_and_the_ranking_is_of_one_place(
    known: dict[str, tuple[float, bool]], refused: set[str]
) -> None:
    costs = {name: cost(p95, failure="" if good else "died") for name, (p95, good) in known.items()}
    machine = placement.machine_of(device("a", memory=100).status)
    template = rollout().spec.template
    found = placement.place(machine, VARIANTS, template, costs, refused=dict.fromkeys(refused, "refused"))
    assert sorted(c.variant for c in found.candidates) == sorted(v.name for v in VARIANTS)
    ranked = [c for c in found.candidates if c.variant not in refused and not costs.get(c.variant, cost(1)).failure]
    assert len({c.measured_on for c in ranked}) <= 1
    if found.variant is None:
        assert refused == {v.name for v in VARIANTS}
    else:
        assert found.variant.name not in refused
        taken = found.candidates[0]
        if taken.measured_on == "pi" and taken.latency_p95_ms is not None:
            best = min(costs[c.variant].latency_p95_ms for c in ranked)
            assert taken.latency_p95_ms <= best * (1 + placement.LATENCY_TOLERANCE)
