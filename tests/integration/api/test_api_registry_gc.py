"""Removing model versions and collecting garbage over a real hub's API: what is deployed stays, what is not goes."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.test_models_elsewhere import make_package

from skerry.api.errors import ConflictError, InvalidError, NotFoundError
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.variants import Variant
from skerry.cli import package as packages
from skerry.cli.model_registry import model_version_of
from skerry.core.desired import Assignment, DesiredRecord, assign, withdraw
from skerry.core.messages import WorkloadDesired
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.pull import find_model
from skerry.drivers.client.registry import push_package
from skerry.drivers.client.repository import Repository
from skerry.hub.objects import DESIRED_PREFIX
from skerry.hub.server.garbage import MAX_BODY_BYTES

REPOSITORY = "default/digits"


def push(client: HubClient, directory: Path, version: str, large: bytes) -> str:
    package = make_package(directory, version, large)
    card = packages.read_card(package)
    pushed = push_package(client.http, REPOSITORY, package, card)
    client.apply(msgspec.to_builtins(model_version_of(card, REPOSITORY, pushed.index)))
    return pushed.index


def deploy(client: HubClient, version: str) -> None:
    client.apply(
        {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "ModelDeployment",
            "metadata": {"name": "digits"},
            "spec": {"modelVersion": version, "deviceSelector": {"matchLabels": {"site": "lab"}}},
        }
    )


def age(hub: Any) -> None:
    """Make everything as if nobody had looked at it for long."""
    for path in hub.context.state_dir.rglob("repositories/**/*"):
        if path.is_file():
            os.utime(path, (1, 1))


def test_a_version_goes_when_nothing_deploys_it_and_its_bytes_when_collected(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        first = push(client, tmp_path / "v1", "v1", b"first" * 1000)
        second = push(client, tmp_path / "v2", "v2", b"second" * 1000)
        deploy(client, "digits-v1")
        with pytest.raises(ConflictError, match="deployment/digits deploys it"):
            client.remove_model(REPOSITORY, "v1")
        place = Repository(client.http, REPOSITORY)
        variant = next(iter(msgspec.json.decode(place.get_manifest(first).raw)["manifests"]))["digest"]
        assert client.remove_model(REPOSITORY, "v2").names == [f"{REPOSITORY}:v2", "modelversion/digits-v2"]
        with pytest.raises(NotFoundError):
            client.get(ModelVersion, "digits-v2")
        fresh = client.collect_garbage(dry_run=False)
        assert (fresh.removed, fresh.freed_bytes) == ([], 0)  # somebody has looked at it just now
        age(hub)
        said = client.collect_garbage(dry_run=True)
        assert second in {item.digest for item in said.removed}
        assert first not in {item.digest for item in said.removed}
        assert place.find_manifest(second) is not None  # it only said it ...
        age(hub)
        done = client.collect_garbage(dry_run=False)
        assert {item.digest for item in done.removed} == {item.digest for item in said.removed}
        assert done.freed_bytes == said.freed_bytes > len(b"second" * 1000)
        assert place.find_manifest(second) is None
        assert place.find_manifest("v1") is not None
        assert place.get_manifest(variant)


def test_what_a_device_has_or_goes_back_to_stays(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        push(client, tmp_path / "v1", "v1", b"first" * 1000)
        version = client.get(ModelVersion, "digits-v1")
        place = Repository(client.http, REPOSITORY)
        variants = find_model(place, "v1").variants
        workload = _workload(version, variants[0])
        empty = DesiredRecord(uid="u-1", namespace="default", device="till-1")
        record = assign(
            empty,
            Assignment(workload=workload, deployment_uid="1", wave=0, reason="", assigned_at=hub.context.clock.now()),
        )
        hub.call(hub.objects.change_desired(empty, lambda _: record))
        client.delete(ModelVersion, "digits-v1")
        Repository(client.http, REPOSITORY).delete_manifest("v1")
        age(hub)
        done = client.collect_garbage(dry_run=False)
        assert workload.golden is not None
        assert {item.digest for item in done.kept} == {workload.blob.digest, workload.golden.digest}
        assert all(item.reason == "device default/till-1" for item in done.kept)
        hub.call(hub.objects.change_desired(record, lambda current: withdraw(current, "digits")))
        age(hub)
        assert client.collect_garbage(dry_run=False).kept == []


def test_it_collects_nothing_while_a_record_cannot_be_read(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        push(client, tmp_path / "v1", "v1", b"first" * 1000)
        hub.call(hub.objects.store.create(f"{DESIRED_PREFIX}damaged", b"rubbish"))
        age(hub)
        with pytest.raises(InvalidError, match="desired/damaged: cannot be read"):
            client.collect_garbage(dry_run=False)
        with pytest.raises(InvalidError, match="shorter"):
            client.collect_garbage(dry_run=True, grace="1s")


def test_only_admins_may_and_bodies_are_bounded(hub: Any) -> None:
    with hub.as_device("till-1", "default") as device, hub.stranger() as stranger, hub.client() as client:
        for verb in ("gc", "remove"):
            path = f"/apis/skerry.dev/v1alpha1/registry/{verb}"
            assert device.post(path, json={}).status_code in (401, 403)  # a stranger's, here
            assert stranger.post(path, json={}).status_code == 401
            assert client.http.post(path, content=b" " * (MAX_BODY_BYTES + 1)).status_code == 400
            assert client.http.post(path, content=b"[" * 60_000).status_code == 400


def _workload(version: ModelVersion, variant: Variant) -> WorkloadDesired:
    assert version.spec.golden is not None
    return WorkloadDesired(
        name="digits",
        rollout="digits-1",
        revision=1,
        model="digits",
        model_version="digits-v1",
        version="v1",
        variant=variant.name,
        format=variant.format,
        needs=variant.needs,
        signature=version.spec.signature,
        repository=REPOSITORY,
        blob=variant.blob,
        golden=version.spec.golden.blob,
    )
