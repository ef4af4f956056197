"""Stored roles as decisions: never behind a write that was answered, and the shipped ones repaired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from skerry.api.errors import UnavailableError
from skerry.api.kinds.rbac import ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject
from skerry.api.meta import ObjectMeta
from skerry.core import rbac
from skerry.core.access import Identity
from skerry.core.rbac import Attributes
from skerry.drivers.store.sqlite import open_store
from skerry.hub import authorization, roles
from skerry.hub.authorization import AdminsOnly, RoleAuthorizer
from skerry.hub.controllers.informer import of_kind
from skerry.hub.objects import Objects, key_of
from skerry.kit.clock import SystemClock

ALICE = Identity(role="user", name="alice")
LIST = Attributes(verb="list", group="skerry.dev", resource="devices", namespace="shop")
READ = PolicyRule(verbs=["list"], api_groups=["skerry.dev"], resources=["devices"])
Test = Callable[[Objects], Awaitable[None]]


def with_store(directory: Path, test: Test) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), open_store(directory / "hub.db") as store:
            await test(Objects(store, SystemClock()))

    asyncio.run(run())


@asynccontextmanager
async def running(authorizer: RoleAuthorizer) -> AsyncIterator[None]:
    task = asyncio.create_task(authorizer.run())
    try:
        await authorizer.policy()
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(holds: Callable[[], Awaitable[bool]], *, is_not: bool = False) -> None:
    while await holds() is is_not:  # noqa: ASYNC110 - what a watch brings has no event for outsiders
        await asyncio.sleep(0.001)


def role(name: str = "reader", *rules: PolicyRule) -> ClusterRole:
    return ClusterRole(metadata=ObjectMeta(name=name), rules=list(rules or (READ,)))


def binding(name: str = "reads", to: str = "reader") -> RoleBinding:
    return RoleBinding(
        metadata=ObjectMeta(name=name, namespace="shop"),
        role_ref=RoleRef(kind="ClusterRole", name=to),
        subjects=[Subject(kind="User", name="alice")],
    )


async def may(authorizer: RoleAuthorizer) -> bool:
    return (await authorizer.authorize(ALICE, LIST)).allowed


def test_writes_of_this_hub_count_at_once_even_where_no_watch_tells_of_them(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        authorizer = RoleAuthorizer(objects)
        async with running(authorizer):
            assert not await may(authorizer)
        # nobody follows any more: what is known from here on is what the writes told
        await objects.create(role())
        made = await objects.create(binding())
        assert await may(authorizer)
        await objects.replace(msgspec.structs.replace(made, subjects=[]))
        assert not await may(authorizer)
        await objects.delete(RoleBinding, "shop", "reads")
        await objects.create(binding())
        assert await may(authorizer)
        await objects.delete(ClusterRole, "", "reader")
        assert not await may(authorizer)
        await objects.create(Role(metadata=ObjectMeta(name="reader", namespace="shop"), rules=[READ]))
        assert not await may(authorizer)

    with_store(tmp_path, test)


def test_every_answered_write_counts_among_many_at_a_time(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        authorizer = RoleAuthorizer(objects)

        async def come_and_go(number: int) -> None:
            name, who = f"b{number}", Identity(role="user", name=f"u{number}")
            for _ in range(20):
                item = msgspec.structs.replace(binding(name), subjects=[Subject(kind="User", name=who.name)])
                await objects.create(item)
                assert (await authorizer.authorize(who, LIST)).allowed
                await objects.delete(RoleBinding, "shop", name)
                assert not (await authorizer.authorize(who, LIST)).allowed
                await asyncio.sleep(0)
                assert not (await authorizer.authorize(who, LIST)).allowed

        async with running(authorizer):
            await objects.create(role())
            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(come_and_go(number))

    with_store(tmp_path, test)


def test_what_others_write_arrives_by_the_watch(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        authorizer = RoleAuthorizer(objects)
        async with running(authorizer):
            other = Objects(objects.store, SystemClock())
            await other.create(role())
            await other.create(binding())
            await until(lambda: may(authorizer))
            await other.delete(RoleBinding, "shop", "reads")
            await until(lambda: may(authorizer), is_not=True)

    with_store(tmp_path, test)


def test_what_is_gone_does_not_come_back_with_a_writer_that_hears_late(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        told: list[tuple[bool, bool]] = []
        follower = of_kind(objects.store, ClusterRole, lambda old, new: told.append((old is None, new is None)))
        made = await objects.create(role())
        revision = int(made.metadata.resource_version)
        follower.forget("reader", revision + 1)
        follower.observe("reader", made, revision)
        assert follower.get("reader") is None
        follower.observe("reader", made, revision + 2)
        follower.forget("reader", revision + 1)
        assert follower.get("reader") is made
        assert told == [(True, False)]

    with_store(tmp_path, test)


def test_nobody_but_admins_is_answered_before_the_roles_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authorization, "SYNC_SECONDS", 0.01)

    async def test(objects: Objects) -> None:
        authorizer = RoleAuthorizer(objects)
        with pytest.raises(UnavailableError, match="have not been read yet"):
            await may(authorizer)
        assert (await authorizer.authorize(Identity(role="admin", name="ada"), LIST)).allowed

    with_store(tmp_path, test)


def test_without_roles_admins_may_and_nobody_else() -> None:
    async def test() -> None:
        assert (await AdminsOnly().authorize(Identity(role="admin", name="ada"), LIST)).allowed
        assert not (await AdminsOnly().authorize(ALICE, LIST)).allowed

    asyncio.run(test())


async def shipped(objects: Objects, name: str) -> ClusterRole:
    return await objects.get(ClusterRole, "", name)


def test_shipped_roles_are_made_and_repaired_and_what_was_added_stays(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        await roles.ensure(objects)
        viewer = await shipped(objects, "skerry-viewer")
        mine = PolicyRule(verbs=["get"], api_groups=["example.org"], resources=["things"])
        first, *rest = viewer.rules
        await objects.replace(msgspec.structs.replace(viewer, rules=[*rest, mine]))
        bound = await objects.get(ClusterRoleBinding, "", "system:discovery")
        eve = Subject(kind="User", name="eve")
        await objects.replace(msgspec.structs.replace(bound, subjects=[eve]))
        await roles.ensure(objects)
        repaired = await shipped(objects, "skerry-viewer")
        assert mine in repaired.rules
        assert rbac.uncovered(repaired.rules, viewer.rules) == []
        assert first.resources
        subjects = (await objects.get(ClusterRoleBinding, "", "system:discovery")).subjects
        assert [one.name for one in subjects] == ["eve", "system:authenticated"]
        before = await objects.store.revision()
        await roles.ensure(objects)
        assert await objects.store.revision() == before

    with_store(tmp_path, test)


def test_whoever_opts_out_is_left_alone_and_a_binding_to_another_role_is_put_back(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        await roles.ensure(objects)
        viewer = await shipped(objects, "skerry-viewer")
        mine = msgspec.structs.replace(viewer.metadata, annotations={roles.AUTOUPDATE: "false"})
        await objects.replace(msgspec.structs.replace(viewer, metadata=mine, rules=[]))
        await objects.delete(ClusterRoleBinding, "", "system:basic-user")
        other = ClusterRoleBinding(
            metadata=ObjectMeta(name="system:basic-user"), role_ref=RoleRef(kind="ClusterRole", name="cluster-admin")
        )
        await objects.create(other)
        await objects.delete(ClusterRole, "", "skerry-operator")
        await roles.ensure(objects)
        assert (await shipped(objects, "skerry-viewer")).rules == []
        found = await objects.get(ClusterRoleBinding, "", "system:basic-user")
        assert found.role_ref.name == "system:basic-user"
        assert (await shipped(objects, "skerry-operator")).rules

    with_store(tmp_path, test)


def test_a_damaged_role_keeps_neither_the_hub_from_starting_nor_others_from_counting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(objects: Objects) -> None:
        await objects.store.create(key_of(ClusterRole, "", "skerry-viewer"), b'{"rules": "*"')
        await objects.store.create(key_of(RoleBinding, "shop", "bad"), b"\xff")
        await roles.ensure(objects)
        await objects.create(role())
        await objects.create(binding())
        await objects.create(binding("also", "skerry-viewer"))
        authorizer = RoleAuthorizer(objects)
        async with running(authorizer):
            assert await may(authorizer)
            await objects.delete(ClusterRole, "", "reader")
            assert not await may(authorizer)

    with_store(tmp_path, test)
    assert "roles.unreadable" in caplog.text
    assert "informer.unreadable" in caplog.text


def test_what_aggregating_roles_show_is_written_into_them(tmp_path: Path) -> None:
    async def test(objects: Objects) -> None:
        await roles.ensure(objects)
        authorizer = RoleAuthorizer(objects)
        async with running(authorizer):
            operator = await shipped(objects, "skerry-operator")

            async def shown() -> bool:
                return not rbac.uncovered((await shipped(objects, "edit")).rules, operator.rules)

            await until(shown)
            await objects.delete(ClusterRole, "", "skerry-operator")
            await until(shown, is_not=True)

    with_store(tmp_path, test)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (Attributes(verb="get", group="skerry.dev", resource="devices"), "skerry-viewer"),
        (Attributes(verb="delete", group="skerry.dev", resource="devices"), "skerry-operator"),
        (Attributes(verb="create", group="skerry.dev", resource="modelversions"), "skerry-model-publisher"),
        (Attributes(verb="create", group="skerry.dev", resource="trustpolicies"), "skerry-admin"),
        (Attributes(verb="impersonate", resource="users"), "cluster-admin"),
        (Attributes(verb="get", path="/metrics"), "cluster-admin"),
    ],
)
def test_the_role_that_is_proposed_is_the_least(wanted: Attributes, name: str) -> None:
    assert roles.granting(wanted) == name


def test_no_shipped_role_but_the_admins_writes_statuses_tokens_or_roles() -> None:
    doors = [
        Attributes(verb=verb, group=group, resource=resource, subresource=subresource, name="x", namespace="shop")
        for group, resource, subresource, verb in (
            ("skerry.dev", "registrytokens", "status", "update"),
            ("skerry.dev", "jointokens", "status", "patch"),
            ("skerry.dev", "modelversions", "status", "update"),
            ("", "serviceaccounts", "token", "create"),
            ("", "users", "", "impersonate"),
            ("rbac.authorization.k8s.io", "roles", "", "create"),
            ("rbac.authorization.k8s.io", "clusterroles", "", "escalate"),
            ("rbac.authorization.k8s.io", "clusterroles", "", "bind"),
            ("certificates.k8s.io", "signers", "", "approve"),
            ("skerry.dev", "auditevents", "", "list"),
        )
    ]
    trusted = {"skerry-admin", "cluster-admin", "admin"}
    for one in roles.CLUSTER_ROLES:
        for door in doors:
            if one.metadata.name not in trusted:
                assert not any(rbac.allows(rule, door) for rule in one.rules), (one.metadata.name, door)
