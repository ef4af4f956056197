"""A hub and its agents as processes, driven as a user drives them."""

import os
import subprocess
from pathlib import Path

from skerry.api.kinds.device import Device
from skerry.cli import options
from skerry.cli.demo.programs import SKERRY, Programs, wait_until
from skerry.drivers.client.api import HubClient

PATIENCE = 60.0


class Site:
    """One hub and its agents, driven as a user drives them."""

    def __init__(self, directory: Path, programs: Programs) -> None:
        self.directory = directory
        self.programs = programs
        self.kubeconfig = directory / "hub" / "kubeconfig"

    def start_hub(self) -> None:
        state = self.directory / "hub"
        self.programs.start("hub", ["hub", "start", "--state-dir", str(state), "--api-port", "0", "--mqtt-port", "0"])
        self.skerry("hub", "wait", "--state-dir", str(state))

    def add_devices(self, *names: str, label: str = "site=lab") -> None:
        url = self.skerry("hub", "url", "--state-dir", str(self.directory / "hub")).strip()
        token = self.skerry("hub", "token", "create", "--uses", str(len(names)), "--label", label).strip()
        for name in names:
            state = self.directory / name
            state.mkdir()
            (state / "agent.toml").write_text("[servers]\nstop_on_exit = true\n")
            self.skerry("agent", "enroll", "--hub", url, "--token", token, "--name", name, "--state-dir", str(state))
            self.start_agent(name)
        with self.client() as client:
            wait_until(
                lambda: all(client.get(Device, name).status.phase == "Online" for name in names),
                "devices online",
                seconds=PATIENCE,
            )

    def start_agent(self, name: str) -> None:
        self.programs.start(name, ["agent", "run", "--state-dir", str(self.directory / name)])

    def client(self) -> HubClient:
        return options.connect(self.kubeconfig)

    def skerry(self, *arguments: str) -> str:
        done = self.try_skerry(*arguments)
        assert done.returncode == 0, f"skerry {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def try_skerry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SKERRY, *arguments],
            env={
                "SKERRY_KUBECONFIG": str(self.kubeconfig),
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.directory),
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
