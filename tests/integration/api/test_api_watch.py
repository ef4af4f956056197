"""Watches: in order, from any revision, through selectors, as tables, and what ends them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from skerry.api import errors
from skerry.api.kinds.device import Device
from skerry.drivers.client import api as client_api
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import Connection

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

BASE = "/apis/skerry.dev/v1alpha1/namespaces"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
WAIT = 10.0


@contextmanager
def watching(
    client: HubClient, *, accept: str = "application/json", **parameters: str
) -> Iterator[Iterator[dict[str, Any]]]:
    where = f"{BASE}/{client.namespace}/devices"
    with client.http.stream(
        "GET", where, params={"watch": "true", **parameters}, headers={"accept": accept}, timeout=WAIT
    ) as response:
        assert response.status_code == 200
        yield (json.loads(line) for line in response.iter_lines())


def seen(events: Iterator[dict[str, Any]], count: int) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in islice(events, count)]


def test_a_watch_without_a_revision_begins_with_all_there_is(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    hub.add_device(f"{admin.namespace}-other", "x")
    with watching(admin) as events:
        assert seen(events, 1) == [("ADDED", "a")]
        hub.add_device(admin.namespace, "b")
        admin.patch(Device, "a", {"spec": {"cordoned": True}})
        admin.delete(Device, "a")
        assert seen(events, 3) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_from_a_revision_misses_nothing_after_it(hub: Hub, admin: HubClient) -> None:
    version = hub.add_device(admin.namespace, "a").metadata.resource_version
    admin.patch(Device, "a", {"spec": {"cordoned": True}})
    hub.add_device(admin.namespace, "b")
    with watching(admin, resourceVersion=version) as events:
        changes = list(islice(events, 2))
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in changes] == [
        ("MODIFIED", "a"),
        ("ADDED", "b"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in changes]
    assert int(version) < versions[0] < versions[1]


def test_objects_come_into_sight_and_leave_it(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a", site="lab")
    hub.add_device(admin.namespace, "b", site="shop")
    with watching(admin, labelSelector="site=lab") as events:
        assert seen(events, 1) == [("ADDED", "a")]
        admin.patch(Device, "b", {"spec": {"cordoned": True}})  # never seen
        admin.patch(Device, "b", {"metadata": {"labels": {"site": "lab"}}})
        admin.patch(Device, "a", {"metadata": {"labels": {"site": "shop"}}})
        admin.delete(Device, "a")  # not in sight any more
        admin.delete(Device, "b")
        assert seen(events, 3) == [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]


def test_a_deletion_carries_the_revision_to_go_on_from(hub: Hub, admin: HubClient) -> None:
    version = hub.add_device(admin.namespace, "a").metadata.resource_version
    admin.delete(Device, "a")
    with watching(admin, resourceVersion=version) as events:
        gone = next(events)
    assert gone["object"]["kind"] == "Device"
    hub.add_device(admin.namespace, "b")
    with watching(admin, resourceVersion=gone["object"]["metadata"]["resourceVersion"]) as events:
        assert seen(events, 1) == [("ADDED", "b")]


def test_a_single_object_by_its_name(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    with watching(admin, fieldSelector="metadata.name=b") as events:
        hub.add_device(admin.namespace, "b")
        assert seen(events, 1) == [("ADDED", "b")]


def test_tables_have_their_columns_once(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    with watching(admin, accept=TABLE) as events:
        first = next(events)["object"]
        hub.add_device(admin.namespace, "b")
        second = next(events)["object"]
    assert (first["kind"], second["kind"]) == ("Table", "Table")
    assert first["columnDefinitions"]
    assert not second["columnDefinitions"]
    assert [table["rows"][0]["cells"][0] for table in (first, second)] == ["a", "b"]
    assert second["metadata"]["resourceVersion"] == second["rows"][0]["object"]["metadata"]["resourceVersion"]


def test_the_time_asked_for_ends_it_cleanly(admin: HubClient) -> None:
    with watching(admin, timeoutSeconds="1") as events:
        assert list(events) == []


def test_initial_events_end_with_a_marked_bookmark(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    with watching(admin, sendInitialEvents="true", allowWatchBookmarks="true") as events:
        added, bookmark = islice(events, 2)
    assert added["type"] == "ADDED"
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_compacted_revision_is_gone(hub: Hub, admin: HubClient) -> None:
    version = hub.add_device(admin.namespace, "a").metadata.resource_version
    later = hub.add_device(admin.namespace, "b").metadata.resource_version
    hub.call(hub.objects.store.compact(int(later)))
    with watching(admin, resourceVersion=version) as events:
        event = next(events)
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    with pytest.raises(errors.ExpiredError):
        admin._request(
            "GET",
            f"{BASE}/{admin.namespace}/devices",
            parameters={"resourceVersion": version, "resourceVersionMatch": "Exact"},
        )
    # the client lists again by itself
    found = list(islice(admin.events(Device, resource_version=version, deadline=time.monotonic() + WAIT), 2))
    assert [(event, raw["metadata"]["name"]) for event, raw in found] == [("ADDED", "a"), ("ADDED", "b")]


def test_a_client_that_leaves_ends_its_watch(hub: Hub, admin: HubClient) -> None:
    store: Any = hub.objects.store
    watchers = store._feed._watchers
    before = set(watchers)
    with hub.client(admin.namespace) as other, watching(other) as events:
        hub.add_device(admin.namespace, "a")
        next(events)
        mine = set(watchers) - before
    assert mine
    deadline = time.monotonic() + WAIT
    while mine & set(watchers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not mine & set(watchers)


# --- the client's watches -----------------------------------------------------------------------------------------


def test_the_client_yields_typed_objects_until_the_deadline(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    found = [device.metadata.name for device in admin.watch(Device, deadline=time.monotonic() + 1)]
    assert found == ["a"]


def test_a_named_object_s_deletion_is_an_error(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    objects = admin.watch(Device, "a", deadline=time.monotonic() + WAIT)
    assert next(objects).metadata.name == "a"
    admin.delete(Device, "a")
    with pytest.raises(errors.NotFoundError, match="was deleted"):
        next(objects)


def test_watched_tables_always_have_columns(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    version = admin.table(Device)["metadata"]["resourceVersion"]
    tables = admin.watch_table(Device, resource_version=version)
    hub.add_device(admin.namespace, "b")
    hub.add_device(admin.namespace, "c")
    first, second = islice(tables, 2)
    assert first["columnDefinitions"] == second["columnDefinitions"] != []
    assert [table["rows"][0]["cells"][0] for table in (first, second)] == ["b", "c"]


def test_a_broken_connection_is_made_again_where_it_was(
    hub: Hub, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a relay that is cut: what changes meanwhile is seen afterwards, once."""
    monkeypatch.setattr(client_api, "READ_SECONDS", 2.0)
    with hub.relay() as relay, relay.client(namespace) as client:
        hub.add_device(namespace, "a")
        objects = client.events(Device, deadline=time.monotonic() + 2 * WAIT)
        assert next(objects)[1]["metadata"]["name"] == "a"
        relay.cut()
        hub.add_device(namespace, "b")
        hub.add_device(namespace, "c")
        threading.Timer(0.3, relay.resume).start()
        found = list(islice(objects, 2))
    assert [(event, raw["metadata"]["name"]) for event, raw in found] == [("ADDED", "b"), ("ADDED", "c")]


def test_a_hub_that_was_never_there_is_told_at_once(hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = HubClient(Connection(server=f"http://127.0.0.1:{port}"))
    with client, pytest.raises(errors.UnavailableError) as caught:
        next(iter(client.watch(Device)))
    assert "skerry hub start" in caught.value.hint
    assert str(port) in caught.value.element
