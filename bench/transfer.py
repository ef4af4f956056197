"""Measure what an update sends, and what it costs the device: deltas against other ways.

About 1 MB: a small CNN that is really trained on scikit-learn's digits, then fine-tuned for one epoch by Adam. About
20 and 100 MB: seeded weights as networks are initialised, and updates of the size and spread that Adam's have. `int8`
is the same two sets of weights, each quantised by the largest value of each row. Needs numpy, onnx, torch and
bsdiff4; zstd and xdelta3 on PATH. Usage: python bench/transfer.py [--megabytes 1 20] [--quick]
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
WINDOW = "--long=27"
"""Of zstd: 128 MiB, so that the old file is within reach."""
PATIENCE = 60
"""Seconds for making one file by xdelta3 or bsdiff4."""

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


def by_gzip(old: Path, new: Path, out: Path) -> None:  # noqa: ARG001 - a way's shape
    out.write_bytes(gzip.compress(new.read_bytes(), 6))


def by_zstd(old: Path, new: Path, out: Path) -> None:  # noqa: ARG001 - a way's shape
    subprocess.run(["zstd", "-q", "-f", "-3", str(new), "-o", str(out)], check=True, timeout=PATIENCE)


def by_patch(old: Path, new: Path, out: Path) -> None:
    command = ["zstd", "-q", "-f", "-3", WINDOW, f"--patch-from={old}", str(new), "-o", str(out)]
    subprocess.run(command, check=True, timeout=PATIENCE)


def by_xdelta3(old: Path, new: Path, out: Path) -> None:
    window = str(max(old.stat().st_size, MIB))
    command = ["xdelta3", "-e", "-f", "-9", "-B", window, "-s", str(old), str(new), str(out)]
    subprocess.run(command, check=True, timeout=PATIENCE)


def by_bsdiff4(old: Path, new: Path, out: Path) -> None:
    code = "import sys, bsdiff4; bsdiff4.file_diff(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, str(old), str(new), str(out)], check=True, timeout=PATIENCE)


def by_chunks(old: Path, new: Path, out: Path) -> None:
    """Keep those content-defined chunks (gear hash, 16 KiB on average) that the old file does not have."""
    there = set(chunks(old.read_bytes()))
    out.write_bytes(b"".join(one for one in chunks(new.read_bytes()) if one not in there))


def chunks(content: bytes) -> list[bytes]:
    """Cut content where the hash of the last 32 bytes is small: no less than CHUNK / 4, no more than 4 CHUNK."""
    import numpy as np

    table = np.array([int.from_bytes(hashlib.sha256(bytes([n])).digest()[:4], "big") for n in range(256)], np.uint32)
    numbers, marks = np.frombuffer(content, np.uint8), []
    for start in range(0, len(numbers), 4 * MIB):
        begin = max(start - 31, 0)
        block = table[numbers[begin : start + 4 * MIB]]
        rolling = np.zeros_like(block)
        for shift in range(min(32, len(block))):  # what is shifted further is gone from 32 bits
            rolling[shift:] += block[: len(block) - shift] << np.uint32(shift)
        marks.append(np.flatnonzero(rolling[start - begin :] < 2**32 // CHUNK) + start)
    found, start = [], 0
    for mark in [*np.concatenate(marks).tolist(), len(content) - 1]:
        while mark + 1 - start > 4 * CHUNK:
            found.append(content[start : start + 4 * CHUNK])
            start += 4 * CHUNK
        if mark + 1 - start >= CHUNK // 4 or mark == len(content) - 1:
            found.append(content[start : mark + 1])
            start = mark + 1
    return found


_WRITE = """
import hashlib, os, sys
def write(pieces):
    hasher = hashlib.sha256()
    with open(sys.argv[3], "wb") as new:
        for piece in pieces:
            new.write(piece)
            hasher.update(piece)
        new.flush()
        os.fsync(new.fileno())
"""
_UNDO = {
    "full": "f = open(sys.argv[2], 'rb'); write(iter(lambda: f.read(262144), b''))",
    "container layer (gzip)": "import gzip; f = gzip.open(sys.argv[2]); write(iter(lambda: f.read(262144), b''))",
    "bsdiff4": "import bsdiff4; write([bsdiff4.patch(open(sys.argv[1], 'rb').read(), open(sys.argv[2], 'rb').read())])",
}
"""What a device does with what came: old file, what came, new file; hashed and fsynced as an agent does."""

_LAUNCH = """
import os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""
"""Run small, so that the peak is the program's: the system counts what a process was before it became another."""

WAYS = {
    "container layer (gzip)": by_gzip,
    "zstd": by_zstd,
    "zstd patch-from": by_patch,
    "xdelta3": by_xdelta3,
    "bsdiff4": by_bsdiff4,
    "chunks, 16 KiB": by_chunks,
}


def undone(way: str, old: Path, packed: Path, new: Path) -> str:
    """Undo one way in a process of its own; return its CPU seconds and its peak of memory, interpreter included."""
    out = packed.with_suffix(".out")
    if way == "xdelta3":
        window = str(max(old.stat().st_size, MIB))
        command = ["xdelta3", "-d", "-f", "-B", window, "-s", str(old), str(packed), str(out)]
    elif way == "zstd":
        command = ["zstd", "-q", "-f", "-d", str(packed), "-o", str(out)]
    elif way == "zstd patch-from":
        command = ["zstd", "-q", "-f", "-d", WINDOW, f"--patch-from={old}", str(packed), "-o", str(out)]
    elif way in _UNDO:
        command = [sys.executable, "-c", _WRITE + _UNDO[way], str(old), str(packed), str(out)]
    else:
        return ""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCH, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, peak = map(float, done.stdout.split())
    assert out.read_bytes() == new.read_bytes(), way
    return f"  undone in {seconds:5.2f} s of CPU, {peak / 1024:4.0f} MiB"


def others(old: bytes, new: bytes, *, quick: bool) -> dict[str, tuple[int, str]]:
    """Return the bytes that other ways send, and what undoing them takes."""
    found: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("old", "new", "packed")]
        for path, content in zip(files, (old, new), strict=False):
            path.write_bytes(content)
        found["full"] = (len(new), undone("full", files[0], files[1], files[1]))
        for way, make in WAYS.items():
            if quick and way in ("xdelta3", "bsdiff4"):
                continue
            try:
                make(files[0], files[1], files[2])
            except subprocess.TimeoutExpired:
                found[way] = (0, f"  not made within {PATIENCE} s")
                continue
            found[way] = (files[2].stat().st_size, undone(way, files[0], files[2], files[1]))
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
    parser.add_argument("--quick", action="store_true", help="without xdelta3 and bsdiff4")
    parser.add_argument("--apply", type=Path)
    asked = parser.parse_args()
    if asked.apply is not None:
        apply(asked.apply)
        return
    for megabytes in asked.megabytes:
        for name, (old, new) in cases(megabytes).items():
            began = time.process_time()
            packed = by_delta(old, new)
            made = time.process_time() - began
            print(f"{name}, {len(new) / 1e6:.1f} MB", flush=True)
            print(f"  {'our delta':24} {len(packed):>11} bytes  {100 * len(packed) / len(new):7.3f} %")
            print(f"    made in {made:.2f} s of CPU; {applied(old, new, packed)}", flush=True)
            for way, (size, undoing) in others(old, new, quick=asked.quick).items():
                sent = f"{size:>11} bytes  {100 * size / len(new):7.3f} %" if size else f"{'-':>11}"
                print(f"  {way:24} {sent}{undoing}", flush=True)


if __name__ == "__main__":
    main()
