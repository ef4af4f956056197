"""The package's provenance: an in-toto Statement with a SLSA provenance predicate, beside the card.

It says of every file in the package, by digest, from which inputs, with which tools and options it was made. It is not
signed here: what signs the package signs it too. Must not live here: what was measured (`core.card`).
Source: in-toto Attestation Framework, Statement v1; SLSA v1.0, Provenance.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import msgspec

from skerry import __version__
from skerry.core.card import GOLDEN_FILE, EvaluationCard
from skerry.optimize.recipe import Optimization

FILE = "provenance.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://skerry.dev/optimize/v1"
BUILDER = "https://skerry.dev/optimize"


def encode(card: EvaluationCard, wanted: Optimization, *, started: float, finished: float) -> bytes:
    """Return the statement as indented JSON; times are seconds since the epoch."""
    files = {GOLDEN_FILE: card.golden.blob, **{packaged.file: packaged.variant.blob for packaged in card.variants}}
    tools = card.provenance.tools
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": blob.digest.removeprefix("sha256:")}} for name, blob in files.items()
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _without_paths(msgspec.to_builtins(wanted)),
                "internalParameters": {"seed": wanted.seed, "python": tools.get("python", "")},
                "resolvedDependencies": [
                    *({"name": name, "digest": {"sha256": d}} for name, d in card.provenance.source_digests.items()),
                    *({"uri": f"pkg:pypi/{name}@{version}"} for name, version in tools.items() if name != "python"),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"skerry": __version__}},
                "metadata": {"startedOn": _time(started), "finishedOn": _time(finished)},
            },
        },
    }
    return msgspec.json.format(msgspec.json.encode(statement), indent=2)


def _without_paths(value: Any) -> Any:
    """Return the same with the last names of paths alone: where the files lay is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items() if key not in ("out", "resources")}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")
