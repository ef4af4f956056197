"""What is in deploy/: rendered by kubectl, valid for Kubernetes, and run as it says with a real hub and PostgreSQL."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests import postgresql
from tests.integration.aggregated.cluster import GRANTS, REVIEWS, TOKENS, Cluster
from tests.integration.aggregated.conftest import ALICE, API, HubProcess
from tests.integration.aggregated.proxy import SERVICE, Connector
from tests.integration.api.kubectl import KUBECTL

from skerry.hub import pki, roles, shared_keys
from skerry.hub.pod import LABEL
from skerry.kit.clock import SystemClock

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "kustomize"
VERSIONS = ("1.25", "1.28", "1.37")
FOREIGN = {"cert-manager.io/v1"}
"""Of no schema that Kubernetes has."""
METHODS = {"get": "GET", "list": "GET", "watch": "GET", "create": "POST", "patch": "PATCH"}
Manifest = dict[str, Any]
Rendered = Callable[[str], list[Manifest]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys that all replicas have, made as docs/aggregated.md says: by a hub's first start."""
    directory = tmp_path_factory.mktemp("keys")
    pki.open_authority(directory, names=(), clock=SystemClock())
    return directory


@pytest.fixture(scope="module")
def rendered(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    copy = tmp_path_factory.mktemp("deploy") / "kustomize"
    shutil.copytree(DEPLOY, copy)
    place = copy / "overlays" / "hub-ca" / "keys"
    place.mkdir()
    for name in shared_keys.NAMES:
        shutil.copy(keys / name, place / name)

    def render(path: str) -> list[Manifest]:
        done = subprocess.run(
            [KUBECTL, "kustomize", str(copy / path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return render


def find(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    (found,) = [one for one in manifests if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = find(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("path", ["base", "overlays/hub-ca", "overlays/cert-manager"])
def test_kubernetes_takes_every_document(rendered: Rendered, path: str) -> None:
    manifests = rendered(path)
    kinds = {one["kind"] for one in manifests}
    assert {"APIService", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"} <= kinds
    for manifest in manifests:
        if manifest["apiVersion"] not in FOREIGN:
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)


def test_names_fit_together(rendered: Rendered) -> None:
    """What one document says of another is there, under that name and port."""
    manifests = rendered("overlays/cert-manager")
    deployment, service = find(manifests, "Deployment"), find(manifests, "APIService")["spec"]["service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in pod_of(manifests)["containers"][0]["ports"]}
    for name in ("skerry-hub", "skerry-devices"):
        spec = find(manifests, "Service", name)["spec"]
        assert spec["selector"] == {**deployment["spec"]["selector"]["matchLabels"], LABEL: "leader"}
        assert {port["targetPort"] for port in spec["ports"]} <= set(ports)
    assert service == {"name": "skerry-hub", "namespace": "skerry", "port": 443}
    assert f"{service['name']}.{service['namespace']}.svc" == SERVICE
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = find(manifests, kind)["spec"]
        chosen = (spec.get("selector") or spec.get("podSelector"))["matchLabels"]
        assert chosen.items() <= labels.items()
    certificate = find(manifests, "Certificate", "skerry-hub")["spec"]
    assert SERVICE in certificate["dnsNames"]
    assert certificate["secretName"] in {
        volume.get("secret", {}).get("secretName") for volume in pod_of(manifests)["volumes"]
    }
    annotations = find(manifests, "APIService")["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": "skerry/skerry-hub"}


def test_the_hubs_ca_is_what_the_api_server_is_told(rendered: Rendered, keys: Path) -> None:
    bundle = find(rendered("overlays/hub-ca"), "APIService")["spec"]["caBundle"]
    assert base64.b64decode(bundle) == (keys / "ca.crt").read_bytes()


@pytest.mark.parametrize("path", ["overlays/hub-ca", "overlays/cert-manager"])
def test_pods_keep_to_the_restricted_profile(rendered: Rendered, path: str) -> None:
    """Source: Kubernetes, Pod Security Standards, restricted."""
    manifests = rendered(path)
    pod = pod_of(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(not {"hostPath"} & volume.keys() for volume in pod["volumes"])
    for container in pod["containers"]:
        held = container["securityContext"]
        assert (held["allowPrivilegeEscalation"], held["readOnlyRootFilesystem"]) == (False, True)
        assert held["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    labels = find(manifests, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_users_get_the_roles_that_a_hub_of_its_own_ships(rendered: Rendered) -> None:
    manifests = rendered("base")
    shipped = [role for role in roles.CLUSTER_ROLES if role.metadata.name.startswith("skerry-")]
    assert len(shipped) >= 4
    for role in shipped:
        found = find(manifests, "ClusterRole", role.metadata.name)
        rules = [rule for rule in role.rules if list(rule.api_groups) == ["skerry.dev"]]
        assert found["rules"] == [
            {"apiGroups": ["skerry.dev"], "resources": list(rule.resources), "verbs": list(rule.verbs)}
            for rule in rules
        ]
        aggregated = {key: value for key, value in role.metadata.labels.items() if roles.AGGREGATE_TO in key}
        assert aggregated
        assert aggregated.items() <= found["metadata"]["labels"].items()
    assert len([one for one in manifests if one["kind"] == "ClusterRole"]) == len(shipped)


def grants_of(manifests: list[Manifest]) -> dict[str, set[tuple[str, str]]]:
    """What the hub's account may ask, by the roles that these manifests bind it to."""
    account = find(manifests, "ServiceAccount")["metadata"]
    grants: dict[str, set[tuple[str, str]]] = {}
    for binding in manifests:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]
        name = binding["roleRef"]["name"]
        if name in GRANTS:
            inside = binding["metadata"].get("namespace")
            assert inside == ("kube-system" if binding["roleRef"]["kind"] == "Role" else None)
            grants[name] = GRANTS[name]
        else:
            role = find(manifests, binding["roleRef"]["kind"], name)
            base = f"/api/v1/namespaces/{role['metadata']['namespace']}"
            grants[name] = {
                (METHODS[verb], f"{base}/{resource}/*")
                for rule in role["rules"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return grants


class Pods:
    """Plays the kubelet: a container's own command, with its environment and its mounted files, as a process."""

    def __init__(self, manifests: list[Manifest], secrets: dict[str, Path], cluster: Cluster, directory: Path) -> None:
        self._spec = pod_of(manifests)
        self._config: dict[str, str] = find(manifests, "ConfigMap")["data"]
        self._secrets, self._cluster, self._directory = secrets, cluster, directory
        self.running: dict[str, HubProcess] = {}

    def start(self, name: str) -> HubProcess:
        (container,) = self._spec["containers"]
        assert container["command"] == ["python", "-m", "skerry.hub"]
        mounts = {mount["mountPath"]: self._volume(name, mount["name"]) for mount in container["volumeMounts"]}
        environment = {entry["name"]: self._value(name, entry) for entry in container["env"]}
        words = [self._place(self._expand(word, environment), mounts) for word in container["args"]]
        state = next(word for word in words if word.startswith("--state-dir="))
        # what a test may not do: listen on all addresses, on ports that others may have
        words = [re.sub(r"^--(api|mqtt)-port=\d+$", r"--\1-port=0", word) for word in words if word != "--host=0.0.0.0"]
        words.append(f"--cluster-credentials={self._cluster.credentials}")
        hub = HubProcess(Path(state.partition("=")[2]), words, {**environment, **self._cluster.environment})
        self.running[name] = hub
        return hub

    def end(self) -> None:
        for hub in self.running.values():
            hub.end()

    def _volume(self, pod: str, name: str) -> Path:
        (volume,) = [one for one in self._spec["volumes"] if one["name"] == name]
        if "secret" in volume:
            return self._secrets[volume["secret"]["secretName"]]
        assert volume == {"name": name, "emptyDir": {}}
        place = self._directory / pod / name
        place.mkdir(parents=True)
        return place

    def _value(self, pod: str, entry: Manifest) -> str:
        match entry.get("valueFrom", {}):
            case {"fieldRef": {"fieldPath": "metadata.name"}}:
                return pod
            case {"fieldRef": {"fieldPath": "status.podIP"}}:
                return "127.0.0.1"
            case {"configMapKeyRef": {"name": "skerry-hub", "key": key}}:
                return self._config[key]
            case {"secretKeyRef": {"name": name, "key": key}}:
                return (self._secrets[name] / key).read_text()
        return str(entry["value"])

    @staticmethod
    def _expand(word: str, environment: dict[str, str]) -> str:
        return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word)

    @staticmethod
    def _place(word: str, mounts: dict[str, Path]) -> str:
        option, _, value = word.partition("=")
        for path in sorted(mounts, key=len, reverse=True):
            if value == path or value.startswith(f"{path}/"):
                return f"{option}={mounts[path]}{value.removeprefix(path)}"
        return word


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    with postgresql.running() as server:
        yield server


def test_the_pods_run_as_described(
    rendered: Rendered, keys: Path, server: postgresql.Server, cluster: Cluster, tmp_path: Path
) -> None:
    """With no more rights than they are bound to, of which each is used; and when one goes, the other leads."""
    manifests = rendered("overlays/cert-manager")
    cluster.grants = grants_of(manifests)
    cluster.allows = lambda spec: spec["user"] == "alice"
    pair = cluster.ca.issue(
        "skerry-hub", *find(manifests, "Certificate", "skerry-hub")["spec"]["dnsNames"], server=True
    )
    secrets = {
        "skerry-keys": tmp_path / "keys",
        "skerry-postgresql": tmp_path / "sql",
        "skerry-hub-tls": tmp_path / "tls",
    }
    for directory in secrets.values():
        directory.mkdir()
    for name in shared_keys.NAMES:
        shutil.copy(keys / name, secrets["skerry-keys"] / name)
    (secrets["skerry-postgresql"] / "url").write_text(server.new_url())
    (secrets["skerry-postgresql"] / "password").write_text("not asked for\n")
    shutil.copy(pair.with_suffix(".crt"), secrets["skerry-hub-tls"] / "tls.crt")
    shutil.copy(pair.with_suffix(".key"), secrets["skerry-hub-tls"] / "tls.key")
    for directory in secrets.values():
        directory.chmod(0o500)  # as a Secret is mounted
    pods = Pods(manifests, secrets, cluster, tmp_path)
    try:
        first = pods.start("skerry-hub-a").wait_ready()
        cluster.wait_for_leader("skerry-hub-a")
        second = pods.start("skerry-hub-b").wait_ready()
        for hub in (first, second):
            through = Connector(hub.port, cluster.ca.pem, cluster.proxy_certificate, SERVICE)
            assert through.ask("GET", f"{API}/namespaces/default/devices", ALICE)[0] == 200
            assert through.ask("GET", "/readyz")[0] == 200
            assert hub.as_(None).ask("GET", f"{API}/devices", [("Authorization", "Bearer x")])[0] == 401
            assert hub.ca == (keys / "ca.crt").read_text()
        first.process.kill()
        first.process.wait(20)
        cluster.wait_for_leader("skerry-hub-b")
        through = Connector(second.port, cluster.ca.pem, cluster.proxy_certificate, SERVICE)
        assert through.ask("GET", f"{API}/namespaces/default/devices", ALICE)[0] == 200
    finally:
        pods.end()
        for directory in secrets.values():
            directory.chmod(0o700)
    asked = {(method, path) for method, path, _ in cluster.requests}
    assert {("POST", REVIEWS), ("POST", TOKENS), ("PATCH", "/api/v1/namespaces/skerry/pods/skerry-hub-a")} <= asked
    used = {rule for rules in cluster.grants.values() for rule in rules if any(matches(rule, one) for one in asked)}
    assert used == {rule for rules in cluster.grants.values() for rule in rules}, "more rights than are needed"


def matches(rule: tuple[str, str], asked: tuple[str, str]) -> bool:
    return rule[0] == asked[0] and re.fullmatch(rule[1].replace("*", "[^/]+"), asked[1]) is not None


@pytest.mark.parametrize("command", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes_ask_what_the_hub_answers(rendered: Rendered, command: str) -> None:
    (container,) = pod_of(rendered("base"))["containers"]
    asked = container[command]["httpGet"]
    assert (asked["scheme"], asked["port"]) == ("HTTPS", "api")
    assert asked["path"] == ("/readyz" if command == "readinessProbe" else "/livez")


def test_the_hook_before_the_end_is_a_command_that_ends(rendered: Rendered) -> None:
    (container,) = pod_of(rendered("base"))["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "python"
    quick = [word.replace("sleep(5)", "sleep(0)") for word in command[1:]]
    assert subprocess.run([sys.executable, *quick], env=dict(os.environ), timeout=20, check=False).returncode == 0
