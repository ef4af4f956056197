"""Pointers from one object to another, as Kubernetes' core group has them."""

from __future__ import annotations

from skerry.api.meta import Struct


class ObjectReference(Struct, frozen=True, kw_only=True):
    """One object, or one part of it."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""
    """The part that is meant, as in spec.containers{digits}."""


class LocalObjectReference(Struct, frozen=True, kw_only=True):
    """One object of the same namespace."""

    name: str = ""
