"""Lists of more objects than a page has: sent in pieces, in every form, while others are answered."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.api.paths import TABLE, path, status

from skerry.api import meta
from skerry.api.kinds.device import Device
from skerry.drivers.client.api import HubClient, load_kubeconfig
from skerry.hub import objects

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

SPACE = "long-lists"
COUNT = 1203
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
LONG = {"example.com/long": "x" * 6000}
"""So that a list is more than what sockets hold for a reader that takes nothing."""
NAMES = [f"d{number:04}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def fleet(hub: Hub) -> Iterator[HubClient]:
    """A namespace with many devices, in the store as they are kept."""
    one = hub.add_device(SPACE, "first")

    async def fill() -> None:
        store = hub.objects.store
        for name in NAMES:
            item = Device(
                metadata=meta.ObjectMeta(name=name, namespace=SPACE, uid=name, annotations=LONG),
                status=one.status,
            )
            await store.create(objects.key_of(Device, SPACE, name), objects.encode(item))
        await hub.objects.delete(Device, SPACE, "first")

    hub.call(fill())
    with hub.client(SPACE) as client:
        yield client
        client.http.request("DELETE", path(SPACE, "devices"), timeout=60)


def names_of(listed: dict[str, Any]) -> list[str]:
    entries = [row["object"] for row in listed["rows"]] if "rows" in listed else listed["items"]
    return [entry["metadata"]["name"] for entry in entries]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize(
    ("accept", "kind"), [("*/*", "DeviceList"), (TABLE, "Table"), (PARTIAL, "PartialObjectMetadataList")]
)
def test_every_form_is_sent_in_pieces(fleet: HubClient, accept: str, kind: str, coding: str) -> None:
    where, headers = path(SPACE, "devices"), {"accept": accept, "accept-encoding": coding}
    answer = fleet.http.get(where, headers=headers)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers.get("content-encoding", "identity") == coding
    listed = answer.json()
    assert (listed["kind"], names_of(listed)) == (kind, NAMES)
    assert list(listed)[:3] == ["kind", "apiVersion", "metadata"]
    assert set(listed["metadata"]) == {"resourceVersion"}
    pages: list[Any] = []
    token = ""
    while token or not pages:
        page = fleet.http.get(where, headers=headers, params={"limit": "500", "continue": token})
        assert "transfer-encoding" not in page.headers
        pages.append(page.json())
        token = pages[-1]["metadata"].get("continue", "")
    entries = "rows" if kind == "Table" else "items"
    in_pages = [entry for page in pages for entry in page[entries]]
    assert without_ages(in_pages) == without_ages(listed[entries])
    assert {key: listed[key] for key in listed if key not in (entries, "metadata")} == {
        key: pages[0][key] for key in pages[0] if key not in (entries, "metadata")
    }


def without_ages(entries: list[Any]) -> list[Any]:
    return [{**entry, "cells": entry["cells"][:3]} if "cells" in entry else entry for entry in entries]


def test_a_long_page_tells_where_it_goes_on(fleet: HubClient) -> None:
    where = path(SPACE, "devices")
    page = fleet.http.get(where, params={"limit": "1100"}).json()
    assert (names_of(page), page["metadata"]["remainingItemCount"]) == (NAMES[:1100], COUNT - 1100)
    rest = fleet.http.get(where, params={"limit": "1100", "continue": page["metadata"]["continue"]}).json()
    assert (names_of(rest), set(rest["metadata"])) == (NAMES[1100:], {"resourceVersion"})
    assert rest["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]
    whole = fleet.http.get(where, params={"limit": str(COUNT)}).json()
    assert (names_of(whole), "continue" in whole["metadata"]) == (NAMES, False)


def test_a_selection_of_few_is_one_answer(fleet: HubClient) -> None:
    answer = fleet.http.get(
        path(SPACE, "devices"), params={"fieldSelector": "metadata.name!=d0001,metadata.name=d1200"}
    )
    assert "transfer-encoding" not in answer.headers
    many = fleet.http.get(path(SPACE, "devices"), params={"fieldSelector": "metadata.name!=d0001"})
    assert names_of(many.json()) == [name for name in NAMES if name != "d0001"]


@pytest.mark.parametrize("accept", ["*/*", TABLE, PARTIAL])
def test_pods_and_nodes(fleet: HubClient, accept: str) -> None:
    pods = fleet.http.get(f"/api/v1/namespaces/{SPACE}/pods", headers={"accept": accept})
    assert pods.headers["transfer-encoding"] == "chunked"
    assert names_of(pods.json()) == [f"digits.{name}" for name in NAMES]
    where, token = "/api/v1/nodes", ""
    found: list[str] = []
    parameters = {"limit": "700", "labelSelector": f"skerry.dev/namespace={SPACE}"}
    while token or not found:
        page = fleet.http.get(where, headers={"accept": accept}, params={**parameters, "continue": token}).json()
        found += names_of(page)
        token = page["metadata"].get("continue", "")
    assert found == [f"{name}.{SPACE}" for name in NAMES]


@pytest.mark.parametrize("plural", ["devices", "pods"])
def test_what_is_wrong_with_it_is_said_before_it_begins(fleet: HubClient, plural: str) -> None:
    where = path(SPACE, "devices") if plural == "devices" else f"/api/v1/namespaces/{SPACE}/pods"
    answer = fleet.http.get(where, params={"includeObject": "Some"}, headers={"accept": TABLE})
    status(answer, 400, "BadRequest")


def test_head_reads_nothing(fleet: HubClient) -> None:
    answer = fleet.http.head(path(SPACE, "devices"))
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_revision_is_the_first_pages(hub: Hub, fleet: HubClient) -> None:
    """What is written while the list is sent is not in it."""
    with fleet.http.stream("GET", path(SPACE, "devices"), headers={"accept-encoding": "identity"}) as answer:
        hub.add_device(SPACE, "zz-later")
        listed = json.loads(b"".join(answer.iter_bytes()))
    fleet.delete(Device, "zz-later")
    assert names_of(listed) == NAMES


def request(hub: Hub, target: str, version: str = "1.1") -> ssl.SSLSocket:
    """Ask as the admin, by a connection that takes little and reads nothing yet."""
    connection = load_kubeconfig(hub.kubeconfig)
    context = ssl.create_default_context(cadata=connection.ca.decode())
    pair = hub.directory / "long-list.pem"
    pair.write_bytes(connection.certificate + connection.key)
    context.load_cert_chain(pair)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(10)
    plain.connect(("127.0.0.1", int(hub.url.rpartition(":")[2])))
    taken = context.wrap_socket(plain, server_hostname="127.0.0.1")
    taken.sendall(f"GET {target} HTTP/{version}\r\nhost: hub\r\n\r\n".encode())
    return taken


def lists_under_way(hub: Hub) -> int:
    async def count() -> int:
        return sum("_LongList._send" in str(task.get_coro()) for task in asyncio.all_tasks())

    return hub.call(count())


async def _until_none(hub: Hub) -> None:
    async with asyncio.timeout(10):
        while any("_LongList._send" in str(task.get_coro()) for task in asyncio.all_tasks()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_client_that_leaves_ends_its_list(hub: Hub, fleet: HubClient) -> None:
    with closing(request(hub, path(SPACE, "devices"))) as taken:
        assert taken.recv(15).startswith(b"HTTP/1.1 200")
        assert lists_under_way(hub) == 1, "it waits for its reader"
        assert fleet.http.get("/healthz").text == "ok", "and nobody else does"
    hub.call(_until_none(hub))


def test_a_list_that_cannot_go_on_breaks_off(hub: Hub, fleet: HubClient) -> None:
    """Nobody takes a part for the whole: its revision is compacted away while it is read."""
    with closing(request(hub, path(SPACE, "devices"))) as taken:
        assert taken.recv(15).startswith(b"HTTP/1.1 200")
        store = hub.objects.store
        hub.add_device(SPACE, "zz-later")
        fleet.delete(Device, "zz-later")
        hub.call(store.compact(hub.call(store.revision())))
        got = b""
        while piece := taken.recv(65536):
            got += piece
    assert b"d0999" in got
    assert b"d1202" not in got
    assert not got.endswith(b"0\r\n\r\n"), "a body in chunks that has its end"
    hub.call(_until_none(hub))


@pytest.mark.parametrize(("limit", "count"), [("", COUNT), ("?limit=3", 3)])
def test_who_knows_no_chunks_reads_to_the_end(hub: Hub, fleet: HubClient, limit: str, count: int) -> None:
    """HTTP/1.0, as some proxies speak it."""
    del fleet
    raw = b""
    with closing(request(hub, path(SPACE, "devices") + limit, "1.0")) as asking:
        while piece := asking.recv(65536):
            raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in head.lower()
    assert names_of(json.loads(body)) == NAMES[:count]
