"""Windows of observation from counters, and shadow mode through a control socket that answers, lies or is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket

from hypothesis import given
from hypothesis import strategies as st

from skerry.agent import observe
from skerry.agent.endpoint import ServerControl
from skerry.agent.observe import Windows
from skerry.api.errors import UnavailableError
from skerry.api.kinds.device import Observation, ShadowReport
from skerry.core import control
from skerry.core.control import Question, Reply
from skerry.core.messages import ObserveDesired, ShadowDesired
from skerry.kit.clock import SystemClock
from skerry.serve.control import ControlSocket


def seen(requests: int = 0, errors: int = 0, *, ready: bool = True, boot: str = "b") -> control.Observation:
    return control.Observation(boot=boot, requests=requests, errors=errors, ready=ready)


def test_a_window_counts_what_came_in_it_and_is_told_when_it_is_over() -> None:
    windows = Windows(ObserveDesired(seconds=60), 100.0)
    assert windows.look(100.0, seen(40, 3)) is None, "golden samples and older requests are no part of it"
    assert windows.look(130.0, seen(90, 3)) is None
    assert windows.look(160.0, seen(140, 4)) == Observation(seconds=60, requests=100, errors=1, checks=3)


def test_later_windows_are_told_when_something_went_wrong_and_when_it_is_well_again() -> None:
    windows = Windows(ObserveDesired(seconds=60), 0.0)
    assert windows.look(0.0, seen(0)) is None
    told = []
    for minute, (requests, errors, answers) in enumerate(
        [(10, 0, True), (20, 0, True), (30, 2, True), (40, 2, True), (50, 2, True), (60, 2, False), (70, 2, True)],
        start=1,
    ):
        told.append(windows.look(60.0 * minute, seen(requests, errors, ready=answers)))
    assert [None if one is None else (one.requests, one.errors, one.unready) for one in told] == [
        (10, 0, 0),
        None,
        (10, 2, 0),
        (10, 0, 0),
        None,
        (10, 0, 1),
        (10, 0, 0),
    ]


def test_the_first_window_goes_on_until_it_has_seen_enough() -> None:
    windows = Windows(ObserveDesired(seconds=10, min_requests=100), 0.0)
    assert windows.look(0.0, seen(0)) is None
    assert windows.look(10.0, seen(0)) == Observation(seconds=10, checks=2)
    assert windows.look(20.0, seen(0)) is None, "nothing new"
    assert windows.look(30.0, seen(60)) == Observation(seconds=30, requests=60, checks=4)
    assert windows.look(40.0, seen(100)) == Observation(seconds=40, requests=100, checks=5)
    assert windows.look(100.0, seen(900)) is None, "enough is enough"


def test_a_server_that_does_not_answer_is_unready_and_loses_no_counts() -> None:
    windows = Windows(ObserveDesired(seconds=60), 0.0)
    windows.look(0.0, seen(5))
    assert windows.look(30.0, None) is None
    assert windows.look(60.0, seen(25)) == Observation(seconds=60, requests=20, checks=3, unready=1)


def test_counters_of_another_server_begin_at_nothing() -> None:
    windows = Windows(ObserveDesired(seconds=60), 0.0)
    windows.look(0.0, seen(50, 5))
    windows.look(30.0, seen(60, 6))
    assert windows.look(60.0, seen(4, 1, boot="another")) == Observation(seconds=60, requests=14, errors=2, checks=3)


@given(
    looks=st.lists(
        st.tuples(
            st.floats(0.1, 100),
            st.none() | st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans(), st.sampled_from("xy")),
        ),
        max_size=30,
    ),
    least=st.integers(0, 60),
)
def test_whatever_counters_do_windows_are_sound(
    looks: list[tuple[float, tuple[int, int, bool, str] | None]], least: int
) -> None:
    windows, at = Windows(ObserveDesired(seconds=60, min_requests=least), 0.0), 0.0
    for step, counters in looks:
        at += step
        found = None
        if counters is not None:
            requests, errors, ready, boot = counters
            found = seen(requests + errors, errors, ready=ready, boot=boot)
        told = windows.look(at, found)
        assert 0 <= windows.pause(at) <= observe.CHECK_SECONDS[1]
        if told is not None:
            assert told.seconds >= 59.999
            assert 0 <= told.errors <= told.requests
            assert 0 <= told.unready <= told.checks


# --- over real sockets --------------------------------------------------------------------------------------------

Answers = Callable[[Question], Reply]


@asynccontextmanager
async def server(directory: Path, answers: Answers) -> AsyncIterator[ServerControl]:
    async def answer(question: Question, _: socket | None) -> tuple[Reply, socket | None]:
        return answers(question), None

    with contextlib.chdir(directory):
        way = ControlSocket(Path(control.SOCKET_FILE))
    task = asyncio.create_task(way.run(answer))
    try:
        yield ServerControl(directory, timeout_seconds=5)
    finally:
        task.cancel()
        await asyncio.wait({task})
        with contextlib.chdir(directory):
            way.close()


class Mirroring:
    """A server that mirrors so many requests with every look, and agrees on all but one of each ten."""

    def __init__(self, pace: int) -> None:
        self.pace = pace
        self.asked: list[Question] = []
        self.counts: control.ShadowCounts | None = None

    def __call__(self, question: Question) -> Reply:
        self.asked.append(question)
        if isinstance(question, control.Mirror):
            done = self.counts.mirrored + self.pace if self.counts else self.pace
            self.counts = control.ShadowCounts(
                port=question.port, mirrored=done, answered=done, agreed=done - done // 10, max_abs_difference=0.25
            )
        elif isinstance(question, control.StopMirror):
            self.counts = None
        elif isinstance(question, control.Observe):
            return control.Observation(boot="b", ready=True, shadow=self.counts)
        return control.Done()


async def test_shadow_mode_goes_on_for_its_time_and_is_stopped(tmp_path: Path) -> None:
    mirroring = Mirroring(20)
    async with server(tmp_path, mirroring) as way:
        asked = ShadowDesired(share=0.5, seconds=0.3)
        report = await observe.shadow(way, 8123, asked, version="digits-v1", clock=SystemClock())
    assert report.beside == "digits-v1"
    assert report.requests == report.answered >= 20
    assert (report.agreed, report.max_abs_difference) == (report.answered - report.answered // 10, 0.25)
    assert report.seconds >= 0.3
    assert mirroring.asked[0] == control.Mirror(port=8123, share=0.5)
    assert isinstance(mirroring.asked[-1], control.StopMirror)


async def test_shadow_mode_waits_for_requests_where_it_is_told_to(tmp_path: Path) -> None:
    async with server(tmp_path, Mirroring(7)) as way:
        asked = ShadowDesired(seconds=0.0, min_requests=30, min_agreement=0.5, missing="wait")
        report = await observe.shadow(way, 8123, asked, version="digits-v1", clock=SystemClock())
        assert report.answered == 35
        asked = ShadowDesired(seconds=0.0, min_requests=30, min_agreement=0.5, missing="fail")
        report = await observe.shadow(way, 8123, asked, version="digits-v1", clock=SystemClock())
        assert report.answered == 7


async def test_shadow_mode_that_is_cancelled_is_stopped(tmp_path: Path) -> None:
    mirroring = Mirroring(1)
    async with server(tmp_path, mirroring) as way:
        work = observe.shadow(way, 8123, ShadowDesired(seconds=3600), version="v1", clock=SystemClock())
        task = asyncio.create_task(work)
        async with asyncio.timeout(20):
            while not mirroring.asked:  # noqa: ASYNC110 - the server is asked from elsewhere
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    assert isinstance(mirroring.asked[-1], control.StopMirror)


async def test_a_server_that_is_away_leaves_nothing_counted(tmp_path: Path) -> None:
    asked = ShadowDesired(seconds=0.0)
    way = ServerControl(tmp_path, timeout_seconds=1)
    report = await observe.shadow(way, 8123, asked, version="v1", clock=SystemClock())
    assert report == ShadowReport(beside="v1", seconds=report.seconds)


async def test_watching_tells_the_window_with_the_peak_memory() -> None:
    told: list[Observation] = []
    asked = 0
    done = asyncio.Event()

    async def counters() -> control.Observation:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise UnavailableError("busy", element="server")  # asked again at once
        return seen(asked)

    async def peak() -> int:
        return 4096

    def tell(window: Observation) -> None:
        told.append(window)
        done.set()

    task = asyncio.create_task(observe.watch(counters, peak, ObserveDesired(seconds=0.2), SystemClock(), tell))
    async with asyncio.timeout(20):
        await done.wait()
    task.cancel()
    await asyncio.wait({task})
    assert (told[0].peak_memory_bytes, told[0].unready, told[0].errors) == (4096, 0, 0)
    assert told[0].requests == told[0].checks, "one more with every look, and one for the look that failed"


async def test_a_server_is_unready_only_when_it_says_so_twice() -> None:
    answers = iter([seen(1, ready=False), seen(2), seen(3, ready=False), seen(4, ready=False)])

    async def counters() -> control.Observation:
        return next(answers)

    first, second = await observe.read(counters), await observe.read(counters)
    assert first is not None
    assert second is not None
    assert (first.requests, first.ready) == (2, True)
    assert (second.requests, second.ready) == (4, False)

    async def away() -> control.Observation:
        raise UnavailableError("nothing listens there")

    assert await observe.read(away) is None
