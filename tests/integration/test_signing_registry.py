"""`skerry model sign|verify` of what is in a registry already: Debian's docker-registry, as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.integration import docker_registry
from tests.integration.test_signing_interop import run, write_key
from tests.unit.signing import bundles, packages

pytestmark = docker_registry.needs_docker_registry
pytest.importorskip("model_signing", reason="skerry[signing] is not installed")


def test_a_model_version_is_signed_and_verified_where_it_is(tmp_path: Path) -> None:
    packages.make(tmp_path / "digits")
    key, other = (write_key(tmp_path / name, bundles.new_key()) for name in ("k.pem", "other.pem"))
    with docker_registry.serving(tmp_path / "registry") as host:
        where = f"oci://{host}/models/digits:v1"
        run("model", "push", tmp_path / "digits", where, "--plain-http")
        assert "is not signed" in run("model", "verify", where, "--key", f"{key}.pub", "--plain-http", code=1)

        assert "3 files" in run("model", "sign", where, "--key", key, "--plain-http")
        run("model", "sign", where, "--key", other, "--plain-http")
        said = json.loads(run("model", "verify", where, "--key", f"{key}.pub", "--plain-http", "-o", "json"))
        assert sorted(one["status"] for one in said["signatures"]) == ["Refused", "Verified"]

        run("model", "pull", where, tmp_path / "back", "--plain-http")
        run("model", "verify", tmp_path / "back", "--key", f"{other}.pub")
        copied = f"oci://{host}/elsewhere/digits"
        run("model", "copy", where, f"{copied}:v1", "--plain-http")
        run("model", "verify", f"{copied}:v1", "--key", f"{other}.pub", "--plain-http")
