"""Named profiles: which machines a simulated fleet is made of, and what goes wrong with them how often.

Lives here: the numbers. Must not live here: what a fault does (`link`, `disk`, `hands`), drawing (`draws`).
"""

from __future__ import annotations

from dataclasses import dataclass

from skerry.api.errors import InvalidError
from skerry.api.kinds.device import EngineFacts, Hardware, Network, OperatingSystem

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Span:
    """A range to draw from, evenly."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One kind of device."""

    name: str
    share: float
    """Of the fleet; shares are relative to each other."""
    hardware: Hardware
    os: OperatingSystem
    engines: tuple[EngineFacts, ...]
    network: Network
    slowness: float = 1.0
    """Latency here over the latency measured in the factory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What a fleet is made of and what happens to it. Shares are of 1; times are seconds; 0 between is never."""

    name: str
    about: str
    machines: tuple[Machine, ...]
    latency: Span = Span(0.0, 0.0)
    """One way, for each message."""
    loss: float = 0.0
    """Of packets; each lost one comes after a retransmission's timeout, and seven in a row end the connection."""
    duplicates: float = 0.0
    """Messages that arrive twice, as MQTT's QoS 1 allows."""
    between_disconnects: float = 0.0
    """Mean; a connection breaks without a word."""
    outage: Span = Span(1.0, 10.0)
    """How long there is no network after a connection broke."""
    between_power_cuts: float = 0.0
    """Mean; all that is not on the disk is gone."""
    power_off: Span = Span(1.0, 10.0)
    disk_write: Span = Span(0.0, 0.0)
    """For each write of a journal or of a desired state, fsync included."""
    bandwidth: Span = Span(5e6, 50e6)
    """Of downloads, in bytes a second; each device has its own."""
    start: Span = Span(0.3, 1.5)
    """Until an inference server answers."""
    probe: Span = Span(0.2, 1.0)
    """For all golden samples."""
    failed_fetches: float = 0.0
    """Of fetches, each by chance: the network fails in the middle."""
    failed_starts: float = 0.0
    """Of starts, each by chance: the server ends before it answers."""
    crash_looping: float = 0.0
    """Of devices: every server dies a while after it answered, again and again."""
    inaccurate: float = 0.0
    """Of devices: the model answers wrongly there."""
    slow: float = 0.0
    """Of devices: the model answers ten times as slowly there."""
    heartbeat: float = 60.0


def _onnx(*precisions: str) -> tuple[EngineFacts, ...]:
    return (EngineFacts(name="onnxruntime", version="1.24.0", precisions=list(precisions)),)


def _linux(family: str, version: str, init: str = "systemd") -> OperatingSystem:
    return OperatingSystem(family=family, version=version, kernel="6.12.0", libc="glibc", init=init)


SERVER = Machine(
    name="gateway",
    share=1.0,
    hardware=Hardware(
        arch="amd64",
        cpu_model="Simulated x86-64 gateway",
        cores=4,
        memory_bytes=8 * GIB,
        storage_bytes=64 * GIB,
        storage_free_bytes=40 * GIB,
    ),
    os=_linux("debian", "13"),
    engines=_onnx(),
    network=Network(kind="ethernet", interface="eth0"),
)
CAMERA = Machine(
    name="camera",
    share=2.0,
    hardware=Hardware(
        arch="arm64",
        cpu_model="Simulated Cortex-A76",
        cores=4,
        memory_bytes=2 * GIB,
        storage_bytes=16 * GIB,
        storage_free_bytes=9 * GIB,
    ),
    os=_linux("debian", "12"),
    engines=_onnx(),
    network=Network(kind="wifi", interface="wlan0"),
    slowness=2.5,
)
KIOSK = Machine(
    name="kiosk",
    share=1.0,
    hardware=Hardware(
        arch="arm64",
        cpu_model="Simulated Cortex-A55",
        cores=4,
        memory_bytes=1 * GIB,
        storage_bytes=8 * GIB,
        storage_free_bytes=3 * GIB,
    ),
    os=_linux("alpine", "3.22", init="openrc"),
    engines=_onnx("fp16", "int8"),
    network=Network(kind="ethernet", interface="eth0"),
    slowness=4.0,
)
METER = Machine(
    name="meter",
    share=1.0,
    hardware=Hardware(
        arch="arm",
        cpu_model="Simulated Cortex-A7",
        cores=1,
        memory_bytes=192 * MIB,
        storage_bytes=2 * GIB,
        storage_free_bytes=700 * MIB,
    ),
    os=_linux("poky", "5.2"),
    engines=_onnx("int8"),
    network=Network(kind="cellular", interface="wwan0", metered=True),
    slowness=12.0,
)
MACHINES = (SERVER, CAMERA, KIOSK, METER)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="ideal",
            about="one kind of machine, a fast network, no faults: what the hub can do",
            machines=(SERVER,),
        ),
        Profile(
            name="mixed",
            about="four kinds of machines with the faults of every day, which all heal by themselves",
            machines=MACHINES,
            latency=Span(0.005, 0.15),
            loss=0.01,
            duplicates=0.01,
            between_disconnects=600.0,
            between_power_cuts=1800.0,
            disk_write=Span(0.0, 0.02),
            failed_fetches=0.02,
            failed_starts=0.02,
        ),
        Profile(
            name="lossy",
            about="bad links: one packet in ten is lost, connections last two minutes",
            machines=MACHINES,
            latency=Span(0.1, 0.8),
            loss=0.1,
            duplicates=0.05,
            between_disconnects=120.0,
            outage=Span(2.0, 30.0),
            bandwidth=Span(50e3, 1e6),
            failed_fetches=0.1,
        ),
        Profile(
            name="slow-disks",
            about="old SD cards: every write takes up to a second",
            machines=MACHINES,
            disk_write=Span(0.05, 1.0),
            bandwidth=Span(1e6, 5e6),
        ),
        Profile(
            name="power-cuts",
            about="the power goes off every minute or two",
            machines=MACHINES,
            between_power_cuts=90.0,
            disk_write=Span(0.0, 0.05),
        ),
        Profile(
            name="failing-gates",
            about="the model answers wrongly on 3 % of the devices and slowly on 2 %",
            machines=MACHINES,
            inaccurate=0.03,
            slow=0.02,
        ),
        Profile(
            name="crash-loops",
            about="on 10 % of the devices every server dies soon after it answered: a health gate must see it",
            machines=MACHINES,
            crash_looping=0.1,
            failed_starts=0.05,
        ),
    )
}


def find(name: str) -> Profile:
    """Return the profile of that name. Raises InvalidError that lists them all."""
    found = PROFILES.get(name)
    if found is None:
        known = "; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())
        raise InvalidError(f'"{name}" is not a profile', element="--profile", hint=known)
    return found
