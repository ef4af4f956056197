"""One run of the factory as Kubernetes Jobs: an import, one for each variant, one that collects; manifests only.

Each Job runs the factory itself on one step and sends its cache entries to an OCI registry; the next ones take them
from there, so that a step that is in the cache is not made again, here as on one machine. oras, a tool of its own,
carries artifacts; whoever comes too early waits for the artifact, within the Job's deadline. Lives here: the manifests.
Must not live here: applying them (`cluster`). Source: Kubernetes batch/v1; Pod Security Standards, restricted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from skerry.optimize import inputs, keys
from skerry.optimize.recipe import Optimization

ORAS = "ghcr.io/oras-project/oras:v1.3.0"
RECIPE = "optimize.yaml"
DEFAULT_MEMORY = "4Gi"
PART = "app.kubernetes.io/component"
"""The label that says which Job of a run it is: `import`, a variant's name, or `collect`."""
COLLECT = "collect"
KEEP_SECONDS = 24 * 3600
"""A finished Job stays this long, for its logs."""
_MAX_NAME = 63
_STEP_RETRIES = 2
_SMALL = {"cpu": "50m", "memory": "64Mi"}
_USER = 65532
_WORK = "/optimize"
_PULL = 'until oras manifest fetch $OPTIONS "$1" >/dev/null; do sleep 5; done; oras pull $OPTIONS "$1" -o /optimize'
_PUSH = 'cd /optimize && oras push $OPTIONS "$1" "$2"'
_PUSH_OWN = f"rm -rf /optimize/cache/import-* && {_PUSH}"
_RUN = 'python -m skerry.optimize "$@" || [ $? -eq 3 ]'
"""Partial is no failure here: the package's card says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where the Jobs run and where what they make goes."""

    repository: str
    """Of an OCI registry, as in registry.example/models/digits."""
    image: str
    """With skerry and the extras that the variants need."""
    namespace: str = "default"
    secret: str = ""
    """A Secret of type kubernetes.io/dockerconfigjson, with access to the repository."""
    plain_http: bool = False
    """The registry speaks HTTP: for tests on one machine."""
    attempt: str = ""
    """Any word: with another one all is made anew, also what an earlier attempt found that cannot be made."""


def run_name(wanted: Optimization, cluster: Cluster) -> str:
    """Return the run's name: the same model, data, recipe and resources, image and attempt have the same one."""
    options = [keys.of_options(wanted, spec) for spec in wanted.variants]
    parts = [keys.of_import(wanted), inputs.digest(wanted), wanted.name, wanted.version, *options, str(wanted.runs)]
    bounds = wanted.resources
    parts += [cluster.image, cluster.attempt, bounds.memory or DEFAULT_MEMORY, str(bounds.timeout_seconds)]
    return f"{wanted.name}-{wanted.version}"[:30].rstrip("-.").replace(".", "-") + "-" + _short("\n".join(parts))


def reference(cluster: Cluster, run: str, part: str) -> str:
    """Return where an artifact of the run is: `inputs`, `import`, a variant's name, or `package`."""
    return f"{cluster.repository}:{run}-{part}"


def manifests(wanted: Optimization, cluster: Cluster) -> list[dict[str, Any]]:
    """Return the Jobs, in the order in which they can do their work."""
    run = run_name(wanted, cluster)
    names = [variant.name for variant in wanted.variants]
    made = [_Job(run, "import", wanted, cluster, takes=(), step=("--step", "import"))]
    made += [_Job(run, name, wanted, cluster, takes=("import",), step=("--step", name)) for name in names]
    package = ("--step", COLLECT, "--out", f"{_WORK}/package")
    made.append(_Job(run, COLLECT, wanted, cluster, takes=("import", *names), step=package, gives="package"))
    return [job.manifest() for job in made]


class _Job:
    def __init__(
        self,
        run: str,
        part: str,
        wanted: Optimization,
        cluster: Cluster,
        *,
        takes: Sequence[str],
        step: Sequence[str],
        gives: str = "",
    ) -> None:
        self._run, self._part, self._wanted, self._cluster = run, part, wanted, cluster
        self._takes, self._step, self._gives = takes, step, gives

    def manifest(self) -> dict[str, Any]:
        """Return the Job."""
        labels = {
            "app.kubernetes.io/name": "skerry-optimize",
            "app.kubernetes.io/instance": self._run,
            PART: self._part,
        }
        name = _name(f"{self._run}-{self._part}")
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self._cluster.namespace, "labels": labels},
            "spec": {
                "backoffLimit": _STEP_RETRIES,
                # a late Job waits for the import's time and its own
                "activeDeadlineSeconds": self._wanted.resources.timeout_seconds * (2 if self._takes else 1),
                "ttlSecondsAfterFinished": KEEP_SECONDS,
                "template": {"metadata": {"labels": labels}, "spec": self._pod()},
            },
        }

    def _pod(self) -> dict[str, Any]:
        pulls = [self._oras(f"take-{part}", _PULL, part) for part in ("inputs", *self._takes)]
        own = _PUSH_OWN if self._takes else _PUSH
        gives = (_PUSH, self._gives, self._gives) if self._gives else (own, self._part, "cache")
        volumes: list[dict[str, Any]] = [{"name": "work", "emptyDir": {}}]
        if self._cluster.secret:
            volumes.append({"name": "registry", "secret": {"secretName": self._cluster.secret}})
        return {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [*pulls, self._factory()],
            "containers": [self._oras("give", *gives)],
            "volumes": volumes,
        }

    def _factory(self) -> dict[str, Any]:
        memory = self._wanted.resources.memory or DEFAULT_MEMORY
        command = ["/bin/sh", "-ec", _RUN, "factory", "--file", f"{_WORK}/inputs/{RECIPE}"]
        command += ["--cache", f"{_WORK}/cache", "--progress", "json", "--parallel", "1", *self._step]
        return {
            "name": "factory",
            "image": self._cluster.image,
            "command": command,
            "env": [{"name": "HOME", "value": _WORK}, {"name": "TMPDIR", "value": _WORK}],
            "resources": {"requests": {"cpu": "1", "memory": memory}, "limits": {"memory": memory}},
            "securityContext": _restricted(),
            "volumeMounts": [{"name": "work", "mountPath": _WORK}],
        }

    def _oras(self, name: str, script: str, part: str, directory: str = "") -> dict[str, Any]:
        options = ["--plain-http"] if self._cluster.plain_http else []
        mounts: list[dict[str, Any]] = [{"name": "work", "mountPath": _WORK}]
        if self._cluster.secret:
            options += ["--registry-config", "/registry/.dockerconfigjson"]
            mounts.append({"name": "registry", "mountPath": "/registry", "readOnly": True})
        where = reference(self._cluster, self._run, part)
        return {
            "name": _name(name),
            "image": ORAS,
            "command": ["/bin/sh", "-ec", script, "oras", where, *filter(None, [directory])],
            "env": [{"name": "OPTIONS", "value": " ".join(options)}, {"name": "HOME", "value": _WORK}],
            "resources": {"requests": _SMALL, "limits": {"memory": "256Mi"}},
            "securityContext": _restricted(),
            "volumeMounts": mounts,
        }


def _restricted() -> Mapping[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _name(text: str) -> str:
    """Return a DNS label; one that is too long keeps its beginning, and a digest of the rest."""
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 11]}-{_short(text)}"


def _short(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:10]
