"""A delete removes what was looked at: somebody else writes between the look and the removal, at that very moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from skerry.api.errors import ConflictError, NotFoundError
from skerry.api.kinds.device import Device, DeviceStatus
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core.desired import DesiredRecord
from skerry.core.ports import Guard, Record, Store
from skerry.drivers.client.api import HubClient
from skerry.hub.objects import Objects, key_of

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

Deed = Callable[[], Awaitable[object]]


class Interrupted:
    """The hub's store, in which somebody else acts once right before the next delete of one key."""

    def __init__(self, store: Store, key: str, deed: Deed) -> None:
        self._store, self._key = store, key
        self._deeds = [deed]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete(self, key: str, *, expected: int | None = None, guard: Guard | None = None) -> Record:
        if key == self._key and self._deeds:
            await self._deeds.pop()()
        return await self._store.delete(key, expected=expected, guard=guard)


@contextmanager
def meanwhile(objects: Objects, key: str, deed: Deed) -> Iterator[None]:
    store, objects.store = objects.store, Interrupted(objects.store, key, deed)  # type: ignore[assignment]
    try:
        yield
    finally:
        objects.store = store


def device(hub: Hub, namespace: str) -> tuple[Device, str]:
    made = hub.add_device(namespace, "till-7")
    return made, key_of(Device, namespace, "till-7")


def replacement(hub: Hub, namespace: str) -> Deed:
    """Somebody deletes the device, and another one enrols under its name."""

    async def act() -> None:
        await hub.objects.delete(Device, namespace, "till-7")
        await hub.objects.create(Device(metadata=ObjectMeta(name="till-7", namespace=namespace, uid="u-new")))

    return act


def heartbeat(hub: Hub, namespace: str) -> Deed:
    """The device reports."""

    async def act() -> None:
        await hub.objects.update_status(
            Device,
            namespace,
            "till-7",
            lambda item: msgspec.structs.replace(item, status=DeviceStatus(phase="Offline")),
        )

    return act


def test_another_device_under_the_same_name_is_not_removed_in_its_place(hub: Hub, namespace: str) -> None:
    made, key = device(hub, namespace)
    with (
        meanwhile(hub.objects, key, replacement(hub, namespace)),
        pytest.raises(ConflictError, match="its uid is u-new"),
    ):
        hub.call(hub.objects.delete(Device, namespace, "till-7", uid=made.metadata.uid))
    assert hub.call(hub.objects.get(Device, namespace, "till-7")).metadata.uid == "u-new"


def test_what_is_returned_is_what_was_removed(hub: Hub, namespace: str) -> None:
    _, key = device(hub, namespace)
    with meanwhile(hub.objects, key, replacement(hub, namespace)):
        removed = hub.call(hub.objects.delete(Device, namespace, "till-7"))
    assert removed.metadata.uid == "u-new"
    assert hub.call(hub.objects.find(Device, namespace, "till-7")) is None


def test_a_report_that_comes_meanwhile_does_not_save_the_device(hub: Hub, namespace: str) -> None:
    made, key = device(hub, namespace)
    with meanwhile(hub.objects, key, heartbeat(hub, namespace)):
        removed = hub.call(hub.objects.delete(Device, namespace, "till-7", uid=made.metadata.uid))
    assert removed.status.phase == "Offline"
    assert hub.call(hub.objects.find(Device, namespace, "till-7")) is None


def test_a_version_that_was_asked_for_is_the_only_one_that_goes(hub: Hub, namespace: str) -> None:
    made, key = device(hub, namespace)
    version = made.metadata.resource_version
    with meanwhile(hub.objects, key, heartbeat(hub, namespace)), pytest.raises(ConflictError):
        hub.call(hub.objects.delete(Device, namespace, "till-7", resource_version=version))
    assert hub.call(hub.objects.get(Device, namespace, "till-7")).status.phase == "Offline"


def test_what_somebody_else_deleted_meanwhile_is_not_found(hub: Hub, namespace: str) -> None:
    _, key = device(hub, namespace)
    gone = meanwhile(hub.objects, key, lambda: hub.objects.delete(Device, namespace, "till-7"))
    with gone, pytest.raises(NotFoundError):
        hub.call(hub.objects.delete(Device, namespace, "till-7"))


def test_a_finalizer_that_is_set_meanwhile_holds(hub: Hub, admin: HubClient) -> None:
    namespace = admin.namespace
    spec = ModelDeploymentSpec(model_version="digits-v1", device_selector=LabelSelector())
    hub.call(hub.objects.create(ModelDeployment(metadata=ObjectMeta(name="digits", namespace=namespace), spec=spec)))

    async def hold() -> None:
        found = await hub.objects.get(ModelDeployment, namespace, "digits")
        meta = msgspec.structs.replace(found.metadata, finalizers=["example.com/keep"])
        await hub.objects.replace(msgspec.structs.replace(found, metadata=meta))

    with meanwhile(hub.objects, key_of(ModelDeployment, namespace, "digits"), hold):
        admin.delete(ModelDeployment, "digits")
    kept = hub.call(hub.objects.get(ModelDeployment, namespace, "digits"))
    assert kept.metadata.deletion_timestamp is not None
    assert kept.metadata.finalizers == ["example.com/keep"]


def test_through_the_api_the_successor_keeps_what_is_desired_of_it(hub: Hub, admin: HubClient) -> None:
    """A DELETE with a uid is of that device: neither its successor nor the successor's record goes."""
    namespace = admin.namespace
    made, key = device(hub, namespace)
    empty = DesiredRecord(uid="u-new", namespace=namespace, device="till-7")

    async def act() -> None:
        await replacement(hub, namespace)()
        await hub.objects.change_desired(empty, lambda record: msgspec.structs.replace(record, manifest_version=3))

    options = {"preconditions": {"uid": made.metadata.uid}}
    with meanwhile(hub.objects, key, act):
        answer = admin.http.request(
            "DELETE", f"/apis/skerry.dev/v1alpha1/namespaces/{namespace}/devices/till-7", json=options
        )
    assert answer.status_code == 409
    assert hub.call(hub.objects.get(Device, namespace, "till-7")).metadata.uid == "u-new"
    kept = hub.call(hub.objects.get_desired("u-new"))
    assert kept is not None
    assert kept.manifest_version == 3
