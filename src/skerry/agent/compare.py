"""The golden inputs through two servers at once: how far the new version answers as the one it replaces, and how fast.

Both are asked in turn, now the one first and now the other, so that whatever else the device does slows both alike.
Lives here: the run. Must not live here: what is good enough (the hub's gates), or which servers (`installer`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skerry.agent import inference, npz, probes
from skerry.agent.npz import Array
from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Comparison
from skerry.api.kinds.tensors import ModelSignature
from skerry.kit.loopback import LoopbackClient

_MAX_REASON = 300
_MAX_NAME = 253


@dataclass(kw_only=True)
class Side:
    """One server, and how long it took for each request."""

    client: LoopbackClient
    model: str
    latencies_ms: list[float] = field(default_factory=list)

    async def ask(self, request: tuple[bytes, int]) -> dict[str, tuple[inference.Output, Sequence[float]]]:
        """Return its outputs. Raises InvalidError for what is no answer, UnavailableError and its like."""
        before = time.perf_counter()
        answer = await inference.infer(self.client, self.model, request)
        took = (time.perf_counter() - before) * 1000
        found = inference.decode(answer)
        self.latencies_ms.append(took)
        return found


class _OldError(Exception):
    """The version that is replaced could not be asked; the cause says why."""


async def run(
    new: Side,
    old: Side,
    golden: Path,
    *,
    signature: ModelSignature,
    replaced: str,
    max_samples: int,
    max_seconds: float,
) -> Comparison:
    """Ask both up to so many golden inputs, until the time is up, at least one. `replaced` names the old version.

    What the old one cannot answer is a reason in the comparison. Raises InvalidError, UnavailableError and its like for
    the new one.
    """
    agreeing, worst = 0, 0.0
    with npz.open_npz(golden) as arrays:
        inputs, outputs, _ = probes.match(arrays, signature)
        samples = min(max_samples, inputs[0].samples)
        began = time.perf_counter()
        for number in range(samples):
            if number and time.perf_counter() - began > max_seconds:
                break
            request = inference.encode([(one, one.name.removeprefix("input."), one.read()) for one in inputs], outputs)
            try:
                if number == 0:
                    await _ask(new, old, request, number)
                    new.latencies_ms.clear()
                    old.latencies_ms.clear()
                agrees, difference = _hold(*await _ask(new, old, request, number), outputs)
            except _OldError as error:
                return Comparison(replaced=replaced[:_MAX_NAME], reason=str(error.__cause__)[:_MAX_REASON])
            agreeing += agrees
            worst = max(worst, difference)
    count = len(new.latencies_ms)
    return Comparison(
        replaced=replaced[:_MAX_NAME],
        samples=count,
        agreement=agreeing / count,
        max_abs_difference=worst,
        latency_p95_ms=_p95(new),
        replaced_latency_p95_ms=_p95(old),
    )


_Answer = dict[str, tuple[inference.Output, Sequence[float]]]


async def _ask(new: Side, old: Side, request: tuple[bytes, int], number: int) -> tuple[_Answer, _Answer]:
    if number % 2:
        theirs = await _ask_old(old, request)
        return await new.ask(request), theirs
    ours = await new.ask(request)
    return ours, await _ask_old(old, request)


async def _ask_old(old: Side, request: tuple[bytes, int]) -> _Answer:
    try:
        return await old.ask(request)
    except SkerryError as error:
        raise _OldError from error


def _hold(ours: _Answer, theirs: _Answer, outputs: Sequence[Array]) -> tuple[bool, float]:
    """Hold one answer against the other; outputs of another shape or type agree with nothing."""
    agrees, worst = True, 0.0
    for output in outputs:
        name = output.name.removeprefix("output.")
        mine, other = ours.get(name), theirs.get(name)
        if mine is None or other is None or mine[0].shape != other[0].shape or len(mine[1]) != len(other[1]):
            return False, worst
        worst = max(worst, probes.max_error(mine[1], other[1]))
        agrees = agrees and probes.agree(mine[1], other[1], output.datatype)
    return agrees, worst


def _p95(side: Side) -> float:
    return round(probes.percentile(sorted(side.latencies_ms), 0.95), 3)
