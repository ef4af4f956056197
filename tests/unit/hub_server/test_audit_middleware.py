"""What the hub's application puts into its audit log, with the log's disk in every state."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest

from skerry.api.audit import AuditEvent
from skerry.api.errors import NotFoundError
from skerry.api.kinds.device import Device
from skerry.core.access import Identity
from skerry.core.audit_policy import Reads
from skerry.drivers import audit_files
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import pki
from skerry.hub.audit.log import AuditLog, AuditSettings
from skerry.hub.audit.ranked import RankedLog, open_ranked_log
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY
from skerry.hub.objects import Objects
from skerry.hub.server.app import build_app
from skerry.kit.clock import SystemClock

DEVICES = "/apis/skerry.dev/v1alpha1/namespaces/default/devices"
ADMIN = Identity(role="admin", name="root")
ALICE = Identity(role="user", name="alice", groups=("ops",))
TILL = Identity(role="device", name="d1", namespace="default")
STRANGER = Identity(role="anonymous")
CLOCK = SystemClock()


class Hub:
    """An application whose callers are whoever the test says."""

    def __init__(self, context: HubContext, log: RankedLog) -> None:
        self.context, self.log = context, log
        self.app = build_app(context)

    async def ask(self, who: Identity, method: str, path: str, **sent: Any) -> httpx.Response:
        async def as_who(scope: Any, receive: Any, send: Any) -> None:
            scope[IDENTITY] = who
            await self.app(scope, receive, send)

        transport = httpx.ASGITransport(as_who, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
            return await client.request(method, path, **sent)

    async def create(self, name: str, who: Identity = ADMIN, **sent: Any) -> httpx.Response:
        body = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device", "metadata": {"name": name}}
        return await self.ask(who, "POST", DEVICES, json=body, **sent)

    def entries(self, stage: str = "ResponseComplete") -> list[AuditEvent]:
        found = []
        for part in (self.log.main, self.log.bulk):
            for segment in audit_files.segments(part.directory):
                with segment.path.open("rb") as file:
                    found += [msgspec.json.decode(line, type=AuditEvent) for line, _ in audit_files.lines(file)]
        return [entry for entry in found if stage in ("", entry.stage)]


@contextlib.asynccontextmanager
async def hub_in(
    directory: Path, reads: Reads = "none", *, most: int = AuditSettings.total_bytes
) -> AsyncIterator[Hub]:
    async with (
        open_store(directory / "hub.db") as store,
        open_ranked_log(directory / "audit", AuditSettings(reads=reads, total_bytes=most), CLOCK) as log,
    ):
        context = HubContext(
            objects=Objects(store, CLOCK),
            artifacts=DirectoryStore(directory / "artifacts"),
            clock=CLOCK,
            authority=pki.open_authority(directory / "pki", names=(), clock=CLOCK),
            gateway=cast("Any", None),  # not asked
            state_dir=directory,
            hub_url="https://h:1",
            mqtt_host="h",
            mqtt_port=1,
            audit=log,
        )
        yield Hub(context, log)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with hub_in(tmp_path) as made:
        yield made


@contextlib.contextmanager
def log_full(part: AuditLog) -> Iterator[None]:
    """Have the system refuse to let the log grow; the store, whose files are larger already, does not need to."""
    size = sum(segment.path.stat().st_size for segment in audit_files.segments(part.directory))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_cannot_be_recorded_is_not_done_and_reads_go_on(hub: Hub) -> None:
    assert (await hub.create("one")).status_code == 201
    with log_full(hub.log.main):
        refused = await hub.create("two")
        seen = await hub.ask(ADMIN, "GET", f"{DEVICES}/one")
    assert (refused.status_code, refused.json()["reason"]) == (507, "StorageFull")
    assert "what cannot be recorded is not done" in refused.text
    assert refused.headers["audit-id"]
    assert seen.status_code == 200
    with pytest.raises(NotFoundError):
        await hub.context.objects.get(Device, "default", "two")
    assert (await hub.create("two")).status_code == 201
    assert [entry.object_ref and entry.object_ref.name for entry in hub.entries()] == ["one", "two"]


async def test_an_answer_whose_entry_cannot_be_written_is_not_given(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await hub.create("one")).status_code == 201
    begun, create = asyncio.Event(), hub.context.objects.create

    async def then_full(item: Any) -> Any:
        made = await create(item)
        begun.set()
        stack.enter_context(log_full(hub.log.main))
        return made

    monkeypatch.setattr(hub.context.objects, "create", then_full)
    with contextlib.ExitStack() as stack:
        answer = await hub.create("two")
    assert begun.is_set()
    assert answer.status_code == 507
    received = [entry for entry in hub.entries("") if entry.stage == "RequestReceived"]
    assert len(received) == 2  # so it is known that it was asked for
    assert len(hub.entries()) == 1


async def test_who_acts_as_whom_is_recorded_and_who_may_not_too(hub: Hub) -> None:
    given = await hub.create("one", headers={"Impersonate-User": "bob", "Impersonate-Group": "ops"})
    assert given.status_code == 403
    assert (await hub.create("two", headers={"Impersonate-User": "eve"}, who=ALICE)).status_code == 403
    asked, refused = hub.entries()
    assert asked.user.username == "root"
    assert asked.impersonated_user is not None
    assert asked.impersonated_user.username == "bob"
    assert "audit.skerry.dev/impersonation-refused" not in asked.annotations
    assert refused.user.username == "alice"
    assert set(refused.user.groups) >= {"ops", "system:authenticated"}
    assert refused.impersonated_user is None
    assert refused.annotations["audit.skerry.dev/impersonation-refused"] == "eve"
    assert refused.source_ips == ["192.0.2.7"]


async def test_a_patch_tells_its_fields_and_not_their_values(hub: Hub) -> None:
    await hub.create("one")
    change = {"metadata": {"labels": {"site": "very-secret-site"}}, "spec": {"cordoned": True}}
    headers = {"Content-Type": "application/merge-patch+json"}
    assert (await hub.ask(ADMIN, "PATCH", f"{DEVICES}/one", json=change, headers=headers)).status_code == 200
    entry = hub.entries()[-1]
    assert entry.annotations["audit.skerry.dev/fields"] == "metadata.labels.site,spec.cordoned"
    assert "very-secret-site" not in str(entry)
    assert entry.object_ref is not None
    assert entry.object_ref.resource_version


async def test_questions_are_no_writes_and_health_is_nobodys_business(tmp_path: Path) -> None:
    async with hub_in(tmp_path, reads="metadata") as hub:
        assert (await hub.ask(STRANGER, "GET", "/healthz")).status_code == 200
        assert (await hub.ask(ADMIN, "GET", DEVICES)).status_code == 200
        entries = hub.entries("")
        assert [(entry.verb, entry.stage) for entry in entries] == [("list", "ResponseComplete")]


async def test_a_strangers_garbage_and_a_devices_repetitions_are_counted_not_written(hub: Hub) -> None:
    enrollments = DEVICES.replace("devices", "enrollments")
    bearer = {"Authorization": "Bearer skj1.a.b.c"}
    for _ in range(70):
        answer = await hub.ask(STRANGER, "POST", enrollments, content=b"{", headers=bearer)
        assert 400 <= answer.status_code < 500
    for _ in range(70):
        assert (await hub.ask(TILL, "POST", enrollments, json={})).status_code >= 400
    assert (await hub.create("one")).status_code == 201
    entries = hub.entries("")
    by_user = {name: sum(entry.user.username == name for entry in entries) for name in ("root", TILL.username)}
    strangers = sum(entry.user.username == "system:anonymous" for entry in entries)
    assert by_user["root"] == 2
    assert 50 <= by_user[TILL.username] < 70
    assert 50 <= strangers < 70
    counted = [int(entry.annotations.get("audit.skerry.dev/refusals-not-recorded", 0)) for entry in entries]
    assert sum(counted) == 140 - strangers - by_user[TILL.username]


async def test_who_goes_before_the_answer_is_recorded_as_gone(hub: Hub) -> None:
    sent: list[Any] = []
    await asgi(
        hub, ADMIN, [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}], sent
    )
    assert sent == []
    assert [entry.stage for entry in hub.entries("")] == ["RequestReceived", "Panic"]


async def test_a_watch_is_recorded_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    async with hub_in(tmp_path, reads="metadata") as hub:
        going, begun = asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            await going.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            assert [entry.stage for entry in hub.entries("")] == ["ResponseStarted"]  # before anything is said
            assert message
            begun.set()

        task = asyncio.create_task(run(hub, ADMIN, f"GET {DEVICES}?watch=true", receive, send))
        async with asyncio.timeout(20):
            await begun.wait()
            going.set()
            await task
        entries = hub.entries("")
        assert [(entry.verb, entry.stage) for entry in entries] == [
            ("watch", "ResponseStarted"),
            ("watch", "ResponseComplete"),
        ]
        assert len({entry.audit_id for entry in entries}) == 1


async def test_nothing_lasting_begins_that_cannot_be_recorded(tmp_path: Path) -> None:
    async with hub_in(tmp_path, reads="metadata") as hub:
        assert (await hub.create("one")).status_code == 201
        with log_full(hub.log.bulk):
            async with asyncio.timeout(20):  # it ends by itself, though nobody hangs up
                refused = await hub.ask(ADMIN, "GET", DEVICES, params={"watch": "true"})
        assert refused.status_code == 507
        assert hub.entries("ResponseStarted") == []


async def test_a_request_that_is_cancelled_is_recorded_when_the_log_is_closed(tmp_path: Path) -> None:
    async with hub_in(tmp_path) as hub:
        never = asyncio.Event()

        async def receive() -> Any:
            await never.wait()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        task = asyncio.create_task(run(hub, ADMIN, f"POST {DEVICES}", receive, send))
        async with asyncio.timeout(20):
            while not hub.entries("RequestReceived"):  # noqa: ASYNC110 - the log signals its readers only
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
    assert [entry.stage for entry in hub.entries("")] == ["RequestReceived", "Panic"]


async def asgi(hub: Hub, who: Identity, messages: list[Any], sent: list[Any]) -> None:
    waiting = iter(messages)

    async def receive() -> Any:
        return next(waiting)

    async def send(message: Any) -> None:
        sent.append(message)

    await run(hub, who, f"POST {DEVICES}", receive, send)


async def run(
    hub: Hub,
    who: Identity,
    asked: str,
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
    *,
    headers: dict[str, str] | None = None,
) -> None:
    method, _, target = asked.partition(" ")
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items()
        ],
        "client": ("192.0.2.7", 1),
        "server": ("hub", 1),
        "scheme": "https",
        "http_version": "1.1",
        IDENTITY: who,
    }
    await hub.app(scope, receive, send)
