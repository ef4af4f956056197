"""Users of the hub for tests: certificates as the hub's CA issues them, and what is granted to them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.integration.api.conftest import WAIT, Hub, trusting

ROLES = "/apis/rbac.authorization.k8s.io/v1"
SKERRY = "/apis/skerry.dev/v1alpha1"
RBAC = "rbac.authorization.k8s.io"


class People:
    """Makes users of one hub, and grants them things with the admin's certificate."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._clients: list[httpx.Client] = []
        admin = yaml.safe_load(hub.kubeconfig.read_text())["users"][0]["user"]
        pem = b"".join(base64.b64decode(admin[f"client-{part}-data"]) for part in ("key", "certificate"))
        self.admin = self._client(pem, "admin")

    def user(self, name: str, *groups: str, **options: Any) -> httpx.Client:
        """A client with a user's certificate."""
        return self._client(self.certificate(name, *groups), f"user-{abs(hash((name, groups)))}", **options)

    def certificate(self, name: str, *groups: str) -> bytes:
        """Key and certificate of a user, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        wanted = x509.Name([*subject, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(wanted).sign(key, hashes.SHA256())
        pem = request.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private + self.hub.context.authority.issue_user(pem, timedelta(hours=1))

    def kubeconfig(self, file: Path, name: str, *groups: str) -> Path:
        """Write a user's kubeconfig."""
        config = yaml.safe_load(self.hub.kubeconfig.read_text())
        pem = self.certificate(name, *groups)
        key, _, rest = pem.partition(b"-----BEGIN CERTIFICATE-----")
        config["users"][0]["user"] = {
            "client-key-data": base64.b64encode(key).decode(),
            "client-certificate-data": base64.b64encode(b"-----BEGIN CERTIFICATE-----" + rest).decode(),
        }
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        return file

    def grant(self, user: str, namespace: str, *rules: dict[str, Any], name: str = "granted") -> None:
        """Give a user rules: in a namespace, or, where it is empty, everywhere."""
        kind = "Role" if namespace else "ClusterRole"
        self.make(kind, name, namespace, rules=list(rules))
        self.bind(user, namespace, kind, name, called=name)

    def bind(self, user: str, namespace: str, kind: str, role: str, *, called: str) -> None:
        """Give a user a role."""
        self.make(
            "RoleBinding" if namespace else "ClusterRoleBinding",
            called,
            namespace,
            roleRef={"apiGroup": RBAC, "kind": kind, "name": role},
            subjects=[{"kind": "User", "name": user, "apiGroup": RBAC}],
        )

    def make(self, kind: str, name: str, namespace: str, **fields: Any) -> None:
        """Create a role or a binding as the admin."""
        answer = self.admin.post(place(kind, namespace), json=document(kind, name, **fields))
        assert answer.status_code == 201, answer.text

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()

    def _client(self, pem: bytes, file: str, **options: Any) -> httpx.Client:
        path = self.hub.directory / f"{file}.pem"
        path.write_bytes(pem)
        context = trusting(self.hub.context.authority.ca_pem)
        context.load_cert_chain(path)
        client = httpx.Client(base_url=self.hub.url, verify=context, timeout=WAIT, **options)
        self._clients.append(client)
        return client


def document(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    """A role or a binding as it is sent."""
    return {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": {"name": name}, **fields}


def place(kind: str, namespace: str) -> str:
    """The collection of a kind of roles or bindings."""
    plural = f"{kind.lower()}s"
    return f"{ROLES}/namespaces/{namespace}/{plural}" if namespace else f"{ROLES}/{plural}"


def rule(verbs: Sequence[str], resources: Sequence[str], *names: str, group: str = "skerry.dev") -> dict[str, Any]:
    """One rule about resources."""
    found = {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
    return found | ({"resourceNames": list(names)} if names else {})
