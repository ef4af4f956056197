"""The workload's state machine: every way through it, and a kill before and after every single instruction."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.api.kinds.device import Measurement, Observation, ShadowReport
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import candidate, current, journal, slots, workload
from skerry.core.journal import (
    Endpoint,
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Install,
    Laid,
    Launched,
    Moment,
    Observe,
    Observed,
    Probe,
    Probed,
    Ready,
    Resumed,
    Serve,
    ShadowBeside,
    Shadowed,
    State,
    Switch,
    Switched,
    Tidied,
    Tidy,
    Unwanted,
    Wanted,
)
from skerry.core.messages import ObserveDesired, ServingDesired, ShadowDesired, WorkloadDesired

MEASURED = Measurement(
    samples=4,
    accuracy=1.0,
    agreement=1.0,
    max_abs_error=0.0,
    latency_p50_ms=1.0,
    latency_p95_ms=2.0,
    peak_memory_bytes=1,
)


SHADOWED = ShadowReport(beside="digits-v1", seconds=600, requests=20, answered=20, agreed=20)
DISAGREES = ShadowReport(beside="digits-v1", seconds=600, requests=20, answered=20, agreed=3)
OBSERVED = Observation(seconds=60, requests=100, checks=20)


def wish(version: str, *, rollout: str = "", port: int = 0) -> WorkloadDesired:
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1, 4])
    number = int(version[1:])
    return WorkloadDesired(
        name="digits",
        rollout=rollout or f"digits-{number}",
        revision=number,
        model="digits",
        model_version=f"digits-{version}",
        version=version,
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[tensor], outputs=[tensor]),
        repository="default/digits",
        blob=Blob(digest=f"sha256:{number:064x}", size=10),
        serving=ServingDesired(port=port),
    )


def tried(version: str, *, rollout: str = "") -> WorkloadDesired:
    """A version that is tried in the shadow first, and watched afterwards."""
    shadow = ShadowDesired(seconds=600, min_requests=10, min_agreement=0.9, missing="fail")
    return msgspec.structs.replace(
        wish(version, rollout=rollout), compare=True, observe=ObserveDesired(seconds=60), shadow=shadow
    )


class KilledError(Exception):
    """The agent's end."""


@dataclass
class World:
    """What survives the agent: the disk, the servers; and what befalls its actions."""

    kill_at: int = -1
    power: bool = False
    """The kill takes the servers with it."""
    journal: State | None = None
    wanted: WorkloadDesired | None = None
    cache: set[str] = field(default_factory=set)
    files: set[int] = field(default_factory=set)
    servers: dict[int, int] = field(default_factory=dict)
    """Private ports."""
    accepting: set[int] = field(default_factory=set)
    """Slots whose servers accept connections at the endpoint."""
    endpoint: int = 0
    broken: frozenset[str] = frozenset()
    """Versions whose server never answers."""
    unprobeable: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    """Versions the registry does not have."""
    disagreeing: frozenset[str] = frozenset()
    """Versions that answer otherwise than the one they run beside."""
    away: frozenset[str] = frozenset()
    """Versions the registry cannot be reached for."""
    rotten: frozenset[str] = frozenset()
    """Versions whose installed files are damaged once everything is prepared."""
    damaged: frozenset[int] = frozenset()
    """Slots whose files are."""
    lost: frozenset[str] = frozenset()
    """Versions the registry does not have any more by then."""
    instruction: int = 0
    seconds: float = 0.0
    must_serve: bool = False
    """From here on some server has to accept connections at the endpoint at every instruction."""
    next_port: int = 40000

    def tick(self) -> None:
        self.seconds += 0.25
        if self.must_serve:
            assert self.accepting, "nothing serves"
        self.instruction += 1
        if self.instruction == self.kill_at:
            raise KilledError

    def stop(self, serial: int) -> None:
        self.servers.pop(serial, None)
        self.accepting.discard(serial)

    def accept(self, serial: int, endpoint: Endpoint) -> int:
        """Two ports at a time cannot be: an application that knows the one would not find the other."""
        assert serial in self.servers
        if not self.endpoint or endpoint.port not in (0, self.endpoint):
            self.endpoint = endpoint.port or 30000
        self.accepting.add(serial)
        self.tick()
        return self.endpoint

    def moment(self) -> Moment:
        return Moment(
            wall=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds), monotonic=self.seconds, boot="b"
        )


@dataclass
class Agent:
    """The smallest engine that keeps the machine's contract: journal first, then the actions in order."""

    world: World
    state: State = field(default_factory=lambda: State(name="digits"))
    gone: bool = False
    queue: deque[journal.Event] = field(default_factory=deque)

    def start(self) -> None:
        if self.world.journal is not None:
            self.state = self.world.journal
            self.queue.append(Resumed())
        self.queue.append(Unwanted() if self.world.wanted is None else Wanted(self.world.wanted))
        if self.world.journal is None and self.world.wanted is None:
            self.queue.clear()
            self.gone = True

    def run(self) -> None:
        for _ in range(500):
            if not self.queue:
                return
            self.handle(self.queue.popleft())
        raise AssertionError("it does not come to rest")

    def handle(self, event: journal.Event) -> None:
        state, actions = workload.step(self.state, event, self.world.moment())
        self.world.tick()
        if state is None:
            self.world.journal, self.gone = None, True
            self.queue.clear()
            self.world.tick()
            return
        if state != self.world.journal:
            raw = msgspec.json.encode(state)
            self.world.journal = msgspec.json.decode(raw, type=State)
            assert self.world.journal == state
        self.state = state
        self.world.tick()
        for action in actions:
            self.carry_out(action)
            self.world.tick()

    def carry_out(self, action: journal.Action) -> None:  # noqa: C901 - one branch for each action
        world = self.world
        match action:
            case Tidy():
                for serial in [s for s in world.servers if s not in action.running]:
                    world.stop(serial)
                    world.tick()
                for serial in [s for s in world.files if s not in action.files]:
                    world.files.discard(serial)
                    world.tick()
                self.queue.append(Tidied())
            case Fetch(slot=slot):
                self.fetch(slot)
            case Install(slot=slot):
                assert slot.desired.blob.digest in world.cache
                world.tick()
                world.files.add(slot.serial)
                self.queue.append(Laid(serial=slot.serial))
            case Serve():
                self.serve(action)
            case ShadowBeside() | Observe():
                self.try_out(action)
            case Switch():
                self.switch(action)
            case Probe(slot=slot):
                assert slot.serial in world.servers
                if slot.desired.version in world.unprobeable:
                    self.queue.append(
                        Faulted(serial=slot.serial, component="the probe", element="digits", cause="wrong shape")
                    )
                else:
                    self.queue.append(Probed(serial=slot.serial, measurement=MEASURED))

    def fetch(self, slot: journal.Slot) -> None:
        world, version = self.world, slot.desired.version
        new = slot.desired.blob.digest not in world.cache
        if version in world.missing:
            self.queue.append(Faulted(serial=slot.serial, component="the registry", element="blob", cause="Not found"))
        elif not new or version not in world.away:  # else it tries for ever
            world.tick()
            world.cache.add(slot.desired.blob.digest)
            self.queue.append(Fetched(serial=slot.serial, network_bytes=10 if new else 0))

    def try_out(self, action: ShadowBeside | Observe) -> None:
        world, slot = self.world, action.slot
        if isinstance(action, Observe):
            assert slot.serial in world.accepting
            self.queue.append(Observed(serial=slot.serial, observation=OBSERVED))
            return
        assert {slot.serial, action.beside.serial} <= set(world.servers)
        assert world.accepting == {action.beside.serial}, "what runs in the shadow answers nobody"
        world.tick()
        disagrees = slot.desired.version in world.disagreeing
        self.queue.append(Shadowed(serial=slot.serial, report=DISAGREES if disagrees else SHADOWED))

    def switch(self, action: Switch) -> None:
        world, slot = self.world, action.slot
        if slot.desired.shadow is not None and self.state.current is not None:
            assert self.state.shadow == SHADOWED, "admitted before it was tried"
        assert slot.serial in world.servers
        assert slot.admitted
        assert world.journal is not None
        assert world.journal.candidate == slot, "admitted before it was written down"
        self.queue.append(Switched(serial=slot.serial, endpoint=world.accept(slot.serial, action.endpoint)))

    def serve(self, action: Serve) -> None:
        world, slot = self.world, action.slot
        assert slot.serial in world.files, "started without its files"
        if slot.serial in world.damaged and slot.serial not in world.servers:
            self.queue.append(
                Faulted(
                    serial=slot.serial,
                    component="the inference server",
                    element="model",
                    cause="digest",
                    final=False,
                    damaged=True,
                )
            )
            return
        if slot.desired.version in world.broken:
            world.stop(slot.serial)
            self.queue.append(Launched(serial=slot.serial, port=1))
            self.queue.append(
                Faulted(
                    serial=slot.serial,
                    component="the inference server",
                    element="digits",
                    cause="it ended",
                    final=False,
                )
            )
            return
        if slot.port == 0 or slot.serial not in world.servers:
            world.stop(slot.serial)
            world.next_port += 1
            world.servers[slot.serial] = world.next_port
            world.tick()
        self.queue.append(Launched(serial=slot.serial, port=world.servers[slot.serial]))
        port = 0 if action.endpoint is None else world.accept(slot.serial, action.endpoint)
        self.queue.append(Ready(serial=slot.serial, endpoint=port))


def live(world: World) -> Agent:
    """Run agents, one after the other, until one comes to rest."""
    while True:
        agent = Agent(world)
        agent.start()
        try:
            agent.run()
        except KilledError:
            if world.power:
                world.servers.clear()
                world.accepting.clear()
            continue
        return agent


def install(world: World, desired: WorkloadDesired | None) -> Agent:
    world.wanted = desired
    return live(world)


def prepared(*versions: str, **fields: object) -> World:
    world = World(**fields)  # type: ignore[arg-type]
    for version in versions:
        install(world, wish(version))
    if world.rotten:
        rot(world)
    world.instruction = 0
    return world


def rot(world: World) -> None:
    """Damage what is installed of these versions, the cache's hard link included, and end its servers."""
    assert world.journal is not None
    slots = [slot for slot in world.journal.slots if slot.desired.version in world.rotten]
    world.damaged, world.missing = frozenset(slot.serial for slot in slots), world.lost
    assert world.damaged
    world.cache -= {slot.desired.blob.digest for slot in slots}
    for serial in world.damaged:
        world.stop(serial)


SCENARIOS: dict[str, tuple[tuple[str, ...], WorkloadDesired | None, Mapping[str, object], str, str]] = {
    # name: (installed before, wish, what is wrong, expected phase, expected running version)
    "install": ((), wish("v1"), {}, "Running", "v1"),
    "update": (("v1",), wish("v2"), {}, "Running", "v2"),
    "third": (("v1", "v2"), wish("v3"), {}, "Running", "v3"),
    "fixed port": (("v1",), wish("v2", port=8080), {}, "Running", "v2"),
    "rollback: server": (("v1",), wish("v2"), {"broken": frozenset({"v2"})}, "Running", "v1"),
    "rollback: probe": (("v1",), wish("v2"), {"unprobeable": frozenset({"v2"})}, "Running", "v1"),
    "rollback: fetch": (("v1",), wish("v2"), {"missing": frozenset({"v2"})}, "Running", "v1"),
    "first fails": ((), wish("v1"), {"broken": frozenset({"v1"})}, "Failed", ""),
    "removal": (("v1", "v2"), None, {}, "", ""),
    "shadow": (("v1",), tried("v2"), {}, "Running", "v2"),
    "shadow: disagrees": (("v1",), tried("v2"), {"disagreeing": frozenset({"v2"})}, "Running", "v1"),
    "shadow: nothing to replace": ((), tried("v1"), {}, "Running", "v1"),
    "shadow: the same again": (("v1",), tried("v1", rollout="digits-9"), {}, "Running", "v1"),
    "damaged": (("v1", "v2"), wish("v2"), {"rotten": frozenset({"v2"})}, "Running", "v2"),
    "damaged, and the previous": (("v1", "v2"), wish("v2"), {"rotten": frozenset({"v1", "v2"})}, "Running", "v2"),
    "damaged, and another wanted": (("v1", "v2"), wish("v3"), {"rotten": frozenset({"v2"})}, "Running", "v3"),
    "damaged, and gone from the registry": (
        ("v1", "v2"),
        wish("v2"),
        {"rotten": frozenset({"v2"}), "lost": frozenset({"v2"})},
        "Running",
        "v1",
    ),
}


@pytest.mark.parametrize("power", [False, True], ids=["agent killed", "power cut"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_every_instruction_converges(name: str, power: bool) -> None:
    before, desired, wrong, phase, version = SCENARIOS[name]
    whole = prepared(*before, **wrong)
    install(whole, desired)
    assert whole.instruction > 5
    for kill_at in range(1, whole.instruction + 1):
        world = prepared(*before, **wrong)
        world.kill_at, world.power = kill_at, power
        world.must_serve = bool(before) and desired is not None and not power
        world.must_serve = world.must_serve and not world.rotten
        agent = install(world, desired)
        check_rest(world, agent, desired, phase, version)


@pytest.mark.parametrize("power", [False, True], ids=["agent killed", "power cut"])
@pytest.mark.parametrize("wanted", ["v2", "v3"])
def test_damaged_without_a_network_the_previous_version_serves_through_every_kill(wanted: str, power: bool) -> None:
    def damaged() -> World:
        world = prepared("v1", "v2", rotten=frozenset({"v2"}))
        world.away = frozenset({"v2", "v3"})
        return world

    whole = damaged()
    install(whole, wish(wanted))
    for kill_at in range(1, whole.instruction + 1):
        world = damaged()
        world.kill_at, world.power = kill_at, power
        agent = install(world, wish(wanted))
        status = workload.report(agent.state)
        assert (status.phase, status.rollout) == ("Fetching", wish(wanted).rollout)
        assert status.running is not None
        assert status.running.model_version == "digits-v1"
        assert world.accepting == set(world.servers)
        assert status.running.port == world.endpoint
        world.away, world.kill_at, world.must_serve = frozenset(), -1, True
        check_rest(world, install(world, wish(wanted)), wish(wanted), "Running", wanted)


def check_rest(world: World, agent: Agent, desired: WorkloadDesired | None, phase: str, version: str) -> None:
    if desired is None:
        assert agent.gone
        assert (world.journal, world.servers, world.files) == (None, {}, set())
        return
    state = agent.state
    assert state.phase == phase
    assert state.candidate is None
    assert state == world.journal
    status = workload.report(state)
    assert status.rollout == desired.rollout
    assert world.files == {slot.serial for slot in state.slots}
    if not version:
        assert status.running is None
        assert world.servers == {}
        return
    assert state.current is not None
    assert status.running is not None
    assert status.running.model_version == f"digits-{version}"
    assert world.servers == {state.current.serial: state.current.port}
    assert world.accepting == {state.current.serial}
    assert status.running.port == state.endpoint == world.endpoint
    if desired.serving.port and version == desired.version:
        assert status.running.port == desired.serving.port
    if version == desired.version:
        assert status.message == ""
        assert status.install_seconds is not None
        assert status.measurement is not None
        assert status.measurement.accuracy == MEASURED.accuracy
        assert status.observation == (None if desired.observe is None else OBSERVED)
        if desired.shadow is not None:
            assert status.shadow in (SHADOWED, ShadowReport())
    else:
        assert status.message.startswith("While ")
        assert status.measurement is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wishes=st.lists(st.sampled_from(["v1", "v2", "v3", "v4", "-"]), min_size=1, max_size=6),
    kills=st.lists(st.integers(min_value=1, max_value=60), max_size=4),
    power=st.booleans(),
)
def test_any_wishes_and_kills_end_where_the_last_wish_leads(wishes: list[str], kills: list[int], power: bool) -> None:
    world = World(broken=frozenset({"v3"}), unprobeable=frozenset({"v4"}), power=power)
    left = deque(kills)
    for version in wishes:
        world.wanted = None if version == "-" else wish(version)
        world.instruction, world.kill_at = 0, left.popleft() if left else -1
        agent = live(world)
    last = wishes[-1]
    if last == "-":
        assert (world.journal, world.servers, world.files) == (None, {}, set())
    elif last in ("v1", "v2"):
        check_rest(world, agent, wish(last), "Running", last)
    else:
        good = [v for v in wishes if v not in ("v3", "v4")]
        expected = good[-1] if good and good[-1] != "-" else ""
        check_rest(world, agent, wish(last), "Running" if expected else "Failed", expected)


def drive(state: State, *events: journal.Event, at: float = 0.0) -> tuple[State, list[journal.Action]]:
    actions: list[journal.Action] = []
    for event in events:
        moment = Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=at, boot="b")
        after, actions = workload.step(state, event, moment)
        assert after is not None
        state = after
    return state, actions


def running(version: str = "v1") -> State:
    state, _ = drive(
        State(name="digits"),
        Wanted(wish(version)),
        Fetched(serial=1, network_bytes=10),
        Laid(serial=1),
        Launched(serial=1, port=4001),
        Ready(serial=1),
        Probed(serial=1, measurement=MEASURED),
        Switched(serial=1, endpoint=4000),
        Tidied(),
    )
    assert state.phase == "Running"
    return state


def offline(serial: int) -> Faulted:
    return Faulted(serial=serial, component="the registry", element="blob", cause="no route", hint="wait", final=False)


def test_tables_name_existing_rules() -> None:
    named = {*workload.WISHES.values(), *workload.INSTALLING.values(), *workload.SERVING.values()}
    assert named == set(workload._RULES)


def test_a_fetch_without_network_is_tried_for_ever_ever_slower() -> None:
    state, actions = drive(running(), Wanted(wish("v2")))
    ceilings = []
    for _ in range(40):
        state, actions = drive(state, offline(2))
        assert state.phase == "Fetching"
        [fetch] = actions
        assert isinstance(fetch, Fetch)
        ceilings.append(fetch.delay_ceiling)
    assert ceilings == sorted(ceilings)
    assert ceilings[-1] == candidate.FETCH_CEILING_SECONDS
    assert state.message == 'While Fetching, the registry failed for "blob": no route; wait; trying again'
    assert workload.report(state).running is not None


def test_the_sentence_of_a_failure_is_kept_and_the_old_version_named() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Faulted(serial=2, component="the registry", element="blob", cause="digest mismatch", hint="push it again"),
        Tidied(),
    )
    status = workload.report(state)
    assert status.phase == "Running"
    assert (status.rollout, status.running and status.running.rollout) == ("digits-2", "digits-1")
    assert status.message == 'While Fetching, the registry failed for "blob": digest mismatch; push it again'
    again, actions = drive(state, Wanted(wish("v2")))
    assert (again, actions) == (state, []), "what failed for good is not tried again by itself"
    back, _ = drive(state, Wanted(wish("v1")))
    assert workload.report(back).message == ""
    assert workload.report(back).measurement == MEASURED


def test_a_new_rollout_of_the_same_content_installs_nothing() -> None:
    state, actions = drive(running(), Wanted(wish("v1", rollout="digits-9")))
    assert state.phase == "Running"
    assert [type(a) for a in actions] == [Tidy]
    status = workload.report(state)
    assert status.running is not None
    assert status.running.rollout == "digits-9"
    assert (status.measurement, status.install_seconds, status.fetched_bytes) == (MEASURED, 0.0, 0)


def test_a_wish_that_supersedes_one_being_installed_drops_it_and_its_late_events() -> None:
    state, _ = drive(running(), Wanted(wish("v2")), Fetched(serial=2, network_bytes=5), Laid(serial=2))
    state, actions = drive(state, Wanted(wish("v3")))
    tidy, fetch = actions
    assert isinstance(tidy, Tidy)
    assert (set(tidy.running), set(tidy.files)) == ({1}, {1, 3})
    assert isinstance(fetch, Fetch)
    assert fetch.slot.desired.version == "v3"
    for late in (Launched(serial=2, port=9), Ready(serial=2), Exited(serial=2, cause="x", uptime_seconds=1)):
        assert drive(state, late) == (state, [])


def test_a_crash_loop_falls_back_to_the_previous_version() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Fetched(serial=2, network_bytes=5),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
        Probed(serial=2, measurement=None),
        Switched(serial=2, endpoint=4000),
        Tidied(),
    )
    for crash in range(1, current.MAX_CRASHES):
        state, [serve] = drive(state, Exited(serial=2, cause="it ended by signal 11", uptime_seconds=1))
        assert isinstance(serve, Serve)
        assert (state.phase, state.restarts) == ("Starting", crash)
        assert workload.report(state).running is None
        state, _ = drive(state, Launched(serial=2, port=4002), Ready(serial=2))
        assert state.phase == "Running"
    state, actions = drive(state, Exited(serial=2, cause="it ended by signal 11", uptime_seconds=1))
    assert state.phase == "RollingBack"
    assert [type(a) for a in actions] == [Tidy, Serve]
    state, _ = drive(state, Tidied(), Launched(serial=1, port=4001), Ready(serial=1))
    status = workload.report(state)
    assert (status.phase, status.rollout) == ("Running", "digits-2")
    assert status.running is not None
    assert status.running.rollout == "digits-1"
    assert "signal 11" in status.message


def test_a_crash_loop_with_nothing_to_fall_back_to_fails_and_still_tries() -> None:
    state = running()
    for _ in range(current.MAX_CRASHES + 3):
        state, [serve] = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=1))
        assert isinstance(serve, Serve)
    assert state.phase == "Failed"
    assert "it ended" in workload.report(state).message
    state, _ = drive(state, Launched(serial=1, port=1), Ready(serial=1))
    assert state.phase == "Running"


def test_a_server_that_settled_has_a_clean_record() -> None:
    state = running()
    for _ in range(3 * current.MAX_CRASHES):
        state, _ = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=current.SETTLED_SECONDS))
        assert state.crashes == 1
    assert state.restarts == 3 * current.MAX_CRASHES


def test_the_current_server_is_restarted_while_a_candidate_is_being_fetched() -> None:
    state, _ = drive(running(), Wanted(wish("v2")))
    state, [serve] = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=1))
    assert isinstance(serve, Serve)
    assert (state.phase, serve.slot.serial) == ("Fetching", 1)
    state, _ = drive(state, Launched(serial=1, port=4009), Ready(serial=1))
    status = workload.report(state)
    assert status.phase == "Fetching"
    assert status.running is not None
    assert status.running.port == 4000, "applications find it where it was"
    assert state.current is not None
    assert state.current.port == 4009


def test_damaged_files_are_fetched_again() -> None:
    bad = Faulted(serial=1, component="the disk", element="model", cause="digest", final=False, damaged=True)
    state, actions = drive(running(), bad)
    assert state.phase == "Fetching"
    assert state.current is None
    assert [type(a) for a in actions] == [Tidy, Fetch]
    assert state.candidate is not None
    assert state.candidate.desired == wish("v1")


def test_damaged_files_of_the_previous_version_too_are_no_loop() -> None:
    state, _ = drive(
        running(),
        Wanted(wish("v2")),
        Fetched(serial=2, network_bytes=5),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
        Probed(serial=2, measurement=None),
        Switched(serial=2, endpoint=30000),
        Tidied(),
    )
    bad = Faulted(serial=2, component="the disk", element="model", cause="digest", final=False, damaged=True)
    state, actions = drive(state, bad)
    assert [type(a) for a in actions] == [Tidy, Serve, Fetch]
    assert state.current is not None
    assert (state.current.serial, state.previous) == (1, None)
    ceilings = []
    for _ in range(3):
        state, [again] = drive(state, replace(bad, serial=1))
        assert isinstance(again, Serve)
        ceilings.append(again.delay_ceiling)
    assert ceilings == [0.5, 1.0, 2.0]
    assert state.phase == "Fetching"


def test_an_agent_that_dies_with_every_start_gives_the_candidate_up() -> None:
    state, _ = drive(running(), Wanted(wish("v2")), Fetched(serial=2, network_bytes=5), Laid(serial=2))
    state, _ = drive(state, Launched(serial=2, port=4002))
    for _ in range(workload.MAX_INTERRUPTIONS - 1):
        state, _ = drive(state, Resumed())
        assert state.phase == "Starting"
    state, _ = drive(state, Resumed())
    assert state.phase == "RollingBack"
    assert "interrupted" in state.failure
    state, _ = drive(state, Tidied(), Launched(serial=1, port=4001), Ready(serial=1))
    assert state.phase == "Running"


def test_the_same_content_on_a_server_that_is_down_has_not_served_for_the_new_rollout() -> None:
    down, _ = drive(running(), Exited(serial=1, cause="it ended", uptime_seconds=1))
    assert workload.report(down).served
    state, _ = drive(down, Wanted(wish("v1", rollout="digits-9")))
    assert (state.phase, workload.report(state).served) == ("Starting", False)
    state, _ = drive(state, Launched(serial=1, port=4001), Ready(serial=1))
    assert workload.report(state).served


def test_install_seconds_need_the_same_boot() -> None:
    state, _ = drive(State(name="digits"), Wanted(wish("v1")), at=100.0)
    events: list[journal.Event] = [
        Fetched(serial=1, network_bytes=10),
        Laid(serial=1),
        Launched(serial=1, port=4001),
        Ready(serial=1),
        Probed(serial=1, measurement=None),
        Switched(serial=1, endpoint=4000),
        Tidied(),
    ]
    same, _ = drive(state, *events, at=102.5)
    assert same.install_seconds == 2.5
    after = state
    for event in events:
        stepped, _ = workload.step(
            after, event, Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=3.0, boot="another")
        )
        assert stepped is not None
        after = stepped
    assert after.phase == "Running"
    assert after.install_seconds is None


EVENTS = st.one_of(
    st.builds(Wanted, st.sampled_from([wish("v1"), wish("v2"), wish("v2", port=8080), tried("v1"), tried("v3")])),
    st.just(Unwanted()),
    st.just(Resumed()),
    st.just(Tidied()),
    st.builds(Fetched, serial=st.integers(1, 4), network_bytes=st.integers(0, 9)),
    st.builds(Laid, serial=st.integers(1, 4)),
    st.builds(Launched, serial=st.integers(1, 4), port=st.integers(1, 9)),
    st.builds(Ready, serial=st.integers(1, 4)),
    st.builds(Probed, serial=st.integers(1, 4), measurement=st.sampled_from([None, MEASURED])),
    st.builds(Switched, serial=st.integers(1, 4), endpoint=st.integers(1, 9)),
    st.builds(
        Faulted,
        serial=st.integers(1, 4),
        component=st.just("c"),
        element=st.just("e"),
        cause=st.text(max_size=3000),
        final=st.booleans(),
        damaged=st.booleans(),
    ),
    st.builds(Exited, serial=st.integers(1, 4), cause=st.just("x"), uptime_seconds=st.sampled_from([0.0, 100.0])),
    st.builds(Shadowed, serial=st.integers(1, 4), report=st.sampled_from([SHADOWED, DISAGREES, ShadowReport()])),
    st.builds(Observed, serial=st.integers(1, 4), observation=st.just(OBSERVED)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_no_order_of_events_breaks_it(events: list[journal.Event]) -> None:
    state = State(name="digits")
    for event in events:
        after, actions = workload.step(
            state, event, Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=1, boot="b")
        )
        if after is None:
            state = State(name="digits")
            continue
        named = {slot.serial for slot in after.slots}
        for action in actions:
            assert action.files == named if isinstance(action, Tidy) else action.slot.serial in named
        assert msgspec.json.decode(msgspec.json.encode(after), type=State) == after
        status = workload.report(after)
        assert len(status.message) <= slots.MAX_MESSAGE
        if after.phase == "Running":
            assert status.running is not None
        state = after


def test_the_endpoint_stays_where_it_is_unless_another_is_asked_for() -> None:
    measured = [Fetched(serial=2, network_bytes=5), Laid(serial=2), Launched(serial=2, port=4002), Ready(serial=2)]
    for wanted, endpoint in (
        (wish("v2"), Endpoint(port=4000, strict=False)),
        (wish("v2", port=8080), Endpoint(port=8080, strict=True)),
    ):
        state, [switch] = drive(running(), Wanted(wanted), *measured, Probed(serial=2, measurement=MEASURED))
        assert isinstance(switch, Switch)
        assert switch.endpoint == endpoint
        serving = workload.report(state).running
        assert serving is not None
        assert (serving.model_version, serving.port) == ("digits-v1", 4000), "until the new one accepts there"
        taken = Faulted(serial=2, component="the endpoint", element="8080", cause="is taken")
        refused, [tidy] = drive(state, taken)
        assert (refused.phase, tidy) == ("RollingBack", Tidy(running=frozenset({1}), files=frozenset({1})))
        promoted, [tidy] = drive(state, Switched(serial=2, endpoint=endpoint.port))
        assert tidy == Tidy(running=frozenset({2}), files=frozenset({1, 2}))
        assert workload.report(promoted).phase == "Probing", "until the old one accepts nothing more"
        promoted, _ = drive(promoted, Tidied())
        assert workload.report(promoted).phase == "Running"
        serving = workload.report(promoted).running
        assert serving is not None
        assert (serving.model_version, serving.port) == ("digits-v2", endpoint.port)
        _, [_, serve] = drive(promoted, Resumed())
        assert isinstance(serve, Serve)
        assert serve.endpoint == endpoint


def test_only_what_names_other_slots_must_be_durable() -> None:
    before = running()
    down, _ = drive(before, Exited(serial=1, cause="it ended", uptime_seconds=1))
    resumed, _ = drive(before, Resumed())
    moved, _ = drive(resumed, Launched(serial=1, port=4010), Ready(serial=1))
    assert not any(workload.must_be_durable(before, after) for after in (before, down, resumed, moved))
    wanted, _ = drive(before, Wanted(wish("v2")))
    fetched, _ = drive(wanted, Fetched(serial=2, network_bytes=1))
    assert workload.must_be_durable(before, wanted)
    assert not workload.must_be_durable(wanted, fetched)
    failed, _ = drive(wanted, Faulted(serial=2, component="the disk", element="e", cause="full"))
    assert not workload.must_be_durable(wanted, failed), "or nobody could be told that the disk is full"
    probing, _ = drive(fetched, Laid(serial=2), Launched(serial=2, port=4002), Ready(serial=2))
    switching, _ = drive(probing, Probed(serial=2, measurement=None))
    assert workload.must_be_durable(probing, switching)
    promoted, _ = drive(switching, Switched(serial=2, endpoint=4000))
    assert workload.must_be_durable(switching, promoted)
    assert workload.must_be_durable(before, drive(before, Unwanted())[0])


# --- deployments that are made again ------------------------------------------------------------------------------


def of(uid: str, desired: WorkloadDesired) -> WorkloadDesired:
    return msgspec.structs.replace(desired, deployment_uid=uid)


def watched(uid: str) -> State:
    """A version that was tried in the shadow and watched, for the deployment of that uid."""
    state = msgspec.structs.replace(running("v1"), observation=OBSERVED, shadow=SHADOWED)
    assert state.current is not None
    desired = of(uid, tried("v1"))
    return msgspec.structs.replace(
        state, desired=desired, current=msgspec.structs.replace(state.current, desired=desired)
    )


def test_what_was_seen_for_an_earlier_deployment_of_that_name_is_not_told_of_the_new_one() -> None:
    assert workload.report(watched("a")).observation == OBSERVED
    after, actions = drive(watched("a"), Wanted(of("b", tried("v1"))))
    said = workload.report(after)
    assert (said.deployment_uid, said.phase, said.rollout) == ("b", "Running", "digits-1")
    assert said.running is not None
    assert said.running.deployment_uid == "b", "equal content serves on"
    assert (said.observation, said.shadow) == (Observation(), ShadowReport())
    assert any(isinstance(action, journal.Observe) for action in actions), "it is watched again"


def test_another_version_of_a_deployment_made_again_goes_through_its_shadow() -> None:
    after, _ = drive(
        watched("a"),
        Wanted(of("b", tried("v2", rollout="digits-1"))),
        Fetched(serial=2, network_bytes=10),
        Laid(serial=2),
        Launched(serial=2, port=4002),
        Ready(serial=2),
    )
    after, actions = drive(after, Probed(serial=2, measurement=MEASURED))
    assert after.phase == "Shadowing"
    assert any(isinstance(action, journal.ShadowBeside) for action in actions)
    said = workload.report(after)
    assert said.running is not None
    assert (said.deployment_uid, said.running.deployment_uid) == ("b", "a")


def test_a_journal_of_an_older_agent_keeps_what_was_seen() -> None:
    plain = msgspec.json.decode(msgspec.json.encode(watched("")))
    assert "deploymentUid" not in plain["desired"]
    kept = msgspec.convert(plain, State)
    after, _ = drive(kept, Wanted(of("b", tried("v1"))))
    assert (after.observation, after.shadow is not None) == (OBSERVED, True)
    assert workload.report(after).deployment_uid == "b"
