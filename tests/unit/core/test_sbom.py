"""The bill of materials: complete, consistent in itself, and the same for the same card."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.core import sbom
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance


def variant(name: str, character: str) -> PackagedVariant:
    measured = Variant(
        name=name,
        format="onnx",
        precision="int8" if name.endswith("int8") else "fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        blob=Blob(digest=f"sha256:{character * 64}", size=5),
        metric=0.9,
        metric_drop=0.0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=3, runs=4),
    )
    return PackagedVariant(variant=measured, file=f"{name}.onnx")


CARD = EvaluationCard(
    model="digits",
    version="1.0.0",
    signature=ModelSignature(inputs=[], outputs=[]),
    evaluation=Evaluation(metric="accuracy", baseline=0.9, samples=100, allowed_drop=0.01),
    golden=Golden(blob=Blob(digest=f"sha256:{'c' * 64}", size=7), samples=4),
    variants=[variant("onnx-int8", "b"), variant("onnx-fp32", "a")],
    provenance=Provenance(
        source_kind="pytorch",
        source_digests={"weights.pt": "d" * 64, "data.npz": f"sha256:{'e' * 64}", "odd": "md5:1"},
        tools={"torch": "2.13.0", "onnx": "1.19"},
    ),
)


def read(card: EvaluationCard) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sbom.build(card))
    return found


def test_everything_is_in_it() -> None:
    bill = read(CARD)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    about = bill["metadata"]["component"]
    assert (about["type"], about["name"], about["version"]) == ("machine-learning-model", "digits", "1.0.0")
    tools = {tool["name"]: tool["version"] for tool in bill["metadata"]["tools"]["components"]}
    assert tools == CARD.provenance.tools
    hashes = {one["bom-ref"]: one["hashes"][0]["content"] for one in bill["components"] if "hashes" in one}
    assert hashes == {
        "variant:onnx-fp32": "a" * 64,
        "variant:onnx-int8": "b" * 64,
        "golden": "c" * 64,
        "source:weights.pt": "d" * 64,
        "source:data.npz": "e" * 64,
    }
    odd = next(one for one in bill["components"] if one["bom-ref"] == "source:odd")
    assert {"name": "skerry:digest", "value": "md5:1"} in odd["properties"]


def test_references_lead_somewhere_and_names_are_used_once() -> None:
    bill = read(CARD)
    refs = [bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])]
    assert len(set(refs)) == len(refs)
    for dependency in bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(refs)


def test_equal_cards_have_equal_bills_and_others_other_ones() -> None:
    again = msgspec.structs.replace(CARD, variants=list(reversed(CARD.variants)))
    assert sbom.build(again) == sbom.build(CARD)
    other = msgspec.structs.replace(CARD, version="1.0.1")
    assert read(other)["serialNumber"] != read(CARD)["serialNumber"]
