"""Namespace: a part of the fleet with names of its own. Source: Kubernetes API reference, Namespace v1."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from skerry.api.meta import ObjectMeta, Struct

NAME_LABEL = "kubernetes.io/metadata.name"
"""Every namespace has its name as a label, so that selectors can mean it."""


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    """What must be done before the namespace goes."""

    finalizers: list[str] = []
    """Kept for Kubernetes' tools."""


class NamespaceCondition(Struct, frozen=True, kw_only=True):
    """What keeps a namespace from going."""

    type: str
    status: Literal["True", "False", "Unknown"]
    last_transition_time: datetime | None = None
    reason: str = ""
    message: str = ""


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    """Whether the namespace is there or going."""

    phase: Literal["Active", "Terminating"] = "Active"
    conditions: list[NamespaceCondition] = []


class Namespace(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A part of the fleet: its objects have names of their own, its devices see nothing of the others."""

    metadata: ObjectMeta
    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()
    api_version: str = "v1"
    kind: Literal["Namespace"] = "Namespace"
