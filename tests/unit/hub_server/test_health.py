"""Health as kubelets and people ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from skerry.api.errors import UnavailableError
from skerry.hub.health import STUCK_SECONDS, Health
from skerry.hub.server import health as served


class Part:
    """Something that is well or not."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


class Worker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0

    def longest(self) -> float:
        return self.seconds


@pytest.fixture
def store() -> Part:
    return Part()


@pytest.fixture
def health(store: Part) -> Health:
    health = Health()
    health.add("store", store.check)
    return health


@pytest.fixture
def ask(health: Health) -> Callable[[str], tuple[int, str]]:
    client = TestClient(Starlette(routes=served.routes(health)))

    def ask(path: str) -> tuple[int, str]:
        answer = client.get(path)
        return answer.status_code, answer.text

    return ask


Ask = Callable[[str], tuple[int, str]]


def test_all_is_well_in_two_letters(ask: Ask) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert ask(path) == (200, "ok")


def test_verbose_tells_each_check(ask: Ask) -> None:
    assert ask("/readyz?verbose") == (200, "[+]ping ok\n[+]controllers ok\n[+]store ok\nreadyz check passed\n")
    assert ask("/livez?verbose=1") == (200, "[+]ping ok\n[+]controllers ok\nlivez check passed\n")


def test_what_fails_is_named_and_its_reason_is_not(ask: Ask, store: Part) -> None:
    store.error = UnavailableError("password wrong", element="postgresql://secret")
    said = "[+]ping ok\n[+]controllers ok\n[-]store failed: reason withheld\nreadyz check failed\n"
    assert ask("/readyz") == ask("/readyz?verbose") == (500, said)
    assert ask("/livez") == (200, "ok")  # a restart would not mend it
    assert ask("/readyz/store") == (500, "internal server error: store failed: reason withheld\n")


def test_a_check_may_be_left_out_and_is_not_asked(ask: Ask, store: Part) -> None:
    store.error = UnavailableError()
    assert ask("/readyz?exclude=store") == (200, "ok")
    assert store.asked == 0
    code, said = ask("/readyz?verbose&exclude=store&exclude=nothing")
    assert code == 200
    assert "[+]store excluded: ok\n" in said
    assert 'warn: some health checks cannot be excluded: no matches for "nothing"\n' in said


def test_one_check_alone(ask: Ask, store: Part) -> None:
    assert ask("/readyz/ping") == (200, "ok")
    assert ask("/readyz/store") == (200, "ok")
    assert ask("/livez/store")[0] == 404
    assert ask("/readyz/nothing")[0] == 404
    assert store.asked == 1


def test_a_disk_that_fails_is_no_fault_of_the_answer(ask: Ask, store: Part) -> None:
    store.error = OSError(5, "Input/output error")
    assert ask("/readyz")[0] == 500


async def test_a_check_that_hangs_has_failed(health: Health, store: Part) -> None:
    store.hangs = True
    found = await health.ask(health.ready.items(), seconds=0.01)
    assert {result.name: result.ok for result in found} == {"ping": True, "controllers": True, "store": False}


def test_a_controller_without_progress_is_not_alive(ask: Ask, health: Health) -> None:
    worker, other = Worker("rollout"), Worker("device")
    health.workers.add(worker)
    health.workers.add(other)
    assert ask("/livez") == (200, "ok")
    worker.seconds = STUCK_SECONDS + 1
    code, said = ask("/livez")
    assert code == 500
    assert "[-]controllers failed: reason withheld" in said
    del worker
    assert ask("/livez") == (200, "ok")  # who is gone, as with a leadership that ended, holds up nothing
