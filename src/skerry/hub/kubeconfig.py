"""The admin's kubeconfig: one file with which `kubectl` and `skerry` reach this hub.

Lives here: its content and when it is written. Must not live here: reading one (`drivers.client.api`).
Source: Kubernetes `clientcmd/api/v1`.
"""

from __future__ import annotations

import base64
from pathlib import Path

import yaml

from skerry.hub.pki import Authority
from skerry.kit import files

NAME = "skerry"


def render(authority: Authority, hub_url: str) -> bytes:
    """Return the kubeconfig, with the CA and the admin's certificate and key in it."""

    def data(content: bytes) -> str:
        return base64.b64encode(content).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": NAME, "cluster": {"server": hub_url, "certificate-authority-data": data(authority.ca_pem)}}
        ],
        "users": [
            {
                "name": "admin",
                "user": {
                    "client-certificate-data": data(authority.admin_certificate_file.read_bytes()),
                    "client-key-data": data(authority.admin_key_file.read_bytes()),
                },
            }
        ],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": "admin", "namespace": "default"}}],
        "current-context": NAME,
    }
    return yaml.safe_dump(content, sort_keys=False).encode()


def write(path: Path, authority: Authority, hub_url: str) -> None:
    """Write the kubeconfig for its owner only, unless it is there just so."""
    content = render(authority, hub_url)
    if not path.exists() or path.read_bytes() != content or path.stat().st_mode & 0o077:
        files.write_atomic(path, content, mode=0o600)
