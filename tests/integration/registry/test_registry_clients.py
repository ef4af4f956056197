"""The tools that people have, against the hub's registry over TLS: they log in with a token and go both ways."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from skerry.core import manifest as manifests

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
SECONDS = 60


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


class Layout:
    """An OCI image layout on disk with one image, or with one model of two variants and what is attached to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, bytes] = {}
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add(self, raw: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        (self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(raw)
        self.blobs[digest] = raw
        return digest

    def describe(self, raw: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.add(raw), "size": len(raw)}

    def top(self, raw: bytes, media_type: str) -> str:
        entry = self.describe(raw, media_type)
        (self.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        digest: str = entry["digest"]
        return digest


def image(root: Path) -> tuple[Layout, str]:
    """Make an image that podman can pull: one file in one layer."""
    layout, tar = Layout(root), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("model/weights")
        entry.size = 1000
        archive.addfile(entry, io.BytesIO(b"w" * 1000))
    plain = tar.getvalue()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/model/weights"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
    }
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifests.MANIFEST_TYPE,
            "config": layout.describe(json.dumps(config).encode(), CONFIG_TYPE),
            "layers": [layout.describe(gzip.compress(plain, mtime=0), LAYER_TYPE)],
        }
    ).encode()
    return layout, layout.top(raw, manifests.MANIFEST_TYPE)


@pytest.fixture
def authorities(tls_hub: Any, tmp_path: Path) -> Path:
    """A directory as containers' tools want it, with the hub's CA."""
    directory = tmp_path / "certs"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(tls_hub.context.authority.ca_pem)
    return directory


class Tool:
    """A program with a home of its own, so that it finds nobody's settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        self.policy = home / "policy.json"
        self.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home)}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, cwd=self.home
        )

    def skopeo(self, *arguments: str) -> str:
        done = self.run("skopeo", "--policy", str(self.policy), *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path / "home")


@pytest.fixture
def short_directory() -> Iterator[str]:
    """A directory whose name podman does not find too long."""
    with tempfile.TemporaryDirectory(prefix="sk-") as name:
        yield name


def host(url: str) -> str:
    return url.partition("://")[2]


@needs("skopeo")
def test_skopeo_logs_in_with_a_token_and_copies_both_ways(
    tls_hub: Any, authorities: Path, tool: Tool, tmp_path: Path
) -> None:
    layout, digest = image(tmp_path / "image")
    name = f"docker://{host(tls_hub.url)}/default/tiny:1.0"
    writer = ("--dest-cert-dir", str(authorities), "--dest-creds", f"ci:{tls_hub.make_token('pull', 'push')}")
    tool.skopeo("copy", *writer, f"oci:{layout.root}", name)
    reader = ("--cert-dir", str(authorities), "--creds", f"me:{tls_hub.make_token('pull')}")
    assert json.loads(tool.skopeo("inspect", *reader, name))["Digest"] == digest
    assert json.loads(tool.skopeo("list-tags", *reader, name.removesuffix(":1.0")))["Tags"] == ["1.0"]
    source = ("--src-cert-dir", str(authorities), "--src-creds", f"me:{tls_hub.make_token('pull')}")
    tool.skopeo("copy", *source, name, f"dir:{tmp_path / 'copy'}")
    for layer in layout.blobs.values():
        assert any(path.read_bytes() == layer for path in (tmp_path / "copy").iterdir())
    refused = tool.run(
        "skopeo",
        "--policy",
        str(tool.policy),
        "copy",
        "--dest-cert-dir",
        str(authorities),
        "--dest-creds",
        f"me:{tls_hub.make_token('pull')}",
        f"oci:{layout.root}",
        name + "1",
    )
    assert refused.returncode != 0
    assert "unauthorized" in refused.stderr
    wrong = tool.run("skopeo", "inspect", "--cert-dir", str(authorities), "--creds", "me:wrong", name)
    assert wrong.returncode != 0
    assert "authentication required" in wrong.stderr or "unauthorized" in wrong.stderr


@needs("podman")
@needs("skopeo")
def test_podman_logs_in_and_pulls(  # it runs nothing: that needs more than a registry
    tls_hub: Any, authorities: Path, tool: Tool, tmp_path: Path, short_directory: str
) -> None:
    layout, digest = image(tmp_path / "image")
    name = f"{host(tls_hub.url)}/default/tiny:1.0"
    tool.skopeo(
        "copy",
        "--dest-cert-dir",
        str(authorities),
        "--dest-creds",
        f"ci:{tls_hub.make_token('pull', 'push')}",
        f"oci:{layout.root}",
        f"docker://{name}",
    )
    podman = [
        "podman",
        "--root",
        str(tmp_path / "storage"),
        "--runroot",
        short_directory,
        "--storage-driver",
        "vfs",
        "--runtime",
        "runc",
        "--events-backend",
        "none",
        "--cgroup-manager",
        "cgroupfs",
    ]
    login = tool.run(
        *podman,
        "login",
        "--authfile",
        str(tmp_path / "auth.json"),
        "--cert-dir",
        str(authorities),
        "-u",
        "me",
        "-p",
        tls_hub.make_token("pull"),
        host(tls_hub.url),
    )
    assert login.returncode == 0, login.stderr
    pulled = tool.run(
        *podman,
        "pull",
        "--authfile",
        str(tmp_path / "auth.json"),
        "--cert-dir",
        str(authorities),
        "--signature-policy",
        str(tool.policy),
        name,
    )
    assert pulled.returncode == 0, pulled.stderr
    shown = tool.run(*podman, "image", "inspect", name, "--format", "{{.Digest}}")
    assert shown.stdout.strip() == digest


def test_oras_pushes_and_pulls(
    tls_hub: Any, authorities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oras = pytest.importorskip("oras.client")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authorities / "ca.crt"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"weights" * 1000)
    client = oras.OrasClient(hostname=host(tls_hub.url), auth_backend="token")
    client.auth.set_basic_auth("ci", tls_hub.make_token("pull", "push"))
    target = f"{host(tls_hub.url)}/default/oras:1.0"
    with contextlib.closing(client.session):
        assert client.push(target=target, files=["model.onnx"]).status_code == 201
        assert client.get_tags(target) == ["1.0"]
        (file,) = client.pull(target=target, outdir=str(tmp_path / "out"))
    assert Path(file).read_bytes() == b"weights" * 1000


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a port of the system's choice; yields its host and port."""
    log, config = tmp_path / "mirror.log", tmp_path / "mirror.yml"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'mirror'}}}, delete: {{enabled: true}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield found[1]
    finally:
        process.terminate()
        process.wait(SECONDS)


@needs("docker-registry")
@needs("skopeo")
def test_content_goes_to_a_docker_registry_and_comes_back_the_same(
    tls_hub: Any, mirror: str, authorities: Path, tool: Tool, tmp_path: Path
) -> None:
    layout, digest = image(tmp_path / "image")
    token = f"ci:{tls_hub.make_token('pull', 'push')}"
    there, back = f"docker://{host(tls_hub.url)}/default/tiny:1.0", f"docker://{host(tls_hub.url)}/default/back:1.0"
    ours = ("--dest-cert-dir", str(authorities), "--dest-creds", token)
    tool.skopeo("copy", *ours, f"oci:{layout.root}", there)
    tool.skopeo(
        "copy",
        "--preserve-digests",
        "--src-cert-dir",
        str(authorities),
        "--src-creds",
        token,
        "--dest-tls-verify=false",
        there,
        f"docker://{mirror}/tiny:1.0",
    )
    assert (
        httpx.get(f"http://{mirror}/v2/tiny/manifests/1.0", headers={"Accept": manifests.MANIFEST_TYPE}).headers[
            "Docker-Content-Digest"
        ]
        == digest
    )
    tool.skopeo("copy", "--preserve-digests", "--src-tls-verify=false", *ours, f"docker://{mirror}/tiny:1.0", back)
    shown = json.loads(tool.skopeo("inspect", "--cert-dir", str(authorities), "--creds", token, back))
    assert shown["Digest"] == digest
