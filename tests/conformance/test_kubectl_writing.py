"""kubectl writes: create, apply, diff, edit, patch, replace, label, annotate, delete, wait; how mistakes are told."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.objects import deployment, device, list_of, text_of
from tests.conformance.program import GROUP, KUBECTL, NO_KUBECTL, HubProgram, Kubectl

pytestmark = pytest.mark.skipif(KUBECTL is None, reason=NO_KUBECTL)

LAST = "kubectl.kubernetes.io/last-applied-configuration"


def shown(kubectl: Kubectl, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", what, "-o", "json", "--show-managed-fields").stdout)
    return found


def test_create(kubectl: Kubectl) -> None:
    text = text_of(deployment("a"))
    assert "created (dry run)" in kubectl("create", "--dry-run=client", "-f", "-", text=text).stdout
    assert "created (server dry run)" in kubectl("create", "--dry-run=server", "-f", "-", text=text).stdout
    assert "NotFound" in kubectl("get", "md", "a", fails=True).stderr
    kubectl("create", "--save-config", "--field-manager=people", "-f", "-", text=text)
    found = shown(kubectl, "md/a")["metadata"]
    assert json.loads(found["annotations"][LAST])["spec"]["modelVersion"] == "digits-1"
    assert [entry["manager"] for entry in found["managedFields"]] == ["people"]
    assert "AlreadyExists" in kubectl("create", "-f", "-", text=text, fails=True).stderr
    generated = {**deployment(""), "metadata": {"generateName": "made-"}}
    assert "modeldeployment.skerry.dev/made-" in kubectl("create", "-f", "-", text=text_of(generated)).stdout


def test_a_list_is_created_and_deleted_as_it_was_printed(kubectl: Kubectl) -> None:
    text = list_of(deployment("a"), device("b"))
    assert kubectl("create", "-f", "-", text=text).stdout.count("created") == 2
    printed = kubectl("get", "md/a", "dev/b", "-o", "json").stdout
    assert kubectl("apply", "--force-conflicts", "--server-side", "-f", "-", text=list_of(device("b"))).stdout
    assert kubectl("delete", "-f", "-", text=printed).stdout.count("deleted") == 2


def test_apply_and_what_it_prunes(kubectl: Kubectl) -> None:
    set_ = {"set": "one"}
    both = text_of(deployment("a", labels=set_), deployment("b", labels=set_))
    kubectl("apply", "-f", "-", text=both)
    allow = ("--prune", "-l", "set=one", "--prune-allowlist=skerry.dev/v1alpha1/ModelDeployment")
    pruned = kubectl("apply", *allow, "-f", "-", text=text_of(deployment("a", labels=set_))).stdout
    assert "modeldeployment.skerry.dev/b pruned" in pruned
    assert "unchanged" in kubectl("apply", "-f", "-", text=text_of(deployment("a", labels=set_))).stdout
    viewed = kubectl("apply", "view-last-applied", "md/a").stdout
    assert "set: one" in viewed
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", text=text_of(deployment("c"))).stdout


def test_diff(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", text=text_of(deployment("a")))
    assert kubectl("diff", "-f", "-", text=text_of(deployment("a"))).stdout == ""
    changed = text_of(deployment("a", modelVersion="digits-2"))
    done = kubectl("diff", "-f", "-", text=changed, fails=True)
    assert done.returncode == 1
    assert "+  modelVersion: digits-2" in done.stdout
    assert "+  modelVersion: digits-2" in kubectl("diff", "--server-side", "-f", "-", text=changed, fails=True).stdout
    assert shown(kubectl, "md/a")["spec"]["modelVersion"] == "digits-1"


def test_edit(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl("create", "-f", "-", text=text_of(deployment("a")))
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/paused: true/paused: false/' \"$1\"\n")
    editor.chmod(0o755)
    assert "edited" in kubectl("edit", "md/a", KUBE_EDITOR=str(editor)).stdout
    assert shown(kubectl, "md/a")["spec"]["paused"] is False
    assert "no changes made" in kubectl("edit", "md/a", KUBE_EDITOR="true").stderr
    again = tmp_path / "again"
    editor.write_text(
        f'#!/bin/sh\nif grep -q \'is not a field\' "$1"; then cp "$1" {again}; exit 1; fi\n'
        "sed -i 's/paused:/pausd:/' \"$1\"\n"
    )
    kubectl("edit", "md/a", KUBE_EDITOR=str(editor), fails=True)
    assert "# * spec.pausd" in again.read_text(), "the editor is opened again with what is wrong"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("strategic", '{"spec":{"paused":false}}'),
        ("merge", '{"spec":{"paused":false}}'),
        (
            "json",
            '[{"op":"test","path":"/spec/paused","value":true},{"op":"replace","path":"/spec/paused","value":false}]',
        ),
    ],
)
def test_patch(kubectl: Kubectl, kind: str, change: str) -> None:
    kubectl("create", "-f", "-", text=text_of(deployment("a")))
    assert "patched" in kubectl("patch", "md/a", f"--type={kind}", "-p", change).stdout
    assert shown(kubectl, "md/a")["spec"]["paused"] is False
    assert "(no change)" in kubectl("patch", "md/a", "--type=merge", "-p", '{"spec":{"paused":false}}').stdout
    dry = kubectl("patch", "md/a", "--type=merge", "-p", '{"spec":{"paused":true}}', "--dry-run=server", "-o", "yaml")
    assert "paused: true" in dry.stdout
    assert shown(kubectl, "md/a")["spec"]["paused"] is False


def test_replace(kubectl: Kubectl) -> None:
    assert "NotFound" in kubectl("replace", "-f", "-", text=text_of(deployment("a")), fails=True).stderr
    kubectl("create", "-f", "-", text=text_of(deployment("a")))
    before = shown(kubectl, "md/a")
    kubectl("replace", "-f", "-", text=text_of(deployment("a", paused=False)))
    stale = kubectl("replace", "-f", "-", text=json.dumps(before), fails=True).stderr
    assert "Conflict" in stale
    assert "has been modified" in stale
    kubectl("replace", "--force", "-f", "-", text=text_of(deployment("a")))
    assert shown(kubectl, "md/a")["metadata"]["uid"] != before["metadata"]["uid"]


def test_labels_and_annotations(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=text_of(device("a"), device("b")))
    assert kubectl("label", "devices", "--all", "site=lab").stdout.count("labeled") == 2
    assert "already has a value" in kubectl("label", "device", "a", "site=shop", fails=True).stderr
    kubectl("label", "--overwrite", "device", "a", "site=shop")
    kubectl("label", "device", "b", "site-")
    kubectl("annotate", "devices", "--all", "example.com/note=by the window", "--field-manager=people")
    found = {item["metadata"]["name"]: item["metadata"] for item in shown(kubectl, "devices")["items"]}
    assert found["a"]["labels"] == {"site": "shop"}
    assert "labels" not in found["b"]
    assert found["b"]["annotations"] == {"example.com/note": "by the window"}
    assert "people" in [entry["manager"] for entry in found["b"]["managedFields"]]
    wrong = kubectl("label", "device", "a", "site=not a label", fails=True).stderr
    assert "invalid label value" in wrong


def test_delete(kubectl: Kubectl) -> None:
    kubectl(
        "create", "-f", "-", text=text_of(*(device(name, tier="edge") for name in "abcd"), device("e", tier="core"))
    )
    assert "deleted (server dry run)" in kubectl("delete", "device", "a", "--dry-run=server").stdout
    assert kubectl("delete", "devices", "-l", "tier=core").stdout.count("deleted") == 1
    assert "deleted" in kubectl("delete", "device/a", "--cascade=orphan", "--grace-period=1").stdout
    assert "deleted" in kubectl("delete", "device/b", "--cascade=foreground", "--wait=true").stdout
    assert "force deleted" in kubectl("delete", "device/c", "--grace-period=0", "--force").stdout
    assert kubectl("delete", "device/c", "--ignore-not-found").stdout == ""
    assert "NotFound" in kubectl("delete", "device/c", fails=True).stderr
    assert kubectl("get", "devices", "-o", "name").stdout == "device.skerry.dev/d\n"
    kubectl("delete", "devices", "--field-selector", "metadata.name=d")
    assert kubectl("get", "devices", "-o", "name").stdout == ""


def test_a_finalizer_holds_a_deletion(hub: HubProgram, namespace: str, kubectl: Kubectl) -> None:
    made = device("a")
    made["metadata"]["finalizers"] = ["example.com/hold"]
    kubectl("create", "-f", "-", text=text_of(made))
    kubectl("delete", "device/a", "--wait=false")
    assert shown(kubectl, "device/a")["metadata"]["deletionTimestamp"]
    assert "timed out" in kubectl("wait", "device/a", "--for=delete", "--timeout=1s", fails=True).stderr
    assert KUBECTL is not None
    waiting = subprocess.Popen(
        [KUBECTL, "-n", namespace, "wait", "device/a", "--for=delete", "--timeout=30s"],
        env=hub.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with waiting:
        kubectl("patch", "device/a", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        said, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, said
    assert "NotFound" in kubectl("get", "device/a", fails=True).stderr


def test_wait(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", text=text_of(device("a"), device("b")))
    phase = ("patch", "device/a", "--subresource=status", "--type=merge", "-p")
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Connected",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    later = threading.Timer(
        0.5, kubectl, (*phase, json.dumps({"status": {"phase": "Online", "conditions": [condition]}}))
    )
    later.start()
    assert "condition met" in kubectl("wait", "device/a", "--for=condition=Ready", "--timeout=30s").stdout
    later.join()
    assert "condition met" in kubectl("wait", "device/a", "--for=jsonpath={.status.phase}=Online").stdout
    assert "timed out" in kubectl("wait", "device/b", "--for=condition=Ready", "--timeout=1s", fails=True).stderr
    assert "condition met" in kubectl("wait", "device/b", "--for=create", "--timeout=5s").stdout


def test_mistakes_with_their_paths_and_warnings(kubectl: Kubectl) -> None:
    wrong = deployment("a", paussed=True, minReady=1)
    wrong["spec"]["deviceSelector"] = {"matchLabel": {}}
    said = kubectl("apply", "-f", "-", text=text_of(wrong), fails=True).stderr
    for path in ("spec.paussed", "spec.minReady", "spec.deviceSelector.matchLabel"):
        assert path in said, said
    assert 'did you mean "paused"' in said
    warned = kubectl("apply", "--validate=warn", "-f", "-", text=text_of(deployment("a", paussed=True)))
    assert "Warning: spec.paussed" in warned.stderr
    quiet = kubectl("apply", "--validate=ignore", "-f", "-", text=text_of(deployment("a", paussed=True)))
    assert "Warning" not in quiet.stderr
    typed = kubectl("apply", "-f", "-", text=text_of(deployment("b", paused="perhaps")), fails=True).stderr
    assert "spec.paused" in typed


def test_raw_writing(kubectl: Kubectl, namespace: str, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    file.write_text(json.dumps(device("a")))
    where = f"{GROUP}/namespaces/{namespace}/devices"
    assert json.loads(kubectl("create", "--raw", where, "-f", str(file)).stdout)["kind"] == "Device"
    assert json.loads(kubectl("delete", "--raw", f"{where}/a").stdout)["status"] == "Success"
