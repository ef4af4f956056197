"""Model packages for tests: the least that is one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.core import card as cards


def make(directory: Path, *, version: str = "v1", weights: bytes = b"weights") -> cards.EvaluationCard:
    """Write a package with one variant, and with what the factory leaves beside it."""
    directory.mkdir(parents=True)

    def blob(name: str, content: bytes) -> Blob:
        (directory / name).write_bytes(content)
        return Blob(digest=f"sha256:{sha256(content).hexdigest()}", size=len(content))

    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        blob=blob("digits-fp32.onnx", weights),
        metric=1.0,
        metric_drop=0.0,
        error=NumericalError(max_abs=0.0, mean_abs=0.0, cosine=1.0),
        profile=Profile(latency_p50_ms=1.0, latency_p95_ms=2.0, peak_memory_bytes=1, runs=1),
    )
    card = cards.EvaluationCard(
        model="digits",
        version=version,
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=1.0, samples=1, allowed_drop=0.0),
        golden=Golden(blob=blob(cards.GOLDEN_FILE, b"golden"), samples=1),
        variants=[cards.PackagedVariant(variant=variant, file="digits-fp32.onnx")],
        provenance=cards.Provenance(source_kind="onnx"),
    )
    (directory / cards.CARD_FILE).write_bytes(cards.encode(card))
    (directory / "provenance.json").write_text("{}")
    return card
