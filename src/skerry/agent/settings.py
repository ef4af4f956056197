"""The agent's settings: `<state-dir>/agent.toml`, all of it optional.

Lives here: every setting with its unit, default and reason, and the strict loader. Must not live here: what is learned
from the hub (that is the identity) or measured (that is `facts`).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from skerry.api import duration, quantity
from skerry.api.duration import Duration
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import MAX_HOLD, EngineFacts, Hardware, Network, Word
from skerry.api.quantity import Quantity

FILE = "agent.toml"
MAX_BYTES = 256 * 1024


RemoteKind = Literal["logs", "forward", "exec"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: a key nobody knows is refused by name."""


class HardwareSettings(Section, frozen=True, kw_only=True):
    """What the hub is told of the machine instead of what was measured; empty or 0 means as measured."""

    arch: Word = ""
    cpu_model: Word = ""
    cores: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    memory: Quantity | None = None
    """Memory that workloads may use."""
    storage: Quantity | None = None
    accelerators: Annotated[list[Word], msgspec.Meta(max_length=64)] | None = None


class NetworkSettings(Section, frozen=True, kw_only=True):
    """What the hub is told of the connection instead of what was found, and how downloads may use it."""

    kind: Word = ""
    """ethernet, wifi, cellular, loopback or unknown."""
    interface: Word = ""
    address: Word = ""
    metered: bool | None = None
    """Whether bytes cost money; unset: a cellular network is metered, others are not."""
    max_bandwidth: Quantity | None = None
    """Most bytes per second that downloads may take together; the hub's bound counts too, the stricter wins."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    """Most connections that one download may use, where trying shows that more are faster; 1 tries nothing."""
    allow_metered_downloads: Quantity | None = None
    """Most bytes that one revision may still have to fetch over a metered link; 0: nothing at all. As above."""


class EngineSettings(Section, frozen=True, kw_only=True):
    """One engine of this device, instead of those found installed."""

    name: Word
    version: Word = ""
    """Empty: as installed."""
    precisions: Annotated[list[Word], msgspec.Meta(max_length=32)] = []
    """Empty: all."""


class ProbeSettings(Section, frozen=True, kw_only=True):
    """The run of the golden samples after an install."""

    samples: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256
    """At most so many, from the first on: enough for a share of 1 %, a second or two on a small device."""
    max_time: Duration = "2m"
    """No further sample after this; a rollout should not wait for all of a slow model's."""
    request_timeout: Duration = "30s"
    """One request; the slowest models on the slowest devices take seconds."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """The inference servers."""

    python: str = ""
    """Interpreter that runs them, where the engines live in an environment of their own; empty: the agent's."""
    start_timeout: Duration = "60s"
    """From its start until a server answers; big models load slowly from SD cards."""
    check_period: Duration = "10s"
    """From one question whether a server still answers to the next; 0s asks none."""
    check_timeout: Duration = "5s"
    """For the answer, which waits for no inference; three in a row that fail, and the server is started anew."""
    stop_grace: Duration = "10s"
    """Time to finish what it is answering before it is killed."""
    stop_on_exit: bool = False
    """Stop all servers when the agent is told to end. False: they go on serving, and are adopted at its return."""


class StorageSettings(Section, frozen=True, kw_only=True):
    """What the agent may take of the disk."""

    reserve: Quantity = "32Mi"
    """Left free for everybody else on the file system: journals and logs must always find room."""
    limit: Quantity | None = None
    """Most that models may take, cache included; none by default, the file system is the limit."""


class RefusalRule(Section, frozen=True, kw_only=True):
    """What the device's owner does not want on it; all patterns of a rule must match (shell patterns, case counts)."""

    model: str = "*"
    """Name of the model or of the model version, as in `face-*`."""
    variant: str = "*"
    """Name of the variant, as in `*-fp32`."""
    workload: str = "*"
    """Name of the deployment."""
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Told to the hub."""


class PolicySettings(Section, frozen=True, kw_only=True):
    """What the device takes; a refusal is told to the hub with its reason."""

    refuse: Annotated[list[RefusalRule], msgspec.Meta(max_length=100)] = []
    """None by default: whoever may deploy to the device decides."""
    max_temperature: Annotated[float, msgspec.Meta(ge=0, le=200)] = 0.0
    """Degrees Celsius of the hottest thermal zone above which nothing new is taken; 0: not looked at, for what is too
    hot differs from machine to machine."""


class ProtectionSettings(Section, frozen=True, kw_only=True):
    """Models that deployments want to be kept encrypted on this device; see docs/encryption.md."""

    key: str = ""
    """Path of an EC key on P-256 in PEM, best on a volume of its own, that opens them; empty: the identity key does,
    which lies beside them and is no help where the whole disk is stolen."""
    swap: Literal["allow", "refuse"] = "allow"
    """Refuse such models where memory may be swapped to a disk."""


class BenchmarkSettings(Section, frozen=True, kw_only=True):
    """Measuring variants for the hub, beside what serves."""

    enabled: bool = True
    """False: refused; the hub asks another device of the class, or uses the factory's numbers."""
    max_time: Duration = "5m"
    """For one variant, from its download to its last golden sample."""


class HoldSettings(Section, frozen=True, kw_only=True):
    """Update holds that applications on this device take, over a local socket."""

    max: Duration = "24h"
    """Longest hold at a time: an application that died must not keep a device from updates for long."""
    socket: str = ""
    """Path of the socket; empty: `agent.sock` in the state directory, where the agent's own user alone comes."""
    group: str = ""
    """Name of the group that may use it, beside the agent's own user; empty: the agent's own group."""


class HubSettings(Section, frozen=True, kw_only=True):
    """The way to the hub, where it is not what the enrollment told (a gateway, a tunnel); empty or 0: as told."""

    url: str = ""
    mqtt_host: str = ""
    mqtt_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class LinkSettings(Section, frozen=True, kw_only=True):
    """The connection to the hub."""

    heartbeat: Duration = "60s"
    """A report at least so often; presence itself is the link's business."""
    retry_ceiling: Duration = "60s"
    """Longest pause between two attempts to connect (full jitter below it)."""


class PeerSettings(Section, frozen=True, kw_only=True):
    """Neighbours of the same site, from which models come without using the line to the hub; none by default."""

    listen: Word = ""
    """`<address>:<port>` where neighbours may fetch what this device has; empty: it serves nobody."""
    neighbours: Annotated[list[Word], msgspec.Meta(max_length=64)] = []
    """`<address>:<port>` of those that are asked before the hub is; this device's own may be among them."""
    discover: bool = False
    """Find neighbours, and be found, by multicast DNS; needs `skerry[peers]`."""
    site: Word = ""
    """Only devices of the same word find each other so, where one network has several thin lines."""
    max_transfers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """To neighbours at a time; the others wait."""
    max_bandwidth: Quantity = "8Mi"
    """Most bytes per second to all neighbours together: what a small device can spare beside its own serving."""
    patience: Duration = "2m"
    """How long a neighbour that brings a blob for all may make no progress before this device fetches it itself."""


class TelemetrySettings(Section, frozen=True, kw_only=True):
    """What the device uses, told the hub now and then."""

    interval: Duration = "60s"
    """From sample to sample; 0s takes none."""
    send: Duration = "5m"
    """From message to message: a few samples together wake a radio less often."""
    spool: Quantity = "1Mi"
    """Samples kept on the disk while there is no hub: with one workload some five days; the oldest are dropped."""


class RemoteSettings(Section, frozen=True, kw_only=True):
    """What whoever may at the hub can do with workloads on this device, over a connection that the device opens."""

    allow: Annotated[list[RemoteKind], msgspec.Meta(max_length=3)] = msgspec.field(
        default_factory=lambda: ["logs", "forward"]
    )
    """Follow logs, connect to the workloads' own ports, run commands. `exec` is not there by default: it runs anything
    as the agent's user, which is for the device's owner to allow; an empty list allows nothing."""
    ports: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=65535)]], msgspec.Meta(max_length=32)] = []
    """Further ports on this device's loopback that may be forwarded; by default those at which the workload answers."""
    max_sessions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """At a time; each takes memory for what is on its way, and a connection."""
    idle_timeout: Duration = "1h"
    """One in which nothing is said for so long is ended; 0s never."""


class AgentSettings(Section, frozen=True, kw_only=True):
    """Everything that can be set."""

    hardware: HardwareSettings = HardwareSettings()
    network: NetworkSettings = NetworkSettings()
    engines: list[EngineSettings] | None = None
    """None: what is found installed."""
    probes: ProbeSettings = ProbeSettings()
    servers: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    policy: PolicySettings = PolicySettings()
    protection: ProtectionSettings = ProtectionSettings()
    benchmarks: BenchmarkSettings = BenchmarkSettings()
    hold: HoldSettings = HoldSettings()
    hub: HubSettings = HubSettings()
    link: LinkSettings = LinkSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    peers: PeerSettings = PeerSettings()
    remote: RemoteSettings = RemoteSettings()


def load(path: Path) -> AgentSettings:
    """Return the settings in a file; a missing file means the defaults.

    Raises InvalidError that names the file and the path in it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return AgentSettings()
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise InvalidError(f"is larger than {MAX_BYTES} bytes", element=str(path))
    try:
        found = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"is not TOML: {error}", element=str(path)) from None
    return _convert(found, path)


def _convert(found: dict[str, Any], path: Path) -> AgentSettings:
    try:
        settings = msgspec.convert(found, AgentSettings)
    except msgspec.ValidationError as error:
        cause, _, where = str(error).partition(" - at ")
        place = where.strip("`").removeprefix("$.").removeprefix("$")
        element = f"{path}, {place}" if place else str(path)
        raise InvalidError(_plain(cause), element=element, hint="docs/agent.md lists every setting") from None
    for place, check in _CHECKS.items():
        try:
            check(settings)
        except InvalidError as error:
            raise InvalidError(error.cause, element=f"{path}, {place}", hint=error.hint) from None
    return settings


def _plain(cause: str) -> str:
    return cause.replace("Object contains unknown field", "unknown key").replace("`", '"')


def _network_kind(settings: AgentSettings) -> None:
    try:
        network(settings.network)
    except msgspec.ValidationError:
        raise InvalidError(
            f'"{settings.network.kind}" is no kind of network', hint="ethernet, wifi, cellular, loopback or unknown"
        ) from None


def _bandwidth(settings: NetworkSettings) -> None:
    if settings.max_bandwidth is not None and quantity.to_bytes(settings.max_bandwidth) < 1:
        raise InvalidError("must be at least 1 byte per second", hint="leave it out for no bound")


def _hold_max(settings: HoldSettings) -> None:
    if not 0 < duration.to_seconds(settings.max) <= MAX_HOLD.total_seconds():
        raise InvalidError(f"{settings.max} is not between 0s and 720h", hint="an application may renew its hold")


def address(text: str) -> tuple[str, int]:
    """Return the parts of `<address>:<port>`. Raises InvalidError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidError(f'"{text[:100]}" is not <address>:<port>', hint="as in 192.168.1.7:7445, or [fe80::1]:7445")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _peer_bandwidth(settings: PeerSettings) -> None:
    if quantity.to_bytes(settings.max_bandwidth) < 1:
        raise InvalidError("must be at least 1 byte per second", hint="leave `listen` empty to serve nobody")


def _protection_key(settings: ProtectionSettings) -> None:
    if settings.key and not (Path(settings.key).is_absolute() and "\0" not in settings.key):
        raise InvalidError(f'"{settings.key[:200]}" is no absolute path', hint="as in /run/keys/models.pem")


_CHECKS: dict[str, Any] = {
    "protection.key": lambda s: _protection_key(s.protection),
    "hardware.memory": lambda s: s.hardware.memory and quantity.to_bytes(s.hardware.memory),
    "hardware.storage": lambda s: s.hardware.storage and quantity.to_bytes(s.hardware.storage),
    "storage.reserve": lambda s: quantity.to_bytes(s.storage.reserve),
    "storage.limit": lambda s: s.storage.limit and quantity.to_bytes(s.storage.limit),
    "probes.max_time": lambda s: duration.to_seconds(s.probes.max_time),
    "probes.request_timeout": lambda s: duration.to_seconds(s.probes.request_timeout),
    "servers.start_timeout": lambda s: duration.to_seconds(s.servers.start_timeout),
    "servers.stop_grace": lambda s: duration.to_seconds(s.servers.stop_grace),
    "benchmarks.max_time": lambda s: duration.to_seconds(s.benchmarks.max_time),
    "link.heartbeat": lambda s: duration.to_seconds(s.link.heartbeat),
    "link.retry_ceiling": lambda s: duration.to_seconds(s.link.retry_ceiling),
    "network.kind": _network_kind,
    "network.max_bandwidth": lambda s: _bandwidth(s.network),
    "network.allow_metered_downloads": lambda s: (
        s.network.allow_metered_downloads and quantity.to_bytes(s.network.allow_metered_downloads)
    ),
    "hold.max": lambda s: _hold_max(s.hold),
    "peers.listen": lambda s: s.peers.listen and address(s.peers.listen),
    "peers.neighbours": lambda s: [address(one) for one in s.peers.neighbours],
    "peers.max_bandwidth": lambda s: _peer_bandwidth(s.peers),
    "remote.idle_timeout": lambda s: duration.to_seconds(s.remote.idle_timeout),
    "peers.patience": lambda s: duration.to_seconds(s.peers.patience),
}


def network(settings: NetworkSettings) -> Network:
    """Return the network as set. Raises msgspec.ValidationError for an unknown kind."""
    return msgspec.convert(
        {
            "kind": settings.kind or "unknown",
            "interface": settings.interface,
            "address": settings.address,
            "metered": settings.kind == "cellular" if settings.metered is None else settings.metered,
        },
        Network,
    )


def hardware(settings: HardwareSettings, measured: Hardware) -> Hardware:
    """Return the measured hardware with what the settings say in its place."""
    memory = None if settings.memory is None else quantity.to_bytes(settings.memory)
    storage = None if settings.storage is None else quantity.to_bytes(settings.storage)
    return msgspec.structs.replace(
        measured,
        arch=settings.arch or measured.arch,
        cpu_model=settings.cpu_model or measured.cpu_model,
        cores=settings.cores or measured.cores,
        memory_bytes=measured.memory_bytes if memory is None else memory,
        storage_bytes=measured.storage_bytes if storage is None else storage,
        storage_free_bytes=min(measured.storage_free_bytes, storage or measured.storage_free_bytes),
        accelerators=measured.accelerators if settings.accelerators is None else settings.accelerators,
    )


def engines(settings: list[EngineSettings] | None, found: list[EngineFacts]) -> list[EngineFacts]:
    """Return the engines as set, their versions taken from those found where not set."""
    if settings is None:
        return found
    versions = {engine.name: engine.version for engine in found}
    return [
        EngineFacts(name=one.name, version=one.version or versions.get(one.name, ""), precisions=one.precisions)
        for one in settings
    ]
