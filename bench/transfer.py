"""Measure what an update sends, and what it costs the device: deltas against other ways.

About 1 MB: a small CNN that is really trained on scikit-learn's digits, then fine-tuned for one epoch by Adam. About 20
and 100 MB: seeded weights as networks are initialised, and updates of the size and spread that Adam's have. `int8` is
the same two sets of weights, each quantised by the largest value of each row. Needs numpy, onnx, torch, zstandard and
bsdiff4; xdelta3 on PATH. Usage: python bench/transfer.py [--megabytes 1 20] [--quick]
"""

# ruff: noqa: PLC0415 - what one way needs is imported there: the process that applies stays as small as an agent
from __future__ import annotations

import argparse
import gzip
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1024 * 1024
CHUNK = 16 * 1024
SLOW_BYTES = 2 * MIB
"""Beyond, bsdiff4 and chunking in Python take minutes, and are left out."""

Weights = dict


def trained() -> tuple[Weights, Weights]:
    """Train a CNN of about 1 MB, then one more epoch; return the weights before and after."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 232), nn.ReLU(), nn.Linear(232, 10)),
    )

    def train(rate: float, epochs: int) -> Weights:
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
        for _ in range(epochs):
            for part in torch.randperm(1200).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
                optimizer.step()
        return {name: value.detach().numpy().copy() for name, value in net.named_parameters()}

    return train(1e-3, 3), train(1e-3, 1)


def seeded(megabytes: int) -> tuple[Weights, Weights]:
    """Return weights as they are initialised, and the same with an update of Adam's size (a rate of 1e-4)."""
    import numpy as np

    random, before, after = np.random.default_rng(1), {}, {}
    rows = max(megabytes * 1_000_000 // 4 // 4 // 1152, 1)
    for index in range(4):
        shape = (rows, 1152)
        old = random.normal(0, (2 / 1152) ** 0.5, shape).astype(np.float32)
        update = 5e-4 * random.normal(0, 1, shape) * random.gamma(1, 1, shape)
        before[f"layer{index}.weight"], after[f"layer{index}.weight"] = old, (old + update).astype(np.float32)
    before["head.weight"] = random.normal(0, 0.03, (10, 1152)).astype(np.float32)
    after["head.weight"] = (before["head.weight"] + 5e-4 * random.normal(0, 1, (10, 1152))).astype(np.float32)
    return before, after


def quantised(weights: Weights) -> Weights:
    """Return int8 weights with one scale for each row."""
    import numpy as np

    found = {}
    for name, value in weights.items():
        rows = value.reshape(len(value), -1)
        scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-9) / 127
        found[name] = np.round(rows / scale).astype(np.int8)
        found[f"{name}.scale"] = scale.astype(np.float32)
    return found


def model(weights: Weights) -> bytes:
    """Return an ONNX file with these weights."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    arrays = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:], arrays)
    return bytes(helper.make_model(graph).SerializeToString())


def cases(megabytes: int) -> dict[str, tuple[bytes, bytes]]:
    """Return the old and the new file of each kind of update."""
    before, after = trained() if megabytes == 1 else seeded(megabytes)
    last = [name for name in before if name.startswith(("8.", "head."))]
    head = {**before, **{name: after[name] for name in last}}
    return {
        "last layer, fp32": (model(before), model(head)),
        "all layers, fp32": (model(before), model(after)),
        "all layers, int8": (model(quantised(before)), model(quantised(after))),
    }


def by_delta(old: bytes, new: bytes) -> bytes:
    """Make our delta."""
    from skerry.core import delta, delta_encode, weights

    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (old, new)]
    header = delta.Header(old_digest=digests[0], old_size=len(old), new_digest=digests[1], new_size=len(new))
    layouts = [weights.read_layout(content, "onnx") for content in (old, new)]
    return b"".join(delta_encode.encode(header, old, new, *layouts))


def by_zstd(old: bytes, new: bytes) -> dict[str, int]:
    import zstandard

    # A dictionary of python-zstandard is not searched as `zstd --patch-from` does; one stream behind the old file is.
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    stream.compress(old)
    stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return {
        "zstd": len(zstandard.ZstdCompressor(level=3).compress(new)),
        "zstd patch-from": len(stream.compress(new)) + len(stream.flush()),
    }


def by_xdelta3(directory: Path, old: bytes, new: bytes) -> int:
    (directory / "old").write_bytes(old)
    (directory / "new").write_bytes(new)
    paths = [str(directory / name) for name in ("old", "new", "vcdiff")]
    subprocess.run(["xdelta3", "-e", "-f", "-9", "-B", str(max(len(old), MIB)), "-s", *paths], check=True)
    return (directory / "vcdiff").stat().st_size


def by_chunks(old: bytes, new: bytes) -> int:
    """Return the bytes of content-defined chunks (gear hash, 16 KiB on average) that the old file does not have."""

    def chunks(content: bytes) -> list[bytes]:
        table = [int.from_bytes(hashlib.sha256(bytes([n])).digest()[:4], "big") for n in range(256)]
        found, start, rolling = [], 0, 0
        for at, byte in enumerate(content):
            rolling = (rolling << 1) + table[byte] & 0xFFFFFFFF
            if (at - start >= CHUNK // 4 and rolling < 2**32 // CHUNK) or at - start >= 4 * CHUNK:
                found.append(content[start : at + 1])
                start = at + 1
        return [*found, content[start:]]

    there = set(chunks(old))
    return sum(len(one) for one in chunks(new) if one not in there)


def others(directory: Path, old: bytes, new: bytes, *, quick: bool) -> dict[str, int]:
    """Return the bytes that other ways send."""
    found = {"full": len(new), "container layer (gzip)": len(gzip.compress(new, 6)), **by_zstd(old, new)}
    if not quick:
        found["xdelta3"] = by_xdelta3(directory, old, new)
    if len(new) < SLOW_BYTES:
        import bsdiff4

        found["bsdiff4"] = len(bsdiff4.diff(old, new))
        found["chunks, 16 KiB"] = by_chunks(old, new)
    return found


def peak_kib() -> int:
    """Return the most memory this program has had resident; unlike getrusage's, without what came before exec."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def apply(directory: Path) -> None:
    """As a process of its own: apply the delta, print MB/s of CPU, and MiB of memory beyond those before."""
    from skerry.agent import fetch
    from skerry.agent.disk import Disk
    from skerry.api.kinds.variants import Blob, Delta
    from skerry.core import delta

    disk = Disk(directory)
    named = {path.name: path for path in directory.glob("*.of")}
    old, packed, new = (named[f"{kind}.of"].read_text().split() for kind in ("old", "delta", "new"))
    blob = Blob(digest=new[0], size=int(new[1]))
    way = Delta(base=old[0], target=new[0], blob=Blob(digest=packed[0], size=int(packed[1])), encoding=delta.ENCODING)
    before = peak_kib()
    began = time.process_time()
    fetch.apply(disk, way, blob, threading.Event())
    took = time.process_time() - began
    after = peak_kib()
    print(f"{blob.size / 1e6 / took:.0f} {(after - before) / 1024:.1f} {after / 1024:.0f}")


def applied(old: bytes, new: bytes, packed: bytes) -> str:
    """Apply a delta in a process of its own and say what it took."""
    with tempfile.TemporaryDirectory() as directory:
        blobs = Path(directory) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for kind, content in (("old", old), ("delta", packed), ("new", new)):
            digest = hashlib.sha256(content).hexdigest()
            (Path(directory) / f"{kind}.of").write_text(f"sha256:{digest} {len(content)}")
            if kind != "new":
                (blobs / digest).write_bytes(content)
        done = subprocess.run(
            [sys.executable, __file__, "--apply", directory], check=True, stdout=subprocess.PIPE, text=True
        )
        assert (blobs / hashlib.sha256(new).hexdigest()).read_bytes() == new
    speed, more, peak = done.stdout.split()
    return f"applied at {speed} MB/s of CPU, {more} MiB more memory (process: {peak} MiB)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, nargs="*", default=[1, 20])
    parser.add_argument("--quick", action="store_true", help="without xdelta3")
    parser.add_argument("--apply", type=Path)
    asked = parser.parse_args()
    if asked.apply is not None:
        apply(asked.apply)
        return
    for megabytes in asked.megabytes:
        for name, (old, new) in cases(megabytes).items():
            with tempfile.TemporaryDirectory() as directory:
                began = time.process_time()
                packed = by_delta(old, new)
                made = time.process_time() - began
                print(f"{name}, {len(new) / 1e6:.1f} MB", flush=True)
                sizes = {"Skerry's delta": len(packed), **others(Path(directory), old, new, quick=asked.quick)}
                for way, size in sizes.items():
                    print(f"  {way:24} {size:>11} bytes  {100 * size / len(new):7.3f} %")
                print(f"  made in {made:.2f} s of CPU; {applied(old, new, packed)}", flush=True)


if __name__ == "__main__":
    main()
