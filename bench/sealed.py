"""What it costs to keep a model encrypted: sealing and opening on one core, memory, and how much later it is loaded.

A file of random bytes is sealed and opened as the agent does it (`agent.sealed`), beside what is done anyway with a
plain one: writing it, and reading it for its digest. Nothing is judged, figures are printed:

    python bench/sealed.py [--sizes 1 20 100] [--runs 5]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import resource
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.agent import memory_file
from skerry.agent.disk import Disk
from skerry.api.kinds.variants import Blob

MB = 1_000_000
PIECE = 256 * 1024


def main() -> None:
    """Print one table, and the peak memory of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 20, 100], metavar="MB")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{platform.machine()}, Python {platform.python_version()}, one core, median of {options.runs}")
    print("| MB | write | seal | read for the digest | open into memory | load later by |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        disk = make_disk(Path(place))
        for size in options.sizes:
            print(row(disk, size, options.runs))
        for name, work in (("sealing", seal), ("opening", reveal)):
            added = added_memory(work, disk, blob_of(disk, options.sizes[-1]))
            print(f"{name} {options.sizes[-1]} MB: {added / MB:.1f} MB")


def make_disk(place: Path) -> Disk:
    """Return the disk of a device that has a key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    disk = Disk(place / "state")
    disk.write("device.pem", pem)
    disk.vault.key()
    return disk


def blob_of(disk: Disk, size: int) -> Blob:
    """Put random bytes into the cache, in plain."""
    content = secrets.token_bytes(size * MB)
    blob = Blob(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))
    disk.blob(blob).write_bytes(content)
    return blob


def row(disk: Disk, size: int, runs: int) -> str:
    """Measure one size."""
    blob = blob_of(disk, size)
    written, sealed, read, opened = (median(work, disk, blob, runs) for work in (write, seal, verify, reveal))
    speeds = " | ".join(f"{size / seconds:.0f} MB/s" for seconds in (written, sealed, read, opened))
    disk.blob(blob).unlink()
    disk.sealed.blob(blob).unlink()
    return f"| {size} | {speeds} | {(opened - read) * 1000:.0f} ms |"


def median(work: Callable[[Disk, Blob], None], disk: Disk, blob: Blob, runs: int) -> float:
    """Return the seconds of one run, after one that does not count."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        work(disk, blob)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def write(disk: Disk, blob: Blob) -> None:
    """Make the blob again, in plain, with its digest and fsync."""
    with disk.blob(blob).open("rb") as file:
        disk.write_blob(blob, iter(lambda: file.read(PIECE), b""))


def seal(disk: Disk, blob: Blob) -> None:
    """Seal it, with its digest and fsync."""
    disk.sealed.seal(disk.blob(blob), blob)


def verify(disk: Disk, blob: Blob) -> None:
    """What is done before every start of a server."""
    disk.verify(disk.blob(blob), blob)


def reveal(disk: Disk, blob: Blob) -> None:
    """What is done instead with an encrypted model."""
    with memory_file.created("bench") as descriptor:
        disk.sealed.reveal(disk.sealed.blob(blob), blob, descriptor)


def added_memory(work: Callable[[Disk, Blob], None], disk: Disk, blob: Blob) -> int:
    """Return by how much one run raises the peak of a process, without the file in memory itself."""
    if work is reveal:
        seal(disk, blob)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_measure, args=(work, disk, blob, sending))
    child.start()
    found = int(receiving.recv())
    child.join()
    return found


def _measure(work: Callable[[Disk, Blob], None], disk: Disk, blob: Blob, sending: object) -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = _peak()
    work(disk, blob)
    sending.send(max(_peak() - before, 0))  # type: ignore[attr-defined]


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
