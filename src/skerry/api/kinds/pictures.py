"""What is shown and never written: devices as `v1` Node and Pod, their `metrics.k8s.io`, and the audit log's entries.

Lives here: the types that `kubectl explain` and the documents need, and the table of them. Must not live here: how they
are made (`hub.server.projection`); nobody writes them. Source: Kubernetes API reference, Node v1, Pod v1, NodeMetrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from skerry.api.audit import AuditEvent
from skerry.api.meta import GROUP, VERSION, ObjectMeta, Struct

METRICS = ("metrics.k8s.io", "v1beta1")
_METRICS_VERSION = "/".join(METRICS)


class Taint(Struct, frozen=True, kw_only=True):
    """Why nothing new is put there."""

    key: str
    effect: str


class NodeSpec(Struct, frozen=True, kw_only=True):
    """What is wished of a device."""

    unschedulable: bool = False
    """The device is cordoned: no deployment changes what runs on it."""
    taints: list[Taint] = []


class PictureCondition(Struct, frozen=True, kw_only=True):
    """One thing that is so, or is not."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    last_heartbeat_time: datetime | None = None
    last_transition_time: datetime | None = None


class NodeAddress(Struct, frozen=True, kw_only=True):
    """How a device is reached in its own network."""

    type: str
    address: str


class NodeSystemInfo(Struct, frozen=True, kw_only=True):
    """What a device says it is."""

    machine_id: str = msgspec.field(default="", name="machineID")
    system_uuid: str = msgspec.field(default="", name="systemUUID")
    boot_id: str = msgspec.field(default="", name="bootID")
    kernel_version: str = ""
    os_image: str = ""
    container_runtime_version: str = ""
    """Its runtimes, as in process or docker."""
    kubelet_version: str = ""
    """The agent's version."""
    kube_proxy_version: str = ""
    operating_system: str = ""
    architecture: str = ""


class NodeStatus(Struct, frozen=True, kw_only=True):
    """What a device has, and how it is."""

    capacity: dict[str, str] = {}
    """cpu, memory and ephemeral-storage, as quantities."""
    allocatable: dict[str, str] = {}
    """What workloads may use of it."""
    conditions: list[PictureCondition] = []
    """Ready while the device is online."""
    addresses: list[NodeAddress] = []
    node_info: NodeSystemInfo = NodeSystemInfo()


class Node(Struct, frozen=True, kw_only=True):
    """A device, as a node called `<device>.<namespace>`; to change it, change the Device."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
    api_version: str = "v1"
    kind: Literal["Node"] = "Node"


class ContainerPort(Struct, frozen=True, kw_only=True):
    """A port that a workload serves on its device."""

    container_port: int
    protocol: str = "TCP"


class Container(Struct, frozen=True, kw_only=True):
    """A workload's process."""

    name: str
    """The deployment."""
    image: str = ""
    """`<model version>/<variant>`."""
    ports: list[ContainerPort] = []


class PodSpec(Struct, frozen=True, kw_only=True):
    """Where what runs."""

    node_name: str = ""
    """The device, as `<device>.<namespace>`."""
    containers: list[Container] = []
    restart_policy: str = "Always"


class ContainerStateRunning(Struct, frozen=True, kw_only=True):
    """It runs."""

    started_at: datetime | None = None


class ContainerStateWaiting(Struct, frozen=True, kw_only=True):
    """It does not run yet, or no more."""

    reason: str = ""
    """What it does instead, as in Fetching or Probing."""
    message: str = ""


class ContainerState(Struct, frozen=True, kw_only=True):
    """What a workload does; one of these."""

    running: ContainerStateRunning | None = None
    waiting: ContainerStateWaiting | None = None


class ContainerStatus(Struct, frozen=True, kw_only=True):
    """How a workload is."""

    name: str
    ready: bool = False
    started: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = msgspec.field(default="", name="imageID")
    state: ContainerState = ContainerState()


class PodStatus(Struct, frozen=True, kw_only=True):
    """How a workload is."""

    phase: str = ""
    """Pending, Running or Failed."""
    conditions: list[PictureCondition] = []
    """Ready while the workload runs and the device is online."""
    container_statuses: list[ContainerStatus] = []
    qos_class: str = ""
    reason: str = ""
    """NodeLost while the device is away."""
    message: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")
    pod_ip: str = msgspec.field(default="", name="podIP")
    start_time: datetime | None = None


class Pod(Struct, frozen=True, kw_only=True):
    """A workload on a device, as a pod called `<workload>.<device>`; to change it, change the ModelDeployment."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
    api_version: str = "v1"
    kind: Literal["Pod"] = "Pod"


class NodeMetrics(Struct, frozen=True, kw_only=True):
    """What a device used of its cores and memory (`kubectl top nodes`)."""

    metadata: ObjectMeta
    timestamp: datetime
    """When the device measured it."""
    window: str
    """Over how long, as in 10s."""
    usage: dict[str, str]
    """cpu and memory, as quantities."""
    api_version: str = _METRICS_VERSION
    kind: Literal["NodeMetrics"] = "NodeMetrics"


class ContainerMetrics(Struct, frozen=True, kw_only=True):
    """What a workload used."""

    name: str
    usage: dict[str, str]
    """cpu and memory, as quantities."""


class PodMetrics(Struct, frozen=True, kw_only=True):
    """What a workload used of its device's cores and memory (`kubectl top pods`)."""

    metadata: ObjectMeta
    timestamp: datetime
    """When the device measured it."""
    window: str
    """Over how long, as in 10s."""
    containers: list[ContainerMetrics]
    api_version: str = _METRICS_VERSION
    kind: Literal["PodMetrics"] = "PodMetrics"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One kind that is shown only: the part of `KindInfo` that its documents need."""

    type: type[Any]
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    verbs: tuple[str, ...] = ("get", "list", "watch")
    has_status: bool = False
    """Whether the status has a path of its own."""

    @property
    def kind(self) -> str:
        """The kind's name."""
        return self.type.__name__

    @property
    def path(self) -> str:
        """The path of its group and version in the API."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


PICTURES: tuple[Picture, ...] = (
    Picture(type=Node, plural="nodes", namespaced=False),
    Picture(type=Pod, plural="pods"),
    Picture(
        type=NodeMetrics,
        plural="nodes",
        group=METRICS[0],
        version=METRICS[1],
        namespaced=False,
        verbs=("get", "list"),
    ),
    Picture(
        type=AuditEvent,
        plural="auditevents",
        group=GROUP,
        version=VERSION,
        namespaced=False,
        verbs=("list", "watch"),
    ),
    Picture(type=PodMetrics, plural="pods", group=METRICS[0], version=METRICS[1], verbs=("get", "list")),
)
"""Every kind that is shown and never written."""
