"""The bill of materials of a model version: CycloneDX JSON of its files, what they were made from and with. Pure.

Equal cards have equal bills, byte for byte: no time, and a serial number that follows from the content. Must not live
here: how it is attached (`core.manifest`), pushed or shown. Source: CycloneDX 1.6 (ECMA-424), JSON.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from skerry.core.card import GOLDEN_FILE, EvaluationCard, PackagedVariant

SBOM_FILE = "sbom.cdx.json"
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SERIALS = uuid.uuid5(uuid.NAMESPACE_DNS, "skerry.dev")


def build(card: EvaluationCard) -> bytes:
    """Return the bill of a model version, as indented JSON with sorted keys."""
    variants = sorted(card.variants, key=lambda packaged: packaged.variant.name)
    sources = sorted(card.provenance.source_digests.items())
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": card.model,
                "version": card.version,
                "purl": f"pkg:generic/{card.model}@{card.version}",
                **_about(card),
            },
            "tools": {
                "components": [
                    {"type": "application", "name": name, "version": version}
                    for name, version in sorted(card.provenance.tools.items())
                ]
            },
        },
        "components": [
            *(_variant(card, packaged) for packaged in variants),
            _file("golden", GOLDEN_FILE, card.golden.blob.digest, {}, kind="data"),
            *(_file(f"source:{name}", name, digest, {"skerry:role": "source"}) for name, digest in sources),
        ],
        "dependencies": [
            {"ref": "model", "dependsOn": [f"variant:{packaged.variant.name}" for packaged in variants]},
            *(
                {"ref": f"variant:{packaged.variant.name}", "dependsOn": [f"source:{name}" for name, _ in sources]}
                for packaged in variants
            ),
        ],
    }
    serial = uuid.uuid5(_SERIALS, msgspec.json.encode(document, order="sorted").decode())
    document["serialNumber"] = f"urn:uuid:{serial}"
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2)


def _about(card: EvaluationCard) -> dict[str, Any]:
    """Describe the model as its authors do, where it was imported with their words."""
    about, found = card.about, dict[str, Any]()
    if about is not None and about.license:
        found["licenses"] = [{"license": {"name": about.license}}]
    if about is not None and about.description:
        found["description"] = about.description
    if about is not None and about.tags:
        found["tags"] = about.tags
    return found


def _variant(card: EvaluationCard, packaged: PackagedVariant) -> dict[str, Any]:
    variant = packaged.variant
    facts = {
        "skerry:format": variant.format,
        "skerry:precision": variant.precision,
        "skerry:engine": variant.needs.engine,
        "skerry:size": str(variant.blob.size),
    }
    component = _file(
        f"variant:{variant.name}", packaged.file, variant.blob.digest, facts, kind="machine-learning-model"
    )
    described = {**component, "version": card.version}
    if card.evaluation is not None and variant.metric is not None:
        metric = {"type": card.evaluation.metric, "value": f"{variant.metric:.6g}"}
        described["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": [metric]}}
    return described


def _file(ref: str, name: str, digest: str, facts: Mapping[str, str], *, kind: str = "file") -> dict[str, Any]:
    """Describe a file; a digest that is no SHA-256 is left to the property of that name."""
    known = _HEX.fullmatch(digest)
    component: dict[str, Any] = {"type": kind, "bom-ref": ref, "name": name}
    if known is not None:
        component["hashes"] = [{"alg": "SHA-256", "content": known[1]}]
    else:
        facts = {**facts, "skerry:digest": digest}
    if facts:
        component["properties"] = [{"name": key, "value": value} for key, value in sorted(facts.items())]
    return component
