"""The real kubectl applies on the server: owners of fields, conflicts, and the way over from merging itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api import codec

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

Make = Callable[..., dict[str, Any]]


def managers(kubectl: Run, what: str) -> dict[tuple[str, str], dict[str, Any]]:
    shown = json.loads(kubectl("get", *what.split(), "-o", "json", "--show-managed-fields").stdout)
    entries = shown["metadata"].get("managedFields", [])
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in entries}


def minimal(name: str = "digits", **spec: Any) -> str:
    wanted = {"modelVersion": "digits-v1", "deviceSelector": {"matchLabels": {"site": "lab"}}, **spec}
    return codec.to_yaml(
        {"apiVersion": "skerry.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": name}, "spec": wanted}
    )


def test_applied_on_the_server_changed_and_left_out(kubectl: Run) -> None:
    def apply(text: str, *more: str, fails: bool = False) -> str:
        done = kubectl("apply", "--server-side", *more, "-f", "-", text=text, fails=fails)
        return done.stderr if fails else done.stdout

    assert "serverside-applied" in apply(minimal(paused=True))
    first = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)
    assert "managedFields" not in first["metadata"], "kubectl hides them"
    assert managers(kubectl, "md digits") == {
        ("kubectl", "Apply"): {
            "f:spec": {
                "f:deviceSelector": {"f:matchLabels": {"f:site": {}}},
                "f:modelVersion": {},
                "f:paused": {},
            }
        }
    }
    apply(minimal(paused=True))
    again = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"], "nothing was written"
    assert "serverside-applied (server dry run)" in apply(minimal(), "--dry-run=server")
    apply(minimal())
    gone = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)
    assert gone["spec"].get("paused") is False
    assert (gone["metadata"]["generation"], again["metadata"]["generation"]) == (2, 1)


def test_two_managers_conflict_and_force_settles_it(kubectl: Run) -> None:
    ci = ("apply", "--server-side", "--field-manager=ci", "-f", "-")
    ops = ("apply", "--server-side", "--field-manager=ops", "-f", "-")
    kubectl(*ci, text=minimal(paused=True))
    kubectl(*ops, text=minimal(paused=True))
    told = kubectl(*ops, text=minimal(paused=False, modelVersion="digits-v2"), fails=True).stderr
    assert 'conflicts with "ci"' in told.replace("conflict with", "conflicts with")
    assert ".spec.paused" in told
    assert ".spec.modelVersion" in told
    assert "--force-conflicts" in told, "kubectl knows what kind of conflict it is"
    kubectl(*ops, "--force-conflicts", text=minimal(paused=False, modelVersion="digits-v2"))
    assert "f:paused" not in managers(kubectl, "md digits")["ci", "Apply"]["f:spec"]
    spec = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)["spec"]
    assert (spec["paused"], spec["modelVersion"]) == (False, "digits-v2")


def test_labels_belong_to_who_set_them(hub: Hub, namespace: str, kubectl: Run) -> None:
    hub.add_device(namespace, "till-7", site="lab")
    kubectl("label", "device", "till-7", "tier=edge")
    device: dict[str, Any] = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device", "metadata": {"name": "till-7"}}
    device["metadata"]["labels"] = {"zone": "a"}
    kubectl("apply", "--server-side", "-f", "-", text=json.dumps(device))
    shown = json.loads(kubectl("get", "device", "till-7", "-o", "json").stdout)["metadata"]["labels"]
    assert shown == {"site": "lab", "tier": "edge", "zone": "a"}
    device["metadata"]["labels"] = {"tier": "core"}
    assert (
        'conflict with "kubectl-label"'
        in kubectl("apply", "--server-side", "-f", "-", text=json.dumps(device), fails=True).stderr
    )
    device["metadata"]["labels"] = {}
    kubectl("apply", "--server-side", "-f", "-", text=json.dumps(device))
    shown = json.loads(kubectl("get", "device", "till-7", "-o", "json").stdout)["metadata"]["labels"]
    assert shown == {"site": "lab", "tier": "edge"}


def test_from_merging_in_the_client_to_the_server_and_back(kubectl: Run) -> None:
    kubectl("apply", "-f", "-", text=minimal(paused=True))
    assert ("kubectl-client-side-apply", "Update") in managers(kubectl, "md digits")
    kubectl("apply", "--server-side", "-f", "-", text=minimal(modelVersion="digits-v2"))
    found = managers(kubectl, "md digits")
    moved = {("kubectl", "Apply"), ("kubectl-last-applied", "Apply")}
    assert set(found) == moved, "kubectl has moved its fields over, and minds the annotation under another name"
    spec = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)["spec"]
    assert (spec["modelVersion"], spec["paused"]) == ("digits-v2", False)
    assert "configured" in kubectl("apply", "-f", "-", text=minimal(modelVersion="digits-v3")).stdout


def test_what_an_apply_patch_must_say(kubectl: Run, deployment: Make) -> None:
    wrong = codec.to_yaml(deployment(pausd=True))
    said = kubectl("apply", "--server-side", "-f", "-", text=wrong, fails=True).stderr
    assert 'spec.pausd: is not a field; did you mean "paused"?' in said
    assert "NotFound" in kubectl("get", "md", "digits", fails=True).stderr
    rollout = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "r"}, "spec": {}}
    kubectl("apply", "--server-side", "-f", "-", text=json.dumps(rollout), fails=True)


def test_empty_maps_of_templates_keep_nobody_from_filling_them(kubectl: Run) -> None:
    empty = {"name": "digits", "labels": {}, "annotations": {}}
    filled = {"name": "digits", "labels": {"a": "b"}, "annotations": {"x": "1"}}
    base = {"apiVersion": "skerry.dev/v1alpha1", "kind": "ModelDeployment"}
    spec = {"modelVersion": "digits-v1", "deviceSelector": {"matchLabels": {"site": "lab"}}}
    helm = ("apply", "--server-side", "--field-manager=helm", "-f", "-")
    ops = ("apply", "--server-side", "--field-manager=ops", "-f", "-")
    kubectl(*helm, text=json.dumps({**base, "metadata": empty, "spec": spec}))
    kubectl(*ops, text=json.dumps({**base, "metadata": filled}))
    kubectl(*helm, text=json.dumps({**base, "metadata": empty, "spec": spec}))
    shown = json.loads(kubectl("get", "md", "digits", "-o", "json").stdout)["metadata"]
    assert (shown["labels"], shown["annotations"]) == ({"a": "b"}, {"x": "1"})
