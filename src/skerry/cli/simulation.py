"""A simulated fleet at a hub that is there, or at one of its own: then for a trial, an installation and an update.

Lives here: the own hub, the trial, what people see of it. Must not live here: options (`cli.sim`), simulating
(`skerry.sim`).
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skerry.api import quantity
from skerry.api.errors import NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rollout import Rollout
from skerry.cli import options, output
from skerry.cli.demo.programs import Programs, run
from skerry.drivers.client.api import HubClient
from skerry.kit import files, logs
from skerry.sim import profiles, sample
from skerry.sim.fleet import Census, Fleet, FleetSettings, allow_files, check_size

SITES = 8
"""An own hub's devices are spread over labels `site=site-1` to `site=site-8`."""
NAME = "simulated"
BAKE = "3s"
"""The trial's bake time: long enough for most servers that end soon after they answered to have ended."""
ENDED = ("Succeeded", "RolledBack", "Failed", "Paused")
"""Phases of a rollout that nothing leaves by itself."""
TELL_SECONDS = 5.0
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""Without anything changing."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    devices: int
    profile: str
    seed: int
    hub: str
    """URL; empty for a hub of its own."""
    tokens: tuple[str, ...]
    prefix: str
    spoiled: frozenset[str]
    state_dir: Path | None
    """None: a directory that is gone afterwards."""
    report: Path | None
    keep: bool


def simulate(wish: Wish) -> bool:
    """Simulate until told to stop, or until the trial is over; returns whether it succeeded."""
    profile = profiles.find(wish.profile)
    check_size(wish.devices)
    allow_files(wish.devices)
    logs.configure()
    with ExitStack() as stack:
        made = None if wish.state_dir else stack.enter_context(tempfile.TemporaryDirectory(prefix="skerry-sim-"))
        directory = (wish.state_dir or Path(made or ".")).absolute()
        own = None if wish.hub else stack.enter_context(own_hub(directory, wish.devices, seed=wish.seed))
        fleet = Fleet(
            FleetSettings(
                hub_url=own.url if own else wish.hub.rstrip("/"),
                tokens=own.tokens if own else wish.tokens,
                devices=wish.devices,
                profile=profile,
                directory=directory / "fleet",
                seed=wish.seed,
                prefix=wish.prefix,
                spoiled=wish.spoiled,
            )
        )
        failures: list[SkerryError] = []
        try:
            return asyncio.run(_simulate(fleet, own, report=wish.report, keep=wish.keep))
        except* SkerryError as group:
            failures = list(_leaves(group))
        raise failures[0]


def _leaves(group: BaseExceptionGroup[SkerryError]) -> Iterator[SkerryError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


# --- a hub of its own -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OwnHub:
    """A hub that was started for a simulated fleet, with two versions of a model that is none."""

    url: str
    tokens: tuple[str, ...]
    kubeconfig: Path


@contextmanager
def own_hub(directory: Path, devices: int, *, seed: int) -> Iterator[OwnHub]:
    """Start a hub in a directory, with tokens for so many devices; it ends with the context."""
    state, packages = directory / "hub", directory / "packages"
    directory.mkdir(parents=True, exist_ok=True)
    environment = {"SKERRY_KUBECONFIG": str(state / "kubeconfig")}
    with Programs(directory) as programs:
        programs.start("hub", ["hub", "start", "--state-dir", str(state), "--api-port", "0", "--mqtt-port", "0"])
        run(["hub", "wait", "--state-dir", str(state)], environment, show=False)
        programs.check("hub")
        for version in ("v1", "v2"):
            package = packages / version
            if not package.exists():
                sample.write(package, version, seed=seed)
            run(["model", "push", str(package)], environment, show=False)
        url = run(["hub", "url", "--state-dir", str(state)], environment, show=False).strip()
        with options.connect(state / "kubeconfig") as client:
            tokens = make_tokens(client, devices)
        yield OwnHub(url=url, tokens=tokens, kubeconfig=state / "kubeconfig")


def make_tokens(client: HubClient, devices: int) -> tuple[str, ...]:
    """Return join tokens for so many devices, one for each site."""
    made = []
    for site in range(1, SITES + 1):
        spec = {"ttl": "24h", "uses": devices, "labels": {"fleet": NAME, "site": f"site-{site}"}}
        raw = {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "JoinToken",
            "metadata": {"generateName": "sim-"},
            "spec": spec,
        }
        made.append(client.create(raw, JoinToken).status.token)
    return tuple(made)


def deployment(version: str, *, bake: str = BAKE) -> dict[str, Any]:
    """Return the trial's deployment of that version of the sample model: three waves and every gate there is.

    Without a bake time ("0s") those gates that are about it are left out.
    """
    gates: dict[str, Any] = {
        "successRatio": {"min": 0.95},
        "accuracy": {"min": 0.9},
        "agreement": {"min": 0.95},
        "latencyP95": {"max": "500ms"},
        "peakMemory": {"max": "128Mi"},
    }
    if bake != "0s":
        gates |= {"health": {"min": 0.95}, "errorRate": {"max": 0.05}}
    return {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME},
        "spec": {
            "modelVersion": f"{sample.MODEL}-{version}",
            "deviceSelector": {"matchLabels": {"fleet": NAME}},
            "strategy": {
                "waves": [{"name": "canary", "count": 10}, {"name": "tenth", "percent": 10}, {"percent": 100}],
                "bakeTime": bake,
                "gates": gates,
            },
        },
    }


# --- the simulation ---------------------------------------------------------------------------------------------------


async def _simulate(fleet: Fleet, own: OwnHub | None, *, report: Path | None, keep: bool) -> bool:
    """Simulate until told to stop, or until the trial is over; returns whether the trial succeeded."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    succeeded = True
    async with asyncio.TaskGroup() as tasks:
        telling = [tasks.create_task(_tell(fleet))]
        if report is not None:
            telling.append(tasks.create_task(_write(fleet, report)))
        work = tasks.create_task(_work(fleet, own, keep=keep))
        waiting = tasks.create_task(stop.wait())
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        if work.done() and not work.cancelled() and work.exception() is None:
            succeeded = work.result()
        for task in (work, waiting, *telling):
            task.cancel()
    if report is not None:
        files.write_atomic(report, msgspec.json.encode(fleet.census()))
    return succeeded


async def _work(fleet: Fleet, own: OwnHub | None, *, keep: bool) -> bool:
    began = time.monotonic()
    members = await fleet.enroll()
    _say(f"{len(members)} devices enrolled", time.monotonic() - began, len(members))
    async with asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        living = tasks.create_task(fleet.run(members))
        await _until(fleet, lambda census: census.online >= 0.99 * census.powered > 0, "devices online")
        _say(f"{fleet.census().online} devices online", time.monotonic() - began, len(members))
        succeeded = True
        if own is not None:
            with options.connect(own.kubeconfig) as client:
                succeeded = await _try(fleet, client)
        if own is None or keep:
            if own is not None:
                output.out.print(f"export SKERRY_KUBECONFIG={own.kubeconfig}", markup=False)
            await asyncio.Event().wait()  # until Ctrl-C
        living.cancel()
    return succeeded


async def _try(fleet: Fleet, client: HubClient) -> bool:
    """Install the first version on all devices, then update them to the second."""
    for version in ("v1", "v2"):
        began = time.monotonic()
        await asyncio.to_thread(client.apply, deployment(version))
        generation = (await asyncio.to_thread(client.get, ModelDeployment, NAME)).metadata.generation
        ended = await _ended(client, f"{NAME}-{generation}")
        seconds = time.monotonic() - began
        running = fleet.census().running.get(f"{sample.MODEL}-{version}", 0)
        output.out.print(f"{ended.metadata.name}: {ended.status.phase}", markup=False)
        if ended.status.phase != "Succeeded":
            output.out.print(f"  {ended.status.message}", markup=False)
            return False
        _say(f"version {version} runs on {running} devices", seconds, running)
    census = fleet.census()
    each = quantity.human_bytes(census.peak_memory_bytes // max(census.enrolled, 1))
    output.out.print(
        f"{census.boots} boots, {census.connections} connections, {census.broken_connections} broken, "
        f"{census.reports} reports; the simulator took {census.cpu_seconds:.0f} s of CPU and {each} a device",
        markup=False,
    )
    return True


async def _ended(client: HubClient, name: str) -> Rollout:
    """Wait until a rollout is where nothing happens any more. Raises UnavailableError when nothing happens before."""
    changed, version = time.monotonic(), ""
    while True:
        found = await asyncio.to_thread(_find, client, name)
        if found is not None:
            if found.status.phase in ENDED:
                return found
            if found.metadata.resource_version != version:
                changed, version = time.monotonic(), found.metadata.resource_version
        if time.monotonic() - changed > PATIENCE_SECONDS:
            said = "" if found is None else f": {found.status.message}"
            raise UnavailableError(f"nothing has changed for {PATIENCE_SECONDS:.0f} s{said}", element=f"rollout {name}")
        await asyncio.sleep(POLL_SECONDS)


def _find(client: HubClient, name: str) -> Rollout | None:
    try:
        return client.get(Rollout, name)
    except NotFoundError:
        return None


async def _until(fleet: Fleet, condition: Callable[[Census], bool], what: str) -> None:
    changed, last = time.monotonic(), 0
    while not condition(census := fleet.census()):
        if census.connections != last:
            changed, last = time.monotonic(), census.connections
        if time.monotonic() - changed > PATIENCE_SECONDS:
            raise UnavailableError(f"nothing has changed for {PATIENCE_SECONDS:.0f} s", element=what)
        await asyncio.sleep(POLL_SECONDS)


# --- what people see --------------------------------------------------------------------------------------------------


async def _tell(fleet: Fleet) -> None:
    """Print the census now and then, when it has changed."""
    began, said = time.monotonic(), ""
    while True:
        await asyncio.sleep(TELL_SECONDS)
        census = fleet.census()
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(census.phases.items()))
        text = f"{census.enrolled} enrolled, {census.online} online{f'; {phases}' if phases else ''}"
        if text != said:
            said = text
            output.err.print(f"{time.monotonic() - began:5.0f} s  {text}", markup=False)


async def _write(fleet: Fleet, report: Path) -> None:
    while True:
        files.write_atomic(report, msgspec.json.encode(fleet.census()))
        await asyncio.sleep(1.0)


def _say(what: str, seconds: float, count: int) -> None:
    rate = f", {60 * count / seconds:.0f} a minute" if seconds > 0 else ""
    output.out.print(f"{what} in {seconds:.1f} s{rate}", markup=False)
