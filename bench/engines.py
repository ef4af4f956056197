"""What each engine costs on a device: start to ready, memory, requests a second, for the digits example.

Run `python bench/engines.py --package DIR` with a package that `skerry model optimize` made; without, it trains and
makes one first (minutes). Each variant is served by the real inference server, one thread, and asked for one image at a
time in the binary form. The load generator shares the machine's cores; nothing is judged, figures are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.serve import load

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Variant
from skerry.cli import examples
from skerry.core import card as cards

EXAMPLE = Path(examples.__file__).parent / "digits"
VARIANTS = "fp32,int8,tflite-fp32,tflite-int8,executorch-fp32,executorch-int8,torchscript-fp32"
READY = re.compile(rb"serve\.ready .*url=http://127\.0\.0\.1:(\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="a model package; made anew without")
    parser.add_argument("--starts", type=int, default=5, help="starts to time (default 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each line (default 3)")
    parser.add_argument("--make", type=Path, help="only make the package, in this directory")
    options = parser.parse_args()
    if options.make is not None:
        make(options.make)
        return
    cores, loadavg = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load average {loadavg:.1f} before, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        package = options.package or make(Path(temporary) / "package")
        card = cards.decode((package / cards.CARD_FILE).read_bytes())
        signature = Path(temporary) / "signature.json"
        signature.write_bytes(msgspec.json.encode(card.signature))
        columns = ["variant", "engine", "start to ready", "PSS idle", "PSS after load", "peak", "1 connection", "16"]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for packaged in card.variants:
            measure(
                packaged.variant,
                package / packaged.file,
                signature,
                tensors=card.signature,
                starts=options.starts,
                seconds=options.seconds,
            )


def make(package: Path) -> Path:
    package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as trained:
        subprocess.run([sys.executable, str(EXAMPLE / "train.py"), "--out", trained], check=True)
        command = [*("-m", "skerry.cli", "model", "optimize", "--torch", f"{EXAMPLE}/model.py:build_model")]
        command += ["--weights", f"{trained}/weights.pt", "--data", f"{trained}/data.npz", "--name", "digits"]
        command += ["--model-version", "v1", "--out", str(package), "--variants", VARIANTS]
        subprocess.run([sys.executable, *command], check=True)
    return package


def measure(
    variant: Variant, file: Path, signature: Path, *, tensors: ModelSignature, starts: int, seconds: float
) -> None:
    raw = request(tensors)
    times = []
    for _ in range(starts):
        with server(variant, file, signature) as (_, _, ready):
            times.append(ready)
    with server(variant, file, signature) as (port, pid, _):
        idle = memory(pid)["Pss"]
        load(port, raw, connections=1, seconds=min(1.0, seconds))
        lines = [load(port, raw, connections=count, seconds=seconds) for count in (1, 16)]
        after = memory(pid)
    rates = [
        f"{rate:,.0f} req/s, p50 {found[len(found) // 2] * 1000:.2f}, p99 {found[int(len(found) * 0.99)] * 1000:.2f} ms"
        for rate, found in lines
    ]
    started = f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
    cells = [variant.name, variant.needs.engine, started, mib(idle), mib(after["Pss"]), mib(after["Peak"]), *rates]
    print(f"| {' | '.join(cells)} |", flush=True)


@contextlib.contextmanager
def server(variant: Variant, file: Path, signature: Path) -> Iterator[tuple[int, int, float]]:
    """Yield its port, its pid and the seconds from start to ready."""
    argv = [sys.executable, "-m", "skerry.serve", "--model", "digits", "--version", "v1", "--port", "0"]
    argv += ["--engine", variant.needs.engine, "--file", str(file), "--signature", str(signature)]
    begin = time.perf_counter()
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if (found := READY.search(line)) is not None:
                    yield int(found.group(1)), process.pid, time.perf_counter() - begin
                    break
            else:
                raise SystemExit(f"{variant.name} did not become ready")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def request(signature: ModelSignature) -> bytes:
    spec = signature.inputs[0]
    image = np.random.default_rng(3).random([1, *spec.shape[1:]], dtype=np.float32)
    tensor: dict[str, object] = {"name": spec.name, "shape": list(image.shape), "datatype": spec.datatype}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lines = ["POST /v2/models/digits/infer HTTP/1.1", "Host: bench", f"Inference-Header-Content-Length: {len(head)}"]
    lines.append(f"Content-Length: {len(head) + image.nbytes}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + image.tobytes()


def memory(pid: int) -> dict[str, int]:
    """Return the process's share of memory (PSS) and its peak (VmHWM), in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    pss, peak = re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE), re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    assert pss is not None
    assert peak is not None
    return {"Pss": int(pss.group(1)), "Peak": int(peak.group(1))}


def mib(kibibytes: int) -> str:
    return f"{kibibytes / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
