"""What shadow mode costs the callers of the version that serves: without it, a share of 10 %, and all requests.

Run `python bench/shadow.py`; nothing is judged, figures are printed. Two servers of one model run all the time, on the
same cores as the client. The three shares take turns in each round, and each is compared with `without` of its own
round, so that what else the machine does falls on all of them; printed are medians over the rounds. Two loads: 100
requests a second, as an application at work sends them, and as many as one connection gets answered.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import selectors
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serve import (  # type: ignore[import-not-found]  # the script beside this one
    MODELS,
    READY_SECONDS,
    Client,
    Model,
    load,
    request,
    server,
    write_model,
)

from skerry.agent.endpoint import ServerControl
from skerry.core.control import SOCKET_FILE, ShadowCounts

SHARES = (0.0, 0.1, 1.0)
PACE = 100.0
"""Requests a second."""


@dataclass
class Figures:
    """Of one share: for each round."""

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    requests: int = 0
    mirrored: int = 0
    agreed: int = 0
    dropped: int = 0

    def add(self, rate: float, latencies: Sequence[float], counts: ShadowCounts | None) -> None:
        self.rates.append(rate)
        self.p50.append(latencies[len(latencies) // 2] * 1000)
        self.p99.append(latencies[int(len(latencies) * 0.99)] * 1000)
        self.requests += len(latencies)
        if counts is not None:
            self.mirrored += counts.mirrored
            self.agreed += counts.agreed
            self.dropped += counts.dropped


def paced(port: int, raw: bytes, *, seconds: float) -> tuple[float, Sequence[float]]:
    """Return requests a second and all latencies, sorted; one request at a time, at a steady pace."""
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        begin = due = time.perf_counter()
        client = Client(port, raw)
        try:
            selector.register(client.socket, selectors.EVENT_READ)
            while True:
                selector.select(READY_SECONDS)
                latency = client.receive()
                if latency is None:
                    continue
                latencies.append(latency)
                due += 1 / PACE
                if due - begin > seconds:
                    break
                time.sleep(max(due - time.perf_counter(), 0))
                client.send()
        finally:
            client.socket.close()
    return len(latencies) / (time.perf_counter() - begin), sorted(latencies)


def aim(control: ServerControl, port: int, share: float) -> None:
    asyncio.run(control.shadow(port, share) if share else control.stop_shadow())


def counts(control: ServerControl) -> ShadowCounts | None:
    return asyncio.run(control.observe()).shadow


def bench(model: Model, directory: Path, *, seconds: float, rounds: int) -> None:
    control, raw = ServerControl(directory), request(model, binary=True)
    with (
        server(model, directory, control=directory / SOCKET_FILE) as (live, _, _),
        server(model, directory) as (other, _, _),
    ):
        load(live, raw, connections=1, seconds=1.0)
        for name in (f"{PACE:.0f} requests a second", "one connection, as fast as it goes"):
            found = {share: Figures() for share in SHARES}
            for _ in range(rounds):
                for share in SHARES:
                    aim(control, other, 0.0)
                    aim(control, other, share)
                    if name.startswith("one"):
                        rate, latencies = load(live, raw, connections=1, seconds=seconds)
                    else:
                        rate, latencies = paced(live, raw, seconds=seconds)
                    found[share].add(rate, latencies, counts(control))
            show(f"{model.name} CNN, {len(raw)} bytes, {name}", found)


def show(title: str, found: dict[float, Figures]) -> None:
    print(f"\n{title}")
    plain = found[0.0]
    for share, one in found.items():
        ratios = [
            statistics.median(mine / other for mine, other in zip(ours, without, strict=True))
            for ours, without in ((one.rates, plain.rates), (one.p50, plain.p50), (one.p99, plain.p99))
        ]
        rate, p50, p99 = (statistics.median(values) for values in (one.rates, one.p50, one.p99))
        print(
            f"  {share:5.0%}: {rate:6.0f} req/s (x {ratios[0]:.2f}), p50 {p50:6.2f} ms (x {ratios[1]:.2f}),"
            f" p99 {p99:6.2f} ms (x {ratios[2]:.2f}); of {one.requests} requests {one.mirrored} mirrored,"
            f" {one.agreed} agreed, {one.dropped} dropped"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load for each share in each round (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    arguments = parser.parse_args()
    cores, loadavg = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load average {loadavg:.1f} before, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            directory = Path(name, model.name)
            directory.mkdir()
            write_model(model, directory)
            bench(model, directory, seconds=arguments.seconds, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
