"""`skerry describe`: one object for people, with what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer

from skerry.api import duration
from skerry.api.errors import ForbiddenError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.event import Event
from skerry.api.kinds.printed import last_seen, times_seen
from skerry.api.kinds.rollout import Rollout, WaveStatus
from skerry.cli import options, output
from skerry.drivers.client.api import HubClient

_HIDDEN = {"managedFields", "resourceVersion", "generation", "kubectl.kubernetes.io/last-applied-configuration"}
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_PARTS = {"kind", "apiVersion", "metadata", "spec", "status"}
_VERBATIM = {"labels", "annotations", "matchLabels", "variants"}
"""Fields whose keys are the user's own."""


def describe(
    what: Annotated[str, typer.Argument(help="kind/NAME, or a kind.")],
    name: Annotated[str, typer.Argument(help="The object's name.")] = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show one object in full, readable."""
    target = options.reference(f"{what}/{name}" if name else what)
    with options.connect(kubeconfig, namespace) as client:
        item = client.get(target.info.type, target.name)
        events = _events_of(client, item)
    if isinstance(item, Rollout):
        _describe_rollout(item)
    else:
        _describe_object(item)
    _print_events(events)


def _describe_object(item: Resource) -> None:
    raw = msgspec.to_builtins(item)
    _print_fields({key: raw["metadata"].get(key) for key in ("name", "namespace", "uid", "labels", "annotations")}, 0)
    _print_fields({"kind": raw["kind"], "created": raw["metadata"].get("creationTimestamp")}, 0)
    _print_fields({key: value for key, value in raw.items() if key not in _PARTS}, 0)
    for part in ("spec", "status"):
        if raw.get(part):
            output.say(f"{_title(part)}:")
            _print_fields(raw[part], 2)


def _events_of(client: HubClient, item: Resource) -> list[Event]:
    """Return what happened to an object, oldest first; nothing where that may not be asked."""
    meta = item.metadata
    fields = f"involvedObject.kind={item.kind},involvedObject.name={meta.name},involvedObject.uid={meta.uid}"
    try:
        found = client.list(Event, fields=fields)
    except (ForbiddenError, NotFoundError):
        return []
    return sorted(found, key=lambda one: (last_seen(one) or _LONG_AGO, one.metadata.resource_version))


def _print_events(events: Sequence[Event]) -> None:
    if not events:
        return
    output.say("Events:")
    now = datetime.now(UTC)
    rows = [(f"  {one.type}", one.reason, _age(one, now), one.message) for one in events]
    output.print_table(("  TYPE", "REASON", "AGE", "MESSAGE"), rows)


def _age(event: Event, now: datetime) -> str:
    when, times = last_seen(event), times_seen(event)
    age = "<unknown>" if when is None else duration.render(timedelta(seconds=max(int((now - when).total_seconds()), 0)))
    return f"{age} (x{times})" if times > 1 else age


def _describe_rollout(rollout: Rollout) -> None:
    spec, status = rollout.spec, rollout.status
    _print_fields(
        {
            "name": rollout.metadata.name,
            "deployment": f"{spec.deployment}, revision {spec.revision}",
            "model version": spec.template.model_version,
            "returns to": spec.previous or "nothing (it is the first)",
            "phase": status.phase,
            "message": status.message,
            "started": status.started_at,
            "finished": status.finished_at,
            "devices": f"{status.selected} selected, {status.placed} with a variant that fits",
        },
        0,
    )
    for wave in status.waves:
        print_wave(wave)
    for name, reason in status.unplaced.items():
        output.say(f"  no variant for {name}: {reason}")


def print_wave(wave: WaveStatus) -> None:
    """Print a wave with its gates and devices."""
    output.say(f"\nWave {wave.name}: {wave.phase}, {wave.running} of {wave.assigned} running, {wave.failed} failed")
    if wave.gates:
        output.print_table(
            ("  GATE", "VERDICT", "MEASURED", "THRESHOLD", "DEVICES", "MESSAGE"),
            [(f"  {g.gate}", g.verdict, g.measured, g.threshold, g.devices, g.message) for g in wave.gates],
        )
    if wave.devices:
        rows = []
        for device in wave.devices:
            m = device.measurement
            rows.append(
                (
                    f"  {device.name}",
                    device.variant,
                    device.phase,
                    f"{m.accuracy:.4f}" if m and m.accuracy is not None else None,
                    f"{m.latency_p95_ms:.2f} ms" if m else None,
                    device.message or None,
                )
            )
        output.print_table(("  DEVICE", "VARIANT", "PHASE", "ACCURACY", "P95", "MESSAGE"), rows)


def _print_fields(value: Any, indent: int, *, verbatim: bool = False) -> None:
    """Print nested values as `Title: value`, lists with dashes; long ones stay whole."""
    margin = " " * indent
    entries = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in entries:
        if key in _HIDDEN or item in (None, "", [], {}):
            continue
        label = "-" if key is None else f"{key if verbatim else _title(key)}:"
        if isinstance(item, dict | list):
            simple = isinstance(item, list) and all(not isinstance(entry, dict | list) for entry in item)
            if simple:
                output.say(f"{margin}{label} {', '.join(map(str, item))}")
            else:
                output.say(f"{margin}{label}")
                _print_fields(item, indent + 2, verbatim=key in _VERBATIM and isinstance(item, dict))
        else:
            output.say(f"{margin}{label} {item}")


def _title(key: str) -> str:
    spaced = "".join(f" {c.lower()}" if c.isupper() else c for c in key)
    return spaced[:1].upper() + spaced[1:]
