"""What is shown of devices is what the documents, and so `kubectl explain`, say of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from skerry.api import validation
from skerry.api.kinds import device as kinds
from skerry.api.kinds import pictures
from skerry.api.meta import ObjectMeta
from skerry.core.messages import Sample, WorkloadSample
from skerry.hub.server.projection import metrics, nodes, pods
from skerry.hub.server.projection.serve import VIEWS

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def device(phase: Any, *workloads: kinds.WorkloadStatus) -> kinds.Device:
    return kinds.Device(
        metadata=ObjectMeta(name="till-7", namespace="shop", uid="u", labels={"a": "b"}, creation_timestamp=NOW),
        spec=kinds.DeviceSpec(cordoned=True),
        status=kinds.DeviceStatus(
            phase=phase,
            hardware=kinds.Hardware(arch="arm64", cores=4, memory_bytes=2**30, storage_bytes=2**34),
            network=kinds.Network(address="10.0.0.7"),
            last_seen=NOW,
            workloads=list(workloads),
        ),
    )


RUNNING = kinds.RunningRevision(rollout="r-1", revision=1, model_version="m-1", variant="int8", port=8000, since=NOW)
WORKLOADS = (
    kinds.WorkloadStatus(name="a", rollout="a-1", revision=1, variant="int8", phase="Running", running=RUNNING),
    kinds.WorkloadStatus(name="b", rollout="b-1", revision=1, variant="int8", phase="Fetching", message="2 of 3 MiB"),
)


@pytest.mark.parametrize("phase", ["Online", "Offline", "Pending"])
def test_nodes_and_pods_have_no_field_that_is_not_documented(phase: str) -> None:
    shown = device(phase, *WORKLOADS)
    used = [WorkloadSample(name="a", cpu_millis=20, memory_bytes=2**20)]
    sample = Sample(at=NOW, cpu=0.5, memory_bytes=2**20, seconds=10.0, workloads=used)
    made = [
        (pictures.Node, nodes.node_of(shown)),
        *((pictures.Pod, pod) for pod in pods.pods_of(shown)),
        *((pictures.NodeMetrics, item) for item in metrics.node_metrics(shown, sample)),
        *((pictures.PodMetrics, item) for item in metrics.pod_metrics(shown, sample)),
    ]
    assert len(made) == 5
    for kind, item in made:
        _, found = validation.walk(kind, item)
        assert not found.unknown, kind
        assert not found.problems, kind


def test_every_view_has_its_schema() -> None:
    documented = {(one.group, one.version, one.plural, one.kind, one.namespaced) for one in pictures.PICTURES}
    assert {("", "v1", view.plural, view.kind, view.namespaced) for view in VIEWS} <= documented
