"""The agent killed at every point where it changes the disk or a process: it converges, and the old version serves.

The points come from a trace of an undisturbed run (`power_cut.py`), so that no new write escapes. Killed are the agent
alone, or its servers with it (a power cut), in turns. A few points of each story are tried; SKERRY_POWER_CUTS=all
tries every one, SKERRY_POWER_CUTS=both every one both ways.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tests.integration.agent.processes import Authority, Device
from tests.integration.agent.surroundings import PATIENCE, Model, Registry

from skerry.core import access
from skerry.core.messages import ShadowDesired, WorkloadDesired
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt import MqttHubLink, MqttSettings
from skerry.drivers.runtime.process import ProcessRuntime

LAUNCHER = Path(__file__).with_name("power_cut.py")
WANTED = os.environ.get("SKERRY_POWER_CUTS", "")
SAMPLES = 5
AT_A_TIME = 2


class HubEnd:
    """A broker with a hub that leaves desired states at it, on a thread of its own.

    With `days` the broker's certificate is valid then, and there is no hub that could accept it.
    """

    def __init__(self, authority: Authority, *, days: tuple[float, float] | None = None) -> None:
        self._days = days
        self._authority = authority
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    async def _run(self) -> None:
        tls = self._authority.server_context(clients=True, days=self._days or (-1, 30))
        async with EmbeddedBroker(BrokerSettings(port=0), tls=tls, known=lambda *_: True) as broker:
            self.port = broker.port
            if self._days is not None:
                self._ready.set()
                await self._stop.wait()
                return
            link = MqttHubLink(MqttSettings(host="127.0.0.1", port=broker.port, tls=self._tls()))
            async with link.connect() as self._connection:
                self._ready.set()
                stopping = asyncio.create_task(self._stop.wait())
                hearing = asyncio.create_task(self._hear())
                await asyncio.wait({stopping, hearing}, return_when=asyncio.FIRST_COMPLETED)
                hearing.cancel()
                await asyncio.wait({hearing})

    async def _hear(self) -> None:
        async for _ in self._connection.incoming():
            pass

    def _tls(self) -> Any:
        from skerry.agent.identity import hub_context

        path = self._authority.directory / "hub.pem"
        path.write_bytes(self._authority.issue("hub", organisation=access.HUBS))
        context = hub_context(self._authority.pem)
        context.load_cert_chain(path)
        return context

    def publish(self, uid: str, envelope: bytes) -> None:
        asyncio.run_coroutine_threadsafe(self._connection.publish_desired(uid, envelope), self._loop).result(PATIENCE)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Story:
    """What happens to one device: what it ran, what it is told, what it runs in the end."""

    name: str
    before: str = ""
    wanted: tuple[str, ...] = ()
    after: str = ""
    shadow: ShadowDesired | None = None
    """How the wanted version is tried in the shadow of the one before, whose callers send it inference requests."""


ASKED = ShadowDesired(share=1.0, seconds=0.3, min_requests=5, min_agreement=0.95, missing="ignore")
STORIES = [
    Story("install", wanted=("v1",), after="v1"),
    Story("update", before="v1", wanted=("v2",), after="v2"),
    Story("rollback", before="v1", wanted=("wrong-golden",), after="v1"),
    Story("removal", before="v1"),
    Story("shadow", before="v1", wanted=("again",), after="v9", shadow=ASKED),
    Story("refused", before="v1", wanted=("v2",), after="v1", shadow=replace(ASKED, missing="fail")),
]


@dataclass
class Site:
    """What all devices of these tests share."""

    directory: Path
    authority: Authority
    registry: Registry
    hub: HubEnd
    models: dict[str, Model]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    settled: Path | None = None
    """A device's state that runs v1."""

    def device(self, story: Story, label: str) -> Device:
        number = next(self.numbers)
        place = self.directory / f"{story.name}-{label}-{number}"
        if story.before:
            assert self.settled is not None
            shutil.copytree(self.settled, place / "state")
            shutil.rmtree(place / "state" / "runtime", ignore_errors=True)  # or they would take each other's servers
        made = Device(place / "state", self.authority, self.registry, uid=f"d{number}", mqtt_port=self.hub.port)
        if story.before:
            made.accept(self.models["v1"].desired())
            [journal], _ = made.disk.read_journals()
            assert journal.current is not None
            # A port of its own, or another copy's answers would be taken for this one's.
            current = msgspec.structs.replace(journal.current, port=0)
            made.disk.write_journal(msgspec.structs.replace(journal, current=current, up=False))
        return made

    def settle(self) -> None:
        """Make the state that stories go on from."""
        device = self.device(Story("settle"), "first")
        device.accept(self.models["v1"].desired())
        device.start()
        try:
            device.wait(lambda journal: runs(device, journal, "v1"))
            assert device.end(signal.SIGTERM) == 0
        finally:
            device.close()
        self.settled = device.directory


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority, models: dict[str, Model]) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        registry = Registry(authority.server_context())
        stack.callback(registry.close)
        registry.add(*models.values())
        hub = HubEnd(authority)
        stack.callback(hub.close)
        made = Site(tmp_path_factory.mktemp("power"), authority, registry, hub, models)
        made.settle()
        yield made


# --- one cut ------------------------------------------------------------------------------------------------------


def version_at(port: int) -> str:
    """The version that answers there; "" when nothing does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/digits", timeout=10) as answer:
            return str(msgspec.json.decode(answer.read())["versions"][0])
    except OSError:
        return ""


def served(journal: dict[str, Any]) -> tuple[str, int] | None:
    """The version and port that should answer; None when nothing need."""
    current = journal.get("current")
    if not current or not journal.get("up"):
        return None
    return current["desired"]["version"], current["port"]


def runs(device: Device, journal: dict[str, Any], version: str) -> bool:
    """Whether all is as it should be in the end, by the journal and by what answers."""
    if not version:
        return not (device.directory / "workloads" / "digits").exists()
    found = served(journal)
    return (
        journal.get("phase") == "Running"
        and journal.get("candidate") is None
        and found is not None
        and found[0] == version
        and version_at(found[1]) == version
    )


def answering_version(port: int) -> str:
    """The version that answers an inference request there; "" when nothing does."""
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/digits/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(msgspec.json.decode(answer.read())["model_version"])
    except OSError:
        return ""


class Customer:
    """Asks for the served version all the time; what fails twice with the same journal has really failed."""

    def __init__(self, device: Device, story: Story) -> None:
        self._version_at = version_at if story.shadow is None else answering_version
        self.failures: list[str] = []
        self.answers = 0
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Customer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(0.01):
            expected = served(self._device.journal())
            if expected is None:
                continue
            found = self._version_at(expected[1])
            if found == expected[0]:
                self.answers += 1
            elif served(self._device.journal()) == expected:
                self.failures.append(f"{expected} answered {found!r}: {self._device.journal()}")


def tell(site: Site, device: Device, story: Story) -> None:
    site.hub.publish(device.uid, device.sign(*wishes(site, story)))


def wishes(site: Site, story: Story) -> list[WorkloadDesired]:
    return [replace(site.models[name].desired(), shadow=story.shadow) for name in story.wanted]


def accepted(device: Device) -> bool:
    kept = device.disk.read_desired()
    return kept is not None and kept.manifest_version == device.version


def converged(device: Device, story: Story, journal: dict[str, Any]) -> bool:
    told = accepted(device) and (
        not story.wanted or (journal.get("desired") or {}).get("rollout") == f"digits-{rollout(story)}"
    )
    return told and runs(device, journal, story.after)


def rollout(story: Story) -> str:
    return {"wrong-golden": "v4", "again": "v9"}.get(story.wanted[0], story.wanted[0])


def cut(site: Site, story: Story, number: int, *, power: bool) -> list[str]:
    """Live the story, killed at that point (0: never); return the points that were passed."""
    device = site.device(story, f"{number}{'p' if power else ''}")
    armed, trace = device.directory.parent / "armed", device.directory.parent / "trace"
    try:
        launch = (str(LAUNCHER), str(number), str(armed), str(trace))
        if story.before:
            device.start(*launch)
            device.wait(lambda journal: runs(device, journal, "v1"))
            armed.touch()
        else:
            armed.touch()
            device.start(*launch)
        tell(site, device, story)
        live(device, story)
        if device.process is not None and not until_tidy(device, story):
            device.process = None
        if device.process is not None and device.end(signal.SIGTERM) == 0:
            assert ("phase=Shadowing" in device.log()) == (story.shadow is not None)
            return trace.read_text().splitlines()
        points = trace.read_text().splitlines()
        recover(device, story, power=power, at=points[-1])
        assert until_tidy(device, story)
        assert device.end(signal.SIGTERM) == 0
        return points
    except BaseException:
        print(f"--- {story.name} at point {number}\n{device.log_file.read_text()}")
        raise
    finally:
        device.close()
        shutil.rmtree(device.directory, ignore_errors=True)


def live(device: Device, story: Story) -> None:
    """Wait for the end of the story, or of the agent."""
    process = device.process
    assert process is not None
    deadline = time.monotonic() + PATIENCE
    with Customer(device, story) as customer:
        while process.poll() is None and not converged(device, story, device.journal()):
            assert time.monotonic() < deadline, f"{device.journal()}\n{device.log()}"
            time.sleep(0.01)
    assert not customer.failures, customer.failures
    if process.poll() is None:
        return
    assert process.returncode == -signal.SIGKILL, device.log()
    device.process = None
    expected = served(device.journal())
    if expected is not None:
        assert version_at(expected[1]) == expected[0], "what the journal calls running outlives the agent"


def recover(device: Device, story: Story, *, power: bool, at: str) -> None:
    """The agent comes back, after a power cut without any server; all ends as if nothing had been."""
    if power:
        device.stop_servers()
    starts = device.log().count("agent.started")
    device.start()
    device.wait(lambda _: device.log().count("agent.started") > starts)
    with contextlib.nullcontext() if power else Customer(device, story) as customer:
        device.wait(lambda journal: converged(device, story, journal))
    assert customer is None or not customer.failures, (at, customer.failures)


def until_tidy(device: Device, story: Story) -> bool:
    """Wait until nothing is left of what was cut off: servers, slots, drafts. False: the agent was killed meanwhile."""

    def tidy() -> bool:
        servers = asyncio.run(ProcessRuntime(device.directory / "runtime").list())
        journal: dict[str, Any] = device.journal()
        named = {str(slot["serial"]) for key in ("current", "previous", "candidate") if (slot := journal.get(key))}
        slots = device.directory / "workloads" / "digits" / "slots"
        found = {path.name for path in slots.iterdir()} if slots.is_dir() else set()
        drafts = [path for path in device.directory.rglob("*") if path.name.endswith((".tmp", ".partial", ".building"))]
        return len(servers) == bool(story.after) and found == named and not drafts

    process, deadline = device.process, time.monotonic() + PATIENCE
    assert process is not None
    while not tidy():
        if process.poll() is not None:
            assert process.returncode == -signal.SIGKILL, device.log()
            return False
        assert time.monotonic() < deadline, sorted(str(path) for path in device.directory.rglob("*"))
        time.sleep(0.02)
    return True


# --- the tests ----------------------------------------------------------------------------------------------------


def chosen(points: int) -> list[tuple[int, bool]]:
    """The points to try, each with whether the servers are cut off too."""
    if WANTED == "both":
        return [(number, power) for number in range(1, points + 1) for power in (False, True)]
    if WANTED == "all":
        return [(number, bool(number % 2)) for number in range(1, points + 1)]
    step = points / SAMPLES
    return [(1 + round(step * (number + 0.5)), bool(number % 2)) for number in range(SAMPLES)]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_killed_anywhere_it_converges_and_what_served_goes_on_serving(site: Site, story: Story) -> None:
    points = cut(site, story, 0, power=False)
    assert len(points) > 20, points
    print(f"{story.name}: {len(points)} points")
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        tries = {
            pool.submit(cut, site, story, number, power=power): (number, power) for number, power in chosen(len(points))
        }
        failed = {tries[one]: error for one in concurrent.futures.as_completed(tries) if (error := one.exception())}
        passed = [one.result() for one in tries if one.exception() is None]
    assert not failed, "\n".join(
        f"{story.name}, point {number} ({points[number - 1]}), {'power cut' if power else 'agent killed'}: {error}"
        for (number, power), error in sorted(failed.items())
    )
    assert any(len(one) < len(points) for one in passed), "somebody was killed in the middle"


def test_the_trace_sees_what_matters(site: Site) -> None:
    points = "\n".join(cut(site, STORIES[1], 0, power=False))
    for part in ("desired.json", "journal.json", "blobs/sha256", "os.link", "subprocess.Popen", "fsync"):
        assert part in points
