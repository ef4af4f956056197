"""Objects as people write them."""

from __future__ import annotations

import json
from typing import Any

API_VERSION = "skerry.dev/v1alpha1"


def device(name: str, *, cordoned: bool = False, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": API_VERSION, "kind": "Device", "metadata": metadata, "spec": {"cordoned": cordoned}}


def deployment(name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A deployment that does nothing: it is paused, and there is no such model."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {"name": name, **({"labels": labels} if labels else {})},
        "spec": {
            "modelVersion": "digits-1",
            "paused": True,
            "deviceSelector": {"matchLabels": {"site": "lab"}},
            **spec,
        },
    }


def text_of(*items: dict[str, Any]) -> str:
    """Return a file with these objects, one after the other."""
    return "\n".join(map(json.dumps, items))


def list_of(*items: dict[str, Any]) -> str:
    """Return a file with a list of these objects, as `kubectl get -o json` prints it."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
