"""The agent as a program: killed anywhere it converges, without a hub it brings everything back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.surroundings import PATIENCE, blob_of, make_model


def version_at(port: int) -> str:
    import json

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/digits", timeout=10) as answer:
        return str(json.loads(answer.read())["versions"][0])


def is_running(rollout: str) -> Any:
    def condition(journal: dict[str, Any]) -> bool:
        current = journal.get("current") or {}
        return (
            journal.get("phase") == "Running"
            and bool(journal.get("up"))
            and current.get("desired", {}).get("rollout") == rollout
        )

    return condition


def in_phase(phase: str) -> Any:
    return lambda journal: journal.get("phase") == phase


def test_without_a_hub_what_was_accepted_is_installed_and_comes_back(device: Any, models: Any) -> None:
    device.accept(models["v1"].desired())
    device.start()
    journal = device.wait(is_running("digits-v1"))
    port = journal["current"]["port"]
    assert version_at(port) == "v1"
    assert device.end(signal.SIGTERM) == 0
    assert version_at(port) == "v1", "servers outlive the agent"
    device.stop_servers()  # a power cut
    device.start()
    journal = device.wait(lambda found: is_running("digits-v1")(found) and found["current"]["since"] and alive(port))
    assert journal["current"]["port"] == port
    assert device.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("damage", ["desired.json", "workloads/digits/journal.json"])
def test_a_damaged_file_is_survived_by_the_others(device: Any, models: Any, damage: str) -> None:
    device.accept(models["v1"].desired())
    device.start()
    device.wait(is_running("digits-v1"))
    device.end(signal.SIGKILL)
    path = device.directory / damage
    path.write_bytes(path.read_bytes()[:-40])
    device.start()
    device.wait_log("desired.unreadable" if damage == "desired.json" else "journal.damaged")
    assert version_at(device.wait(is_running("digits-v1"))["current"]["port"]) == "v1"
    device.wait_servers(1)
    assert device.end(signal.SIGTERM) == 0


def alive(port: int) -> bool:
    try:
        return bool(version_at(port))
    except OSError:
        return False


GATED_SERVER = """#!{python}
import os, pathlib, sys, time

if sys.argv[1:3] != ["-m", "skerry.serve"]:  # asked which engines it has
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

from skerry.serve import app, dataplane

gate, infer = pathlib.Path({gate!r}), dataplane.DataPlane.infer


def pass_gate():
    gate.with_name("held").touch()
    while not gate.exists():
        time.sleep(0.01)


def infer_later(*arguments):
    pass_gate()
    return infer(*arguments)


if "--version=v2" in sys.argv:
    if {phase!r} == "Starting":
        pass_gate()
    dataplane.DataPlane.infer = infer_later
sys.exit(app.main(sys.argv[3:]))
"""
"""A server's interpreter: version v2 does not come up, or does not answer its samples, before the gate is opened."""


class Held:
    """The installation of v2, stopped in the middle of one phase until it is released."""

    def __init__(self, device: Any, phase: str, directory: Path) -> None:
        self._device, self._phase, self._gate = device, phase, directory / "open"
        self._log = device.directory / "workloads" / "digits" / "server.log"
        if phase == "Fetching":
            device.registry.hold.clear()
        elif phase == "Installed":  # who opens a pipe to write waits for a reader
            self._log.unlink()
            os.mkfifo(self._log, 0o600)
        else:
            python = directory / "python"
            python.write_text(GATED_SERVER.format(python=sys.executable, gate=str(self._gate), phase=phase))
            python.chmod(0o700)
            (device.directory / "agent.toml").write_text(f'[servers]\npython = "{python}"\n')

    def wait(self) -> None:
        """Wait until it is in the middle of the phase, and can be nowhere else."""
        self._device.wait(in_phase(self._phase))
        if self._phase == "Fetching":
            assert self._device.registry.holding.wait(20)
        elif self._phase in ("Starting", "Probing"):
            self._device.wait(lambda _: self._gate.with_name("held").exists())
        journal = self._device.journal()
        assert (journal["phase"], journal["candidate"]["desired"]["version"]) == (self._phase, "v2")

    def release(self) -> None:
        self._device.registry.hold.set()
        self._gate.touch()
        if self._phase == "Installed":
            self._log.unlink()


@pytest.mark.parametrize("phase", ["Fetching", "Installed", "Starting", "Probing"])
def test_killed_in_mid_install_it_converges_and_the_old_version_serves_on(
    device: Any, models: Any, phase: str, tmp_path: Path
) -> None:
    device.accept(models["v1"].desired())
    device.start()
    old = device.wait(is_running("digits-v1"))["current"]["port"]
    assert device.end(signal.SIGTERM) == 0
    device.accept(models["v2"].desired())
    held = Held(device, phase, tmp_path)
    device.start()
    held.wait()
    assert device.end(signal.SIGKILL) == -9
    assert device.journal()["phase"] == phase
    assert version_at(old) == "v1", "what served goes on serving"
    held.release()
    device.start()
    port = device.wait(is_running("digits-v2"))["current"]["port"]
    assert version_at(port) == "v2"
    device.wait_servers(1)
    assert device.end(signal.SIGTERM) == 0


def test_killed_again_and_again_it_still_converges(device: Any, models: Any) -> None:
    device.accept(models["v1"].desired())
    for phase in ("Fetching", "Verified", "Installed"):
        device.start()
        device.wait(lambda journal, phase=phase: journal.get("phase") in (phase, "Running"))
        device.end(signal.SIGKILL)
    device.start()
    port = device.wait(is_running("digits-v1"))["current"]["port"]
    assert version_at(port) == "v1"
    device.wait_servers(1)


def test_a_second_agent_on_the_same_directory_is_refused(device: Any) -> None:
    device.start()
    device.wait_log("agent.started")
    second = run("run", "--state-dir", str(device.directory))
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: state directory {device.directory}: another agent (process ")
    assert device.end(signal.SIGTERM) == 0


def test_told_to_it_stops_its_servers_too(device: Any, models: Any) -> None:
    (device.directory / "agent.toml").write_text("[servers]\nstop_on_exit = true\n")
    device.accept(models["v1"].desired())
    device.start()
    device.wait(is_running("digits-v1"))
    assert device.end(signal.SIGTERM) == 0
    device.wait_servers(0)
    (device.directory / "agent.toml").unlink()
    device.start()
    device.wait_log("link.lost")
    device.wait_servers(1)
    assert device.end(signal.SIGTERM) == 0
    stopped = run("stop", "--state-dir", str(device.directory))
    assert (stopped.returncode, stopped.stdout) == (0, "1 server stopped\n")
    device.wait_servers(0)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "skerry.agent", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_mistakes_are_sentences_and_exit_codes(tmp_path: Path) -> None:
    nobody = run("run", "--state-dir", str(tmp_path / "a"))
    assert nobody.returncode == 1
    assert "this device is not enrolled" in nobody.stderr
    assert "skerry agent enroll" in nobody.stderr
    (tmp_path / "a" / "agent.toml").write_text("[hardware]\nmemroy = '1Mi'\n")
    typo = run("run", "--state-dir", str(tmp_path / "a"))
    assert typo.returncode == 1
    assert typo.stderr == (
        f'error: {tmp_path}/a/agent.toml, hardware: unknown key "memroy"; docs/agent.md lists every setting\n'
    )
    bad = run("enroll", "--hub", "https://127.0.0.1:9", "--token", "skj1.x", "--state-dir", str(tmp_path / "b"))
    assert (bad.returncode, "is not a join token" in bad.stderr) == (1, True)
    token = f"skj1.id.secret.{'0' * 64}"
    for hub, words in (("http://127.0.0.1:9", "is not a hub's URL"), ("https://127.0.0.1:9", "cannot be reached")):
        away = run("enroll", "--hub", hub, "--token", token, "--state-dir", str(tmp_path / "b"))
        assert (away.returncode, words in away.stderr, "Traceback" in away.stderr) == (1, True, False)
    assert not list((tmp_path / "b").glob("*.key")), "no key is made for a hub that was not found"


def test_it_imports_little() -> None:
    code = (
        "import sys\n"
        "import skerry.agent.app\n"
        "heavy = {'numpy', 'onnxruntime', 'torch', 'httpx', 'typer', 'rich', 'starlette', 'uvicorn', 'sqlalchemy',"
        " 'cryptography.x509', 'zoneinfo', 'yaml', 'psutil'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_stops_nothing_and_heals(
    small_disk: Path, authority: Any, models: Any, make_device: Any
) -> None:
    device = make_device(small_disk / "state")
    (device.directory / "agent.toml").write_text('[storage]\nreserve = "0"\n')
    device.log_file = small_disk.parent / "agent.log"
    device.accept(models["v1"].desired())
    device.start()
    port = device.wait(is_running("digits-v1"))["current"]["port"]
    assert device.end(signal.SIGTERM) == 0
    device.accept(models["v2"].desired())
    filler = small_disk / "filler"
    fill(filler)
    device.stop_servers()  # and then the power went, too
    device.start()
    # Journals go on: a new one has the room of the one before last. The new version finds none, or too little.
    told = device.wait(lambda journal: journal.get("refusal") == "Disk" and alive(port))["failure"]
    # Who finds it first is a race: the guard of the disk, the fetch when it begins, or a write.
    assert any(words in told for words in ("do not fit", "bytes are needed and", "Not enough space left")), told
    assert version_at(port) == "v1", "what is installed is served"
    filler.unlink()
    device.end(signal.SIGTERM)
    device.accept(models["v2"].desired(rollout="digits-again"))
    device.start()
    assert version_at(device.wait(is_running("digits-again"))["current"]["port"]) == "v2"
    assert device.end(signal.SIGTERM) == 0


def test_a_disk_that_fills_up_in_the_middle_of_a_download_stops_nothing_and_heals(
    small_disk: Path, authority: Any, models: Any, make_device: Any, tmp_path: Path
) -> None:
    device = make_device(small_disk / "state")
    (device.directory / "agent.toml").write_text('[storage]\nreserve = "0"\n')
    device.log_file = small_disk.parent / "agent.log"
    large = make_model(tmp_path, "v5", seed=5, samples=20_000)
    device.registry.add(large)
    device.accept(models["v1"].desired())
    device.start()
    port = device.wait(is_running("digits-v1"))["current"]["port"]
    assert device.end(signal.SIGTERM) == 0
    device.accept(large.desired())
    device.registry.hold.clear()
    device.registry.held = blob_of(large.golden).digest
    device.start()
    assert device.registry.holding.wait(PATIENCE)
    filler = small_disk / "filler"
    fill(filler)
    device.registry.hold.set()
    device.wait(lambda journal: "Not enough space left" in str(journal.get("failure")) and alive(port))
    assert version_at(port) == "v1"
    filler.unlink()
    assert device.end(signal.SIGTERM) == 0
    device.accept(large.desired(rollout="digits-again"))
    device.start()
    assert version_at(device.wait(is_running("digits-again"))["current"]["port"]) == "v5"
    assert device.end(signal.SIGTERM) == 0


def fill(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"x" * 4096)
    finally:
        os.close(descriptor)
