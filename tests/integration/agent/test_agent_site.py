"""A site of real agents behind one line: a model comes over it once, whoever is killed meanwhile."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from tests.integration.agent.neighbours import (
    CountingRegistry,
    enrolled,
    held_ports,
    open_authority,
    settings_text,
)

from skerry.agent.disk import AcceptedDesired, Disk
from skerry.core import messages, trust
from skerry.core.journal import State
from skerry.core.manifest import digest_of
from skerry.core.messages import DesiredState, WorkloadDesired

PATIENCE = 90.0
SIZE = 5


@dataclasses.dataclass
class Site:
    """Agents as processes, that have accepted the same desired state and never reach their hub's broker."""

    root: Path
    registry: CountingRegistry
    ports: list[int]
    desired: WorkloadDesired
    running: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    @property
    def uids(self) -> list[str]:
        return [f"d{number}" for number in range(len(self.ports))]

    def prepare(self, *, more: str = "") -> None:
        for uid, port in zip(self.uids, self.ports, strict=True):
            enrolled(self.root / uid, self.registry.authority, uid, url=self.registry.url)
            (self.root / uid / "agent.toml").write_text(settings_text(port, self.ports, more=more))
            self.want(uid)

    def want(self, uid: str) -> None:
        state = DesiredState(
            uid=uid, manifest_version=1, issued_at=datetime.datetime.now(datetime.UTC), workloads=[self.desired]
        )
        authority = self.registry.authority
        envelope = messages.encode(trust.sign(state, authority.desired_key, authority.desired_key_id))
        Disk(self.root / uid).write_desired(AcceptedDesired(manifest_version=1, envelope=envelope))

    def start(self, *uids: str) -> None:
        for uid in uids or self.uids:
            with (self.root / f"{uid}.log").open("ab") as log:
                self.running[uid] = subprocess.Popen(
                    [sys.executable, "-m", "skerry.agent", "run", "--state-dir", str(self.root / uid)],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )

    def kill(self, uid: str) -> None:
        process = self.running.pop(uid)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def state(self, uid: str) -> State | None:
        try:
            raw = (self.root / uid / "workloads" / "digits" / "journal.json").read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(raw, type=State)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = {uid: process.returncode for uid, process in self.running.items() if process.poll() is not None}
            assert not ended, f"{ended}\n{self.logs()}"
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.02)

    def until_running(self, *uids: str) -> dict[str, State]:
        wanted = uids or self.uids
        self.until(lambda: all(state is not None and state.phase == "Running" for state in map(self.state, wanted)))
        return {uid: state for uid in wanted if (state := self.state(uid)) is not None}

    def log(self, uid: str) -> str:
        return (self.root / f"{uid}.log").read_text()

    def nobody_is_left_alone(self) -> bool:
        now = datetime.datetime.now(datetime.UTC)
        lefts = re.finditer(r"^(\S+) INFO peers\.left_alone .* seconds=(\d+) ", "".join(map(self.log, self.uids)), re.M)
        longest = [(datetime.datetime.fromisoformat(left[1]), int(left[2]) + 1) for left in lefts]  # told rounded down
        return all(now > since + datetime.timedelta(seconds=seconds) for since, seconds in longest)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.root.glob("*.log")))

    def close(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGINT)  # its servers end with it
        for process in self.running.values():
            process.wait(PATIENCE)
        for uid in self.uids:
            subprocess.run(
                [sys.executable, "-m", "skerry.agent", "stop", "--state-dir", str(self.root / uid)],
                stdout=subprocess.DEVNULL,
                check=True,
            )


@pytest.fixture
def site(tmp_path: Path, models: Any) -> Iterator[Site]:
    loaded = onnx.load_model_from_string(models["v1"].model)
    onnx.helper.set_model_props(loaded, {"notes": os.urandom(1_000_000).hex()})
    model = dataclasses.replace(models["v1"], model=loaded.SerializeToString())
    authority = open_authority(tmp_path)
    registry = CountingRegistry(authority, {digest_of(one): one for one in (model.model, model.golden)})
    with registry.open(), held_ports(SIZE) as ports:
        made = Site(tmp_path / "site", registry, ports, model.desired())
        made.root.mkdir()
        try:
            yield made
        finally:
            made.close()


def test_a_model_comes_over_the_line_once(site: Site) -> None:
    site.prepare()
    site.start()
    states = site.until_running()
    blob = site.desired.blob
    assert site.registry.given[blob.digest] == blob.size, site.logs()
    by_line = [uid for uid, state in states.items() if state.fetched_bytes >= blob.size]
    assert len(by_line) == 1
    assert all(state.peer_bytes == blob.size for uid, state in states.items() if uid not in by_line)


def test_when_the_one_that_fetches_for_all_is_killed_another_takes_its_place(site: Site) -> None:
    site.registry.held = site.desired.blob.digest
    site.prepare()
    site.start()
    site.until(site.registry.holding.is_set)
    [first] = site.registry.askers
    site.until(lambda: len([uid for uid in site.uids if "peers.listening" in site.log(uid)]) == SIZE)
    site.until(site.nobody_is_left_alone)  # who was asked before it listened is asked again only later
    site.kill(first)
    site.registry.hold.set()
    others = [uid for uid in site.uids if uid != first]
    site.until_running(*others)
    assert len(site.registry.askers) == 2, site.logs()
    site.start(first)  # and it goes on by what neighbours have, from where it was
    state = site.until_running(first)[first]
    assert len(site.registry.askers) == 2, site.logs()
    assert 0 < state.peer_bytes <= site.desired.blob.size


def test_when_the_one_that_gives_is_killed_all_still_have_it_in_the_end(site: Site) -> None:
    site.prepare(more='max_bandwidth = "256Ki"\n')
    first, *others = site.uids
    site.start(first)
    site.until_running(first)
    site.start(*others)

    def on_its_way(uid: str) -> bool:
        return any(path.stat().st_size > 0 for path in (site.root / uid / "blobs" / "sha256").glob("*.partial"))

    site.until(lambda: any(on_its_way(uid) for uid in others))
    site.kill(first)
    states = site.until_running(*others)
    blob = site.desired.blob
    assert site.registry.given[blob.digest] <= 2 * blob.size, site.logs()  # the first one's, and what was missing
    assert sum(state.peer_bytes for state in states.values()) >= (SIZE - 2) * blob.size * 0.9


def test_a_device_that_waits_for_an_unmetered_link_takes_it_from_a_neighbour(site: Site) -> None:
    site.ports = site.ports[:2]
    first, second = site.uids
    site.prepare()
    with (site.root / first / "agent.toml").open("a") as text:
        text.write('[network]\nkind = "cellular"\ninterface = "wwan0"\nallow_metered_downloads = "10Ki"\n')
    site.start(first)
    site.until(lambda: (state := site.state(first)) is not None and state.waiting_for == "Link")
    assert site.registry.given == {}
    site.start(second)
    state = site.until_running(first, second)[first]
    golden = site.desired.golden
    assert golden is not None
    assert (state.peer_bytes, state.fetched_bytes) == (site.desired.blob.size, golden.size)
    assert site.registry.given[site.desired.blob.digest] == site.desired.blob.size
