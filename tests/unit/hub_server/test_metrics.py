"""What devices and workloads use, as `metrics.k8s.io` shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from skerry.agent import usage
from skerry.agent.usage import Reading
from skerry.api.kinds.device import Device, DeviceStatus, Hardware, WorkloadStatus
from skerry.api.meta import ObjectMeta
from skerry.core import messages
from skerry.core.messages import Sample, WorkloadSample
from skerry.core.ports import Usage
from skerry.hub.server.projection import metrics

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MIB = 1024 * 1024


def device() -> Device:
    workloads = [
        WorkloadStatus(name=name, rollout=f"{name}-1", revision=1, variant="v", phase="Running") for name in ("a", "b")
    ]
    status = DeviceStatus(hardware=Hardware(arch="arm64", cores=4, memory_bytes=MIB), workloads=workloads)
    return Device(metadata=ObjectMeta(name="till", namespace="shop", uid="u", labels={"site": "lab"}), status=status)


def sample(*workloads: WorkloadSample, cpu: float = 0.25) -> Sample:
    return Sample(at=NOW, cpu=cpu, memory_bytes=10 * MIB, seconds=60, workloads=list(workloads))


def test_a_node_uses_a_share_of_all_its_cores() -> None:
    [shown] = metrics.node_metrics(device(), sample())
    assert (shown["kind"], shown["apiVersion"]) == ("NodeMetrics", "metrics.k8s.io/v1beta1")
    assert shown["metadata"]["name"] == "till.shop"
    assert shown["metadata"]["labels"]["site"] == "lab"
    assert (shown["timestamp"], shown["window"]) == ("2026-11-23T12:00:00Z", "60s")
    assert shown["usage"] == {"cpu": "1000m", "memory": f"{10 * 1024}Ki"}
    [most] = metrics.node_metrics(device(), sample(cpu=7.0))
    assert most["usage"]["cpu"] == "4000m"


def test_a_pod_is_shown_when_something_is_known_of_it() -> None:
    known = WorkloadSample(name="a", cpu_millis=12, memory_bytes=3 * MIB)
    older = WorkloadSample(name="b", requests=7)  # of an agent that does not say
    [shown] = metrics.pod_metrics(device(), sample(known, older))
    assert (shown["metadata"]["name"], shown["metadata"]["namespace"]) == ("a.till", "shop")
    assert shown["containers"] == [{"name": "a", "usage": {"cpu": "12m", "memory": "3072Ki"}}]
    assert metrics.pod_metrics(device(), sample(WorkloadSample(name="c", cpu_millis=1, memory_bytes=1))) == []


def test_what_is_old_is_left_out() -> None:
    one = sample()
    assert metrics.fresh(one, NOW + metrics.FRESH) is one
    assert metrics.fresh(one, NOW + metrics.FRESH + timedelta(seconds=1)) is None
    assert metrics.fresh(None, NOW) is None


def reading(at: float, **servers: dict[str, Usage]) -> Reading:
    return Reading(busy=at, total=at * 2, at=at, processes=servers)


def used(cpu: float, memory: int = MIB) -> Usage:
    return Usage(cpu_seconds=cpu, memory_bytes=memory)


def test_a_workload_s_use_is_that_of_its_servers_between_two_readings() -> None:
    before = reading(100, a={"1": used(5)}, gone={"2": used(1)})
    after = reading(160, a={"1": used(8), "3": used(3, 2 * MIB)}, new={"4": used(0.6)})
    made = usage.sample(before, after, NOW)
    assert made.seconds == 60
    shown = {one.name: (one.cpu_millis, one.memory_bytes) for one in made.workloads}
    assert shown == {"a": (100, 3 * MIB), "new": (10, MIB)}
    restarted = usage.sample(reading(0, a={"1": used(9)}), reading(10, a={"1": used(1)}), NOW)
    assert restarted.workloads[0].cpu_millis == 100
    nothing = usage.sample(reading(5, a={"1": used(1)}), reading(5, a={"1": used(2)}), NOW)
    assert (nothing.seconds, nothing.workloads[0].cpu_millis) == (0, None)


def test_it_is_small_on_the_wire() -> None:
    """Two numbers for a workload and one for the device."""
    bare = WorkloadSample(name="digits", requests=10, latency_p95_ms=1.5)
    full = WorkloadSample(name="digits", requests=10, latency_p95_ms=1.5, cpu_millis=150, memory_bytes=70_000_000)

    def size(one: WorkloadSample, seconds: float) -> int:
        return len(
            messages.encode(
                messages.Telemetry(
                    uid="u",
                    boot_id="b",
                    samples=[Sample(at=NOW, cpu=0.5, memory_bytes=1, seconds=seconds, workloads=[one])],
                )
            )
        )

    assert size(full, 60.0) - size(bare, 0.0) <= 64
