"""The world around a workload's state machine: instructions that do what they say, faults, and kills at any of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from skerry.api.kinds.device import Measurement, Observation, ShadowReport
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import journal, workload
from skerry.core.journal import (
    Endpoint,
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
