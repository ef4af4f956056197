"""Users of a hub that runs as it does in the field: by an issuer elsewhere, and by tokens that outlive a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.hub import issuer as issuers
from tests.unit.hub.issuer import Issuer

from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.hub import pki
from skerry.kit.clock import SystemClock

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@pytest.fixture
def elsewhere(tmp_path: Path) -> pki.Authority:
    return pki.open_authority(tmp_path / "elsewhere", names=(), clock=SystemClock())


@pytest.fixture
def issuer(elsewhere: pki.Authority) -> Iterator[Issuer]:
    with issuers.serving(elsewhere) as running:
        yield running


def who(hub: Any, token: str) -> tuple[int, Any]:
    base = f"https://127.0.0.1:{hub.record['apiPort']}"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    with httpx.Client(base_url=base, verify=hub.context(), timeout=20) as client:
        answer = client.post(WHOAMI, json=body, headers={"Authorization": f"Bearer {token}"})
    if answer.status_code != 201:
        return answer.status_code, answer.json()["message"]
    return 201, answer.json()["status"]["userInfo"]


def test_an_issuer_s_users_log_in(start_hub: Any, issuer: Issuer, elsewhere: pki.Authority) -> None:
    hub = start_hub(
        *("--oidc-issuer-url", issuer.url, "--oidc-client-id", issuers.CLIENT),
        *("--oidc-username-claim", "email", "--oidc-groups-claim", "groups", "--oidc-groups-prefix", "oidc:"),
        *("--oidc-required-claim", "org=skerry", "--oidc-ca-file", str(elsewhere.ca_file)),
        *("--oidc-signing-algs", "RS256"),
    ).wait_ready()
    code, found = who(hub, issuer.token(email="ada@example.org", org="skerry"))
    assert code == 201, found
    assert (found["username"], found["groups"]) == ("ada@example.org", ["oidc:dev", "system:authenticated"])
    assert who(hub, issuer.token(email="ada@example.org"))[0] == 401
    assert who(hub, Issuer(issuer.url).token(email="ada@example.org", org="skerry"))[0] == 401
    secret = issuer.token(email="system:masters", org="skerry")
    assert who(hub, secret)[0] == 401
    hub.terminate()


def test_tokens_outlive_a_restart_and_a_kill_but_not_their_key(start_hub: Any, tmp_path: Path) -> None:
    hub = start_hub().wait_ready()

    def skerry(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "skerry.cli", *arguments],
            env={**os.environ, "SKERRY_KUBECONFIG": str(hub.state_dir / "kubeconfig")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    manifest = tmp_path / "account.yaml"
    manifest.write_text("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: ci\n")
    skerry("apply", "-f", str(manifest))
    robot = tmp_path / "robot"
    skerry("kubeconfig", "--service-account", "default/ci", "-o", str(robot))
    token = load_kubeconfig(robot).token
    assert who(hub, token)[1]["username"] == "system:serviceaccount:default:ci"
    hub.kill()
    hub = start_hub(state_dir=hub.state_dir).wait_ready()
    assert who(hub, token)[0] == 201
    (key,) = (hub.state_dir / "pki/tokens").iterdir()
    assert key.stat().st_mode & 0o077 == 0
    hub.terminate(signal.SIGTERM)
    key.unlink()
    hub = start_hub(state_dir=hub.state_dir).wait_ready()
    code, message = who(hub, token)
    assert code == 401
    assert "its key is not known" in message
    hub.terminate()
