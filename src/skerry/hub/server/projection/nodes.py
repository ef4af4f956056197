"""A Device as a `v1` Node. Source: Kubernetes API reference, Node v1."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.api.kinds.device import Device
from skerry.hub.server.projection.view import Cell, View, metadata_of

_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure")


def name_of(device: Device) -> str:
    """Return the node's name; no namespace has a dot, so it can be taken apart again."""
    return f"{device.metadata.name}.{device.metadata.namespace}"


def parts_of(node: str) -> tuple[str, str]:
    """Return (namespace, device) of a node's name; ("", "") for what cannot be one."""
    device, _, namespace = node.rpartition(".")
    return (namespace, device) if device and namespace else ("", "")


def node_of(device: Device) -> dict[str, Any]:
    """Return the node that stands for a device."""
    status, hardware = device.status, device.status.hardware
    capacity = {"cpu": str(hardware.cores), "memory": str(hardware.memory_bytes), "pods": "110"}
    if hardware.storage_bytes:
        capacity["ephemeral-storage"] = str(hardware.storage_bytes)
    labels = {
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": hardware.arch,
        "kubernetes.io/hostname": device.metadata.name,
        "skerry.dev/namespace": device.metadata.namespace,
        **device.metadata.labels,
    }
    address = [{"type": "InternalIP", "address": status.network.address}] if status.network.address else []
    system = f"{status.os.family} {status.os.version}".strip()
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": metadata_of(device, name=name_of(device), labels={k: v for k, v in labels.items() if v}),
        "spec": {"unschedulable": True, "taints": [taint]} if device.spec.cordoned else {},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [_ready(device), *_pressures(device)],
            "addresses": [*address, {"type": "Hostname", "address": device.metadata.name}],
            "nodeInfo": {
                "machineID": device.metadata.uid,
                "systemUUID": device.metadata.uid,
                "bootID": status.boot_id,
                "kernelVersion": status.os.kernel,
                "osImage": system,
                "containerRuntimeVersion": ",".join(status.runtimes) or "process",
                "kubeletVersion": f"skerry-{status.agent_version}" if status.agent_version else "",
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": hardware.arch,
            },
        },
    }


def _ready(device: Device) -> dict[str, Any]:
    said = {
        "Online": ("True", "DeviceOnline", "the device is connected"),
        "Offline": ("Unknown", "DeviceOffline", "the device is not connected"),
        "Pending": ("False", "DevicePending", "the device has not connected yet"),
    }[device.status.phase]
    return _condition(device, "Ready", *said)


def _pressures(device: Device) -> list[dict[str, Any]]:
    if device.status.phase != "Online":
        return []
    return [_condition(device, kind, "False", "NotReported", "devices report no such pressure") for kind in _PRESSURES]


def _condition(device: Device, kind: str, state: str, reason: str, message: str) -> dict[str, Any]:
    seen = device.status.last_seen or device.metadata.creation_timestamp
    when = msgspec.to_builtins(seen.replace(microsecond=0)) if seen else None
    shown = {"type": kind, "status": state, "reason": reason, "message": message, "lastHeartbeatTime": when}
    return {**shown, "lastTransitionTime": when}


def _state(node: dict[str, Any]) -> str:
    ready = node["status"]["conditions"][0]["status"] == "True"
    return ("Ready" if ready else "NotReady") + (",SchedulingDisabled" if node["spec"].get("unschedulable") else "")


def _info(field: str) -> Cell:
    return lambda node: node["status"]["nodeInfo"][field] or "<unknown>"


NODES = View(
    kind="Node",
    plural="nodes",
    singular="node",
    short_names=("no",),
    namespaced=False,
    project=lambda device: [node_of(device)],
    fields=("metadata.name", "spec.unschedulable"),
    columns=(
        ("Status", _state, False),
        ("Roles", lambda _: "edge", False),
        ("Age", None, False),
        ("Version", _info("kubeletVersion"), False),
        (
            "Internal-IP",
            lambda node: next(
                (a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"), "<none>"
            ),
            True,
        ),
        ("External-IP", lambda _: "<none>", True),
        ("OS-Image", _info("osImage"), True),
        ("Kernel-Version", _info("kernelVersion"), True),
        ("Container-Runtime", _info("containerRuntimeVersion"), True),
    ),
)
