"""What devices and their workloads use, as `metrics.k8s.io/v1beta1`: what `kubectl top` asks for.

It comes from the newest sample that a device sent, with that sample's time and length. Who sent none for a while is
left out, as in Kubernetes. Lives here: the picture. Must not live here: the samples (`hub.gateway`), their making
(`agent.usage`). Source: Kubernetes `staging/src/k8s.io/metrics/pkg/apis/metrics/v1beta1/types.go`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from skerry.api.kinds.device import Device
from skerry.core.messages import Sample
from skerry.hub.context import HubContext
from skerry.hub.server.projection import nodes, pods
from skerry.hub.server.projection.view import Shown, View

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
FRESH = timedelta(minutes=15)
"""Devices send every 5 minutes unless they were told otherwise; two messages may be lost."""
HINT = "the device has sent no measurements lately; they come every few minutes while it is connected"


def views(context: HubContext) -> tuple[View, View]:
    """Return the views of nodes and of pods over what a hub knows now."""

    def sample(device: Device) -> Sample | None:
        return fresh(context.gateway.telemetry(device.metadata.uid), context.clock.now())

    shared: dict[str, Any] = {"group": GROUP, "version": VERSION, "short_names": (), "singular": ""}
    columns = (
        ("CPU", lambda item: _usage(item)["cpu"], False),
        ("Memory", lambda item: _usage(item)["memory"], False),
        ("Window", lambda item: item["window"], False),
    )
    of_nodes = View(
        kind="NodeMetrics",
        plural="nodes",
        namespaced=False,
        project=partial(_project, sample, node_metrics),
        fields=("metadata.name",),
        columns=columns,
        **shared,
    )
    of_pods = View(
        kind="PodMetrics",
        plural="pods",
        namespaced=True,
        project=partial(_project, sample, pod_metrics),
        fields=("metadata.name", "metadata.namespace"),
        columns=columns,
        **shared,
    )
    return of_nodes, of_pods


def fresh(sample: Sample | None, now: datetime) -> Sample | None:
    """Return a sample that is worth showing."""
    return sample if sample is not None and now - FRESH <= sample.at else None


def node_metrics(device: Device, sample: Sample) -> list[Shown]:
    """Return what a device uses: of all its cores, and of its memory."""
    node = nodes.node_of(device)
    millis = round(1000 * min(sample.cpu, 1.0) * device.status.hardware.cores)
    return [_shown("NodeMetrics", node["metadata"], sample) | {"usage": _quantities(millis, sample.memory_bytes)}]


def pod_metrics(device: Device, sample: Sample) -> list[Shown]:
    """Return what each workload uses of which the sample says so."""
    used = {one.name: one for one in sample.workloads}
    found = []
    for workload, pod in zip(device.status.workloads, pods.pods_of(device), strict=True):
        one = used.get(workload.name)
        if one is None or one.cpu_millis is None or one.memory_bytes is None:
            continue
        container = {"name": workload.name, "usage": _quantities(one.cpu_millis, one.memory_bytes)}
        found.append(_shown("PodMetrics", pod["metadata"], sample) | {"containers": [container]})
    return found


def _project(
    sample: Callable[[Device], Sample | None], picture: Callable[[Device, Sample], list[Shown]], device: Device
) -> list[Shown]:
    found = sample(device)
    return [] if found is None else picture(device, found)


def _shown(kind: str, metadata: Shown, sample: Sample) -> Shown:
    at = msgspec.to_builtins(sample.at.replace(microsecond=0))
    kept = {key: value for key, value in metadata.items() if key != "uid"}
    return {
        "kind": kind,
        "apiVersion": f"{GROUP}/{VERSION}",
        "metadata": {**kept, "creationTimestamp": at},
        "timestamp": at,
        "window": f"{sample.seconds:g}s",
    }


def _quantities(millis: int, memory_bytes: int) -> dict[str, str]:
    return {"cpu": f"{millis}m", "memory": f"{memory_bytes // 1024}Ki"}


def _usage(item: Shown) -> Shown:
    found: Shown = item["usage"] if "usage" in item else item["containers"][0]["usage"]
    return found
