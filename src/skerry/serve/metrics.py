"""The server's own measurements in the Prometheus text format, version 0.0.4.

A fixed set of series, whatever the requests are; no label comes from outside. Written out here, because the client
library costs more memory and start-up time than everything else in this server but the engine.

Lives here: counting and rendering. Must not live here: what counts as which outcome (`rest`).
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from skerry.serve.shadow import Totals

Outcome = Literal["ok", "bad_request", "not_found", "too_large", "unavailable", "cancelled", "failed"]
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds."""

NOTHING_MIRRORED = Totals()
_SHADOW = {
    "mirrored": "Requests that were taken for another server in shadow mode.",
    "answered": "Of these: answered by it, and compared.",
    "agreed": "Of the answered: with the same outcome.",
    "errors": "Of the mirrored: answered with an error, or not in time.",
    "dropped": "Requests that were due for shadow mode, and not taken because too many waited.",
}


class Histogram:
    """Counts per bucket, their number and their sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value in."""
        self._counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the samples."""
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum!r}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """All that is measured. Used from the event loop's thread only."""

    def __init__(self, *, model: str, version: str) -> None:
        self._labels = f'model="{_escaped(model)}",version="{_escaped(version)}"'
        self._requests: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._duration = Histogram()
        self._engine = Histogram()
        self._start_seconds = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + _start_after_boot()

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """Finished requests by outcome, since the start."""
        return self._requests

    def finished(self, outcome: Outcome, seconds: float) -> None:
        """Count a finished request."""
        self._requests[outcome] += 1
        self._duration.observe(seconds)

    def computed(self, seconds: float) -> None:
        """Count one run of the engine."""
        self._engine.observe(seconds)

    def render(self, *, in_flight: int, ready: bool, load_seconds: float, shadow: Totals = NOTHING_MIRRORED) -> bytes:
        """Return the page."""
        labels = self._labels
        name = "skerry_serve"
        lines = _family(f"{name}_requests_total", "counter", "Inference requests by outcome.")
        lines += [
            f'{name}_requests_total{{{labels},outcome="{outcome}"}} {count}'
            for outcome, count in self._requests.items()
        ]
        lines += _family(f"{name}_request_duration_seconds", "histogram", "From a whole request to its answer.")
        lines += self._duration.lines(f"{name}_request_duration_seconds", labels)
        lines += _family(f"{name}_engine_duration_seconds", "histogram", "One run of the engine.")
        lines += self._engine.lines(f"{name}_engine_duration_seconds", labels)
        for suffix, help_text, value in (
            ("requests_in_flight", "Inference requests that wait or run.", float(in_flight)),
            ("model_ready", "Whether the model is loaded.", float(ready)),
            ("model_load_seconds", "How long loading and warming up took.", load_seconds),
        ):
            lines += _family(f"{name}_{suffix}", "gauge", help_text)
            lines.append(f"{name}_{suffix}{{{labels}}} {value!r}")
        for (suffix, help_text), count in zip(_SHADOW.items(), shadow, strict=True):
            lines += _family(f"{name}_shadow_{suffix}_total", "counter", help_text)
            lines.append(f"{name}_shadow_{suffix}_total{{{labels}}} {count}")
        lines += self._process()
        return ("\n".join(lines) + "\n").encode()

    def _process(self) -> Iterator[str]:
        status = _status()
        for name, kind, help_text, value in (
            ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", status.get("VmRSS", 0)),
            ("process_resident_memory_peak_bytes", "gauge", "Its peak.", status.get("VmHWM", 0)),
            ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", status.get("VmSize", 0)),
            ("process_cpu_seconds_total", "counter", "User and system CPU time in seconds.", time.process_time()),
            ("process_start_time_seconds", "gauge", "Start time in seconds since the epoch.", self._start_seconds),
        ):
            yield from _family(name, kind, help_text)
            yield f"{name} {float(value)!r}"


def _family(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _status() -> dict[str, int]:
    """Return the memory fields of `/proc/self/status` in bytes."""
    fields: dict[str, int] = {}
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return fields
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.startswith("Vm"):
            fields[name] = int(value.split()[0]) * 1024
    return fields


def _start_after_boot() -> float:
    try:
        fields: Sequence[str] = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
