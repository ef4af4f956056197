"""Owners, policy keys and signers for tests of trust: real keys, real signatures, no library but `cryptography`."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.trust_policy import TrustPolicy, TrustRule, TrustTerms, TrustVerdict
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Variant
from skerry.api.meta import ObjectMeta
from skerry.core import anchor
from skerry.core import card as cards
from skerry.core.anchor import Role, Root, Seal, Sealed, SignedPolicy
from skerry.core.messages import TrustDesired
from skerry.drivers import owner_keys

NOW = datetime.now(UTC).replace(microsecond=0)


def owner() -> owner_keys.PrivateKey:
    return Ed25519PrivateKey.generate()


def role(*keys: owner_keys.PrivateKey, threshold: int = 1) -> Role:
    return Role(keys=[owner_keys.public_der(key) for key in keys], threshold=threshold)


def signed(document: Root | SignedPolicy, *keys: owner_keys.PrivateKey) -> Sealed:
    sealed = anchor.seal(document)
    for key in keys:
        signature = owner_keys.sign(key, anchor.signed_bytes(sealed))
        sealed = anchor.add_seal(sealed, Seal(keyid=anchor.key_id(owner_keys.public_der(key)), sig=signature))
    return sealed


@dataclass
class Owners:
    """Everybody who signs anchors and policies, and what they have signed."""

    owners: list[owner_keys.PrivateKey] = field(default_factory=lambda: [owner(), owner()])
    threshold: int = 2
    policies: list[owner_keys.PrivateKey] = field(default_factory=lambda: [owner()])
    namespace: str = "default"
    roots: list[Sealed] = field(default_factory=list)
    version: int = 0

    def __post_init__(self) -> None:
        self.rotate()

    def root(self, **changes: Any) -> Root:
        fields: dict[str, Any] = {
            "version": len(self.roots) + 1,
            "issued_at": NOW - timedelta(days=2),
            "expires_at": NOW + timedelta(days=365),
            "owners": role(*self.owners, threshold=self.threshold),
            "policies": role(*self.policies),
        }
        return Root(v=1, **{**fields, **changes})

    def rotate(self, *, owners: int = 0, policies: bool = False, **changes: Any) -> Sealed:
        """Make the next version, with so many new owners in the place of all, or new policy keys; signed as it must."""
        before = list(self.owners) if self.roots else []
        if owners:
            self.owners = [owner() for _ in range(owners)]
        if policies:
            self.policies = [owner()]
        sealed = signed(self.root(**changes), *before, *[key for key in self.owners if key not in before])
        self.roots.append(sealed)
        return sealed

    def policy(self, *rules: TrustRule, by: owner_keys.PrivateKey | None = None, **terms: Any) -> Sealed:
        """Sign the next version of the policy."""
        self.version = terms.pop("version", self.version + 1)
        fields: dict[str, Any] = {
            "version": self.version,
            "issued_at": NOW - timedelta(days=1),
            "expires_at": NOW + timedelta(days=30),
            "rules": list(rules),
        }
        document = SignedPolicy(v=1, namespace=self.namespace, terms=TrustTerms(**{**fields, **terms}))
        return signed(document, by or self.policies[0])

    def desired(self, policy: Sealed | None = None, *, roots: list[Sealed] | None = None) -> TrustDesired:
        """What an honest hub hands devices; a broken-into one says what it likes."""
        return TrustDesired(
            roots=[anchor.write(one) for one in (self.roots if roots is None else roots)],
            policy="" if policy is None else anchor.write(policy),
        )


# --- signers of models --------------------------------------------------------------------------------------------


def signer() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


def card(model: Any, *, name: str = "digits") -> bytes:
    """The card of one of the agents' tiny models."""
    desired = model.desired()
    variant = Variant(
        name=desired.variant,
        format=desired.format,
        precision="fp32",
        needs=desired.needs,
        blob=desired.blob,
        metric=1.0,
        metric_drop=0.0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=1, peak_memory_bytes=64 * 1024**2, runs=1),
    )
    return cards.encode(
        cards.EvaluationCard(
            model=name,
            version=model.version,
            signature=model.signature,
            evaluation=Evaluation(metric="accuracy", baseline=1, samples=20, allowed_drop=0.01),
            golden=Golden(blob=desired.golden, samples=20),
            variants=[cards.PackagedVariant(variant=variant, file="model.onnx")],
            provenance=cards.Provenance(source_kind="onnx"),
        )
    )


def bundle(key: ec.EllipticCurvePrivateKey, files: dict[str, bytes]) -> bytes:
    """Sign files as OpenSSF Model Signing does with a key; see `drivers.signing.statement`."""
    resources = [
        {"name": name, "algorithm": "sha256", "digest": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    ]
    whole = hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "package", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": resources,
        },
    }
    payload, kind = json.dumps(statement).encode(), "application/vnd.in-toto+json"
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    signature = key.sign(encoded, ec.ECDSA(hashes.SHA256()))
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(pem(key).encode()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    return json.dumps(document).encode()


def model_version(verdict: TrustVerdict | None) -> ModelVersion:
    """A model version of which a policy said this."""
    blob = Blob(digest="sha256:" + "0" * 64, size=1)
    spec = ModelVersionSpec(
        model="digits",
        version="v1",
        artifact=Artifact(repository="default/digits", digest=blob.digest),
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
        golden=Golden(blob=blob, samples=1),
    )
    return ModelVersion(
        metadata=ObjectMeta(name="digits-v1", namespace="default"),
        spec=spec,
        status=ModelVersionStatus(phase="Ready", trust=verdict),
    )


def replace_spec(policy: TrustPolicy, **changes: Any) -> TrustPolicy:
    return msgspec.structs.replace(policy, spec=msgspec.structs.replace(policy.spec, **changes))
