"""Everything that discovery lists: the kinds, the pictures of devices, and resources that are answered and never kept.

Lives here: names, verbs and subresources, by group and version. Must not live here: the form of discovery's answers
(`discovery`), what a verb does. A resource that is no kind of `api.kinds` is added to `_OTHERS` by one entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry.api import meta
from skerry.api.kinds import KINDS, KindInfo
from skerry.hub.server.projection import metrics
from skerry.hub.server.projection.serve import VIEWS
from skerry.hub.server.projection.view import View

_WATCHED = ("get", "list", "watch")


@dataclass(frozen=True, kw_only=True)
class Subresource:
    """One subresource; without a group or version of its own it has its resource's."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str | None = None
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One resource."""

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    verbs: tuple[str, ...]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()


_SUBRESOURCES: Mapping[str, tuple[Subresource, ...]] = {
    "devices": (
        Subresource(name="log", kind="Device", verbs=("get",)),
        Subresource(name="infer", kind="Device", verbs=("create",)),
        Subresource(name="reconcile", kind="Device", verbs=("create",)),
    ),
    "modeldeployments": (Subresource(name="explain", kind="ModelDeployment", verbs=("get",)),),
    "namespaces": (Subresource(name="finalize", kind="Namespace", verbs=("update",)),),
    "serviceaccounts": (
        Subresource(name="token", kind="TokenRequest", verbs=("create",), group="authentication.k8s.io", version="v1"),
    ),
    "certificatesigningrequests": (
        Subresource(name="approval", kind="CertificateSigningRequest", verbs=("get", "patch", "update")),
    ),
    "pods": (
        Subresource(name="log", kind="Pod", verbs=("get",)),
        Subresource(name="exec", kind="PodExecOptions", verbs=("create", "get")),
        Subresource(name="attach", kind="PodAttachOptions", verbs=("create", "get")),
        Subresource(name="portforward", kind="PodPortForwardOptions", verbs=("create", "get")),
    ),
}
"""By plural; `status` comes by itself for the kinds that have one."""


def _of_kind(info: KindInfo) -> Served:
    status = Subresource(name="status", kind=info.kind, verbs=info.status_verbs)
    own = _SUBRESOURCES.get(info.plural, ())
    return Served(
        group=info.group,
        version=info.version,
        plural=info.plural,
        singular=info.singular,
        kind=info.kind,
        namespaced=info.namespaced,
        verbs=info.verbs,
        short_names=info.short_names,
        categories=info.categories,
        subresources=(status, *own) if info.status_verbs else own,
    )


def _of_view(view: View) -> Served:
    return Served(
        group="",
        version="v1",
        plural=view.plural,
        singular=view.singular,
        kind=view.kind,
        namespaced=view.namespaced,
        verbs=_WATCHED,
        short_names=view.short_names,
        subresources=_SUBRESOURCES.get(view.plural, ()),
    )


_OTHERS: tuple[Served, ...] = (
    Served(
        group=meta.GROUP,
        version=meta.VERSION,
        plural="auditevents",
        singular="auditevent",
        kind="AuditEvent",
        namespaced=False,
        verbs=("list", "watch"),
    ),
    *(
        Served(
            group=metrics.GROUP,
            version=metrics.VERSION,
            plural=plural,
            singular="",
            kind=kind,
            namespaced=plural == "pods",
            verbs=("get", "list"),
        )
        for plural, kind in (("nodes", "NodeMetrics"), ("pods", "PodMetrics"))
    ),
)

RESOURCES: Sequence[Served] = (*map(_of_kind, KINDS), *map(_of_view, VIEWS), *_OTHERS)


def _grouped() -> Mapping[str, Mapping[str, Sequence[Served]]]:
    groups: dict[str, dict[str, list[Served]]] = {}
    for one in RESOURCES:
        groups.setdefault(one.group, {}).setdefault(one.version, []).append(one)
    return groups


GROUPS = _grouped()
"""All resources by group and version; the first version of a group is the preferred one."""
