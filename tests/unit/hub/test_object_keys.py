"""Where objects stand in the store: nothing of one kind can be taken for anything of another."""

from __future__ import annotations

import itertools

import pytest

from skerry.api.kinds import KINDS, KindInfo
from skerry.api.kinds.device import Device
from skerry.api.kinds.event import Event
from skerry.api.kinds.rbac import ClusterRole, Role
from skerry.hub import objects

KEPT = [info for info in KINDS if info.stored and info.storage is None]


def test_no_prefix_begins_another() -> None:
    prefixes = [objects.DESIRED_PREFIX, *(objects.prefix_of(info.type) for info in KEPT)]
    assert len(set(prefixes)) == len(prefixes)
    for one, other in itertools.permutations(prefixes, 2):
        assert not one.startswith(other)


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "key"),
    [
        (Device, "default", "till-7", "devices/default/till-7"),
        (Role, "default", "a:b", "roles.rbac.authorization.k8s.io/default/a:b"),
        (ClusterRole, "", "a:b", "clusterroles.rbac.authorization.k8s.io/a:b"),
        (Event, "default", "a.1", "events.core/default/a.1"),
    ],
)
def test_keys(kind: type, namespace: str, name: str, key: str) -> None:
    """They are on people's disks: a change here loses objects."""
    assert objects.key_of(kind, namespace, name) == key


@pytest.mark.parametrize("info", KINDS, ids=lambda info: f"{info.resource}")
def test_a_view_is_where_its_kind_is(info: KindInfo) -> None:
    kept = info.type if info.storage is None else info.storage.type
    assert objects.prefix_of(info.type) == objects.prefix_of(kept)
