"""Time from `apply` to running on a connected device, with the artifact cached; inference server start included.

Starts a real hub and one real agent, deploys the digits model once, then changes `serving.threads` back and forth and
measures each time from the moment the API is asked until the device's report says that the new revision serves. The
device's own share (accepting the desired state until Running) is printed beside it. Goal: under 1.5 s.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.cli import options
from skerry.cli.demo.programs import Programs, run, wait_until
from skerry.cli.example import copy_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary, Programs(Path(temporary)) as programs:
        measure(Path(temporary), programs, rounds)


def measure(directory: Path, programs: Programs, rounds: int) -> None:
    hub, device = directory / "hub", directory / "till"
    environment = {"SKERRY_KUBECONFIG": str(hub / "kubeconfig")}

    def skerry(*arguments: str) -> str:
        return run(arguments, environment, show=False)

    copy_out("digits", directory / "digits")
    train = [sys.executable, str(directory / "digits/train.py"), "--out", str(directory / "v1"), "--epochs", "3"]
    subprocess.run(train, check=True, capture_output=True)
    skerry(
        *("model", "optimize", "--torch", f"{directory}/digits/model.py:build_model", "--variants", "fp32"),
        *("--weights", f"{directory}/v1/weights.pt", "--data", f"{directory}/v1/data.npz", "--name", "digits"),
        *("--model-version", "v1", "--out", f"{directory}/package"),
    )
    programs.start("hub", ["hub", "start", "--state-dir", str(hub), "--api-port", "0", "--mqtt-port", "0"])
    skerry("hub", "wait", "--state-dir", str(hub))
    url = skerry("hub", "url", "--state-dir", str(hub)).strip()
    token = skerry("hub", "token", "create", "--label", "site=lab").strip()
    skerry("agent", "enroll", "--hub", url, "--token", token, "--name", "till", "--state-dir", str(device))
    programs.start("agent", ["agent", "run", "--state-dir", str(device)])
    skerry("wait", "device/till", "--for", "Online")
    skerry("model", "push", str(directory / "package"))
    skerry("apply", "-f", str(directory / "digits/deployment.yaml"))
    wall, own = [], []
    with options.connect(hub / "kubeconfig") as client:
        wait_for_revision(client, 1)
        for round_number in range(rounds):
            began = time.perf_counter()
            client.merge_spec(ModelDeployment, "digits", {"serving": {"threads": 2 - round_number % 2}})
            own.append(wait_for_revision(client, 2 + round_number))
            wall.append(time.perf_counter() - began)
            wait_until(lambda: settled(client), "the rollout", seconds=60, every=0.05)
    print(f"apply to running, artifact cached, {rounds} rounds (s)")
    for name, values in (("whole way, as the API's client sees it", wall), ("on the device alone", own)):
        ordered = sorted(values)
        print(
            f"  {name:40} median {statistics.median(ordered):.3f}  min {ordered[0]:.3f}  max {ordered[-1]:.3f}  "
            f"stdev {statistics.stdev(ordered):.3f}"
        )


def wait_for_revision(client, revision: int) -> float:
    for device in client.watch(Device, "till", deadline=time.monotonic() + 60):
        for workload in device.status.workloads:
            if workload.running and workload.running.revision == revision:
                return workload.install_seconds
    raise SystemExit(f"revision {revision} did not come to run within 60 s")


def settled(client) -> bool:
    deployment = client.get(ModelDeployment, "digits")
    return deployment.status.stable_rollout == f"digits-{deployment.metadata.generation}"


if __name__ == "__main__":
    main()
