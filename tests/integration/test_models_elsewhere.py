"""`skerry model` against a registry that is not the hub's: Debian's docker-registry, with and without a password."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration import docker_registry
from tests.integration.docker_registry import PASSWORD, USER, needs_docker_registry

from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.core import card as cards
from skerry.core import manifest as manifests
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance
from skerry.drivers.client.pull import pull_package
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.client.repository import CHUNK_BYTES, Repository

pytestmark = needs_docker_registry

Run = Callable[..., subprocess.CompletedProcess[str]]
LARGE = bytes(range(251)) * (CHUNK_BYTES // 200)  # more than one piece


def blob_of(raw: bytes) -> Blob:
    return Blob(digest=f"sha256:{hashlib.sha256(raw).hexdigest()}", size=len(raw))


def make_package(directory: Path, version: str = "v1", large: bytes = LARGE) -> Path:
    """Write a small package by hand; nobody runs its models."""
    directory.mkdir()
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1, 4])
    packaged = []
    for name, raw in (("onnx-fp32", large), ("onnx-int8", b"small model")):
        (directory / f"{name}.onnx").write_bytes(raw)
        variant = Variant(
            name=name,
            format="onnx",
            precision="int8" if name.endswith("int8") else "fp32",
            needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
            blob=blob_of(raw),
            metric=0.9,
            metric_drop=0.0,
            error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
            profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=3, runs=4),
        )
        packaged.append(PackagedVariant(variant=variant, file=f"{name}.onnx"))
    (directory / "golden.npz").write_bytes(b"golden samples")
    card = EvaluationCard(
        model="digits",
        version=version,
        signature=ModelSignature(inputs=[tensor], outputs=[tensor]),
        evaluation=Evaluation(metric="accuracy", baseline=0.9, samples=10, allowed_drop=0.01),
        golden=Golden(blob=blob_of(b"golden samples"), samples=1),
        variants=packaged,
        provenance=Provenance(source_kind="pytorch"),
    )
    (directory / cards.CARD_FILE).write_bytes(cards.encode(card))
    return directory


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("closed"), login=True) as host:
        yield host


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `skerry model ...` as users do, with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()

    def call(*arguments: str | Path, ok: bool = True, stdin: str = "", **environment: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "skerry.cli", "model", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(home), **environment},
            check=False,
        )
        assert (done.returncode == 0) is ok, done.stderr
        return done

    return call


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_package_comes_back_as_it_was_and_pushes_to_the_same_digest(
    registry: str, package: Path, run: Run, tmp_path: Path
) -> None:
    where = f"oci://{registry}/round/digits"
    pushed = json.loads(run("push", package, where, "--plain-http", "-o", "json").stdout)
    pulled = json.loads(run("pull", f"{where}:v1", tmp_path / "back", "--plain-http", "-o", "json").stdout)
    assert files_of(tmp_path / "back") == files_of(package)
    assert (pulled["digest"], pulled["presentBytes"]) == (pushed["digest"], 0)
    assert pulled["fetchedBytes"] == len(LARGE) + len(b"small model") + len(b"golden samples")
    again = json.loads(run("push", tmp_path / "back", f"{where}:again", "--plain-http", "-o", "json").stdout)
    assert (again["digest"], again["sentBytes"]) == (pushed["digest"], 0)
    by_digest = run("pull", f"{where}@{pushed['digest']}", tmp_path / "back", "--plain-http", "-o", "json").stdout
    assert json.loads(by_digest)["fetchedBytes"] == 0  # it is all there


def test_an_interrupted_pull_goes_on_and_a_damaged_part_comes_again(
    registry: str, package: Path, run: Run, tmp_path: Path
) -> None:
    where = f"oci://{registry}/resumed/digits"
    run("push", package, where, "--plain-http")
    back = tmp_path / "back"
    back.mkdir()
    half = len(LARGE) // 2
    (back / "onnx-fp32.onnx.partial").write_bytes(LARGE[:half])
    (back / "onnx-int8.onnx.partial").write_bytes(b"smell")  # damaged: its rest would not fit
    with open_registry(registry, None, plain_http=True) as client:
        seen: list[tuple[str, int]] = []
        place = Repository(client, "resumed/digits", lambda name, count: seen.append((name, count)))
        pull_package(place, "v1", back)
    assert files_of(back) == files_of(package)
    assert sum(count for name, count in seen if name == "onnx-fp32.onnx") == len(LARGE) - half
    assert sum(count for name, count in seen if name == "onnx-int8.onnx") == len(b" model") + len(b"small model")


def test_a_pull_touches_no_other_file(registry: str, package: Path, run: Run, tmp_path: Path) -> None:
    where = f"oci://{registry}/other/digits"
    run("push", package, where, "--plain-http")
    back = tmp_path / "back"
    back.mkdir()
    (back / "onnx-int8.onnx").write_bytes(b"mine")
    refused = run("pull", f"{where}:v1", back, "--plain-http", ok=False)
    assert "onnx-int8.onnx: is there already, and is something else" in refused.stderr
    assert (back / "onnx-int8.onnx").read_bytes() == b"mine"
    (back / "onnx-int8.onnx").unlink()
    (back / "golden.npz").symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in run("pull", f"{where}:v1", back, "--plain-http", ok=False).stderr
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_attached_travels_and_people_can_read_it(registry: str, package: Path, run: Run) -> None:
    where = f"oci://{registry}/seen/digits"
    run("push", package, where, "--plain-http")
    text = run("inspect", f"{where}:v1", "--plain-http").stdout
    assert "digits v1, index sha256:" in text
    assert "onnx-fp32" in text
    assert "evaluation card" in text
    assert "golden samples" in text
    found = json.loads(run("inspect", f"{where}:v1", "--plain-http", "-o", "json").stdout)
    assert {one["artifactType"] for one in found["referrers"]} >= {manifests.CARD_TYPE, manifests.GOLDEN_TYPE}
    assert found["card"]["model"] == "digits"
    assert [one["name"] for one in found["variants"]] == ["onnx-fp32", "onnx-int8"]
    listed = json.loads(run("list", where, "--plain-http", "-o", "json").stdout)
    assert [(one["tag"], one["digest"]) for one in listed] == [("v1", found["digest"])]  # no lists of referrers


def test_a_version_never_changes_but_a_tag_may_move(registry: str, package: Path, run: Run, tmp_path: Path) -> None:
    where = f"oci://{registry}/moved/digits"
    run("push", package, where, "--plain-http")
    other = make_package(tmp_path / "other", large=b"another model")
    refused = run("push", other, where, "--plain-http", ok=False)
    assert "moved/digits:v1: exists already" in refused.stderr
    assert "model versions are immutable" in refused.stderr
    run("push", other, f"{where}:v2", "--plain-http")
    run("tag", f"{where}:v1", "stable", "--plain-http")
    assert "move it with --force" in run("tag", f"{where}:v2", "stable", "--plain-http", ok=False).stderr
    run("tag", f"{where}:v2", "stable", "--force", "--plain-http")
    listed = json.loads(run("list", where, "--plain-http", "-o", "json").stdout)
    digests = {one["tag"]: one["digest"] for one in listed}
    assert digests["stable"] == digests["v2"] != digests["v1"]
    run("rm", f"{where}@{digests['v1']}", "--plain-http")
    assert "answers 404" in run("pull", f"{where}:v1", "--plain-http", ok=False).stderr


def test_a_copy_within_one_registry_sends_nothing_and_between_two_everything_once(
    registry: str, closed_registry: str, package: Path, run: Run, tmp_path: Path
) -> None:
    where = f"oci://{registry}/from/digits"
    run("push", package, where, "--plain-http")
    mounted = json.loads(run("copy", f"{where}:v1", f"oci://{registry}/to/digits", "--plain-http", "-o", "json").stdout)
    assert (mounted["sentBytes"], mounted["presentBytes"]) == (0, 0)
    assert mounted["mountedBytes"] > len(LARGE)
    (tmp_path / "auth.json").write_text(
        json.dumps({"auths": {closed_registry: {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}}})
    )
    goal = f"oci://{closed_registry}/to/digits:first"
    environment = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    sent = json.loads(run("copy", f"{where}:v1", goal, "--plain-http", "-o", "json", **environment).stdout)
    assert (sent["digest"], sent["sentBytes"]) == (mounted["digest"], mounted["mountedBytes"])
    again = json.loads(run("copy", f"{where}:v1", goal, "--plain-http", "-o", "json", **environment).stdout)
    assert (again["sentBytes"], again["presentBytes"]) == (0, sent["sentBytes"])
    run("pull", goal, tmp_path / "back", "--plain-http", **environment)
    assert files_of(tmp_path / "back") == files_of(package)  # the card went along


def test_credentials_come_from_options_or_the_users_files(
    closed_registry: str, package: Path, run: Run, tmp_path: Path
) -> None:
    where = f"oci://{closed_registry}/closed/digits"
    refused = run("push", package, where, "--plain-http", ok=False)
    assert "answers 401" in refused.stderr
    assert "hint: log in" in refused.stderr
    wrong = run("push", package, where, "--plain-http", "-u", USER, "--password-stdin", stdin="wrong\n", ok=False)
    assert "answers 401" in wrong.stderr
    run("push", package, where, "--plain-http", "-u", USER, "--password-stdin", stdin=f"{PASSWORD}\n")
    docker = tmp_path / "docker"
    docker.mkdir()
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (docker / "config.json").write_text(json.dumps({"auths": {f"{closed_registry}": {"auth": auth}}}))
    assert "v1" in run("list", where, "--plain-http", DOCKER_CONFIG=str(docker)).stdout
    (docker / "config.json").write_text(json.dumps({"auths": {f"{closed_registry}": {"auth": "?"}}}))
    damaged = run("list", where, "--plain-http", DOCKER_CONFIG=str(docker), ok=False)
    assert "is not base64 of user:password" in damaged.stderr
    alone = run("list", where, "--plain-http", "-u", USER, ok=False)
    assert "a user name and a password belong together" in alone.stderr


def test_plain_http_stays_on_this_machine_and_only_when_asked(registry: str, run: Run) -> None:
    refused = run("list", "oci://registry.example.org/digits", "--plain-http", ok=False)
    assert "plain HTTP is for registries on this machine only" in refused.stderr
    unasked = run("list", f"oci://{registry}/digits", ok=False)
    assert "cannot be reached" in unasked.stderr


def test_skopeo_reads_what_was_pushed(registry: str, package: Path, run: Run) -> None:
    where = f"oci://{registry}/skopeo/digits"
    pushed = json.loads(run("push", package, where, "--plain-http", "-o", "json").stdout)
    try:
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry}/skopeo/digits:v1"],
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
    except FileNotFoundError:
        pytest.skip("skopeo is not installed")
    assert manifests.digest_of(raw) == pushed["digest"]
