"""A hub whose artifacts are in another registry: the same door for everybody, also while that registry is away."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration import docker_registry
from tests.integration.docker_registry import PASSWORD, USER, needs_docker_registry
from tests.integration.test_models_elsewhere import LARGE, blob_of, make_package

pytestmark = needs_docker_registry

WAIT = 20.0
BLOB = f"/v2/default/digits/blobs/{blob_of(LARGE).digest}"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package")


def skerry(hub: Any, *arguments: str | Path, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skerry.cli", *map(str, arguments), "--kubeconfig", str(hub.state_dir / "kubeconfig")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout + done.stderr


def get(hub: Any, path: str, **headers: str) -> tuple[int, bytes]:
    connection = hub.connect(hub.admin)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ready(hub: Any, name: str) -> Any:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        found = next((one for one in hub.items("modelversions") if one["metadata"]["name"] == name), None)
        if found is not None and found["status"].get("phase") == "Ready":
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def test_everything_is_kept_there_and_comes_through_the_hub(
    start_hub: Callable[..., Any], package: Path, tmp_path: Path
) -> None:
    with docker_registry.serving(tmp_path / "registry") as host:
        hub = start_hub("--registry", f"oci+http://{host}/fleet/models").wait_ready()
        assert "pushed" in skerry(hub, "model", "push", package)
        assert len(ready(hub, "digits-v1")["status"]["variants"]) == 2
        assert get(hub, BLOB) == (200, LARGE)
        assert get(hub, BLOB, range="bytes=100-299") == (206, LARGE[100:300])
        referrers = json.loads(get(hub, f"/v2/default/digits/referrers/{_index(hub)}")[1])["manifests"]
        assert len(referrers) >= 2  # though that registry has no such API
        assert "golden samples" in skerry(hub, "model", "inspect", "digits:v1")
        skerry(hub, "model", "pull", "digits:v1", tmp_path / "back")
        assert {p.name for p in (tmp_path / "back").iterdir()} == {p.name for p in package.iterdir()}
        assert not [path for path in (hub.state_dir / "artifacts").rglob("*") if path.is_file()]
        direct = http.client.HTTPConnection(host, timeout=WAIT)
        direct.request("GET", "/v2/fleet/models/default/digits/tags/list")
        assert "v1" in json.loads(direct.getresponse().read())["tags"]
        direct.close()
        assert "modelversion/digits-v1 removed" in skerry(hub, "model", "rm", "digits:v1")
        assert "answers 404" in skerry(hub, "model", "inspect", "digits:v1", ok=False)
        assert not hub.items("modelversions")
        assert "collects its own garbage" in skerry(hub, "registry", "gc", "--dry-run", ok=False)
        hub.terminate()


def test_while_it_is_away_nothing_is_forgotten_and_it_is_asked_again(
    start_hub: Callable[..., Any], package: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "registry"
    with docker_registry.serving(directory) as host:
        hub = start_hub("--registry", f"oci+http://{host}/models").wait_ready()
        skerry(hub, "model", "push", package)
        ready(hub, "digits-v1")
    status, said = get(hub, BLOB)
    assert (status, json.loads(said)["errors"][0]["code"]) == (503, "UNAVAILABLE")
    assert "cannot be reached" in skerry(hub, "model", "pull", "digits:v1", tmp_path / "back", ok=False)
    assert get(hub, "/readyz")[0] == 200
    assert ready(hub, "digits-v1")["status"]["phase"] == "Ready"
    with docker_registry.serving(directory, address=host):
        assert get(hub, BLOB) == (200, LARGE)
    hub.kill()  # it has logged what was away


def test_what_it_refuses_the_hub_is_no_refusal_of_who_asks(
    start_hub: Callable[..., Any], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with docker_registry.serving(tmp_path / "registry", login=True) as host:
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        hub = start_hub("--registry", f"oci+http://{host}/models").wait_ready()
        status, said = get(hub, BLOB)
        assert status == 503  # a device tries again, as it would not after 401
        assert b"does not let the hub in" in said
        hub.kill()
        auth = {"auths": {host: {"username": USER, "auth": _basic()}}}
        (tmp_path / "auth.json").write_text(json.dumps(auth))
        let_in = start_hub("--registry", f"oci+http://{host}/models", state_dir=tmp_path / "other").wait_ready()
        skerry(let_in, "model", "push", package)
        assert get(let_in, BLOB) == (200, LARGE)
        let_in.terminate()


def test_a_registry_that_is_none_is_refused_at_once(start_hub: Callable[..., Any]) -> None:
    for text, cause in (
        ("oci+http://registry.example.org/models", "plain HTTP is for registries on this machine only"),
        ("oci://registry.example.org/models:v1", "does not name a registry and a repository"),
        ("default/models", "does not name a registry and a repository"),
    ):
        hub = start_hub("--registry", text)
        _, said = hub.process.communicate(timeout=WAIT)
        assert hub.process.returncode == 2
        assert cause in " ".join(said.decode().split())


def _index(hub: Any) -> str:
    digest: str = ready(hub, "digits-v1")["spec"]["artifact"]["digest"]
    return digest


def _basic() -> str:
    return base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
