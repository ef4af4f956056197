"""`kubectl` for tests without a cluster: applied Jobs run here, each container's own command as a local process.

A Job's volume is a directory; `/optimize` in commands and environment stands for it. Init containers run in order, then
the container; what fails is tried again as often as the Job says. All Jobs run beside each other, as on a cluster.
What is not played: images, limits, security contexts, deadlines, Secrets. The state is in the directory that
SKERRY_TEST_CLUSTER names; SKERRY_TEST_BROKEN names a part whose factory container cannot start.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PART = "app.kubernetes.io/component"
VOLUME = re.compile(r"/optimize(?![\w.])")
PLACE = Path(os.environ["SKERRY_TEST_CLUSTER"])


def apply() -> None:
    for manifest in yaml.safe_load_all(sys.stdin.read()):
        name = manifest["metadata"]["name"]
        (PLACE / f"{name}.json").write_text(json.dumps(manifest))
        with (PLACE / f"{name}.log").open("wb") as log:
            command = [sys.executable, __file__, "run", name]
            job = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        (PLACE / f"{name}.pid").write_text(str(job.pid))
        print(f"job.batch/{name} created")


def run(name: str) -> None:
    """Play the Job controller and the kubelet for one Job."""
    job = json.loads((PLACE / f"{name}.json").read_text())
    for attempt in range(job["spec"]["backoffLimit"] + 1):
        volume = PLACE / f"{name}-{attempt}"
        volume.mkdir()
        if all(container(job, each, volume) for each in containers(job)):
            return finish(name, {"type": "Complete", "status": "True"})
    said = "Job has reached the specified backoff limit"
    return finish(name, {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": said})


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    pod = job["spec"]["template"]["spec"]
    return [*pod["initContainers"], *pod["containers"]]


def container(job: dict[str, Any], given: dict[str, Any], volume: Path) -> bool:
    if given["name"] == "factory" and job["metadata"]["labels"][PART] == os.environ.get("SKERRY_TEST_BROKEN"):
        return False
    command = [VOLUME.sub(str(volume), word) for word in given["command"]]
    own = {entry["name"]: VOLUME.sub(str(volume), entry["value"]) for entry in given["env"]}
    print(f"== {given['name']}", flush=True)
    return subprocess.run(command, env={**os.environ, **own}, cwd=volume, check=False).returncode == 0


def finish(name: str, condition: dict[str, str]) -> None:
    part = PLACE / f".{name}.status"
    part.write_text(json.dumps({"conditions": [condition]}))
    part.rename(PLACE / f"{name}.status")


def get(selector: str) -> None:
    key, _, value = selector.partition("=")
    items = []
    for file in sorted(PLACE.glob("*.json")):
        job, status = json.loads(file.read_text()), file.with_suffix(".status")
        if job["metadata"]["labels"].get(key) == value:
            items.append({**job, "status": json.loads(status.read_text()) if status.exists() else {}})
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["apply", "-f", "-"]:
            apply()
        case ["get", "jobs", "--namespace", "models", "--selector", selector, "--output", "json"]:
            get(selector)
        case ["run", name]:
            run(name)
        case words:
            sys.exit(f"error: unknown command {words}")
