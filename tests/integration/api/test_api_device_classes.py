"""DeviceClasses over the API: made and changed by the hub alone, read by clients, deleted to be learnt anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from skerry.api.errors import ForbiddenError, NotFoundError
from skerry.api.kinds import find_kind
from skerry.api.kinds.device import EngineFacts
from skerry.api.kinds.device_class import DeviceClass, DeviceClassSpec
from skerry.api.meta import ObjectMeta
from skerry.drivers.client.api import HubClient

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

BASE = "/apis/skerry.dev/v1alpha1/namespaces"


def test_only_the_hub_makes_and_changes_them(hub: Hub, admin: HubClient) -> None:
    where = f"{BASE}/{admin.namespace}/deviceclasses"
    spec = DeviceClassSpec(arch="arm64", cores=4, memory_bytes=4 << 30, engines=[EngineFacts(name="onnxruntime")])
    item = DeviceClass(metadata=ObjectMeta(name="pi", namespace=admin.namespace), spec=spec)
    made = {"apiVersion": "skerry.dev/v1alpha1", "kind": "DeviceClass", "metadata": {"name": "pi"}}
    with pytest.raises(ForbiddenError, match="learnt from the devices"):
        admin.create(made, DeviceClass)
    hub.call(hub.objects.create(item))
    kept = admin.get(DeviceClass, "pi")
    changes = (
        admin.http.put(f"{where}/pi", json={**admin.get_raw(DeviceClass, "pi"), "spec": {"cores": 1}}),
        *(
            admin.http.patch(f"{where}/pi{part}", json=body, headers={"content-type": "application/merge-patch+json"})
            for part, body in (("", {"metadata": {"labels": {"a": "b"}}}), ("/status", {"status": {"members": 9}}))
        ),
    )
    assert [answer.status_code for answer in changes] == [403, 403, 403]
    assert admin.get(DeviceClass, "pi") == kept
    table = admin.table(DeviceClass)
    cells = dict(zip([c["name"] for c in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True))
    assert (cells["ARCH"], cells["MEMORY"], cells["MEMBERS"]) == ("arm64", "4.0 GiB", "0")
    admin.delete(DeviceClass, "pi")
    with pytest.raises(NotFoundError):
        admin.get(DeviceClass, "pi")


def test_the_command_line_knows_them_as_classes() -> None:
    found = find_kind("classes")
    assert found is not None
    assert found.type is DeviceClass
