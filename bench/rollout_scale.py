"""A rollout at its real size: from `apply` to all devices running, with gates on; and the hub killed in the middle.

For each size: a hub as a process, a simulated fleet as another (`skerry sim --profile ideal`), both on this machine.
Measured: enrolment; connecting; installing the first version on all devices in three gated waves, and updating to the
second, in devices a minute; the hub's memory for each device and the CPU time of both processes for each; then a
third rollout, with the hub killed by SIGKILL when half of the devices are updated: the time from its restart until the
API answers, until every device is connected again, and until the rollout has succeeded.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from skerry.api.errors import UnavailableError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout
from skerry.cli import options
from skerry.cli.demo.programs import Programs, run, wait_until
from skerry.cli.simulation import NAME, deployment, make_tokens
from skerry.sim import sample

PATIENCE = 1800.0
HUB = ("hub", "start", "--api-port", "0", "--mqtt-port", "0")


class Figures(dict):
    """Printed as they come: a large fleet takes its time."""

    def __setitem__(self, name: str, value: float) -> None:
        if self.get(name) != value:
            print(f"  {name:24} {value:10.1f}", flush=True)
        super().__setitem__(name, value)


class Bench:
    """One size."""

    def __init__(self, directory: Path, programs: Programs, devices: int, bake: str) -> None:
        self.directory, self.programs, self.devices, self.bake = directory, programs, devices, bake
        self.state, self.report = directory / "hub", directory / "census.json"
        self.environment = {"SKERRY_KUBECONFIG": str(self.state / "kubeconfig")}
        self.figures = Figures(devices=devices)

    def measure(self, profile: str) -> dict[str, float]:
        self.start_hub()
        self.figures["hubEmptyMiB"] = self.hub().memory_info().rss / 2**20
        for version in ("v1", "v2", "v3"):
            sample.write(self.directory / "packages" / version, version)
            run(["model", "push", str(self.directory / "packages" / version)], self.environment, show=False)
        url = run(["hub", "url", "--state-dir", str(self.state)], self.environment, show=False).strip()
        with options.connect(self.state / "kubeconfig") as client:
            tokens = make_tokens(client, self.devices)
        arguments = ["sim", "--hub", url, "--devices", str(self.devices), "--profile", profile]
        arguments += ["--report", str(self.report), "--state-dir", str(self.directory / "sim")]
        began = time.perf_counter()
        self.programs.start("sim", [*arguments, *(word for token in tokens for word in ("--token", token))])
        self.wait("enrolled", lambda census: census["enrolled"] == self.devices)
        self.note("enrolPerMinute", began)
        began = time.perf_counter()
        self.wait("online", lambda census: census["online"] == self.devices)
        self.note("connectPerMinute", began)
        self.figures["hubConnectedMiB"] = self.hub().memory_info().rss / 2**20
        self.roll_out("v1", "install")
        self.roll_out("v2", "update")
        memory = self.hub().memory_info().rss
        self.figures["hubMiB"] = memory / 2**20
        self.figures["hubKiBPerDevice"] = (memory / 1024 - self.figures["hubEmptyMiB"] * 1024) / self.devices
        self.figures["simKiBPerDevice"] = self.census()["peakMemoryBytes"] / 1024 / self.devices
        self.recover("v3")
        return self.figures

    def roll_out(self, version: str, name: str) -> None:
        hub, sim = self.cpu()
        began = time.perf_counter()
        self.apply(version)
        with ThreadPoolExecutor(1) as others:
            running = others.submit(self.wait, f"on {version}", lambda census: self.runs(census, version, name, began))
            wait_until(self.succeeded, f"the {name} of {version}", seconds=PATIENCE, every=0.25)
            self.note(f"{name}PerMinute", began)
            running.result()
        hub_after, sim_after = self.cpu()
        self.figures[f"{name}HubCpuMs"] = 1000 * (hub_after - hub) / self.devices
        self.figures[f"{name}SimCpuMs"] = 1000 * (sim_after - sim) / self.devices

    def runs(self, census: dict, version: str, name: str, began: float) -> bool:
        """Note when all devices run it, which is before the hub knows."""
        if self.updated(census, version) < self.devices:
            return False
        self.note(f"{name}RunningPerMinute", began)
        return True

    def recover(self, version: str) -> None:
        self.apply(version)
        self.wait("half updated", lambda census: self.updated(census, version) >= self.devices // 2)
        self.programs.kill("hub")
        self.wait("the hub gone", lambda census: census["online"] == 0)
        self.figures["updatedAtKill"] = self.updated(self.census(), version)
        began = time.perf_counter()
        self.start_hub()
        self.figures["recoverApiSeconds"] = time.perf_counter() - began
        self.wait("online again", lambda census: census["online"] == self.devices)
        self.figures["recoverOnlineSeconds"] = time.perf_counter() - began
        wait_until(self.succeeded, f"the rollout of {version} after the kill", seconds=PATIENCE, every=0.25)
        self.figures["recoverRolloutSeconds"] = time.perf_counter() - began
        self.wait(f"on {version}", lambda census: self.updated(census, version) == self.devices)

    # --- parts ------------------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        """As a service manager would: again when it ends. A device that looks for it here may hold its port a moment,
        for TCP connects a socket to itself where it happens to choose the port that it wants to reach.
        """
        hub, ready = [*HUB, "--state-dir", str(self.state)], ["hub", "wait", "--state-dir", str(self.state)]
        self.programs.start("hub", hub)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                run([*ready, "--timeout", "10s"], self.environment, show=False)
                return
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
            try:
                self.programs.check("hub")
            except UnavailableError as ended:
                print(f"  {ended}", flush=True)
                self.programs.start("hub", hub)

    def apply(self, version: str) -> None:
        with options.connect(self.state / "kubeconfig") as client:
            client.apply(deployment(version, bake=self.bake))

    def succeeded(self) -> bool:
        began = time.perf_counter()
        try:
            return self.ask()
        except UnavailableError:  # it counts, and is asked again
            return False
        finally:
            worst = self.figures.get("slowestApiSeconds", 0.0)
            self.figures["slowestApiSeconds"] = max(worst, time.perf_counter() - began)

    def ask(self) -> bool:
        with options.connect(self.state / "kubeconfig") as client:
            found = client.get(ModelDeployment, NAME)
            name = f"{NAME}-{found.metadata.generation}"
            if found.status.stable_rollout != name and found.status.rollout == name:
                rollout = client.get(Rollout, name)
                if rollout.status.phase in ("RollingBack", "RolledBack", "Paused", "Failed"):
                    raise SystemExit(f"{name} is {rollout.status.phase}: {rollout.status.message}")
            return found.status.stable_rollout == name

    def wait(self, what: str, condition) -> None:
        def holds() -> bool:
            self.programs.check("sim")
            return self.report.exists() and condition(self.census())

        wait_until(holds, f"{self.devices} devices {what}", seconds=PATIENCE, every=0.2)

    def census(self) -> dict:
        return json.loads(self.report.read_text())

    def updated(self, census: dict, version: str) -> int:
        return census["running"].get(f"{sample.MODEL}-{version}", 0)

    def hub(self) -> psutil.Process:
        return psutil.Process(json.loads((self.state / "hub.json").read_text())["pid"])

    def cpu(self) -> tuple[float, float]:
        used = self.hub().cpu_times()
        return used.user + used.system, self.census()["cpuSeconds"]

    def note(self, name: str, began: float) -> None:
        self.figures[name] = 60 * self.devices / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000", help="numbers of devices, as in 1000,5000,10000")
    parser.add_argument("--profile", default="ideal")
    parser.add_argument("--bake", default="0s", help="bake time of each wave; with one, its two gates are on as well")
    parser.add_argument("--json", type=Path, help="write all figures there")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    everything = []
    for size in map(int, wanted.sizes.split(",")):
        print(f"{size} devices, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
        with tempfile.TemporaryDirectory() as temporary, Programs(Path(temporary)) as programs:
            figures = Bench(Path(temporary), programs, size, wanted.bake).measure(wanted.profile)
        everything.append(figures)
        if wanted.json:
            wanted.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
