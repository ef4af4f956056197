"""What the device and its servers use, as samples: readings of counters, and the difference between two of them. Pure.

Lives here: the formulas, and the parsing of what the kernel and a server print. Must not live here: files, requests.
Source: proc(5); Prometheus text exposition format 0.0.4 of `skerry.serve`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from skerry.core.messages import Sample, WorkloadSample
from skerry.core.ports import Usage

MAX_PAGE_BYTES = 256 * 1024
_REQUESTS = re.compile(rb'^skerry_serve_requests_total\{[^}]*outcome="([a-z_]{1,40})"\} (\d{1,18})$', re.MULTILINE)
_BUCKET = re.compile(
    rb'^skerry_serve_request_duration_seconds_bucket\{[^}]*le="(\d{1,9}(?:\.\d{1,12})?|\+Inf)"\} (\d{1,18})$',
    re.MULTILINE,
)
_STARTED = re.compile(rb"^process_start_time_seconds ([0-9.e+]{1,30})$", re.MULTILINE)
_ERRORS = (b"unavailable", b"failed")
"""Outcomes that are the server's failure and not the caller's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """One server's counters since its start."""

    started: bytes = b""
    """When it started, as it says; where it differs, the counters began anew."""
    requests: int = 0
    errors: int = 0
    buckets: tuple[tuple[float, int], ...] = ()
    """Requests that took at most so many seconds, by rising bounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """All counters at one moment."""

    busy: float = 0.0
    """Ticks of all cores since boot."""
    total: float = 0.0
    memory_bytes: int = 0
    servers: Mapping[str, Counters] = field(default_factory=dict)
    at: float = 0.0
    """Seconds of a clock that only rises."""
    processes: Mapping[str, Mapping[str, Usage]] = field(default_factory=dict)
    """By workload, and in it by server: for a while there may be two."""


def parse_cpu(stat: str) -> tuple[float, float]:
    """Return busy and total ticks of `/proc/stat`; zeros for what is none."""
    words = stat.partition("\n")[0].split()
    if len(words) < 5 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:9]):
        return 0.0, 0.0
    ticks = [float(word) for word in words[1:9]]  # guests are counted in user time already
    idle = sum(ticks[3:5])
    return sum(ticks) - idle, sum(ticks)


def parse_memory(meminfo: str) -> int:
    """Return the bytes in use of `/proc/meminfo`: all but those available."""
    found = dict.fromkeys(("MemTotal", "MemAvailable"), 0)
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name in found and words and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return max(0, found["MemTotal"] - found["MemAvailable"])


def parse_metrics(page: bytes) -> Counters:
    """Return the counters on a server's metrics page; what is not there counts as nothing."""
    outcomes = {name: int(count) for name, count in _REQUESTS.findall(page)}
    started = _STARTED.search(page)
    return Counters(
        started=started.group(1) if started else b"",
        requests=sum(outcomes.values()),
        errors=sum(outcomes.get(name, 0) for name in _ERRORS),
        buckets=tuple(sorted((float(bound), int(count)) for bound, count in _BUCKET.findall(page))),
    )


def sample(before: Reading, after: Reading, at: datetime) -> Sample:
    """Return what happened between two readings. A server whose counters fell is a new one, counted from nothing."""
    ticks = after.total - before.total
    busy = (after.busy - before.busy) / ticks if ticks > 0 else 0.0
    names = sorted({*after.servers, *after.processes})
    return Sample(
        at=at,
        cpu=round(min(max(busy, 0.0), 1.0), 4),
        memory_bytes=after.memory_bytes,
        seconds=max(0.0, round(after.at - before.at, 1)),
        workloads=[_used(_workload(name, before, after), before, after) for name in names],
    )


def _used(shown: WorkloadSample, before: Reading, after: Reading) -> WorkloadSample:
    """Add what its processes used: a server that was not there before, or fell, began at nothing."""
    now, seconds = after.processes.get(shown.name), after.at - before.at
    if not now or seconds <= 0:
        return shown
    earlier = before.processes.get(shown.name, {})
    cpu = 0.0
    for server, used in now.items():
        known = earlier.get(server)
        cpu += used.cpu_seconds - (known.cpu_seconds if known and known.cpu_seconds <= used.cpu_seconds else 0.0)
    memory = sum(used.memory_bytes for used in now.values())
    return msgspec.structs.replace(shown, cpu_millis=max(0, round(1000 * cpu / seconds)), memory_bytes=memory)


def _workload(name: str, earlier: Reading, after: Reading) -> WorkloadSample:
    before, now = earlier.servers.get(name), after.servers.get(name)
    if now is None:
        return WorkloadSample(name=name)
    if before is None or before.started != now.started or now.requests < before.requests or now.errors < before.errors:
        before = Counters()
    return WorkloadSample(
        name=name,
        requests=now.requests - before.requests,
        errors=now.errors - before.errors,
        latency_p95_ms=_percentile(before, now, 0.95),
    )


def _percentile(before: Counters, now: Counters, share: float) -> float | None:
    """Nearest rank, as the upper bound of its bucket: never less than the truth. None when nothing was asked."""
    earlier = dict(before.buckets)
    counts = [(bound, count - earlier.get(bound, 0)) for bound, count in now.buckets]
    if not counts or counts[-1][1] <= 0:
        return None
    rank = share * counts[-1][1]
    bounds = [bound for bound, _ in counts if bound != float("inf")]
    found = next((bound for bound, count in counts if count >= rank), float("inf"))
    return round(min(found, bounds[-1] if bounds else found) * 1000, 3) if bounds else None
