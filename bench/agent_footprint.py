"""What an idle agent costs: memory, CPU, wake-ups, imports; without a workload and with one.

Starts a real hub and a real agent as processes on this machine, waits until nothing moves, and samples /proc:

    python bench/agent_footprint.py [--seconds 20] [--samples 5]

PSS shares common pages (the interpreter, libcrypto) among the processes that map them: of several Pythons on one
machine each pays a part. RSS counts them in full: what the agent costs where it is alone. Device and hub talk over
MQTT and TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from skerry.agent import enroll
from skerry.agent.disk import Disk
from skerry.agent.settings import AgentSettings
from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import ObjectMeta
from skerry.core import card as cards
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.drivers.client.registry import push_package

PATIENCE = 60.0


@dataclass
class Samples:
    """Figures of one process over time; memory in KiB, CPU in percent of one core."""

    pss: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    private: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wakeups: list[float] = field(default_factory=list)


def read_memory(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def read_cpu(pid: int) -> float:
    """Seconds on a CPU, to the nanosecond; /proc/<pid>/stat counts in hundredths, too coarse for an idle process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def read_switches(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(n) for path in tasks for n in re.findall(r"voluntary_ctxt_switches:\s+(\d+)", path.read_text()))


def sample(pids: Sequence[int], *, seconds: float, count: int) -> list[Samples]:
    found = [Samples() for _ in pids]
    for _ in range(count):
        before = [(read_cpu(pid), read_switches(pid)) for pid in pids]
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        for pid, one, (cpu, switches) in zip(pids, found, before, strict=True):
            memory = read_memory(pid)
            one.pss.append(memory["Pss"])
            one.rss.append(memory["Rss"])
            one.private.append(memory["Private_Clean"] + memory["Private_Dirty"])
            one.cpu.append((read_cpu(pid) - cpu) / passed * 100)
            one.wakeups.append((read_switches(pid) - switches) / passed)
    return found


def show(name: str, found: Samples) -> None:
    def spread(values: list[float], unit: float = 1.0) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle / unit:.3g} ({low / unit:.3g}-{high / unit:.3g})"

    print(
        f"{name:21} PSS {spread(found.pss, 1024)} MiB  private {spread(found.private, 1024)} MiB  "
        f"RSS {spread(found.rss, 1024)} MiB  CPU {spread(found.cpu)} %  wake-ups {spread(found.wakeups)} /s",
        flush=True,
    )


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT if arguments[0] == "skerry.agent" else signal.SIGTERM)
        process.wait(30)


def connect(directory: Path) -> HubClient | None:
    if not (directory / "kubeconfig").exists():
        return None
    client = HubClient(load_kubeconfig(directory / "kubeconfig"))
    try:
        client.check_ready()
    except SkerryError:
        client.close()
        return None
    return client


def push_model(client: HubClient, package: Path) -> None:
    """Make a dense layer with golden samples, and push it as a model version."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    package.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    (package / "model.onnx").write_bytes(model)
    inputs = random.normal(size=(64, 64)).astype(np.float32)
    outputs = inputs @ weights
    arrays = {"input.x": inputs, "output.y": outputs, "labels": outputs.argmax(axis=1).astype(np.int64)}
    np.savez(package / cards.GOLDEN_FILE, allow_pickle=False, **arrays)
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=64 * 1024**2),
        blob=blob_of(model),
        metric=1,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=1, peak_memory_bytes=64 * 1024**2, runs=1),
    )
    card = cards.EvaluationCard(
        model="dense",
        version="v1",
        signature=ModelSignature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 64])],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 10])],
        ),
        evaluation=Evaluation(metric="accuracy", baseline=1, samples=64, allowed_drop=0.01),
        golden=Golden(blob=blob_of((package / cards.GOLDEN_FILE).read_bytes()), samples=64),
        variants=[cards.PackagedVariant(variant=variant, file="model.onnx")],
        provenance=cards.Provenance(source_kind="onnx"),
    )
    pushed = push_package(client.http, "default/dense", package, card, lambda _name, _count: None)
    spec = ModelVersionSpec(
        model="dense",
        version="v1",
        artifact=Artifact(repository="default/dense", digest=pushed.index),
        signature=card.signature,
        evaluation=card.evaluation,
        golden=card.golden,
    )
    client.apply(msgspec.to_builtins(ModelVersion(metadata=ObjectMeta(name="dense-v1"), spec=spec)))


def blob_of(content: bytes) -> Blob:
    return Blob(digest=f"sha256:{sha256(content).hexdigest()}", size=len(content))


def join(client: HubClient, directory: Path, hub_url: str) -> None:
    raw = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
    token = client.create(raw, JoinToken).status.token
    enroll.enroll(Disk(directory), AgentSettings(), hub_url=hub_url, token=token, name="bench")


def deploy(client: HubClient) -> None:
    wish = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "dense"},
        "spec": {"modelVersion": "dense-v1", "deviceSelector": {}},
    }
    client.apply(wish)


def phase(client: HubClient) -> str:
    status = client.get(Device, "bench").status
    return status.workloads[0].phase if status.workloads else status.phase


def server_of(directory: Path) -> int:
    [record] = (directory / "runtime").glob("*.json")
    return int(msgspec.json.decode(record.read_bytes())["id"].split(":")[0])


def show_imports(count: int) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import skerry.agent.app"], check=True)
        times.append(time.perf_counter() - began)
    middle, low, high = (value * 1000 for value in (statistics.median(times), min(times), max(times)))
    print(f"\nprocess start and import: {middle:.0f} ms ({low:.0f}-{high:.0f})")
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import skerry.agent.app"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("|") for line in said.stderr.splitlines() if "|" in line and "cumulative" not in line]
    own = sorted(((int(row[0].split(":")[1]), row[2].strip()) for row in rows), reverse=True)
    print("  own time of the slowest modules, us: " + ", ".join(f"{name} {us}" for us, name in own[:count]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one sample")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--settle", type=float, default=5.0, help="seconds of quiet before the first sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as name, contextlib.ExitStack() as stack:
        root = Path(name)
        hub, device = root / "hub", root / "device"
        stack.enter_context(
            program(root / "hub.log", "skerry.hub", "--state-dir", str(hub), "--api-port", "0", "--mqtt-port", "0")
        )
        client = stack.enter_context(contextlib.closing(until(lambda: connect(hub), "the hub is ready")))
        url = msgspec.json.decode((hub / "hub.json").read_bytes())["url"]
        join(client, device, url)
        agent = stack.enter_context(program(root / "agent.log", "skerry.agent", "run", "--state-dir", str(device)))
        until(lambda: phase(client) == "Online", "the agent is online")
        print(f"{options.samples} samples of {options.seconds:g} s; median (lowest-highest)")
        time.sleep(options.settle)
        [idle] = sample([agent.pid], seconds=options.seconds, count=options.samples)
        show("agent, no workload", idle)
        push_model(client, root / "package")
        deploy(client)
        until(lambda: phase(client) == "Running", "the workload runs")
        time.sleep(options.settle)
        found = sample([agent.pid, server_of(device)], seconds=options.seconds, count=options.samples)
        show("agent, one workload", found[0])
        show("its inference server", found[1])
        show_imports(12)


if __name__ == "__main__":
    main()
