"""The ledger: what the devices on a rollout said to the gates, summed up and kept up to date device by device. Pure.

Each device's entry is made of its sample once; what it added to the sums is remembered with it, and taken away again
when it says something else. Must not live here: verdicts (`core.gates`), the reading of one device (`core.readings`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from skerry.api.kinds.gates import Gates, Missing
from skerry.core import baking, gates
from skerry.core.baking import Kind, Watched
from skerry.core.gates import Answers, Bound
from skerry.core.ranked import Ranked
from skerry.core.readings import Gap, Lie, Sample, Value
from skerry.core.spread import Spread

K = TypeVar("K")
_Names: TypeAlias = Ranked[str, Sample]
_Numbers: TypeAlias = Ranked[tuple[float, str], Sample]


@dataclass(kw_only=True, slots=True)
class _Page:
    """What was said to one bound."""

    values: _Numbers = field(default_factory=Ranked)
    gaps: _Names = field(default_factory=Ranked)
    lies: _Names = field(default_factory=Ranked)
    samples: int = 0
    foreign: int = 0
    excused: int = 0


@dataclass(kw_only=True, slots=True)
class _Watch:
    """What was seen in the bake time."""

    kinds: dict[Kind, _Names] = field(
        default_factory=lambda: {kind: Ranked() for kind in ("lie", "fallen", "gap", "excused", "closed", "open")}
    )
    ill: dict[Kind, _Names] = field(default_factory=lambda: {"closed": Ranked(), "open": Ranked()})
    """Of these those whose server did not stay up."""
    shares: _Numbers = field(default_factory=Ranked)
    checks: int = 0
    requests: int = 0


@dataclass(kw_only=True, slots=True)
class _Half:
    """The devices that wait, or all others."""

    total: int = 0
    running: int = 0
    silent: _Names = field(default_factory=Ranked)
    loud: _Names = field(default_factory=Ranked)
    pages: dict[str, _Page] = field(default_factory=dict)
    watch: _Watch = field(default_factory=_Watch)


class Ledger:
    """Sums over samples under these gates. A device is known by its name."""

    def __init__(self, wanted: Gates) -> None:
        self._bounds = gates.bounds_of(wanted)
        self._watches = wanted.health is not None or wanted.error_rate is not None
        self._halves = [self._empty(), self._empty()]
        self._all, self._settled = Spread(), Spread()

    def _empty(self) -> _Half:
        return _Half(pages={bound.gate: _Page() for bound in self._bounds})

    def add(self, sample: Sample) -> None:
        """Put in what a device says."""
        self._enter(sample, 1)

    def remove(self, sample: Sample) -> None:
        """Take out what a device said, which was put in before."""
        self._enter(sample, -1)

    def said(self, *, settled: bool) -> Extract:
        """Return the sums; when settled, without the devices that wait."""
        halves = self._halves[:1] if settled else self._halves
        return Extract(halves, self._settled if settled else self._all)

    def _enter(self, sample: Sample, sign: int) -> None:
        waits = sample.state == "Waiting"
        half = self._halves[waits]
        half.total += sign
        half.running += sign * (sample.state == "Running")
        if sample.state == "Failed":
            _mark(half.silent if sample.silent else half.loud, sample.device, sample, sign)
        for bound in self._bounds:
            _enter_bound(half.pages[bound.gate], bound, sample, sign)
        if self._watches:
            self._enter_watch(half.watch, sample, sign)

    def _enter_watch(self, watch: _Watch, sample: Sample, sign: int) -> None:
        kind, seen, text = baking.read(sample)
        if not kind:
            return
        _mark(watch.kinds[kind], sample.device, sample, sign)
        if seen is None:
            return
        if text:
            _mark(watch.ill[kind], sample.device, sample, sign)
        if kind != "closed":
            return
        watch.checks += sign * seen.checks
        watch.requests += sign * seen.requests
        if seen.requests:
            share = baking.share_of(seen.requests, seen.errors)
            _mark(watch.shares, (-share, sample.device), sample, sign)
            for spread in (self._all, self._settled) if sample.state != "Waiting" else (self._all,):
                (spread.add if sign > 0 else spread.remove)(seen.requests, seen.errors)


class Extract:
    """What the devices said, as `core.gates.Said`, at this moment."""

    def __init__(self, halves: Sequence[_Half], spread: Spread) -> None:
        self._halves, self._spread = halves, spread

    @property
    def total(self) -> int:
        """As in `Said`."""
        return sum(half.total for half in self._halves)

    @property
    def running(self) -> int:
        """As in `Said`."""
        return sum(half.running for half in self._halves)

    def failed(self, *, silent: bool | None) -> tuple[int, Sample | None]:
        """As in `Said`."""
        marked = [half.silent for half in self._halves if silent is not False]
        marked += [half.loud for half in self._halves if silent is not True]
        return sum(map(len, marked)), _first(marked)

    def answers(self, bound: Bound) -> Answers:
        """As in `Said`."""
        pages = [half.pages[bound.gate] for half in self._halves]
        best = min((page.values.first()[0] for page in pages if len(page.values)), default=None)
        gap, lie = _first([page.gaps for page in pages]), _first([page.lies for page in pages])
        return Answers(
            values=sum(len(page.values) for page in pages),
            worst=None if best is None else (best[0] if bound.lowest else -best[0], best[1]),
            samples=sum(page.samples for page in pages),
            gaps=sum(len(page.gaps) for page in pages),
            gap=None if gap is None else (gap.device, _sentence(bound, gap)),
            lie=None if lie is None else (lie.device, _sentence(bound, lie)),
            foreign=sum(page.foreign for page in pages),
            excused=sum(page.excused for page in pages),
        )

    def watched(self, missing: Missing, *, overdue: bool) -> Watched:
        """As in `Said`."""
        late = overdue and missing != "wait"
        watches = [half.watch for half in self._halves]
        seen = {kind: [w.kinds[kind] for w in watches] for kind in watches[0].kinds}
        ill = {kind: [w.ill[kind] for w in watches] for kind in watches[0].ill}
        bad = [*seen["fallen"], *ill["closed"], *([] if late else ill["open"])]
        gaps = [*seen["gap"], *(seen["open"] if late else [])]
        shares = [w.shares.first()[0] for w in watches if len(w.shares)]
        closed, requests = _count(seen["closed"]), sum(w.requests for w in watches)
        return Watched(
            closed=closed,
            well=closed - _count(ill["closed"]),
            checks=sum(w.checks for w in watches),
            requests=requests,
            rate=self._spread.rate(),
            worst=min(shares)[1] if shares else "",
            open=0 if late else _count(seen["open"]),
            bad=_count(bad),
            ill=_told(bad),
            gaps=_count(gaps),
            gap=_told(gaps, late=late),
            fallen=_count(seen["fallen"]),
            excused=_count(seen["excused"]),
            lie=_told(seen["lie"]),
        )


def _enter_bound(page: _Page, bound: Bound, sample: Sample, sign: int) -> None:
    if not bound.counts(sample):
        page.excused += sign * gates.is_excused(bound, sample)
        return
    match bound.read(sample):
        case Lie():
            _mark(page.lies, sample.device, sample, sign)
        case Gap():
            _mark(page.gaps, sample.device, sample, sign)
        case Value(number, behind):
            _mark(page.values, (number if bound.lowest else -number, sample.device), sample, sign)
            page.samples += sign * behind
        case None:
            page.foreign += sign


def _mark(names: Ranked[K, Sample], key: K, sample: Sample, sign: int) -> None:
    if sign > 0:
        names.add(key, sample)
    else:
        names.discard(key)


def _first(marked: Iterable[_Names]) -> Sample | None:
    """The first device by name."""
    firsts = [(names.first()[0], names) for names in marked if len(names)]
    if not firsts:
        return None
    name, names = min(firsts, key=lambda pair: pair[0])
    return names[name]


def _count(marked: Iterable[_Names]) -> int:
    return sum(map(len, marked))


def _told(marked: Iterable[_Names], *, late: bool = False) -> tuple[str, str] | None:
    """The first device, and what there is to say of it; `late`: of an open window, that it was not closed in time."""
    first = _first(marked)
    if first is None:
        return None
    kind, seen, text = baking.read(first)
    return first.device, baking.late(seen) if late and kind == "open" and seen is not None else text


def _sentence(bound: Bound, sample: Sample) -> str:
    match bound.read(sample):
        case Lie(why) | Gap(why):
            return f"{sample.device} {why}"
        case _:
            return sample.device
