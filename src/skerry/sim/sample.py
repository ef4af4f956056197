"""A model package without a model: a card with plausible figures and small files, for hubs that have nothing to deploy.

Simulated devices need no more of a model. Must not live here: pushing it.
"""

from __future__ import annotations

from pathlib import Path

from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import (
    Blob,
    Evaluation,
    Golden,
    NumericalError,
    Precision,
    Profile,
    Requirements,
    Variant,
)
from skerry.core import card as cards
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance
from skerry.core.manifest import digest_of
from skerry.sim import draws

MODEL = "simulated"
MIB = 1024 * 1024
BASELINE = 0.95
SAMPLES = 256
_FORMS: tuple[tuple[Precision, int, float, float, int], ...] = (
    # precision, bytes of the file, metric, p95 in ms, peak memory
    ("fp32", 256 * 1024, 0.95, 2.4, 90 * MIB),
    ("fp16", 128 * 1024, 0.9495, 2.9, 80 * MIB),
    ("int8", 64 * 1024, 0.944, 1.3, 60 * MIB),
)


def write(directory: Path, version: str, *, seed: int = 7) -> EvaluationCard:
    """Write a package of that version into a new directory and return its card; other versions have other files."""
    directory.mkdir(parents=True)
    golden = draws.dice(seed, version, "golden").randbytes(32 * 1024)
    (directory / cards.GOLDEN_FILE).write_bytes(golden)
    variants = []
    for precision, size, metric, latency, memory in _FORMS:
        raw = draws.dice(seed, version, precision).randbytes(size)
        file = f"{MODEL}-{precision}.onnx"
        (directory / file).write_bytes(raw)
        variant = Variant(
            name=f"onnx-{precision}",
            format="onnx",
            precision=precision,
            needs=Requirements(engine="onnxruntime", precision=precision, memory_bytes=memory),
            blob=Blob(digest=digest_of(raw), size=size),
            metric=metric,
            metric_drop=BASELINE - metric,
            error=NumericalError(max_abs=0.001, mean_abs=0.0001, cosine=0.9999),
            profile=Profile(
                latency_p50_ms=latency * 0.7,
                latency_p95_ms=latency,
                peak_memory_bytes=memory,
                runs=100,
                machine="simulated",
            ),
        )
        variants.append(PackagedVariant(variant=variant, file=file))
    card = EvaluationCard(
        model=MODEL,
        version=version,
        signature=ModelSignature(
            inputs=[TensorSpec(name="image", datatype="FP32", shape=[-1, 1, 8, 8])],
            outputs=[TensorSpec(name="logits", datatype="FP32", shape=[-1, 10])],
        ),
        evaluation=Evaluation(metric="accuracy", baseline=BASELINE, samples=1000, allowed_drop=0.01),
        golden=Golden(blob=Blob(digest=digest_of(golden), size=len(golden)), samples=SAMPLES),
        variants=variants,
        provenance=Provenance(source_kind="onnx", seed=seed),
    )
    (directory / cards.CARD_FILE).write_bytes(cards.encode(card))
    return card
