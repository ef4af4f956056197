"""kubectl's options as skerry's."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.api.errors import InvalidError
from skerry.cli.kubectl_plugin import translate

CONFIG = """
apiVersion: v1
kind: Config
current-context: {name}
contexts: [{{name: {name}, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:1"}}}}]
users: [{{name: u, user: {{}}}}]
"""


def test_the_verb_s_own_words_stay_and_kubectl_s_are_understood_anywhere() -> None:
    home = {"HOME": "/home/x"}
    arguments, variables = translate(["-n", "shop", "rollout", "status", "--context=lab", "deployment/a", "-w"], home)
    assert arguments == ["rollout", "status", "deployment/a", "-w", "--namespace", "shop"]
    assert variables == {"SKERRY_KUBECONFIG": "/home/x/.kube/config", "SKERRY_CONTEXT": "lab"}
    arguments, variables = translate(["device", "exec", "d", "--kubeconfig", "f", "--", "ls", "-n", "x"], home)
    assert arguments == ["device", "exec", "d", "--", "ls", "-n", "x"]
    assert variables == {"SKERRY_KUBECONFIG": "f"}
    with pytest.raises(InvalidError, match="needs a value"):
        translate(["get", "devices", "-n"], home)


def test_of_several_files_the_one_that_has_the_context(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(CONFIG.format(name=name))
    listed = {"KUBECONFIG": f"{tmp_path}/missing:{tmp_path}/one:{tmp_path}/two", "HOME": "/home/x"}
    assert translate(["get", "x"], listed)[1] == {"SKERRY_KUBECONFIG": f"{tmp_path}/one"}
    assert translate(["get", "x", "--context", "two"], listed)[1]["SKERRY_KUBECONFIG"] == f"{tmp_path}/two"
    assert translate(["get", "x", "--context", "nope"], listed)[1]["SKERRY_KUBECONFIG"] == f"{tmp_path}/one"
    gone = {"KUBECONFIG": f"{tmp_path}/missing", "HOME": "/home/x"}
    assert translate(["get", "x"], gone)[1] == {"SKERRY_KUBECONFIG": f"{tmp_path}/missing"}
