"""A run on a Kubernetes cluster: inputs to the registry, Jobs to the cluster, the package back; by oras and kubectl.

Lives here: what is sent, and calling the two tools. Must not live here: the manifests (`kubernetes`).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from skerry.api import codec
from skerry.api.errors import SkerryError, TimedOutError, UnsupportedError
from skerry.optimize import inputs, kubernetes, package
from skerry.optimize.kubernetes import Cluster
from skerry.optimize.progress import Progress
from skerry.optimize.recipe import Optimization

TRANSFER_SECONDS = 3600.0
COMMAND_SECONDS = 120.0
LOOK_SECONDS = 5.0
"""Between two looks at the Jobs."""


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Status(msgspec.Struct, frozen=True):
    conditions: list[_Condition] = []


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str] = {}


class _Job(msgspec.Struct, frozen=True):
    """What counts here of a batch/v1 Job."""

    metadata: _Metadata
    status: _Status = _Status()

    def condition(self, name: str) -> _Condition | None:
        """Return a condition that is true."""
        return next((one for one in self.status.conditions if one.type == name and one.status == "True"), None)


class _Jobs(msgspec.Struct, frozen=True):
    items: list[_Job]


def to_yaml(jobs: Sequence[dict[str, Any]]) -> str:
    """Return manifests as one YAML stream, for `kubectl apply -f -`."""
    return "---\n".join(codec.to_yaml(job) for job in jobs)


def gather(wanted: Optimization, directory: Path) -> None:
    """Copy everything that the Jobs need into a directory, with a recipe that names it there. Raises as `inputs`."""
    for name, path in inputs.files(wanted).items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
    (directory / kubernetes.RECIPE).write_text(codec.to_yaml(inputs.localised(wanted)), encoding="utf-8")


def run(wanted: Optimization, cluster: Cluster, tell: Progress) -> None:
    """Carry it out and bring the package to its place. Blocks until the last Job has ended, or one has failed.

    Raises UnsupportedError when a tool is missing, SkerryError with what a tool said or which Job failed,
    TimedOutError.
    """
    for tool in ("oras", "kubectl"):
        if shutil.which(tool) is None:
            raise UnsupportedError("is not installed", element=tool, hint="install it, or use --dry-run")
    target = Path(wanted.out)
    package.check_target(target)
    jobs, name = kubernetes.manifests(wanted, cluster), kubernetes.run_name(wanted, cluster)
    plain = ["--plain-http"] if cluster.plain_http else []
    with tempfile.TemporaryDirectory(prefix="skerry-factory-") as scratch:
        sent, made = Path(scratch) / "inputs", Path(scratch) / "package"
        sent.mkdir()
        gather(wanted, sent)
        _call(
            ["oras", "push", *plain, kubernetes.reference(cluster, name, "inputs"), "inputs"],
            Path(scratch),
            TRANSFER_SECONDS,
        )
        tell("kubernetes.sent", run=name)
        _call(["kubectl", "apply", "-f", "-"], sent, COMMAND_SECONDS, given=to_yaml(jobs))
        tell("kubernetes.applied", jobs=[job["metadata"]["name"] for job in jobs])
        _wait(name, cluster, jobs, tell)
        where = kubernetes.reference(cluster, name, "package")
        _call(["oras", "pull", *plain, where, "-o", scratch], sent, TRANSFER_SECONDS)
        card = package.adopt(made, target)
    kept = [packaged.variant.name for packaged in card.variants]
    tell("done", package=str(target), kept=kept, rejected=[one.name for one in card.rejected], seconds=0.0)


def _wait(run: str, cluster: Cluster, jobs: Sequence[dict[str, Any]], tell: Progress) -> None:
    """Wait until the Job that collects is complete. Raises SkerryError as soon as one fails for good, TimedOutError."""
    last = jobs[-1]
    deadline = time.monotonic() + last["spec"]["activeDeadlineSeconds"] + COMMAND_SECONDS
    label = f"app.kubernetes.io/instance={run}"
    ask = ["kubectl", "get", "jobs", "--namespace", cluster.namespace, "--selector", label, "--output", "json"]
    done: set[str] = set()
    while True:
        found = _decode(_call(ask, Path.cwd(), COMMAND_SECONDS))
        for job in found.items:
            part = job.metadata.labels.get(kubernetes.PART, "")
            if failed := job.condition("Failed"):
                said = ": ".join(filter(None, (failed.reason, failed.message)))
                name = f"job/{job.metadata.name}"
                see = f"kubectl logs --namespace {cluster.namespace} {name} --all-containers"
                hint = f"see `{see}`; run again after `kubectl delete jobs --namespace {cluster.namespace} -l {label}`"
                raise SkerryError(f"failed: {said}" if said else "failed", element=name, hint=hint)
            if job.condition("Complete") and part not in done:
                done.add(part)
                tell("kubernetes.finished", part=part)
        if last["metadata"]["labels"][kubernetes.PART] in done:
            return
        if time.monotonic() > deadline:
            raise TimedOutError("not done within its deadline", element=f"job/{last['metadata']['name']}")
        time.sleep(LOOK_SECONDS)


def _decode(said: str) -> _Jobs:
    try:
        return msgspec.json.decode(said, type=_Jobs)
    except msgspec.DecodeError as error:
        raise SkerryError(f"answered nonsense ({error})", element="kubectl get jobs") from error


def _call(command: Sequence[str], directory: Path, seconds: float, *, given: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=given, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"not done within {seconds:.0f} s", element=" ".join(command[:2])) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SkerryError(said[-1][:400], element=" ".join(command[:2]))
    return done.stdout
