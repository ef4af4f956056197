"""Who may do what: the port that every request of a user goes through, and its driver on the stored roles.

Lives here: the words that all authorizers share, and roles and bindings as they are at this moment. Must not live here:
what rules mean (`core.rbac`), which roles the hub ships (`hub.roles`), HTTP (`hub.server.access` makes attributes of
paths). Source: Kubernetes documentation, "Authorization Overview".

The cache is fed by watches, and by this hub's own writes before anybody is answered: whoever was granted something may
do it at once, whoever lost it may not, as far as this hub has answered. What another replica has written arrives by the
watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from skerry.api.errors import SkerryError, UnavailableError
from skerry.api.kinds import Resource
from skerry.api.kinds.rbac import ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding
from skerry.core import rbac
from skerry.core.access import Identity
from skerry.core.rbac import Attributes, Decision
from skerry.hub import objects as objects_
from skerry.hub.controllers import informer
from skerry.hub.objects import Objects

__all__ = ["AdminsOnly", "Attributes", "Authorizer", "Decision", "RoleAuthorizer"]

log = logging.getLogger(__name__)

SYNC_SECONDS = 10.0
"""How long a request waits for the roles to be read after the hub's start."""
RETRY_SECONDS = 5.0

R = TypeVar("R", Role, ClusterRole, RoleBinding, ClusterRoleBinding)


class Authorizer(Protocol):
    """Says who may do what."""

    async def authorize(self, identity: Identity, attributes: Attributes) -> Decision:
        """Return the decision. Raises UnavailableError when none can be come by: the request is refused then."""
        ...


class AdminsOnly:
    """Allows admins everything and nobody else anything."""

    async def authorize(self, identity: Identity, attributes: Attributes) -> Decision:  # noqa: ARG002 - the port's
        """Return the decision."""
        return Decision(allowed=rbac.is_master(identity))


class RoleAuthorizer:
    """Decides by the stored roles and bindings; `run` keeps them up to date."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._roles: dict[tuple[str, str], Role] = {}
        self._cluster_roles: dict[str, ClusterRole] = {}
        self._effective: dict[str, ClusterRole] = {}
        """ClusterRoles with the rules that they aggregate, as far as they have been asked for since the last change."""
        self._bindings: dict[str, dict[str, RoleBinding]] = {}
        self._cluster_bindings: dict[str, dict[str, ClusterRoleBinding]] = {}
        """By what their subjects are found by, then by name: there may be one for each of many users."""
        self._stale = asyncio.Event()
        """Set when a ClusterRole has changed, and others' stored rules may have to follow."""
        self._policy = rbac.Policy(
            role=lambda namespace, name: self._roles.get((namespace, name)),
            cluster_role=self._cluster_role,
            bindings=lambda namespace: self._bindings.get(namespace, {}).values(),
            cluster_bindings=self._cluster_bindings_of,
            namespaces=lambda: list(self._bindings),
        )
        self._informers: list[informer.Informer[Any]] = [
            self._follow(Role, self._role_changed),
            self._follow(ClusterRole, self._cluster_role_changed),
            self._follow(RoleBinding, self._binding_changed),
            self._follow(ClusterRoleBinding, self._cluster_binding_changed),
        ]

    async def run(self) -> None:
        """Follow roles and bindings, and keep the rules of aggregating roles as they are shown true; for ever."""
        async with asyncio.TaskGroup() as group:
            for one in self._informers:
                group.create_task(one.run(), name="roles")
            group.create_task(self._write_aggregated(), name="aggregated-roles")

    async def authorize(self, identity: Identity, attributes: Attributes) -> Decision:
        """Return the decision. Raises UnavailableError while the roles have not been read yet."""
        if rbac.is_master(identity):  # also while the store cannot be read: somebody has to mend it
            return rbac.decide(identity, attributes, self._policy)
        return rbac.decide(identity, attributes, await self.policy())

    async def policy(self) -> rbac.Policy:
        """Return all roles and bindings as they are now. Raises UnavailableError while they have not been read yet."""
        try:
            async with asyncio.timeout(SYNC_SECONDS):
                for one in self._informers:
                    await one.wait_synced()
        except TimeoutError:
            raise UnavailableError("have not been read yet", element="roles", hint="try again in a moment") from None
        return self._policy

    def _follow(self, kind: type[R], changed: Any) -> informer.Informer[R]:
        follower = informer.of_kind(self._objects.store, kind, changed)
        prefix = objects_.prefix_of(kind)

        def written(key: str, item: Resource | None, revision: int) -> None:
            if item is None:
                follower.forget(key.removeprefix(prefix), revision)
            elif isinstance(item, kind):
                follower.observe(key.removeprefix(prefix), item, revision)

        self._objects.tell(kind, written)
        return follower

    def _cluster_role(self, name: str) -> ClusterRole | None:
        role = self._cluster_roles.get(name)
        if role is None or role.aggregation_rule is None:
            return role
        if name not in self._effective:
            self._effective[name] = _with_rules(role, rbac.aggregated(role, self._cluster_roles.values()))
        return self._effective[name]

    def _role_changed(self, old: Role | None, new: Role | None) -> None:
        _swap(self._roles, _place, old, new)

    def _cluster_role_changed(self, old: ClusterRole | None, new: ClusterRole | None) -> None:
        _swap(self._cluster_roles, _name, old, new)
        self._effective.clear()
        self._stale.set()

    def _binding_changed(self, old: RoleBinding | None, new: RoleBinding | None) -> None:
        if old is not None:
            self._bindings.get(old.metadata.namespace, {}).pop(old.metadata.name, None)
        if new is not None:
            self._bindings.setdefault(new.metadata.namespace, {})[new.metadata.name] = new
        if old is not None and not self._bindings.get(old.metadata.namespace):
            self._bindings.pop(old.metadata.namespace, None)

    def _cluster_binding_changed(self, old: ClusterRoleBinding | None, new: ClusterRoleBinding | None) -> None:
        if old is not None:
            for key in rbac.subject_keys(old.subjects):
                found = self._cluster_bindings.get(key, {})
                found.pop(_name(old), None)
                if not found:
                    self._cluster_bindings.pop(key, None)
        if new is not None:
            for key in rbac.subject_keys(new.subjects):
                self._cluster_bindings.setdefault(key, {})[_name(new)] = new

    def _cluster_bindings_of(self, identity: Identity) -> Iterator[ClusterRoleBinding]:
        for key in rbac.identity_keys(identity):
            yield from self._cluster_bindings.get(key, {}).values()

    async def _write_aggregated(self) -> None:
        """Write into aggregating roles what they aggregate: people look there. Decisions do not read it."""
        await self._informers[1].wait_synced()
        while True:
            await self._stale.wait()
            self._stale.clear()
            failed = False
            for name, role in sorted(self._cluster_roles.items()):
                shown = self._cluster_role(name)
                if shown is None or shown.rules == role.rules:
                    continue
                try:
                    await self._objects.replace(shown)
                except SkerryError as error:
                    log.info("roles.aggregation_retried role=%s cause=%s", name, error)
                    failed = True
            if failed:
                await asyncio.sleep(RETRY_SECONDS)
                self._stale.set()


def _swap(kept: dict[Any, Any], key: Any, old: Resource | None, new: Resource | None) -> None:
    if old is not None:
        kept.pop(key(old), None)
    if new is not None:
        kept[key(new)] = new


def _name(item: Resource) -> str:
    return item.metadata.name


def _place(item: Resource) -> tuple[str, str]:
    return item.metadata.namespace, item.metadata.name


def _with_rules(role: ClusterRole, rules: Iterable[PolicyRule]) -> ClusterRole:
    return ClusterRole(metadata=role.metadata, rules=list(rules), aggregation_rule=role.aggregation_rule)
