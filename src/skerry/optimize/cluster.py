"""A run on a Kubernetes cluster: inputs to the registry, Jobs to the cluster, the package back; by oras and kubectl.

Lives here: what is sent, and calling the two tools. Must not live here: the manifests (`kubernetes`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from skerry.api import codec
from skerry.api.errors import InvalidError, NotFoundError, SkerryError, TimedOutError, UnsupportedError
from skerry.optimize import kubernetes, package
from skerry.optimize.kubernetes import Cluster
from skerry.optimize.progress import Progress
from skerry.optimize.recipe import Optimization

TRANSFER_SECONDS = 3600.0
COMMAND_SECONDS = 120.0


def to_yaml(jobs: Sequence[dict[str, Any]]) -> str:
    """Return manifests as one YAML stream, for `kubectl apply -f -`."""
    return "---\n".join(codec.to_yaml(job) for job in jobs)


def gather(wanted: Optimization, directory: Path) -> None:
    """Copy everything that the Jobs need into a directory, with a recipe that names it there.

    Beside a Python file go the Python files of its directory, which it may import. Raises NotFoundError, InvalidError
    when two files of the same name are needed.
    """
    plain = msgspec.to_builtins(wanted)
    plain["out"] = "package"
    plain.get("resources", {}).pop("memory", None)  # there it is what the container may take
    source, data = plain["source"], plain["data"]
    for holder, field in ((source, "path"), (source, "weights"), (source, "code"), (data, "path"), (plain, "metric")):
        if os.path.isabs(value := holder.get(field, "")):
            holder[field] = _copy(value, directory)
    for variant in plain["variants"]:
        tune = variant.get("pruning", {}).get("fineTune", "")
        if os.path.isabs(tune):
            variant["pruning"]["fineTune"] = _copy(tune, directory)
    (directory / kubernetes.RECIPE).write_text(codec.to_yaml(plain), encoding="utf-8")


def run(wanted: Optimization, cluster: Cluster, tell: Progress) -> None:
    """Carry it out and bring the package to its place. Blocks until the last Job has ended.

    Raises UnsupportedError when a tool is missing, SkerryError with what a tool said, TimedOutError.
    """
    for tool in ("oras", "kubectl"):
        if shutil.which(tool) is None:
            raise UnsupportedError("is not installed", element=tool, hint="install it, or use --dry-run")
    target = Path(wanted.out)
    package.check_target(target)
    jobs, name = kubernetes.manifests(wanted, cluster), kubernetes.run_name(wanted)
    plain = ["--plain-http"] if cluster.plain_http else []
    with tempfile.TemporaryDirectory(prefix="skerry-factory-") as scratch:
        inputs, made = Path(scratch) / "inputs", Path(scratch) / "package"
        inputs.mkdir()
        gather(wanted, inputs)
        _call(
            ["oras", "push", *plain, kubernetes.reference(cluster, name, "inputs"), "inputs"],
            Path(scratch),
            TRANSFER_SECONDS,
        )
        tell("kubernetes.sent", run=name)
        _call(["kubectl", "apply", "-f", "-"], inputs, COMMAND_SECONDS, given=to_yaml(jobs))
        tell("kubernetes.applied", jobs=[job["metadata"]["name"] for job in jobs])
        last, seconds = jobs[-1]["metadata"]["name"], jobs[-1]["spec"]["activeDeadlineSeconds"]
        wait = ["kubectl", "wait", "--namespace", cluster.namespace, f"job/{last}", "--for=condition=complete"]
        _call([*wait, f"--timeout={seconds}s"], inputs, seconds + COMMAND_SECONDS)
        where = kubernetes.reference(cluster, name, "package")
        _call(["oras", "pull", *plain, where, "-o", scratch], inputs, TRANSFER_SECONDS)
        card = package.adopt(made, target)
    kept = [packaged.variant.name for packaged in card.variants]
    tell("done", package=str(target), kept=kept, rejected=[one.name for one in card.rejected], seconds=0.0)


def _copy(value: str, directory: Path) -> str:
    """Copy a file or directory in; return what it is called there."""
    file, _, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    path = Path(file)
    if not path.exists():
        raise NotFoundError("no such file", element=file)
    beside = sorted(path.parent.glob("*.py")) if path.suffix == ".py" else [path]
    for each in beside:
        target = directory / each.name
        if each.is_dir():
            shutil.copytree(each, target)
        elif not target.exists():
            shutil.copyfile(each, target)
        elif target.read_bytes() != each.read_bytes():
            hint = "give them different names"
            raise InvalidError(
                "two files have this name, and Jobs get all in one directory", element=each.name, hint=hint
            )
    return f"{path.name}:{function}" if function else path.name


def _call(command: Sequence[str], directory: Path, seconds: float, *, given: str = "") -> None:
    try:
        done = subprocess.run(
            command, input=given, cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"not done within {seconds:.0f} s", element=" ".join(command[:2])) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SkerryError(said[-1][:400], element=" ".join(command[:2]))
