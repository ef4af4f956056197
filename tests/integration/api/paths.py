"""Where objects are in the API, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    pass


BASE = "/apis/skerry.dev/v1alpha1/namespaces"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
Make = Callable[..., dict[str, Any]]


def path(namespace: str, plural: str, *rest: str) -> str:
    return "/".join([BASE, namespace, plural, *rest])


def status(response: httpx.Response, code: int, reason: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["kind"], body.get("reason")) == (code, "Status", reason), body
    assert body["code"] == code
    return body
