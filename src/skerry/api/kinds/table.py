"""The table of kinds: plural, short names, printed columns, and which parts clients may write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from skerry.api.kinds.device import Device
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.enrollment import Enrollment, JoinToken
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.registry_token import RegistryToken
from skerry.api.kinds.rollout import Rollout
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
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One printed column: `path` is a dotted path into the object, with three display rules in `kind`.

    `string` prints as it is, `age` as the time since, `bytes` in KiB/MiB, summed up. `wide` columns show with `-o wide`
    only.
    """

    name: str
    path: str
    kind: Literal["string", "age", "bytes"] = "string"
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class KindInfo:
    """How one kind is named and treated by the API."""

    kind: str
    type: type[Resource]
    plural: str
    singular: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    immutable_spec: bool = False
    """The spec may be set at creation only."""
    made_by_hub: str = ""
    """Clients cannot create it; says what they can do instead."""
    read_only: bool = False
    """Clients may not change it either; they may delete it."""
    aliases: tuple[str, ...] = ()
    """Further words the command line accepts."""


_AGE = Column(name="AGE", path="metadata.creationTimestamp", kind="age")

KINDS: tuple[KindInfo, ...] = (
    KindInfo(
        kind="Device",
        type=Device,
        plural="devices",
        singular="device",
        short_names=("dev",),
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
        immutable_spec=True,
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
        immutable_spec=True,
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
        immutable_spec=True,
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
        immutable_spec=True,
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
)

_BY_WORD = {
    word.lower(): info
    for info in KINDS
    for word in (info.kind, info.plural, info.singular, *info.short_names, *info.aliases)
}


def find_kind(word: str) -> KindInfo | None:
    """Return the kind that a word means: its kind, plural, singular, short name or alias, in any case."""
    return _BY_WORD.get(word.lower())
