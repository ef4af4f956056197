"""A device's workloads as `v1` Pods. Source: Kubernetes API reference, Pod v1."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.api.kinds.device import Device, WorkloadStatus
from skerry.hub.server.projection import nodes
from skerry.hub.server.projection.view import View, metadata_of

_FAILED = ("Failed",)


def name_of(device: Device, workload: str) -> str:
    """Return the pod's name; no device's name has a dot, so it can be taken apart again."""
    return f"{workload}.{device.metadata.name}"


def parts_of(pod: str) -> tuple[str, str]:
    """Return (workload, device) of a pod's name; empty for what cannot be one."""
    workload, _, device = pod.rpartition(".")
    return workload, device


def pods_of(device: Device) -> list[dict[str, Any]]:
    """Return the pods that stand for a device's workloads, in their order."""
    return [_pod(device, workload) for workload in device.status.workloads]


def _pod(device: Device, workload: WorkloadStatus) -> dict[str, Any]:
    running = workload.running
    model = running.model_version if running else workload.rollout
    labels = {
        "skerry.dev/deployment": workload.name,
        "skerry.dev/device": device.metadata.name,
        "skerry.dev/variant": running.variant if running else workload.variant,
        "skerry.dev/rollout": running.rollout if running else workload.rollout,
    }
    name = name_of(device, workload.name)
    container: dict[str, Any] = {"name": workload.name, "image": f"{model}/{labels['skerry.dev/variant']}"}
    if running is not None and running.port:
        container["ports"] = [{"containerPort": running.port, "protocol": "TCP"}]
    metadata = metadata_of(device, name=name, labels={k: v for k, v in labels.items() if v and len(v) <= 63})
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            **metadata,
            "namespace": device.metadata.namespace,
            "uid": f"{device.metadata.uid}-{workload.name}",
            **({"creationTimestamp": _time(running.since)} if running else {}),
        },
        "spec": {"nodeName": nodes.name_of(device), "containers": [container], "restartPolicy": "Always"},
        "status": _status(device, workload, container["image"]),
    }


def _status(device: Device, workload: WorkloadStatus, image: str) -> dict[str, Any]:
    running, online = workload.running, device.status.phase == "Online"
    phase = "Running" if running else "Failed" if workload.phase in _FAILED else "Pending"
    ready = running is not None and online
    since = _time(running.since) if running else None
    state: dict[str, Any] = {"waiting": {"reason": workload.phase, "message": workload.message}}
    if running is not None:
        state = {"running": {"startedAt": since}}
    reason = {} if online else {"reason": "NodeLost", "message": "the device is not connected"}
    shown: dict[str, Any] = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": since}],
        "containerStatuses": [
            {
                "name": workload.name,
                "ready": ready,
                "started": running is not None,
                "restartCount": workload.restarts,
                "image": image,
                "imageID": "",
                "state": state,
            }
        ],
        "qosClass": "Burstable",
        **reason,
    }
    if device.status.network.address:
        shown |= {"hostIP": device.status.network.address, "podIP": device.status.network.address}
    if since is not None:
        shown["startTime"] = since
    if workload.message and "message" not in shown:
        shown["message"] = workload.message
    return shown


def _time(when: Any) -> Any:
    return msgspec.to_builtins(when.replace(microsecond=0))


def _word(pod: dict[str, Any]) -> str:
    """What is going on, in the column's one word: a device that is away, what a workload does instead of running."""
    status = pod["status"]
    waiting = status["containerStatuses"][0]["state"].get("waiting")
    return str(status.get("reason") or (waiting["reason"] if waiting else status["phase"]))


PODS = View(
    kind="Pod",
    plural="pods",
    singular="pod",
    short_names=("po",),
    namespaced=True,
    project=pods_of,
    fields=("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"),
    columns=(
        ("Ready", lambda pod: f"{int(pod['status']['containerStatuses'][0]['ready'])}/1", False),
        ("Status", _word, False),
        ("Restarts", lambda pod: str(pod["status"]["containerStatuses"][0]["restartCount"]), False),
        ("Age", None, False),
        ("IP", lambda pod: pod["status"].get("podIP", "<none>"), True),
        ("Node", lambda pod: pod["spec"]["nodeName"], True),
        ("Nominated Node", lambda _: "<none>", True),
        ("Readiness Gates", lambda _: "<none>", True),
    ),
)
