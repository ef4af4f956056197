"""What goes wrong around an agent, one thing at a time: none of it costs the version that serves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.integration.agent.surroundings import KEY_ID, UID, World, blob_of, eventually
from tests.integration.agent.test_agent_power_cuts import HubEnd, runs, version_at
from tests.integration.agent.test_agent_process import fill

from skerry.agent.disk import AcceptedDesired
from skerry.agent.settings import ServerSettings, TelemetrySettings
from skerry.api.kinds.device import WorkloadStatus
from skerry.core import messages, trust
from skerry.core.ports import Instance
from skerry.drivers.runtime.process import ProcessRuntime


def port_of(status: WorkloadStatus) -> int:
    assert status.running is not None
    return status.running.port


def with_settings(world: World, **sections: Any) -> None:
    world.settings = msgspec.structs.replace(world.settings, **sections)


# --- servers ------------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_without_dying_is_noticed_and_started_anew(world: Any, models: Any) -> None:
    with_settings(world, servers=ServerSettings(check_period="50ms", check_timeout="200ms"))
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        [hanging] = await world.instances()
        os.kill(int(hanging.id.split(":")[0]), signal.SIGSTOP)
        status = await world.hub.status(lambda one: one.restarts == 1 and one.running is not None)
        assert await asyncio.to_thread(version_at, port_of(status)) == "v1"
        [now] = await world.instances()
        assert now.id != hanging.id
        told = [w.message for report in world.hub.reports for w in report.workloads if "did not answer" in w.message]
        assert told, "and it says why"
        assert "3 times in a row" in told[0]


async def test_a_crash_loop_ends_in_the_previous_version_and_a_sentence(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await world.hub.want(models["v2"].desired())
        await world.hub.running("digits-v2")
        await kill_until(world, lambda one: one.running is not None and one.running.rollout == "digits-v1")
        status = await world.hub.status(lambda one: one.phase == "Running")
        assert await asyncio.to_thread(version_at, port_of(status)) == "v1"
        assert status.rollout == "digits-v2", "that is still what the hub wants"
        assert "was killed by SIGKILL" in status.message
        await world.until_servers(1)


async def kill_until(world: World, condition: Any) -> None:
    """Kill the second version's server again and again, as a model would that makes it die."""
    killed: set[str] = set()
    while not any(condition(one) for one in world.hub._last("digits")):
        for one in await world.instances():
            if one.name == "digits-2" and one.id not in killed:
                killed.add(one.id)
                os.kill(int(one.id.split(":")[0]), signal.SIGKILL)
        await asyncio.sleep(0.02)
        assert len(killed) < 10, "attempts are bounded"


# --- clocks -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class WrongClock:
    """A device's clock that is off."""

    off: datetime.timedelta

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + self.off

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@pytest.mark.parametrize("years", [-40, 40])
async def test_a_clock_that_is_wrong_by_years_stops_nothing(world: Any, models: Any, years: int) -> None:
    world.clock = WrongClock(datetime.timedelta(days=365 * years))
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await world.hub.want(models["v2"].desired())
        status = await world.hub.running("digits-v2")
        assert await asyncio.to_thread(version_at, port_of(status)) == "v2"
        assert abs(world.hub.reports[-1].sent_at - world.clock.now()) < datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("days", "words"), [((-900, -800), "has expired"), ((800, 900), "is not valid yet")], ids=["behind", "ahead"]
)
def test_when_no_certificate_seems_valid_the_link_says_so_and_the_device_serves_on(
    make_device: Any, models: Any, tmp_path: Path, days: tuple[float, float], words: str
) -> None:
    device = make_device(tmp_path / "state")
    hub, wrong = HubEnd(device.authority), HubEnd(device.authority, days=days)
    try:
        (device.directory / "agent.toml").write_text(f"[hub]\nmqtt_port = {hub.port}\n")
        hub.publish(UID, device.sign(models["v1"].desired()))
        device.start()
        device.wait(lambda journal: runs(device, journal, "v1"))
        assert device.end(signal.SIGTERM) == 0
        device.stop_servers()
        (device.directory / "agent.toml").write_text(f"[hub]\nmqtt_port = {wrong.port}\n")
        device.start()
        device.wait_log(words)
        assert "check this machine's clock" in device.log()
        device.wait(lambda journal: runs(device, journal, "v1"))
        assert device.end(signal.SIGTERM) == 0
    finally:
        hub.close()
        wrong.close()


# --- disks --------------------------------------------------------------------------------------------------------


READ_ONLY = """
mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"
"""


def test_on_a_disk_that_became_read_only_the_agent_runs_and_what_serves_goes_on(
    make_device: Any, models: Any, tmp_path: Path
) -> None:
    device = make_device(tmp_path / "state")
    wrapper = ("unshare", "--mount", "sh", "-c", READ_ONLY, str(device.directory))
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a directory cannot be made read-only here: {tried.stderr.strip()}")
    device.accept(models["v1"].desired())
    device.start()
    port = device.wait(lambda journal: runs(device, journal, "v1"))["current"]["port"]
    assert device.end(signal.SIGKILL) == -9
    log = device.log_file.open("ab")
    with log:
        command = [*wrapper, sys.executable, "-m", "skerry.agent", "run", "--state-dir", str(device.directory)]
        device.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    device.wait_log("disk.read_only")
    device.wait(
        lambda _: device.log().count("link.lost") > device.log().split("disk.read_only")[0].count("link.lost") + 1
    )
    assert version_at(port) == "v1"
    [server] = servers_of(device)
    os.kill(int(server.id.split(":")[0]), signal.SIGKILL)
    device.wait(lambda _: version_at(port) == "v1" and servers_of(device) != [server])
    assert device.end(signal.SIGTERM) == 0
    assert version_at(port) == "v1"
    device.wait_servers(1)
    device.accept(models["v2"].desired())
    device.start()  # the disk is well again
    device.wait(lambda journal: runs(device, journal, "v2"))
    assert device.end(signal.SIGTERM) == 0


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that can be made read-only."""
    place = tmp_path / "own"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_after_a_reboot_with_a_read_only_disk_what_is_installed_serves_and_comes_back_when_it_dies(
    own_disk: Path, make_device: Any, models: Any
) -> None:
    device = make_device(own_disk / "state")
    device.log_file = own_disk.parent / "agent.log"
    device.accept(models["v1"].desired())
    device.start()
    port = device.wait(lambda journal: runs(device, journal, "v1"))["endpoint"]
    assert device.end(signal.SIGKILL) == -9
    device.stop_servers()
    device.accept(models["v2"].desired())  # and could not begin with it any more
    subprocess.run(["mount", "-o", "remount,ro", str(own_disk)], check=True)
    served: set[str] = set()
    for _ in range(2):  # the second one finds the server of the first, of which there is no record
        device.start()
        device.wait_log("disk.read_only")
        for _ in range(2):
            device.wait(lambda _: version_at(port) == "v1")
            [server] = servers_of(device)
            served.add(server.id)
            os.kill(int(server.id.split(":")[0]), signal.SIGKILL)
            device.wait(lambda _, dead=server: [one for one in servers_of(device) if one != dead])
        device.wait(lambda _: version_at(port) == "v1")
        assert device.end(signal.SIGTERM) == 0
        assert version_at(port) == "v1"
    assert len(served) == 4
    device.start()
    device.wait(lambda _: device.log().count("journal.not_written") > device.log().count("agent.started"))
    subprocess.run(["mount", "-o", "remount,rw", str(own_disk)], check=True)
    device.wait(lambda journal: runs(device, journal, "v2"))
    device.wait_servers(1)
    assert device.end(signal.SIGTERM) == 0


def test_a_desired_state_for_which_there_is_no_room_is_refused_and_accepted_when_there_is(
    own_disk: Path, make_device: Any, models: Any
) -> None:
    device = make_device(own_disk / "state")
    hub = HubEnd(device.authority)
    device.log_file = own_disk.parent / "agent.log"
    filler = own_disk / "filler"
    try:
        (device.directory / "agent.toml").write_text(f"[hub]\nmqtt_port = {hub.port}\n")
        hub.publish(UID, device.sign(models["v1"].desired()))
        device.start()
        port = device.wait(lambda journal: runs(device, journal, "v1"))["endpoint"]
        kept = device.disk.read_desired()
        fill(filler)
        hub.publish(UID, device.sign(models["v2"].desired()))
        device.wait_log("desired.refused")
        assert "cannot be kept" in device.log()
        assert (version_at(port), device.disk.read_desired()) == ("v1", kept)
        filler.unlink()  # and nobody sends it again
        device.wait(lambda journal: runs(device, journal, "v2"))
        assert device.end(signal.SIGTERM) == 0
    finally:
        hub.close()


async def test_what_the_disk_would_not_take_is_offered_again_whatever_else_comes(
    world: Any, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.agent.engine.JOURNAL_RETRY_SECONDS", 0.05)
    write, full = world.disk.write_desired, True

    def write_if_there_is_room(accepted: AcceptedDesired) -> None:
        if full:
            raise OSError(errno.EROFS, "Read-only file system", "desired.json")
        write(accepted)

    hub = world.hub
    async with world.agent():
        await hub.want(models["v1"].desired())
        await hub.running("digits-v1")
        world.disk.write_desired = write_if_there_is_room
        await hub.publish(hub.sign(models["v1"].desired(rollout="older"), version=6))
        await hub.publish(hub.sign(models["v2"].desired(), version=7))
        await hub.publish(hub.sign(models["v1"].desired(rollout="late"), version=5))
        await hub.until(lambda: "cannot be kept" in hub.reports[-1].refused)
        await hub.publish(hub.sign(models["v1"].desired(), version=9, key=Ed25519PrivateKey.generate()))
        await hub.until(lambda: "not signed by a key" in hub.reports[-1].refused)
        full = False
        await hub.running("digits-v2")
        await hub.until(lambda: not hub.reports[-1].refused)
        assert hub.reports[-1].observed_manifest_version == 7
    assert not {"older", "late"} & {w.rollout for report in hub.reports for w in report.workloads}


async def test_a_desired_state_signed_by_a_key_that_comes_later_is_accepted_then(world: Any, models: Any) -> None:
    key = Ed25519PrivateKey.generate()
    async with world.agent() as agent:
        await world.hub.publish(world.hub.sign(models["v1"].desired(), key=key))
        await world.hub.until(lambda: world.hub.reports and "not signed by a key" in world.hub.reports[-1].refused)
        agent.replace_keys({KEY_ID: key.public_key()})
        await world.hub.running("digits-v1")
        assert world.hub.reports[-1].refused == ""


def servers_of(device: Any) -> list[Instance]:
    return list(asyncio.run(ProcessRuntime(device.directory / "runtime").list()))


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 400, b'{"name":"digits","phase":"Running"'])
def test_a_journal_that_is_damaged_costs_no_version_though_the_registry_is_away(
    make_device: Any, models: Any, tmp_path: Path, damage: bytes
) -> None:
    device = make_device(tmp_path / "state")
    device.accept(models["v1"].desired())
    device.start()
    device.wait(lambda journal: runs(device, journal, "v1"))
    assert device.end(signal.SIGKILL) == -9
    device.registry.down = True
    device.accept(models["v2"].desired())
    path = device.directory / "workloads" / "digits" / "journal.json"
    path.write_bytes(damage)
    device.stop_servers()
    device.start()
    device.wait_log("journal.damaged")

    def serves_v1(journal: dict[str, Any]) -> bool:
        current = journal.get("current")
        return bool(current and journal.get("up") and version_at(current["port"]) == "v1")

    device.wait(serves_v1)
    device.registry.down = False
    device.wait(lambda journal: runs(device, journal, "v2"))
    assert device.end(signal.SIGTERM) == 0


async def test_a_blob_that_is_half_there_is_completed_or_fetched_anew(world: Any, models: Any) -> None:
    model, golden = models["v1"].model, models["v1"].golden
    whole, partial = world.disk.blob(blob_of(model)), world.disk.blob(blob_of(golden))
    whole.write_bytes(model[: len(model) // 2])
    partial.with_name(f"{partial.name}.partial").write_bytes(b"\x00" * (len(golden) // 2))
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        status = await world.hub.running("digits-v1")
        assert await asyncio.to_thread(version_at, port_of(status)) == "v1"
    assert whole.read_bytes() == model


async def test_a_registry_that_fails_in_the_middle_of_an_update_leaves_the_old_version(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
        world.registry.hold.clear()
        await world.hub.want(models["v2"].desired())
        await world.hub.status(lambda one: one.phase == "Fetching")
        assert await asyncio.to_thread(world.registry.holding.wait, 20)
        world.registry.down = True
        world.registry.hold.set()
        assert await asyncio.to_thread(version_at, port) == "v1"
        world.registry.down = False
        await world.hub.running("digits-v2")


# --- brokers ------------------------------------------------------------------------------------------------------


class SlowWire:
    """A line to a port that carries a few bytes at a time, and now and then breaks."""

    def __init__(self, port: int, *, piece: int, breaks_after: int) -> None:
        self._port = port
        self._piece = piece
        self._left = breaks_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.breaks = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self._piece):
                self._left -= len(data)
                if self._left < 0 and not self.breaks:
                    self.breaks += 1
                    break
                target.sendall(data)
                time.sleep(0.002)  # this is what makes it slow
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


def test_a_line_that_is_slow_and_breaks_in_the_middle_of_a_message_only_takes_longer(
    make_device: Any, models: Any, tmp_path: Path
) -> None:
    device = make_device(tmp_path / "state")
    hub = HubEnd(device.authority)
    wire = SlowWire(hub.port, piece=64, breaks_after=6000)
    try:
        (device.directory / "agent.toml").write_text(
            f'[hub]\nmqtt_port = {wire.port}\n[link]\nretry_ceiling = "500ms"\n'
        )
        hub.publish(UID, device.sign(models["v1"].desired()))
        device.start()
        device.wait(lambda journal: runs(device, journal, "v1"))
        hub.publish(UID, device.sign(models["v2"].desired()))
        device.wait(lambda journal: runs(device, journal, "v2"))
        assert wire.breaks == 1
        assert device.end(signal.SIGTERM) == 0
    finally:
        wire.close()
        hub.close()


async def test_desired_states_that_come_twice_late_or_out_of_order_are_taken_once(world: Any, models: Any) -> None:
    hub = world.hub
    first, second, third = (
        hub.sign(models[name].desired(rollout=f"r-{name}-{n}")) for n, name in enumerate(("v1", "v2", "v1"))
    )
    async with world.agent():
        for envelope in (first, first):
            await hub.publish(envelope)
        await hub.running("r-v1-0")
        for envelope in (third, second, first, third, second):
            await hub.publish(envelope)
        status = await hub.running("r-v1-2")
        await hub.publish(first)
        await hub.until(lambda: hub.reports[-1].refused_manifest_version == 1)
        last = hub.reports[-1]
        assert (last.observed_manifest_version, last.workloads[0].rollout) == (3, "r-v1-2")
        await hub.publish(third)
        await hub.until(lambda: not hub.reports[-1].refused)
        assert await asyncio.to_thread(version_at, port_of(status)) == "v1"
        assert "r-v2-1" not in {w.rollout for report in hub.reports for w in report.workloads}


async def test_a_command_that_comes_twice_is_answered_once_also_after_a_restart(
    world: Any, models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="skerry.agent.engine")
    now = datetime.datetime.now(datetime.UTC)
    expiry = now + datetime.timedelta(minutes=1)
    command = messages.Command(uid=UID, id="c1", expires_at=expiry, verb="logs", workload="digits")
    raw = messages.encode(trust.sign(command, world.hub.key, "k1"))

    def answers() -> int:
        return [result.id for result in world.hub.results].count("c1")

    async def repeated(times: int) -> bool:
        return caplog.text.count("command.repeated") == times

    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        for _ in range(3):
            await world.hub.connection.send_command(UID, raw)
        await world.hub.until(lambda: answers() == 1)
        await eventually(lambda: repeated(2))
    for damaged in (False, True):
        if damaged:
            (world.directory / "commands.json").write_bytes(b"{")
        told = len(world.hub.reports)
        async with world.agent():
            await world.hub.until(lambda told=told: len(world.hub.reports) > told)
            await world.hub.connection.send_command(UID, raw)
            if damaged:
                await world.hub.until(lambda: answers() == 2)
            else:
                await eventually(lambda: repeated(3))
    assert (answers(), caplog.text.count("command.repeated")) == (2, 3)


async def test_a_disk_that_cannot_be_written_keeps_nobody_from_asking(world: Any, models: Any) -> None:
    (world.directory / "commands.json").mkdir()  # which cannot be replaced by a file
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        assert [(await world.hub.ask("logs")).error for _ in range(2)] == ["", ""]


# --- telemetry ----------------------------------------------------------------------------------------------------


async def test_samples_wait_while_there_is_no_hub_and_come_in_order_after_the_state(world: Any, models: Any) -> None:
    with_settings(world, telemetry=TelemetrySettings(interval="20ms", send="20ms"))
    spool = world.directory / "spool"
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        status = await world.hub.running("digits-v1")
        await world.hub.until(lambda: any(t.samples[-1].workloads for t in world.hub.telemetry))
        world.hub.carrier.down = True
        world.hub.carrier.cut(UID)
        assert await asyncio.to_thread(version_at, port_of(status)) == "v1"
        before = len(world.hub.heard)
        kept = await waiting(spool, more_than=3)
        world.hub.carrier.down = False
        await world.hub.until(lambda: len(world.hub.heard) > before and "Telemetry" in world.hub.heard[before:])
        after = [kind for kind in world.hub.heard[before:] if kind != "Online"]
        assert after[0] == "Reported", "what the device is comes first"
        assert sum(len(t.samples) for t in world.hub.telemetry) > kept
        times = [sample.at for one in world.hub.telemetry for sample in one.samples]
        assert times == sorted(times)
        assert {t.dropped for t in world.hub.telemetry} == {0}


async def test_samples_survive_the_agent_and_without_an_interval_there_are_none(world: Any) -> None:
    with_settings(world, telemetry=TelemetrySettings(interval="20ms", send="10m"))
    world.hub.carrier.down = True
    async with world.agent():
        kept = await waiting(world.directory / "spool", more_than=2)
    with_settings(world, telemetry=TelemetrySettings(interval="0s"))
    async with world.agent():
        assert lines(world.directory / "spool") >= kept


async def waiting(spool: Path, *, more_than: int) -> int:
    async def enough() -> bool:
        return lines(spool) > more_than

    await eventually(enough)
    return lines(spool)


def lines(spool: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in spool.glob("*.jsonl")) if spool.is_dir() else 0
