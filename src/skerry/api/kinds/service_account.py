"""ServiceAccount: an identity for programs. Source: Kubernetes API reference, ServiceAccount v1."""

from __future__ import annotations

from typing import Literal

from skerry.api.kinds.references import LocalObjectReference, ObjectReference
from skerry.api.meta import ObjectMeta, Struct


class ServiceAccount(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """An identity for programs of one namespace, which they prove by tokens (`kubectl create token`)."""

    metadata: ObjectMeta
    secrets: list[ObjectReference] = []
    """Kept for Kubernetes' tools; the hub has no Secrets."""
    image_pull_secrets: list[LocalObjectReference] = []
    """Kept for Kubernetes' tools; the hub has no Secrets."""
    automount_service_account_token: bool | None = None
    """Kept for Kubernetes' tools; nothing is mounted on devices."""
    api_version: str = "v1"
    kind: Literal["ServiceAccount"] = "ServiceAccount"
