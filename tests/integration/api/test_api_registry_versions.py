"""A version's tag names that version and nothing else, a copy on the hub has a tag, and reports count everything."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tests.integration.api.conftest import WAIT, Hub
from tests.integration.api.test_api_registry_gc import REPOSITORY, age, push
from tests.integration.test_models_elsewhere import make_package

from skerry.api.errors import ConflictError, IntegrityError, InvalidError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.cli import model_registry, registry
from skerry.cli import package as packages
from skerry.drivers.client.registry import push_package
from skerry.drivers.client.repository import Repository
from skerry.hub import gc


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub of the test's own: what is collected is everybody's."""
    hub = Hub(tmp_path / "hub")
    hub.directory.mkdir()
    ready: Future[None] = Future()

    async def main() -> None:
        hub.loop, hub.stop = asyncio.get_running_loop(), asyncio.Event()
        await hub.run(ready, hub.stop)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    ready.result(WAIT)
    try:
        yield hub
    finally:
        hub.loop.call_soon_threadsafe(hub.stop.set)
        thread.join(WAIT)
        assert not thread.is_alive()


def test_a_versions_own_tag_is_not_moved_even_by_force(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        first = push(client, tmp_path / "v1", "v1", b"first" * 1000)
        second = push(client, tmp_path / "v2", "v2", b"second" * 1000)
        place = Repository(client.http, REPOSITORY)
        with pytest.raises(ConflictError, match="modelversion/digits-v1's own"):
            model_registry.tag("digits:v2", "v1", force=True, kubeconfig=hub.kubeconfig)
        assert place.get_manifest("v1").digest == first
        model_registry.tag("digits:v1", "v1", kubeconfig=hub.kubeconfig)  # which it is
        model_registry.tag("digits:v1", "stable", kubeconfig=hub.kubeconfig)
        model_registry.tag("digits:v2", "stable", force=True, kubeconfig=hub.kubeconfig)
        assert place.get_manifest("stable").digest == second
        client.remove_model(REPOSITORY, "v1")
        place.put_manifest("v1", place.get_manifest(first))
        model_registry.tag("digits:v2", "v1", force=True, kubeconfig=hub.kubeconfig)  # no version's any more


def test_a_copy_on_the_hub_has_a_tag(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        index = push(client, tmp_path / "v1", "v1", b"first" * 1000)
        with pytest.raises(InvalidError, match="default/zz: names no tag"):
            model_registry.copy(f"{REPOSITORY}@{index}", "default/zz", form="text", kubeconfig=hub.kubeconfig)
        model_registry.copy(f"{REPOSITORY}@{index}", "default/zz:v1", form="text", kubeconfig=hub.kubeconfig)
        model_registry.copy(f"{REPOSITORY}:v1", "default/yy", form="text", kubeconfig=hub.kubeconfig)
        for name in ("default/yy", "default/zz"):
            assert Repository(client.http, name).get_manifest("v1").digest == index


def test_a_report_counts_what_it_does_not_list(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.client() as client:
        push(client, tmp_path / "v1", "v1", b"first" * 1000)
        client.remove_model(REPOSITORY, "v1")
        push(client, tmp_path / "v2", "v2", b"second" * 1000)
        age(hub)
        full = client.collect_garbage(dry_run=True)
        assert (full.removed_count, full.kept_count) == (len(full.removed), len(full.kept))
        assert min(full.removed_count, full.kept_count) > 1
        monkeypatch.setattr(gc, "MAX_ITEMS", 1)
        age(hub)
        registry.collect(dry_run=True, grace="", kept=True, form="text", kubeconfig=hub.kubeconfig)
        said = capsys.readouterr().out.replace("\n", " ")
        assert f"{full.removed_count} would be removed" in said
        assert f"{full.kept_count} kept" in said
        age(hub)
        done = client.collect_garbage(dry_run=False)
        assert (len(done.removed), done.removed_count, done.kept_count) == (1, full.removed_count, full.kept_count)


@pytest.mark.parametrize("grace", ["20000000h", "87601h"])
def test_too_long_a_grace_period_is_refused_with_a_sentence(hub: Any, grace: str) -> None:
    with hub.client() as client:
        with pytest.raises(InvalidError, match="longer than 3650 days"):
            client.collect_garbage(dry_run=True, grace=grace)
        client.collect_garbage(dry_run=True, grace="87600h")


def test_a_damaged_index_is_removed_by_its_digest_unless_it_is_needed(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        index = push(client, tmp_path / "v1", "v1", b"first" * 1000)
        deployment = {"apiVersion": "skerry.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "digits"}}
        labels = {"deviceSelector": {"matchLabels": {"site": "lab"}}}
        client.apply({**deployment, "spec": {"modelVersion": "digits-v1", **labels}})
        (content,) = hub.context.state_dir.rglob(f"blobs/sha256/*/{index[7:]}")
        content.write_bytes(b"rubbish")
        with pytest.raises(ConflictError, match="deployment/digits deploys it"):
            client.remove_model(REPOSITORY, index)
        client.delete(ModelDeployment, "digits")
        assert client.remove_model(REPOSITORY, index).names == ["modelversion/digits-v1", f"{REPOSITORY}@{index}"]
        assert "v1" not in Repository(client.http, REPOSITORY).list_tags()
        assert client.collect_garbage(dry_run=True).left_alone == {}


def test_a_model_whose_index_is_damaged_is_whole_once_it_is_pushed_again(hub: Any, tmp_path: Path) -> None:
    with hub.client() as client:
        index = push(client, tmp_path / "v1", "v1", b"first" * 1000)
        (content,) = hub.context.state_dir.rglob(f"blobs/sha256/*/{index[7:]}")
        content.write_bytes(b"rubbish")
        place = Repository(client.http, REPOSITORY)
        with pytest.raises(IntegrityError, match="push it again"):
            place.get_manifest("v1")
        package = tmp_path / "v1"
        push_package(client.http, REPOSITORY, package, packages.read_card(package))
        assert place.get_manifest("v1").digest == index
        content.write_bytes(b"rubbish")
        other = make_package(tmp_path / "other", "v1", b"another" * 1000)
        with pytest.raises(IntegrityError, match="damaged"):  # which is not what is pushed: nobody knows
            push_package(client.http, REPOSITORY, other, packages.read_card(other))
