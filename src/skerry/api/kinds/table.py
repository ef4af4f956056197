"""The table of kinds: plural, short names, printed columns, and which parts clients may write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from skerry.api import meta
from skerry.api.kinds import authentication, authorization, printed, rbac, reported_event
from skerry.api.kinds import certificate_signing_request as csr
from skerry.api.kinds.authentication import SelfSubjectReview, TokenReview
from skerry.api.kinds.authorization import (
    LocalSubjectAccessReview,
    SelfSubjectAccessReview,
    SelfSubjectRulesReview,
    SubjectAccessReview,
)
from skerry.api.kinds.certificate_signing_request import CertificateSigningRequest
from skerry.api.kinds.device import Device
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.enrollment import Enrollment, JoinToken
from skerry.api.kinds.event import Event
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.rbac import ClusterRole, ClusterRoleBinding, Role, RoleBinding
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.service_account import ServiceAccount
from skerry.api.kinds.trust_policy import TrustPolicy

Resource: TypeAlias = (
    Device
    | DeviceClass
    | Enrollment
    | JoinToken
    | ModelVersion
    | ModelDeployment
    | RegistryToken
    | Rollout
    | TrustPolicy
    | Role
    | ClusterRole
    | RoleBinding
    | ClusterRoleBinding
    | Namespace
    | ServiceAccount
    | Event
    | reported_event.Event
    | CertificateSigningRequest
    | SelfSubjectAccessReview
    | SelfSubjectRulesReview
    | SubjectAccessReview
    | LocalSubjectAccessReview
    | TokenReview
    | SelfSubjectReview
)

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One printed column: `path` is a dotted path into the object, with four display rules in `kind`.

    `string` prints as it is, `age` as the time since, `bytes` in KiB/MiB, summed up, `count` how many there are. `wide`
    columns show with `-o wide` only.
    """

    name: str
    path: str
    kind: Literal["string", "age", "bytes", "count"] = "string"
    wide: bool = False
    value: Callable[[Any], Any] | None = None
    """Makes what is shown out of the object where a path cannot; None is nothing."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How a kind that is another view of one is kept: as that one's type, there and back without loss."""

    type: type[Resource]
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class KindInfo:
    """How one kind is named and treated by the API."""

    kind: str
    type: type[Resource]
    plural: str
    singular: str
    columns: tuple[Column, ...]
    group: str = meta.GROUP
    """Its API group; "" is Kubernetes' core group."""
    version: str = meta.VERSION
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    """Words that mean several kinds at once, as in `kubectl get skerry`.

    Of ours, only what a deployment makes is in `all`: `kubectl delete all --all` must not cost anybody a device.
    """
    verbs: tuple[str, ...] = ALL_VERBS
    """What can be done with it; a kind that can only be created is answered and never stored."""
    names: Literal["subdomain", "label", "path"] = "subdomain"
    """What its names look like: DNS subdomains, DNS labels, or anything that can be one part of a path."""
    selectable: tuple[str, ...] = ()
    """Paths that field selectors may name besides those that every kind has."""
    storage: Storage | None = None
    """The kind it is a view of, if any."""
    name_column: bool = True
    """Whether tables begin with the name."""
    immutable_spec: bool = False
    """The spec may be set at creation only."""
    immutable: tuple[str, ...] = ()
    """Further fields that may be set at creation only."""
    made_by_hub: str = ""
    """Clients cannot create it; says what they can do instead."""
    read_only: bool = False
    """Clients may not change it either; they may delete it."""
    status_by_hub: bool = False
    """Clients cannot write its status: the hub believes what is there (who a device is, what a policy covers)."""
    aliases: tuple[str, ...] = ()
    """Further words the command line accepts."""

    @property
    def api_version(self) -> str:
        """What objects of the kind say in `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """The path of its group and version in the API."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def resource(self) -> str:
        """The plural with the group, as Kubernetes writes it in messages: `devices.skerry.dev`, `serviceaccounts`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def has_spec(self) -> bool:
        """Whether its objects have a `spec`."""
        return "spec" in self.type.__struct_fields__

    @property
    def has_status(self) -> bool:
        """Whether its objects have a `status`, which is written apart from the rest."""
        return "status" in self.type.__struct_fields__

    @property
    def status_verbs(self) -> tuple[str, ...]:
        """What clients can do with its status: nothing where it has none."""
        if not self.has_status or "update" not in self.verbs:
            return ()
        return ("get",) if self.status_by_hub else ("get", "patch", "update")

    @property
    def stored(self) -> bool:
        """Whether its objects are kept."""
        return "get" in self.verbs


_AGE = Column(name="AGE", path="metadata.creationTimestamp", kind="age")
_CREATED = Column(name="Created At", path="metadata.creationTimestamp")
_BINDING = (
    Column(name="Role", path="roleRef", value=printed.role),
    _AGE,
    Column(name="Users", path="subjects[kind=User].name", wide=True),
    Column(name="Groups", path="subjects[kind=Group].name", wide=True),
    Column(name="ServiceAccounts", path="subjects[kind=ServiceAccount].name", value=printed.accounts, wide=True),
)
_OURS = ("skerry",)


def _as_kept(value: Callable[[Event], Any]) -> Callable[[reported_event.Event], Any]:
    """Return what shows the same of an event in its other words."""
    return lambda item: value(reported_event.to_core(item))


KINDS: tuple[KindInfo, ...] = (
    KindInfo(
        kind="Device",
        type=Device,
        plural="devices",
        singular="device",
        short_names=("dev",),
        names="label",
        categories=_OURS,
        columns=(
            Column(name="STATUS", path="status.phase"),
            Column(name="ARCH", path="status.hardware.arch"),
            Column(name="MEMORY", path="status.hardware.memoryBytes", kind="bytes"),
            Column(name="ENGINES", path="status.engines[].name"),
            Column(name="RUNNING", path="status.workloads[].running.modelVersion"),
            Column(name="VARIANT", path="status.workloads[].running.variant"),
            Column(name="LAST-SEEN", path="status.lastSeen", kind="age"),
            _AGE,
            Column(name="OS", path="status.os.family", wide=True),
            Column(name="CORES", path="status.hardware.cores", wide=True),
            Column(name="NETWORK", path="status.network.kind", wide=True),
            Column(name="FETCHED", path="status.workloads[].fetchedBytes", kind="bytes", wide=True),
            Column(name="SAVED", path="status.workloads[].savedBytes", kind="bytes", wide=True),
            Column(name="UID", path="metadata.uid", wide=True),
        ),
    ),
    KindInfo(
        kind="DeviceClass",
        type=DeviceClass,
        plural="deviceclasses",
        singular="deviceclass",
        short_names=("dc",),
        categories=_OURS,
        immutable_spec=True,
        read_only=True,
        made_by_hub="it is learnt from the devices; delete it to have its measurements taken anew",
        aliases=("classes", "class"),
        columns=(
            Column(name="ARCH", path="spec.arch"),
            Column(name="CORES", path="spec.cores"),
            Column(name="MEMORY", path="spec.memoryBytes", kind="bytes"),
            Column(name="ENGINES", path="spec.engines[].name"),
            Column(name="MEMBERS", path="status.members"),
            Column(name="MEASURED", path="status.measured"),
            _AGE,
            Column(name="CPU", path="spec.cpuModel", wide=True),
            Column(name="ACCELERATORS", path="spec.accelerators[]", wide=True),
        ),
    ),
    KindInfo(
        kind="Enrollment",
        type=Enrollment,
        plural="enrollments",
        singular="enrollment",
        short_names=("enr",),
        categories=_OURS,
        immutable_spec=True,
        status_by_hub=True,
        columns=(
            Column(name="DEVICE", path="status.deviceName"),
            Column(name="STATUS", path="status.phase"),
            Column(name="TOKEN", path="spec.tokenId"),
            _AGE,
        ),
    ),
    KindInfo(
        kind="JoinToken",
        type=JoinToken,
        plural="jointokens",
        singular="jointoken",
        short_names=("jt",),
        categories=_OURS,
        immutable_spec=True,
        status_by_hub=True,
        aliases=("tokens", "token"),
        columns=(
            Column(name="USED", path="status.used"),
            Column(name="USES", path="spec.uses"),
            Column(name="EXPIRES", path="status.expiresAt"),
            _AGE,
        ),
    ),
    KindInfo(
        kind="RegistryToken",
        type=RegistryToken,
        plural="registrytokens",
        singular="registrytoken",
        short_names=("rt",),
        categories=_OURS,
        immutable_spec=True,
        status_by_hub=True,
        columns=(
            Column(name="ACTIONS", path="spec.actions[]"),
            Column(name="REPOSITORIES", path="spec.repositories[]", wide=True),
            Column(name="EXPIRES", path="status.expiresAt"),
            _AGE,
        ),
    ),
    KindInfo(
        kind="ModelVersion",
        type=ModelVersion,
        plural="modelversions",
        singular="modelversion",
        short_names=("mv",),
        categories=_OURS,
        immutable_spec=True,
        status_by_hub=True,
        aliases=("models", "model"),
        columns=(
            Column(name="MODEL", path="spec.model"),
            Column(name="VERSION", path="spec.version"),
            Column(name="STATUS", path="status.phase"),
            Column(name="BASELINE", path="spec.evaluation.baseline"),
            Column(name="VARIANTS", path="status.variants[].name"),
            _AGE,
            Column(name="REPOSITORY", path="spec.artifact.repository", wide=True),
            Column(name="DIGEST", path="spec.artifact.digest", wide=True),
        ),
    ),
    KindInfo(
        kind="ModelDeployment",
        type=ModelDeployment,
        plural="modeldeployments",
        singular="modeldeployment",
        short_names=("md",),
        categories=(*_OURS, "all"),
        aliases=("deployments", "deployment", "deploy"),
        columns=(
            Column(name="MODEL", path="spec.modelVersion"),
            Column(name="REVISION", path="status.revision"),
            Column(name="SELECTED", path="status.selected"),
            Column(name="UPDATED", path="status.updated"),
            Column(name="READY", path="status.ready"),
            Column(name="STATUS", path="status.conditions[type=Progressing].reason"),
            _AGE,
            Column(name="STABLE", path="status.stableRollout", wide=True),
        ),
    ),
    KindInfo(
        kind="Rollout",
        type=Rollout,
        plural="rollouts",
        singular="rollout",
        short_names=("ro",),
        categories=(*_OURS, "all"),
        immutable_spec=True,
        made_by_hub="create or change a ModelDeployment instead",
        columns=(
            Column(name="DEPLOYMENT", path="spec.deployment"),
            Column(name="REVISION", path="spec.revision"),
            Column(name="MODEL", path="spec.template.modelVersion"),
            Column(name="STATUS", path="status.phase"),
            _AGE,
            Column(name="MESSAGE", path="status.message"),
        ),
    ),
    KindInfo(
        kind="TrustPolicy",
        type=TrustPolicy,
        plural="trustpolicies",
        singular="trustpolicy",
        short_names=("tp",),
        categories=_OURS,
        status_by_hub=True,
        columns=(
            Column(name="MODE", path="spec.mode"),
            Column(name="VERSION", path="spec.version"),
            Column(name="RULES", path="spec.rules[].name"),
            Column(name="COVERED", path="status.covered"),
            Column(name="REFUSED", path="status.refused"),
            Column(name="STATUS", path="status.conditions[type=Accepted].reason"),
            _AGE,
            Column(name="EXPIRES", path="spec.expiresAt", wide=True),
        ),
    ),
    KindInfo(
        kind="Role",
        type=Role,
        group=rbac.GROUP,
        version=rbac.VERSION,
        plural="roles",
        singular="role",
        names="path",
        columns=(_CREATED,),
    ),
    KindInfo(
        kind="ClusterRole",
        type=ClusterRole,
        group=rbac.GROUP,
        version=rbac.VERSION,
        namespaced=False,
        plural="clusterroles",
        singular="clusterrole",
        names="path",
        columns=(_CREATED,),
    ),
    KindInfo(
        kind="RoleBinding",
        type=RoleBinding,
        group=rbac.GROUP,
        version=rbac.VERSION,
        plural="rolebindings",
        singular="rolebinding",
        names="path",
        immutable=("roleRef",),
        columns=_BINDING,
    ),
    KindInfo(
        kind="ClusterRoleBinding",
        type=ClusterRoleBinding,
        group=rbac.GROUP,
        version=rbac.VERSION,
        namespaced=False,
        plural="clusterrolebindings",
        singular="clusterrolebinding",
        names="path",
        immutable=("roleRef",),
        columns=_BINDING,
    ),
    KindInfo(
        kind="Namespace",
        type=Namespace,
        group="",
        version="v1",
        namespaced=False,
        plural="namespaces",
        singular="namespace",
        short_names=("ns",),
        verbs=tuple(verb for verb in ALL_VERBS if verb != "deletecollection"),
        names="label",
        columns=(Column(name="Status", path="status.phase"), _AGE),
    ),
    KindInfo(
        kind="ServiceAccount",
        type=ServiceAccount,
        group="",
        version="v1",
        plural="serviceaccounts",
        singular="serviceaccount",
        short_names=("sa",),
        columns=(Column(name="Secrets", path="secrets[]", kind="count"), _AGE),
    ),
    KindInfo(
        kind="Event",
        type=Event,
        group="",
        version="v1",
        plural="events",
        singular="event",
        short_names=("ev",),
        name_column=False,
        selectable=(
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ),
        columns=(
            Column(name="Last Seen", path="lastTimestamp", kind="age", value=printed.last_seen),
            Column(name="Type", path="type"),
            Column(name="Reason", path="reason"),
            Column(name="Object", path="involvedObject", value=printed.involved),
            Column(name="Subobject", path="involvedObject.fieldPath", wide=True),
            Column(name="Source", path="source", value=printed.source, wide=True),
            Column(name="Message", path="message"),
            Column(name="First Seen", path="firstTimestamp", kind="age", value=printed.first_seen, wide=True),
            Column(name="Count", path="count", value=printed.times_seen, wide=True),
            Column(name="Name", path="metadata.name", wide=True),
        ),
    ),
    KindInfo(
        kind="Event",
        type=reported_event.Event,
        group=reported_event.GROUP,
        version=reported_event.VERSION,
        plural="events",
        singular="event",
        short_names=("ev",),
        storage=Storage(type=Event, write=reported_event.to_core, read=reported_event.of_core),
        name_column=False,
        selectable=(
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ),
        columns=(
            Column(name="Last Seen", path="deprecatedLastTimestamp", kind="age", value=_as_kept(printed.last_seen)),
            Column(name="Type", path="type"),
            Column(name="Reason", path="reason"),
            Column(name="Object", path="regarding", value=_as_kept(printed.involved)),
            Column(name="Subobject", path="regarding.fieldPath", wide=True),
            Column(name="Source", path="deprecatedSource", value=_as_kept(printed.source), wide=True),
            Column(name="Message", path="note"),
            Column(name="First Seen", path="eventTime", kind="age", value=_as_kept(printed.first_seen), wide=True),
            Column(name="Count", path="deprecatedCount", value=_as_kept(printed.times_seen), wide=True),
            Column(name="Name", path="metadata.name", wide=True),
        ),
    ),
    KindInfo(
        kind="CertificateSigningRequest",
        type=CertificateSigningRequest,
        group=csr.GROUP,
        version=csr.VERSION,
        namespaced=False,
        plural="certificatesigningrequests",
        singular="certificatesigningrequest",
        short_names=("csr",),
        selectable=("spec.signerName",),
        immutable_spec=True,
        status_by_hub=True,
        columns=(
            _AGE,
            Column(name="SignerName", path="spec.signerName"),
            Column(name="Requestor", path="spec.username"),
            Column(name="RequestedDuration", path="spec.expirationSeconds", value=printed.wanted_life),
            Column(name="Condition", path="status.conditions[].type", value=printed.decision),
        ),
    ),
    *(
        KindInfo(
            kind=kind.__name__,
            type=kind,
            group=authorization.GROUP,
            version=authorization.VERSION,
            namespaced=kind is LocalSubjectAccessReview,
            plural=f"{kind.__name__.lower()}s",
            singular=kind.__name__.lower(),
            verbs=("create",),
            columns=(),
        )
        for kind in (SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview, LocalSubjectAccessReview)
    ),
    *(
        KindInfo(
            kind=kind.__name__,
            type=kind,
            group=authentication.GROUP,
            version=authentication.VERSION,
            namespaced=False,
            plural=f"{kind.__name__.lower()}s",
            singular=kind.__name__.lower(),
            verbs=("create",),
            columns=(),
        )
        for kind in (TokenReview, SelfSubjectReview)
    ),
)

_BY_WORD = {
    word.lower(): info
    for info in reversed(KINDS)  # the first of several that a word may mean
    for word in (info.kind, info.resource, info.plural, info.singular, *info.short_names, *info.aliases)
}


def find_kind(word: str) -> KindInfo | None:
    """Return the kind that a word means: its kind, plural, singular, short name or alias, in any case."""
    return _BY_WORD.get(word.lower())
