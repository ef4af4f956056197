"""schemathesis against the hub's own OpenAPI documents: whatever is sent, no answer is a fault of the hub's.

Bounded in time. The documents are narrowed first: watches would last, and names made of anything would all be 404.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.program import GROUP, HubProgram

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed (extra dev)"
)

NAMESPACE = "fuzz"
SECONDS = {"apis/skerry.dev/v1alpha1": 12}
OTHERS_SECONDS = 2
LASTING = ("watch", "follow")
"""Parameters that make an answer last."""
TAKEN = {
    "namespace": [NAMESPACE],
    "name": ["a", "b"],
    "dryRun": ["All"],
    "fieldValidation": ["Strict", "Warn", "Ignore"],
    "resourceVersion": ["", "0", "1"],
    "resourceVersionMatch": ["Exact", "NotOlderThan"],
    "fieldSelector": ["metadata.name=a", "metadata.namespace!=b", "spec.none=1"],
    "labelSelector": ["a=b", "a in (b,c),!d", "a in (b"],
}
"""Values of parameters, where anything at all would nearly always be refused at once."""


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without what lasts, about a few names, and with kinds that are what they say."""
    for item in document["paths"].values():
        for holder in (item, *(operation for operation in item.values() if isinstance(operation, dict))):
            kept = [one for one in holder.get("parameters", []) if one.get("name") not in LASTING]
            for one in kept:
                if one["name"] in TAKEN:
                    one["schema"] = {"type": "string", "enum": TAKEN[one["name"]]}
            if kept or "parameters" in holder:
                holder["parameters"] = kept
    for schema in document["components"]["schemas"].values():
        for gvk in schema.get("x-kubernetes-group-version-kind", [])[:1]:
            version = f"{gvk['group']}/{gvk['version']}".removeprefix("/")
            fixed = {"apiVersion": {"enum": [version]}, "kind": {"enum": [gvk["kind"]]}}
            schema["properties"] |= fixed | {"metadata": {"type": "object", "properties": NAMED, "required": ["name"]}}
            schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return document


NAMED = {
    "name": {"enum": ["a", "b"]},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    "finalizers": {"type": "array", "items": {"type": "string"}},
}


def test_no_answer_is_a_fault_of_the_hub(hub: HubProgram, tmp_path: Path) -> None:
    connection = hub.connection
    authority, pair = tmp_path / "ca.pem", tmp_path / "pair.pem"
    authority.write_bytes(connection.ca)
    pair.touch(mode=0o600)
    pair.write_bytes(connection.certificate + connection.key)
    with hub.client() as client:
        documents = client.get("/openapi/v3").json()["paths"]
        assert "apis/skerry.dev/v1alpha1" in documents
        before = int(client.get(f"{GROUP}/devices").json()["metadata"]["resourceVersion"])
        for place, told in documents.items():
            file = tmp_path / f"{place.replace('/', '-')}.json"
            file.write_text(json.dumps(narrowed(client.get(told["serverRelativeURL"]).json())))
            _run(file, connection.server, authority, pair, SECONDS.get(place, OTHERS_SECONDS))
        after = int(client.get(f"{GROUP}/devices").json()["metadata"]["resourceVersion"])
        assert after > before, "not everything was refused"
        assert client.get("/readyz").text
    assert "api.failed" not in (hub.directory / "hub.log").read_text()


def _run(file: Path, server: str, authority: Path, pair: Path, seconds: int) -> None:
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [sys.executable, "-c", program, "run", str(file), "--url", server]
    command += ["--tls-verify", str(authority), "--request-cert", str(pair), "--request-timeout", "30"]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--max-examples", "10", "--no-shrink"]
    command += ["--max-time", str(seconds), "--suppress-health-check", "all", "--generation-database", "none"]
    command += ["--seed", "1"] if os.environ.get("CI") else []
    environment = os.environ | {"HOME": str(file.parent), "NO_COLOR": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=file.parent, env=environment
    )
    print(done.stdout)
    assert " generated" in done.stdout, done
    assert done.returncode == 0, (file.name, done.stdout[-6000:], done.stderr[-2000:])
