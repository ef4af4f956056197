"""From `skerry registry token` to a blob in the registry of a hub that runs as it does in the field."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


def skerry(hub: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SKERRY_KUBECONFIG": str(hub.state_dir / "kubeconfig"), "COLUMNS": "40"}
    command = [sys.executable, "-m", "skerry.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_a_token_of_the_command_line_logs_in(hub: Any) -> None:
    made = skerry(hub, "registry", "token", "--push", "--repository", "default/login", "--ttl", "1h")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert re.fullmatch(r"skr1\.default/registry-[0-9a-f]{8}\.[A-Za-z0-9_-]{43}", token)
    raw = b"weights"
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    base = f"https://127.0.0.1:{hub.record['apiPort']}"
    with httpx.Client(base_url=base, verify=hub.context(), timeout=20) as client:
        refused = client.post("/v2/default/login/blobs/uploads/")
        assert refused.status_code == 401
        said = dict(re.findall(r'(\w+)="([^"]*)"', refused.headers["WWW-Authenticate"]))
        assert said["realm"] == f"{base}/v2/token"
        given = client.get(
            said["realm"], params={"scope": said["scope"], "service": said["service"]}, auth=("me", token)
        )
        assert given.status_code == 200, given.text
        bearer = {"Authorization": f"Bearer {given.json()['token']}"}
        url = f"/v2/default/login/blobs/uploads/?digest={digest}"
        assert client.post(url, content=raw, headers=bearer).status_code == 201
        assert client.get(f"/v2/default/login/blobs/{digest}", headers=bearer).content == raw
        api = client.get("/apis/skerry.dev/v1alpha1/namespaces/default/devices", headers=bearer)
        assert api.status_code == 401  # it is for the registry alone
    kept = hub.items("registrytokens")
    assert token.split(".")[2] not in str(kept)
    shown = skerry(hub, "get", "registrytokens")
    assert "pull,push" in shown.stdout
    foreign = skerry(hub, "registry", "token", "--repository", "lab/digits")
    assert foreign.returncode != 0
    assert "is not a repository of default" in " ".join(foreign.stderr.split())
    long = skerry(hub, "registry", "token", "--ttl", "9000h")
    assert long.returncode != 0


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_shows_the_admins_certificate_or_a_token(hub: Any, tmp_path: Path) -> None:
    trusting, showing = tmp_path / "trusting", tmp_path / "showing"
    for directory in (trusting, showing):
        directory.mkdir()
        shutil.copy(hub.state_dir / "pki" / "ca.crt", directory / "ca.crt")
    shutil.copy(hub.state_dir / "pki" / "admin.crt", showing / "client.cert")
    shutil.copy(hub.state_dir / "pki" / "admin.key", showing / "client.key")
    raw = b"weights"
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    with httpx.Client(base_url=f"https://127.0.0.1:{hub.record['apiPort']}", verify=hub.admin, timeout=20) as client:
        assert client.post(f"/v2/default/tags/blobs/uploads/?digest={digest}", content=raw).status_code == 201
    name = f"docker://127.0.0.1:{hub.record['apiPort']}/default/tags"

    def tags(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["skopeo", "list-tags", *options, name]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert tags("--cert-dir", str(showing)).returncode == 0
    token = skerry(hub, "registry", "token").stdout.strip()
    assert tags("--cert-dir", str(trusting), "--creds", f"me:{token}").returncode == 0
    refused = tags("--cert-dir", str(trusting), "--no-creds")
    assert refused.returncode != 0
    assert "authentication required" in refused.stderr or "unauthorized" in refused.stderr
