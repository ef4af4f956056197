"""What the factory says while it works: events with fields, as JSON lines for programs or as text for people.

Events, in order: `started`; `source.loaded` or `source.cached`; `baseline`; `exported`; per variant `variant.started`,
any number of `variant.retried`, and `variant.made` where it is kept, or `variant.cached`; then, one variant after the
other, `variant.measuring` where it is not known, and `variant.done` or `variant.rejected`; `done`. `error` ends a run
that failed. Lives here: how events are written. Must not live here: when they happen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import msgspec

from skerry.api.quantity import human_bytes


class Progress(Protocol):
    """Takes one event: a constant dotted name, with fields that JSON can carry."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        """Tell it."""
        ...


def json_lines(stream: TextIO) -> Progress:
    """Write each event as one line of JSON, field names in camelCase."""

    def write(event: str, /, **fields: Any) -> None:
        named = {_camel(key): value for key, value in fields.items()}
        stream.write(msgspec.json.encode({"event": event, **named}).decode() + "\n")
        stream.flush()

    return write


def text_lines(stream: TextIO) -> Progress:
    """Write each event as a line that people read; an event without a text of its own is not shown."""

    def write(event: str, /, **fields: Any) -> None:
        render = _TEXTS.get(event)
        if render is not None:
            stream.write(render(fields) + "\n")
            stream.flush()

    return write


def own_stdout() -> TextIO:
    """Keep standard output for events alone: what libraries and the user's code print goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _done(fields: dict[str, Any]) -> str:
    rejected = f", rejected {len(fields['rejected'])}" if fields["rejected"] else ""
    return f"{fields['package']}: kept {len(fields['kept'])}{rejected}, {fields['seconds']:.1f} s"


def _variant_done(fields: dict[str, Any]) -> str:
    return (
        f"{fields['variant']:<12} {human_bytes(fields['size']):>10}  {fields['metric_name']} {fields['metric']:.4f} "
        f"(drop {fields['metric_drop']:+.4f})  p50 {fields['latency_p50_ms']:.2f} ms  "
        f"p95 {fields['latency_p95_ms']:.2f} ms  peak memory {human_bytes(fields['peak_memory_bytes'])}  "
        f"[{fields['recipe']}]"
    )


_TEXTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "started": lambda f: f"{f['model']} {f['version']}: making {', '.join(f['variants'])}",
    "source.loaded": lambda f: f"loaded the {f['kind']} model in {f['seconds']:.1f} s",
    "source.cached": lambda f: f"the {f['kind']} model was imported before",
    "variant.cached": lambda f: f"{f['variant']:<12} was made before",
    "baseline": lambda f: f"baseline: {f['metric_name']} {f['metric']:.4f} on {f['samples']} test samples",
    "exported": lambda f: f"exported to ONNX, {human_bytes(f['size'])}, in {f['seconds']:.1f} s",
    "variant.retried": lambda f: f"{f['variant']:<12} {f['recipe']}: {f['reason']}; trying {f['next']}",
    "variant.done": _variant_done,
    "variant.rejected": lambda f: f"{f['variant']:<12} rejected: {f['reason']}",
    "kubernetes.sent": lambda f: f"inputs of {f['run']} are in the registry",
    "kubernetes.applied": lambda f: f"{len(f['jobs'])} Jobs: {', '.join(f['jobs'])}",
    "kubernetes.finished": lambda f: f"{f['part']:<12} is done",
    "plot.skipped": lambda f: f"no picture: {f['reason']}",
    "done": _done,
    "error": lambda f: f"error: {f['sentence']}",
}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
