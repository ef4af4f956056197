"""Nobody grants more than he has: the check before a role, a binding or a registry token is written.

Whoever has not got a rule himself may write it only with the verb `escalate` on the role; whoever has not got all of a
role may bind it only with the verb `bind` on it. It holds for every way of writing, a dry run among them. Must not live
here: what covers what (`core.rbac`). Source: Kubernetes "Using RBAC Authorization", "Privilege escalation prevention".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from skerry.api.errors import DeniedError, InvalidError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.rbac import GROUP, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.meta import GROUP as SKERRY
from skerry.core import rbac
from skerry.core.access import service_account
from skerry.core.rbac import Attributes, Policy
from skerry.hub.authorization import RoleAuthorizer
from skerry.hub.server import access
from skerry.hub.server.call import Call

_SHOWN = 20
_REPOSITORY_VERBS = {"pull": "get", "push": "update", "delete": "delete"}
"""What the registry's actions are called in rules, on `repositories.skerry.dev`."""
_ROLE_HINT = "ask somebody who has these rights, or for the verb {verb} on {resource}"


async def check(call: Call, item: Resource, *, current: Resource | None = None) -> None:
    """Return when the caller may write this. Raises DeniedError; NotFoundError for a binding to no role."""
    if rbac.is_master(call.identity) or (current is not None and _same(current, item)):
        return
    match item:
        case Role() | ClusterRole():
            await _check_role(call, item, current)
        case RoleBinding() | ClusterRoleBinding():
            await _check_binding(call, item)
        case RegistryToken():
            for wanted in _repositories(call, item):
                await access.check(call.context.authorizer, call.identity, wanted)
        case _:
            return


async def check_creation(call: Call) -> None:
    """Return when the caller may also create what he writes by a patch. Raises DeniedError."""
    if rbac.is_master(call.identity) or call.identity.role != "user":
        return
    info = call.info
    wanted = Attributes(
        verb="create",
        group=info.group,
        version=info.version,
        resource=info.plural,
        name=call.name,
        namespace=call.namespace,
    )
    await access.check(call.context.authorizer, call.identity, wanted)


async def check_token(call: Call) -> None:
    """Return when the caller may have a token of this service account: it may do no more than he, or he may be it.

    Raises DeniedError. Here the hub is stricter than Kubernetes, whose tokens are a way up.
    """
    if rbac.is_master(call.identity):
        return
    be = Attributes(verb="impersonate", resource="serviceaccounts", name=call.name, namespace=call.namespace)
    if (await call.context.authorizer.authorize(call.identity, be)).allowed:
        return
    account = service_account(call.namespace, call.name, "")
    try:
        pairs = rbac.compared(account, call.identity, await _policy(call))
        missing = rbac.compact(await asyncio.to_thread(rbac.lacking, pairs))
        cause = f"the account may do what you may not: {_listed(missing)}"
    except InvalidError as error:
        missing, cause = list(rbac.EVERYTHING), f"cannot be compared with what you may do: the rules {error.cause}"
    if missing:
        hint = "ask somebody who has these rights, or for the verb impersonate on the service account"
        raise DeniedError(cause, resource="serviceaccounts", name=call.name, hint=hint)


def repository_attributes(action: str, repository: str) -> Attributes:
    """Return what an action of the registry is to rules: `models/x` in namespace `a` is repository `a/models/x`."""
    namespace, _, name = repository.partition("/")
    verb = _REPOSITORY_VERBS.get(action, action)
    return Attributes(verb=verb, group=SKERRY, resource="repositories", namespace=namespace, name=name)


async def _check_role(call: Call, item: Role | ClusterRole, current: Resource | None) -> None:
    if await _may(call, "escalate", call.info.plural, item.metadata.name):
        return
    wanted: Sequence[PolicyRule] = item.rules
    if any(isinstance(one, ClusterRole) and one.aggregation_rule is not None for one in (item, current)):
        wanted = rbac.EVERYTHING
    await _check_covered(call, item, item.metadata.namespace, wanted)


async def _check_binding(call: Call, item: RoleBinding | ClusterRoleBinding) -> None:
    ref = item.role_ref
    plural = "roles" if ref.kind == "Role" else "clusterroles"
    if await _may(call, "bind", plural, ref.name):
        return
    namespace = item.metadata.namespace
    rules = rbac.rules_of_role(ref, namespace, await _policy(call))
    if rules is None:
        raise NotFoundError(element=f'{plural}.{GROUP} "{ref.name[:300]}"', hint="make the role first, then bind it")
    await _check_covered(call, item, namespace, rules)


async def _check_covered(call: Call, item: Resource, namespace: str, wanted: Sequence[PolicyRule]) -> None:
    """Return when the caller has all of these rules himself. Others are answered meanwhile. Raises DeniedError."""
    verb = "bind" if isinstance(item, RoleBinding | ClusterRoleBinding) else "escalate"
    try:
        held = rbac.held(call.identity, namespace, await _policy(call))
        missing = rbac.compact(await asyncio.to_thread(rbac.uncovered, held, wanted))
    except InvalidError as error:
        raise _denied(call, item, f"cannot be compared with what you may do: the rules {error.cause}", verb) from None
    if missing and wanted is rbac.EVERYTHING:
        raise _denied(call, item, "must have cluster-admin privileges to use the aggregationRule", verb)
    if not missing:
        return
    groups = ", ".join(f'"{group}"' for group in call.identity.groups)
    who = f'user "{call.identity.username}" (groups=[{groups}])'
    raise _denied(
        call, item, f"{who} is attempting to grant RBAC permissions not currently held:\n{_listed(missing)}", verb
    )


def _listed(rules: Sequence[PolicyRule]) -> str:
    more = [f"and {len(rules) - _SHOWN} more"] if len(rules) > _SHOWN else []
    return "\n".join([*(rbac.describe(rule)[:500] for rule in rules[:_SHOWN]), *more])


async def _may(call: Call, verb: str, plural: str, name: str) -> bool:
    wanted = Attributes(verb=verb, group=GROUP, version="v1", resource=plural, name=name, namespace=call.namespace)
    return (await call.context.authorizer.authorize(call.identity, wanted)).allowed


async def _policy(call: Call) -> Policy:
    authorizer = call.context.authorizer
    if isinstance(authorizer, RoleAuthorizer):
        return await authorizer.policy()
    return Policy(
        role=lambda *_: None,
        cluster_role=lambda _: None,
        bindings=lambda _: (),
        cluster_bindings=lambda _: (),
        namespaces=lambda: (),
    )


def _repositories(call: Call, token: RegistryToken) -> Iterator[Attributes]:
    """Yield what the owner of a token could do: a token for all repositories takes the right to all."""
    for action in token.spec.actions:
        for repository in token.spec.repositories or (f"{call.namespace}/",):
            yield repository_attributes(action, repository)


def _same(current: Resource, item: Resource) -> bool:
    """Return whether nothing changes but what the removal of an object takes: finalizers, owners."""

    def bare(one: Resource) -> Resource:
        metadata = msgspec.structs.replace(
            one.metadata, finalizers=[], owner_references=[], managed_fields=[], resource_version=""
        )
        changes: dict[str, Any] = {"metadata": metadata}
        return msgspec.structs.replace(one, **changes)

    return bare(current) == bare(item)


def _denied(call: Call, item: Resource, cause: str, verb: str) -> DeniedError:
    hint = _ROLE_HINT.format(verb=verb, resource="the role" if verb == "bind" else call.info.plural)
    return DeniedError(cause, group=GROUP, resource=call.info.plural, name=item.metadata.name, hint=hint)
