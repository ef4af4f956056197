"""kubectl's options as skerry's."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.api.errors import InvalidError
from skerry.cli import options
from skerry.cli.kubectl_plugin import translate
from skerry.drivers.client.kubeconfig import load_kubeconfigs

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


def test_several_files_count_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(CONFIG.format(name=name))
    listed = f"{tmp_path}/missing:{tmp_path}/one:{tmp_path}/two"
    assert translate(["get", "x"], {"KUBECONFIG": listed, "HOME": "/home/x"})[1] == {"SKERRY_KUBECONFIG": listed}
    monkeypatch.setenv("SKERRY_KUBECONFIG", listed)
    assert options.load_connection(None).source == f"{tmp_path}/one"
    assert options.load_connection(None, "two").source == f"{tmp_path}/two"
    with pytest.raises(InvalidError, match="there are: one, two"):
        options.load_connection(None, "nope")
    monkeypatch.setenv("SKERRY_KUBECONFIG", f"{tmp_path}/missing:{tmp_path}/neither")
    with pytest.raises(InvalidError, match="missing"):
        options.load_connection(None)


def test_a_context_s_parts_may_be_in_different_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/context").write_text(
        "{apiVersion: v1, kind: Config, current-context: lab,"
        " contexts: [{name: lab, context: {cluster: c, user: u, namespace: shop}}]}"
    )
    (tmp_path / "rest").write_text(
        "{apiVersion: v1, kind: Config, current-context: other,"
        ' clusters: [{name: c, cluster: {server: "https://127.0.0.1:1", certificate-authority: ca.pem}}],'
        " users: [{name: u, user: {tokenFile: token}}]}"
    )
    (tmp_path / "ca.pem").write_text("a CA beside the file that names it")
    found = load_kubeconfigs([tmp_path / "a/context", tmp_path / "rest"])
    assert (found.server, found.namespace) == ("https://127.0.0.1:1", "shop")
    assert found.ca == b"a CA beside the file that names it"
    assert found.token_file == tmp_path / "token"


def test_a_verb_without_a_namespace_is_given_none() -> None:
    for words in (["audit", "verify"], ["trust", "--help"]):
        assert translate(["-n", "shop", *words], {"HOME": "/h"})[0] == words
    assert translate(["-n", "shop", "audit", "--user", "joe"], {"HOME": "/h"})[0][-2:] == ["--namespace", "shop"]
    assert translate(["-n", "shop", "rollout", "status", "d/a"], {"HOME": "/h"})[0][-2:] == ["--namespace", "shop"]
