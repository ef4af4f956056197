"""What a projection is: which objects stand for a device, and how they are selected and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from skerry.api import selector
from skerry.api.kinds.device import Device
from skerry.api.meta import LabelSelectorRequirement
from skerry.hub.server import table

Shown = dict[str, Any]
"""An object as clients see it."""
Cell = Callable[[Shown], str]


@dataclass(frozen=True, kw_only=True)
class View:
    """One projected kind."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    namespaced: bool
    project: Callable[[Device], list[Shown]]
    fields: tuple[str, ...]
    """Paths that field selectors may name."""
    columns: tuple[tuple[str, Cell | None, bool], ...]
    """(name, cell, only with -o wide); None is the age."""
    group: str = ""
    version: str = "v1"

    @property
    def api_version(self) -> str:
        """The group and version, as objects carry them."""
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of them are meant."""

    labels: Sequence[LabelSelectorRequirement] = ()
    terms: Sequence[tuple[str, bool, str]] = ()

    def takes(self, item: Shown) -> bool:
        """Return whether this one is meant."""
        labels = item["metadata"].get("labels", {})
        return selector.matches(self.labels, labels) and all(
            (_text(item, path) == value) == equal for path, equal, value in self.terms
        )


def metadata_of(device: Device, *, name: str, labels: Mapping[str, str]) -> Shown:
    """Return metadata for what stands for a device: its revision, age, uid and annotations."""
    meta = device.metadata
    shown: Shown = {"name": name, "uid": meta.uid, "resourceVersion": meta.resource_version, "labels": dict(labels)}
    if meta.creation_timestamp is not None:
        shown["creationTimestamp"] = msgspec.to_builtins(meta.creation_timestamp)
    return shown


def table_of(
    view: View, items: Sequence[Shown], *, now: datetime, metadata: Mapping[str, Any], include: str, header: bool
) -> Shown:
    """Return a `meta.k8s.io/v1` Table of these objects."""
    name = {"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}
    columns = [name, *(_column(title, wide) for title, _, wide in view.columns)] if header else []
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": [_row(view, item, now, include) for item in items],
    }


def partial(item: Shown) -> Shown:
    """Return only an object's metadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _column(title: str, wide: bool) -> Shown:
    return {"name": title, "type": "string", "format": "", "description": "", "priority": int(wide)}


def _row(view: View, item: Shown, now: datetime, include: str) -> Shown:
    cells = [item["metadata"]["name"]]
    for _, cell, _ in view.columns:
        cells.append(_age(item, now) if cell is None else cell(item))
    row: Shown = {"cells": cells}
    if include != "None":
        row["object"] = partial(item) if include == "Metadata" else item
    return row


def _age(item: Shown, now: datetime) -> str:
    since = item["metadata"].get("creationTimestamp")
    return table.age(msgspec.convert(since, datetime), now) if since else "<unknown>"


def _text(item: Any, path: str) -> str:
    for name in path.split("."):
        item = item.get(name) if isinstance(item, Mapping) else None
    return "" if item is None else str(item).lower() if isinstance(item, bool) else str(item)
