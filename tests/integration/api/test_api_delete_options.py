"""How something is to be deleted: read in both forms, and bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.api.paths import path, status

from skerry.api.kinds.device import Device
from skerry.drivers.client.api import HubClient

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

PROTOBUF = {"Content-Type": "application/vnd.kubernetes.protobuf"}
JSON = {"Content-Type": "application/json"}
HEAD = b"k8s\x00\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12"
NOTHING = b"\x78\x00"  # a field of a number that nobody has


def options(raw: bytes) -> bytes:
    """DeleteOptions in protocol buffers; their length as three bytes of seven bits."""
    size = len(raw)
    return HEAD + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + raw


@pytest.mark.parametrize(
    ("headers", "body"),
    [(PROTOBUF, options(NOTHING * 40_000)), (JSON, b'{"dryRun": [' + b'"All", ' * 12_000 + b'"All"]}')],
    ids=["protobuf", "json"],
)
@pytest.mark.parametrize("where", ["one", "all"])
def test_options_that_are_none(hub: Hub, admin: HubClient, where: str, headers: dict[str, str], body: bytes) -> None:
    hub.add_device(admin.namespace, "till-7")
    rest = ("till-7",) if where == "one" else ()
    answer = admin.http.request("DELETE", path(admin.namespace, "devices", *rest), content=body, headers=headers)
    status(answer, 413, "RequestEntityTooLarge")
    assert admin.get(Device, "till-7")


@pytest.mark.parametrize("padding", [0, 30_000])
def test_options_in_protocol_buffers(hub: Hub, admin: HubClient, padding: int) -> None:
    hub.add_device(admin.namespace, "till-7")
    where, dry = path(admin.namespace, "devices", "till-7"), b"\x2a\x03All"
    body = options(NOTHING * padding + dry)
    assert admin.http.request("DELETE", where, content=body, headers=PROTOBUF).json()["status"] == "Success"
    assert admin.get(Device, "till-7"), "it was only tried"
    body = options(NOTHING * padding + b"\x12\x05\x0a\x03not")
    status(admin.http.request("DELETE", where, content=body, headers=PROTOBUF), 409, "Conflict")
    body = options(NOTHING * padding)
    assert admin.http.request("DELETE", where, content=body, headers=PROTOBUF).json()["status"] == "Success"
    status(admin.http.get(where), 404, "NotFound")
