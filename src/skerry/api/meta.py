"""Metadata every resource carries: `ObjectMeta`, conditions, label selectors' types.

Source: Kubernetes API conventions (`metav1`). Field names travel in camelCase.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NewType

import msgspec

GROUP = "skerry.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

DeviceUid = NewType("DeviceUid", str)
"""The hub's opaque identity of a device; also its certificate's CN and its MQTT client id."""

# `$` alone would also accept a trailing newline.
END = r"$(?!\n)"
NAME_PATTERN = rf"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*{END}"
PATH_PATTERN = rf"^(?!\.\.?{END})[!-$&-.0-~]+{END}"
LABEL_PATTERN = rf"^[a-z0-9]([-a-z0-9]*[a-z0-9])?{END}"

Digest = Annotated[str, msgspec.Meta(pattern=rf"^sha256:[0-9a-f]{{64}}{END}", description="sha256:<64 hex digits>")]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=NAME_PATTERN,
        max_length=253,
        description="a DNS subdomain name: a-z, 0-9, '-' and '.'",
    ),
]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1, description="a share between 0 and 1")]


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of every wire type: immutable, keyword-only, camelCase on the wire, defaults left out."""


class OwnerReference(Struct, frozen=True, kw_only=True):
    """Who owns an object; the owner's deletion deletes it too."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    """Standard metadata. The hub sets uid, resourceVersion, generation and creationTimestamp."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    generate_name: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[OwnerReference] = []
    managed_fields: list[Any] = []


class Condition(Struct, frozen=True, kw_only=True):
    """A standard Kubernetes condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: datetime
    observed_generation: int = 0
    """0 is left out on the wire: it would say that the condition is of no generation there is, and so out of date."""


class LabelSelectorRequirement(Struct, frozen=True, kw_only=True):
    """One expression of a label selector; `values` is empty for Exists and DoesNotExist."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class LabelSelector(Struct, frozen=True, kw_only=True):
    """Which objects are meant, by their labels; all requirements must hold; empty matches everything."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelSelectorRequirement] = []


def set_condition(conditions: list[Condition], new: Condition) -> list[Condition]:
    """Return the list with `new` in place of its type's old entry, whose transition time stays if the status did."""
    kept = [c for c in conditions if c.type != new.type]
    old = next((c for c in conditions if c.type == new.type), None)
    if old is not None and old.status == new.status:
        new = msgspec.structs.replace(new, last_transition_time=old.last_transition_time)
    return [*kept, new]


def find_condition(conditions: list[Condition], kind: str) -> Condition | None:
    """Return the condition of that type, or None."""
    return next((c for c in conditions if c.type == kind), None)
