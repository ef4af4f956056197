"""ModelVersion: one immutable trained model with its signature, golden samples and variants."""

from __future__ import annotations

from typing import Literal

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.trust_policy import TrustVerdict
from skerry.api.kinds.variants import Blob, Delta, Evaluation, Golden, Rejected, Variant
from skerry.api.meta import API_VERSION, Condition, Digest, Name, ObjectMeta, Struct


class Artifact(Struct, frozen=True, kw_only=True):
    """Where the model version lies: an OCI image index, one manifest per variant."""

    repository: str
    """Repository on the hub's registry, as in `default/digits`."""
    digest: Digest
    """Digest of the image index."""


class ModelVersionSpec(Struct, frozen=True, kw_only=True):
    """What was made, and how it was judged; immutable."""

    model: Name
    version: str
    artifact: Artifact
    signature: ModelSignature
    evaluation: Evaluation | None = None
    """How it was judged in the factory; None: it was imported without data, and nothing is known of its accuracy."""
    golden: Golden
    rejected: list[Rejected] = []


class ModelVersionStatus(Struct, frozen=True, kw_only=True):
    """What the hub found in its registry."""

    phase: Literal["Pending", "Ready", "Broken"] = "Pending"
    variants: list[Variant] = []
    deltas: list[Delta] = []
    """From variants of versions that were deployed when this one was pushed."""
    signatures: list[Blob] = []
    """Sigstore bundles that were attached to it; who signed is judged by whoever trusts. See docs/signing.md."""
    card: Blob | None = None
    """The evaluation card as it was pushed: it names the model that a signature is over."""
    trust: TrustVerdict | None = None
    """What the namespace's trust policy says of it; None where there is none, or it was not asked yet."""
    conditions: list[Condition] = []


class ModelVersion(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One immutable trained model with its signature (tensors), golden samples, test results and variants."""

    metadata: ObjectMeta
    spec: ModelVersionSpec
    status: ModelVersionStatus = ModelVersionStatus()
    api_version: str = API_VERSION
    kind: Literal["ModelVersion"] = "ModelVersion"
