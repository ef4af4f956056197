"""How a watch begins, and how one that sees nothing knows how far it has got."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest
from tests.integration.api.test_api_watch import watching

from skerry.api.kinds.device import Device
from skerry.drivers.client.api import HubClient
from skerry.hub.server import watch

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub


def test_a_watch_that_selects_nothing_of_what_happens_is_told_of_it(
    hub: Hub, admin: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on from where it began, which may be compacted away by then."""
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.0)
    version = hub.add_device(admin.namespace, "a", site="lab").metadata.resource_version
    with watching(admin, resourceVersion=version, labelSelector="site=lab", allowWatchBookmarks="true") as events:
        other = hub.add_device(admin.namespace, "b", site="shop")
        event = next(events)
        assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "Device")
        assert event["object"]["metadata"]["resourceVersion"] == other.metadata.resource_version
        admin.patch(Device, "a", {"spec": {"cordoned": True}})
        assert next(events)["type"] == "MODIFIED"
    with watching(admin, resourceVersion=version, labelSelector="site=lab") as events:
        assert next(events)["type"] == "MODIFIED", "who did not ask for bookmarks gets none"


def test_a_watch_may_begin_without_what_there_is(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    for version in ({}, {"resourceVersion": "0"}):
        with watching(admin, sendInitialEvents="false", **version) as events:
            admin.patch(Device, "a", {"metadata": {"labels": {"at": version.get("resourceVersion", "none")}}})
            (event,) = islice(events, 1)
        assert event["type"] == "MODIFIED"
