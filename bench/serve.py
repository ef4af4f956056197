"""What the inference server costs and gives: time from start to ready, requests a second, latency, memory.

Run `python bench/serve.py`; nothing is judged, figures are printed. The client is in this process, the server in its
own; both share the machine's cores. The models are made here, from a seed: a small CNN for 8 x 8 pictures and one for
96 x 96 pictures whose tensors are worth sending as binary data.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

READY_SECONDS = 60.0
MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    side: int
    channels: Sequence[int]


MODELS = (Model(name="small", side=8, channels=(1, 16, 32)), Model(name="large", side=96, channels=(3, 32, 64, 64)))


def write_model(model: Model, directory: Path) -> None:
    """Convolutions, each followed by ReLU and halving the picture, then one dense layer to ten classes."""
    random = np.random.default_rng(7)
    weights, nodes, tensor, side = [], [], "image", model.side

    def weight(name: str, *shape: int) -> str:
        values = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) + 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, name))
        return name

    for i, (before, after) in enumerate(zip(model.channels, model.channels[1:], strict=False)):
        inputs = [tensor, weight(f"c{i}", after, before, 3, 3), weight(f"b{i}", after)]
        nodes.append(helper.make_node("Conv", inputs, [f"x{i}"], pads=[1, 1, 1, 1], strides=[2, 2]))
        nodes.append(helper.make_node("Relu", [f"x{i}"], [f"y{i}"]))
        tensor, side = f"y{i}", (side + 1) // 2
    nodes.append(helper.make_node("Flatten", [tensor], ["flat"]))
    dense = [weight("d", model.channels[-1] * side * side, 10), weight("e", 10)]
    nodes.append(helper.make_node("Gemm", ["flat", *dense], ["scores"]))
    shape = ["n", model.channels[0], model.side, model.side]
    graph = helper.make_graph(
        nodes,
        model.name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), directory / "model.onnx"
    )
    signature = {
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, *shape[1:]]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
    }
    (directory / "signature.json").write_text(json.dumps(signature))


@contextlib.contextmanager
def server(model: Model, directory: Path, *, control: Path | None = None) -> Iterator[tuple[int, int, float]]:
    """Yield its port, its pid and the seconds from start to ready; with a control socket, if a path is given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    argv = [sys.executable, "-m", "skerry.serve", "--model", model.name, "--version", "1", "--port", str(port)]
    argv += ["--file", str(directory / "model.onnx"), "--signature", str(directory / "signature.json")]
    argv += [] if control is None else ["--control", str(control)]
    begin = time.perf_counter()
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if time.perf_counter() - begin > READY_SECONDS or process.poll() is not None:
                raise SystemExit("the server did not become ready")
            time.sleep(0.002)
        yield port, process.pid, time.perf_counter() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=READY_SECONDS)


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def request(model: Model, *, binary: bool) -> bytes:
    picture = np.random.default_rng(3).random((1, model.channels[0], model.side, model.side), dtype=np.float32)
    tensor: dict[str, object] = {"name": "image", "shape": list(picture.shape), "datatype": "FP32"}
    if binary:
        data = picture.tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
    else:
        tensor["data"] = [round(float(value), 4) for value in picture.ravel()]
        head, data, extra = json.dumps({"inputs": [tensor]}).encode(), b"", ""
    line = f"POST /v2/models/{model.name}/infer HTTP/1.1\r\nHost: bench\r\n{extra}"
    return f"{line}Content-Length: {len(head) + len(data)}\r\n\r\n".encode() + head + data


class Client:
    """One connection: sends, reads the whole answer, sends again."""

    def __init__(self, port: int, raw: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._raw = raw
        self._received = b""
        self._expected = 0
        self.send()

    def send(self) -> None:
        self._received, self._expected, self._begin = b"", 0, time.perf_counter()
        self.socket.sendall(self._raw)

    def receive(self) -> float | None:
        """Take what has come; return the latency when the answer is complete."""
        piece = self.socket.recv(1 << 20)
        if not piece:
            raise SystemExit("the server closed a connection")
        self._received += piece
        if not self._expected and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                raise SystemExit(f"the server answered {self._received[:300]!r}")
            self._expected = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if not self._expected or len(self._received) < self._expected:
            return None
        return time.perf_counter() - self._begin


def load(port: int, raw: bytes, *, connections: int, seconds: float) -> tuple[float, Sequence[float]]:
    """Return requests a second and all latencies, sorted."""
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(connections):
            client = Client(port, raw)
            stack.callback(client.socket.close)
            selector.register(client.socket, selectors.EVENT_READ, client)
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds and len(latencies) < MAX_REQUESTS:
            for key, _ in selector.select(READY_SECONDS):
                latency = key.data.receive()
                if latency is not None:
                    latencies.append(latency)
                    key.data.send()
        elapsed = time.perf_counter() - begin
    return len(latencies) / elapsed, sorted(latencies)


def memory_mib(pid: int) -> str:
    fields = dict.fromkeys(("Pss:", "Rss:"), 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in fields:
            fields[name] = int(value.split()[0])
    return f"PSS {fields['Pss:'] / 1024:.1f} MiB, RSS {fields['Rss:'] / 1024:.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each line (default 3)")
    parser.add_argument("--starts", type=int, default=7, help="starts to time (default 7)")
    arguments = parser.parse_args()
    cores, loadavg = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load average {loadavg:.1f} before, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            directory = Path(name, model.name)
            directory.mkdir()
            write_model(model, directory)
            bench(model, directory, seconds=arguments.seconds, starts=arguments.starts)


def bench(model: Model, directory: Path, *, seconds: float, starts: int) -> None:
    times = []
    for _ in range(starts):
        with server(model, directory) as (_, _, ready_seconds):
            times.append(ready_seconds)
    shape = f"{model.channels[0]}x{model.side}x{model.side}"
    print(f"\n{model.name} CNN, input {shape}, {(directory / 'model.onnx').stat().st_size / 1024:.0f} KiB")
    print(f"  start to ready: median {statistics.median(times):.3f} s, {min(times):.3f} to {max(times):.3f} s")
    with server(model, directory) as (port, pid, _):
        print(f"  ready, idle:    {memory_mib(pid)}")
        for binary in (False, True):
            raw = request(model, binary=binary)
            load(port, raw, connections=1, seconds=min(1.0, seconds))
            for connections in (1, 16):
                rate, latencies = load(port, raw, connections=connections, seconds=seconds)
                p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
                kind = "binary" if binary else "JSON"
                print(
                    f"  {kind:6} {len(raw):7} bytes, {connections:2} connections:"
                    f" {rate:8.0f} req/s, p50 {p50:7.2f} ms, p99 {p99:7.2f} ms"
                )
        print(f"  after the load: {memory_mib(pid)}")


if __name__ == "__main__":
    main()
