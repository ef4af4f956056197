"""The agent killed at every point while models are kept encrypted: never is anything of them on its disk in plain.

The machinery is that of `test_agent_power_cuts`, whose switches (SKERRY_POWER_CUTS) count here too. The disk is looked
through whenever the agent was killed, and once more at the end.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.integration.agent import test_agent_power_cuts as cuts
from tests.integration.agent.processes import Authority, Device, private_pem
from tests.integration.agent.surroundings import Model, Registry
from tests.integration.agent.test_agent_power_cuts import HubEnd, Site, Story
from tests.integration.agent.test_agent_sealed import larger, plaintext_in

from skerry.core.messages import WorkloadDesired

SAMPLES = 4


@dataclass(frozen=True)
class SealedModel(Model):
    """One that is to be kept encrypted."""

    def desired(self, *, name: str = "digits", rollout: str = "", port: int = 0) -> WorkloadDesired:
        plain = super().desired(name=name, rollout=rollout, port=port)
        return msgspec.structs.replace(plain, protection="encrypted")


class SealedDevice(Device):
    """Looks through its disk whenever its agent does not run."""

    secrets: tuple[Model, ...] = ()

    def look(self) -> None:
        assert plaintext_in(self.directory, *self.secrets) == [], self.log()

    def start(self, *launcher: str) -> None:
        self.look()
        super().start(*launcher)

    def close(self) -> None:
        super().close()
        self.look()


class SealedSite(Site):
    """Devices whose key lies beside their state, so that copies of one can read what it has."""

    guarded: tuple[str, ...] = ()

    def device(self, story: Story, label: str) -> Device:
        made = super().device(story, label)
        sealed = SealedDevice(made.directory, made.authority, made.registry, uid=made.uid, mqtt_port=made.mqtt_port)
        sealed.version = made.version
        sealed.secrets = tuple(self.models[name] for name in self.guarded)
        (sealed.directory / "agent.toml").write_text(f'[protection]\nkey = "{self.directory / "models.pem"}"\n')
        return sealed


def make_site(
    directory: Path, authority: Authority, models: dict[str, Model], stack: contextlib.ExitStack
) -> SealedSite:
    (directory / "models.pem").write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    registry = Registry(authority.server_context())
    stack.callback(registry.close)
    registry.add(*models.values())
    hub = HubEnd(authority)
    stack.callback(hub.close)
    return SealedSite(directory, authority, registry, hub, models)


@pytest.fixture(scope="module")
def plain_models(models: dict[str, Model]) -> dict[str, Model]:
    return {name: larger(models[name]) for name in ("v1", "v2", "wrong-golden")}


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, plain_models: dict[str, Model]
) -> Iterator[SealedSite]:
    """All is encrypted from the first byte on."""
    sealed = {
        name: SealedModel(model.version, model.model, model.golden, model.signature)
        for name, model in plain_models.items()
    }
    with contextlib.ExitStack() as stack:
        made = make_site(tmp_path_factory.mktemp("sealed"), authority, sealed, stack)  # type: ignore[arg-type]
        made.guarded = tuple(sealed)
        made.settle()
        yield made


def chosen(points: int) -> list[tuple[int, bool]]:
    if cuts.WANTED:
        return cuts.chosen(points)
    step = points / SAMPLES
    return [(1 + round(step * (number + 0.5)), bool(number % 2)) for number in range(SAMPLES)]


def try_points(site: Site, story: Story) -> None:
    points = cuts.cut(site, story, 0, power=False)
    assert any(".sealed" in point for point in points), points
    print(f"{story.name}: {len(points)} points")
    with concurrent.futures.ThreadPoolExecutor(cuts.AT_A_TIME) as pool:
        tries: dict[Any, tuple[int, bool]] = {
            pool.submit(cuts.cut, site, story, number, power=power): (number, power)
            for number, power in chosen(len(points))
        }
        failed = {tries[one]: error for one in concurrent.futures.as_completed(tries) if (error := one.exception())}
    assert not failed, "\n".join(
        f"{story.name}, point {number} ({points[number - 1]}), {'power cut' if power else 'agent killed'}: {error}"
        for (number, power), error in sorted(failed.items())
    )


@pytest.mark.parametrize(
    "story",
    [
        Story("install", wanted=("v1",), after="v1"),
        Story("update", before="v1", wanted=("v2",), after="v2"),
        Story("rollback", before="v1", wanted=("wrong-golden",), after="v1"),
    ],
    ids=lambda story: story.name,
)
def test_killed_anywhere_nothing_is_on_the_disk_in_plain(site: SealedSite, story: Story) -> None:
    try_points(site, story)


class GuardedAtTheEnd(SealedSite):
    """What ran in plain is to be sealed: until that is done it is there, afterwards it is not."""

    def device(self, story: Story, label: str) -> Device:
        made = super().device(story, label)
        assert isinstance(made, SealedDevice)
        secrets = (self.models["v1"], self.models["sealed"])

        def look_at_the_end() -> None:
            journal: dict[str, Any] = made.journal()
            current, done = journal.get("current") or {}, made.process is None
            if done and current.get("desired", {}).get("protection") == "encrypted" and journal["phase"] == "Running":
                assert plaintext_in(made.directory, *secrets) == [], made.log()

        made.look = look_at_the_end  # type: ignore[method-assign]
        return made


def test_killed_anywhere_while_it_is_being_sealed_it_ends_sealed(
    tmp_path: Path, authority: Authority, plain_models: dict[str, Model]
) -> None:
    v1 = plain_models["v1"]
    sealed = SealedModel("v9", v1.model, v1.golden, v1.signature)
    with contextlib.ExitStack() as stack:
        site = make_site(tmp_path, authority, {"v1": v1, "sealed": sealed}, stack)
        guarded = GuardedAtTheEnd(site.directory, authority, site.registry, site.hub, site.models)
        guarded.settle()
        story = Story("again", before="v1", wanted=("again",), after="v9")
        site.models["again"] = sealed
        try_points(guarded, story)
