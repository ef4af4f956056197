"""Server-side tables: what `kubectl get` prints, made from each kind's columns.

Source: `meta.k8s.io/v1` Table. Times are shown as ages the way kubectl shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from skerry.api import codec, quantity
from skerry.api.kinds import Column, KindInfo, Resource
from skerry.hub.server import fields

IncludeObject = Literal["None", "Metadata", "Object"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}
_AGES = (
    (120, "s", ""),
    (600, "m", "s"),
    (3 * 3600, "m", ""),
    (8 * 3600, "h", "m"),
    (48 * 3600, "h", ""),
    (8 * 86400, "d", "h"),
    (730 * 86400, "d", ""),
    (8 * 365 * 86400, "y", "d"),
)
"""Below how many seconds an age is shown in which unit, with which lesser one."""


def table(
    info: KindInfo,
    items: Sequence[Resource],
    *,
    now: datetime,
    metadata: Mapping[str, Any],
    include: IncludeObject = "Metadata",
    header: bool = True,
) -> dict[str, Any]:
    """Return a Table of these objects; without a header for all events of a watch but the first."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": _definitions(info) if header else [],
        "rows": [_row(info, item, now, include) for item in items],
    }


def partial(item: Resource) -> dict[str, Any]:
    """Return only an object's metadata, as PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": msgspec.to_builtins(item.metadata),
    }


def age(since: datetime, now: datetime) -> str:
    """Return how long ago, without false precision, as kubectl has it: 12s, 3m5s, 47m, 5h12m, 3d4h, 2y41d."""
    seconds = int((now - since).total_seconds())
    if seconds < -1:
        return "<invalid>"
    seconds = max(seconds, 0)
    unit, lesser = next(((unit, lesser) for below, unit, lesser in _AGES if seconds < below), ("y", ""))
    whole, rest = divmod(seconds, _SECONDS[unit])
    part = rest // _SECONDS[lesser] if lesser else 0
    return f"{whole}{unit}{part}{lesser}" if part else f"{whole}{unit}"


def _definitions(info: KindInfo) -> list[dict[str, Any]]:
    name = {"name": "Name", "type": "string", "format": "name", "description": "metadata.name", "priority": 0}
    return [*([name] if info.name_column else []), *(_definition(column) for column in info.columns)]


def _definition(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": "string",
        "format": "",
        "description": column.path,
        "priority": int(column.wide),
    }


def _row(info: KindInfo, item: Resource, now: datetime, include: IncludeObject) -> dict[str, Any]:
    named = [item.metadata.name] if info.name_column else []
    row: dict[str, Any] = {"cells": [*named, *(_cell(column, item, now) for column in info.columns)]}
    if include == "Metadata":
        row["object"] = partial(item)
    elif include == "Object":
        row["object"] = codec.present(item)
    return row


def _cell(column: Column, item: Resource, now: datetime) -> str:
    made = column.value and column.value(item)
    values = fields.values_at(item, column.path) if column.value is None else [] if made is None else [made]
    match column.kind:
        case "age":
            return age(values[0], now) if values else "<unknown>"
        case "bytes":
            return quantity.human_bytes(sum(values)) if any(values) else "<none>"
        case "count":
            return str(len(values))
        case _ if len(values) == 1:
            return _word(values[0]) or "<none>"
        case _:
            words = [_word(value) for value in values if value != ""]
            return ",".join(dict.fromkeys(words)) or "<none>"


def _word(value: Any) -> str:
    if type(value) is str:
        return value
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
