"""A large blob into the hub's registry and out again: rate, the hub's CPU and memory.

Starts a real hub, logs in with a registry token over TLS, and sends a generated stream of `--mib` MiB that is nowhere
on the disk before: pushed in chunks of 16 MiB (PATCH), pulled whole, and pulled from the middle on (Range). What comes
back is hashed. The hub's memory is the kernel's peak (VmHWM), before and after.
"""

import argparse
import hashlib
import json
import os
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from skerry.api.kinds.registry_token import RegistryToken
from skerry.cli import options
from skerry.cli.demo.programs import Programs, run

MIB = 1024 * 1024
CHUNK = 16 * MIB
NAME = "default/large"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=2048)
    size = parser.parse_args().mib * MIB
    with tempfile.TemporaryDirectory() as temporary, Programs(Path(temporary)) as programs:
        measure(Path(temporary), programs, size - size % CHUNK)


def measure(directory: Path, programs: Programs, size: int) -> None:
    hub = directory / "hub"
    environment = {"SKERRY_KUBECONFIG": str(hub / "kubeconfig")}
    programs.start("hub", ["hub", "start", "--state-dir", str(hub), "--api-port", "0", "--mqtt-port", "0"])
    run(["hub", "wait", "--state-dir", str(hub)], environment, show=False)
    url = run(["hub", "url", "--state-dir", str(hub)], environment, show=False).strip()
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "RegistryToken",
        "metadata": {"generateName": "bench-"},
        "spec": {"actions": ["pull", "push"], "ttl": "1h"},
    }
    with options.connect(hub / "kubeconfig") as client:
        token = client.create(raw, RegistryToken).status.token
    process = json.loads((hub / "hub.json").read_text())["pid"]
    tls = ssl.create_default_context(cafile=hub / "pki" / "ca.crt")
    print(f"one blob of {size / MIB:.0f} MiB, load average {os.getloadavg()[0]:.1f}")
    with httpx.Client(base_url=url, verify=tls, timeout=120, trust_env=False) as client:
        scope = f"repository:{NAME}:pull,push"
        bearer = client.get("/v2/token", params={"scope": scope}, auth=("bench", token)).json()["token"]
        client.headers["Authorization"] = f"Bearer {bearer}"
        small = push(client, 2 * CHUNK)
        pull(client, small, 0, 2 * CHUNK)
        report("before, a blob of 32 MiB in and out", process, 0, 0, 0)
        began = Usage(process)
        digest = push(client, size)
        began.say("pushed", size)
        began = Usage(process)
        pull(client, digest, 0, size)
        began.say("pulled", size)
        began = Usage(process)
        pull(client, digest, size // 2, size)
        began.say("pulled from the middle on", size - size // 2)


class Usage:
    """Wall time and the hub's CPU time since it was made."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.wall, self.cpu = time.perf_counter(), cpu_seconds(process)

    def say(self, what: str, size: int) -> None:
        wall = time.perf_counter() - self.wall
        report(what, self.process, size, wall, cpu_seconds(self.process) - self.cpu)


def report(what: str, process: int, size: int, wall: float, cpu: float) -> None:
    rate = f"{size / MIB / wall:6.0f} MiB/s  hub's CPU {cpu / (size / MIB / 1024):5.1f} s/GiB" if size else ""
    print(f"  {what:38} {rate}  hub's memory at most {peak(process) / MIB:.0f} MiB")


def push(client: httpx.Client, size: int) -> str:
    location = client.post(f"/v2/{NAME}/blobs/uploads/").raise_for_status().headers["Location"]
    digest = hashlib.sha256()
    for start, chunk in zip(range(0, size, CHUNK), chunks(), strict=False):
        digest.update(chunk)
        headers = {"Content-Range": f"{start}-{start + CHUNK - 1}"}
        location = client.patch(location, content=chunk, headers=headers).raise_for_status().headers["Location"]
    name = f"sha256:{digest.hexdigest()}"
    client.put(location, params={"digest": name}).raise_for_status()
    return name


def pull(client: httpx.Client, digest: str, start: int, end: int) -> None:
    taken, count = hashlib.sha256(), 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with client.stream("GET", f"/v2/{NAME}/blobs/{digest}", headers=headers) as answer:
        for piece in answer.raise_for_status().iter_raw(MIB):
            taken.update(piece)
            count += len(piece)
    if count != end - start or (not start and f"sha256:{taken.hexdigest()}" != digest):
        raise SystemExit("something else came back")


def chunks() -> Iterator[bytes]:
    """Yield chunks that all differ, made without much work."""
    body = os.urandom(CHUNK - 8)
    for number in range(2**32):
        yield number.to_bytes(8, "little") + body


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
