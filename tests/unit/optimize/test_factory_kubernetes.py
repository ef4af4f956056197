"""The Jobs of a run: golden, valid for Kubernetes, and enough for the factory to go on from what others made."""

import dataclasses
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest
import yaml

from skerry.api.errors import InvalidError, NotFoundError, UnsupportedError
from skerry.optimize import cluster, kubernetes, request
from skerry.optimize.kubernetes import Cluster
from skerry.optimize.recipe import Optimization

GOLDEN = Path(__file__).parent / "jobs.yaml"
PLACE = Cluster(
    repository="registry.example/models/digits",
    image="registry.example/skerry:1.0",
    namespace="models",
    secret="registry",
)
RECIPE = {
    "name": "digits",
    "version": "v1.2",
    "source": {"path": "model.py:build_model", "weights": "w.pt"},
    "data": {"path": "data.npz"},
    "out": "package",
    "variants": ["onnx-fp32", "tflite-int8", {"name": "onnx-fp32-tuned", "pruning": {"fineTune": "tune.py:tune"}}],
    "resources": {"memory": "2Gi", "timeoutSeconds": 600},
}


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Optimization:
    for name in ("model.py", "layers.py", "tune.py", "w.pt", "data.npz"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "optimize.yaml").write_text(yaml.safe_dump(RECIPE))
    return request.read(tmp_path / "optimize.yaml", {})


def test_the_manifests_are_the_ones_we_know(wanted: Optimization, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change on purpose, write what it prints into jobs.yaml and read the difference."""
    monkeypatch.setattr(kubernetes, "run_name", lambda *_: "digits-v1-2-0123456789")
    assert cluster.to_yaml(kubernetes.manifests(wanted, PLACE)) == GOLDEN.read_text()


@pytest.mark.parametrize("version", ["1.25", "1.28", "1.37"])
def test_kubernetes_takes_them(wanted: Optimization, version: str) -> None:
    jobs = kubernetes.manifests(wanted, PLACE)
    assert [job["metadata"]["labels"]["app.kubernetes.io/component"] for job in jobs] == [
        *("import", "onnx-fp32", "tflite-int8", "onnx-fp32-tuned", "collect")
    ]
    for job in jobs:
        kubernetes_validate.validate(job, version, strict=True)
        assert len(job["metadata"]["name"]) <= 63
        pod = job["spec"]["template"]["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert container["resources"]["limits"]["memory"]


def test_long_names_stay_names_and_stay_apart(wanted: Optimization) -> None:
    long = [msgspec.structs.replace(wanted.variants[0], name=f"onnx-int8-dynamic-{'x' * 44}{end}") for end in "ab"]
    jobs = kubernetes.manifests(msgspec.structs.replace(wanted, variants=long), PLACE)
    names = [job["metadata"]["name"] for job in jobs]
    assert len(set(names)) == len(names) == 4
    for job in jobs:
        kubernetes_validate.validate(job, "1.37", strict=True)
        containers = [c["name"] for c in job["spec"]["template"]["spec"]["initContainers"]]
        assert len(set(containers)) == len(containers)
        assert max(map(len, (*names, *containers))) <= 63


def test_another_model_is_another_run_and_the_place_is_not(wanted: Optimization, tmp_path: Path) -> None:
    before = kubernetes.run_name(wanted, PLACE)
    (tmp_path / "elsewhere").mkdir()
    cluster.gather(wanted, tmp_path / "elsewhere")
    moved = request.read(tmp_path / "elsewhere" / "optimize.yaml", {})
    assert [variant.name for variant in moved.variants] == [variant.name for variant in wanted.variants]
    moved = msgspec.structs.replace(moved, resources=wanted.resources)  # what is sent leaves memory to the container
    assert kubernetes.run_name(moved, PLACE) == before
    (tmp_path / "w.pt").write_text("others")
    assert kubernetes.run_name(wanted, PLACE) != before


def test_more_memory_another_image_or_another_attempt_is_another_run(wanted: Optimization) -> None:
    """What failed for want of memory or of a library shall not be taken for the last word."""
    more = msgspec.structs.replace(wanted.resources, memory="8Gi")
    longer = msgspec.structs.replace(wanted.resources, timeout_seconds=9999)
    names = [
        kubernetes.run_name(wanted, PLACE),
        kubernetes.run_name(wanted, dataclasses.replace(PLACE, image="registry.example/skerry:1.1")),
        kubernetes.run_name(wanted, dataclasses.replace(PLACE, attempt="2")),
        kubernetes.run_name(msgspec.structs.replace(wanted, resources=more), PLACE),
        kubernetes.run_name(msgspec.structs.replace(wanted, resources=longer), PLACE),
    ]
    assert len(set(names)) == len(names)


def test_everything_a_job_needs_is_gathered(wanted: Optimization, tmp_path: Path) -> None:
    target = tmp_path / "inputs"
    target.mkdir()
    cluster.gather(wanted, target)
    names = {"model.py", "layers.py", "tune.py", "w.pt", "data.npz", "optimize.yaml"}
    assert {path.name for path in target.iterdir()} == names
    assert str(tmp_path) not in (target / "optimize.yaml").read_text()
    assert request.read(target / "optimize.yaml", {}).resources.memory is None


def test_files_that_cannot_be_gathered(wanted: Optimization, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "w.pt").unlink()
    with pytest.raises(NotFoundError, match=r"w\.pt"):
        cluster.gather(wanted, tmp_path / "first")
    (tmp_path / "other").mkdir()
    (tmp_path / "w.pt").write_text("weights")
    (tmp_path / "other" / "w.pt").write_text("other")
    (tmp_path / "other" / "tune.py").write_text("# other")
    options = {"--metric": f"{tmp_path}/other/tune.py:score"}
    (tmp_path / "second").mkdir()
    clash = request.read(tmp_path / "optimize.yaml", options)
    with pytest.raises(InvalidError, match=r"tune\.py"):
        cluster.gather(clash, tmp_path / "second")


def test_a_missing_tool_is_said(wanted: Optimization, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="oras: is not installed"):
        cluster.run(wanted, PLACE, lambda *_, **__: None)
