"""kubectl's own words about access: auth can-i, --list, --as, auth reconcile, create role and rolebinding."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.api.conftest import Hub
from tests.integration.api.kubectl import KUBECTL, Run
from tests.integration.api.people import People, rule

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
_numbers = itertools.count(1)
As = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def people(hub: Hub) -> Iterator[People]:
    made = People(hub)
    yield made
    made.close()


@pytest.fixture
def bob() -> str:
    return f"bob-{next(_numbers)}"


@pytest.fixture
def as_bob(people: People, environment: dict[str, str], namespace: str, bob: str, tmp_path: Path) -> As:
    file = people.kubeconfig(tmp_path / "kubeconfig", bob, "dev")

    def run(*arguments: str, fails: bool = False, text: str | None = None) -> subprocess.CompletedProcess[str]:
        assert KUBECTL is not None
        done = subprocess.run(
            [KUBECTL, "-n", namespace, *arguments],
            env={**environment, "KUBECONFIG": str(file)},
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode != 0) == fails, done
        return done

    return run


def test_granting_with_kubectl_and_asking_what_it_gives(kubectl: Run, as_bob: As, namespace: str, bob: str) -> None:
    assert as_bob("auth", "can-i", "list", "devices", fails=True).stdout.strip() == "no"
    refused = as_bob("get", "devices", fails=True).stderr
    assert refused.strip() == (
        f'Error from server (Forbidden): devices.skerry.dev is forbidden: User "{bob}" cannot list resource "devices" '
        f'in API group "skerry.dev" in the namespace "{namespace}"'
    )
    kubectl("create", "role", "reader", "--verb=get,list,watch", "--resource=devices.skerry.dev,devices.skerry.dev/log")
    kubectl("create", "rolebinding", "reads", "--role=reader", f"--user={bob}")
    assert as_bob("get", "devices").stderr.startswith("No resources found")
    assert as_bob("auth", "can-i", "list", "devices").stdout.strip() == "yes"
    assert as_bob("auth", "can-i", "get", "devices/x", "--subresource=log").stdout.strip() == "yes"
    assert as_bob("auth", "can-i", "list", "devices", "-A", fails=True).stdout.strip() == "no"
    assert as_bob("auth", "can-i", "delete", "devices", fails=True).stdout.strip() == "no"
    assert as_bob("auth", "can-i", "get", "/version").stdout.strip() == "yes"
    assert as_bob("auth", "can-i", "*", "*", fails=True).stdout.strip() == "no"
    assert kubectl("auth", "can-i", "*", "*").stdout.strip() == "yes"
    listed = as_bob("auth", "can-i", "--list").stdout
    assert "devices.skerry.dev/log" in listed
    assert "selfsubjectaccessreviews.authorization.k8s.io" in listed
    assert "[/openapi/*]" in listed


def test_binding_a_shipped_role(kubectl: Run, as_bob: As) -> None:
    kubectl("create", "rolebinding", "views", "--clusterrole=skerry-viewer", "--group=dev")
    assert as_bob("get", "modeldeployments,devices,rollouts").returncode == 0
    assert "forbidden" in as_bob("get", "jointokens", fails=True).stderr
    assert "forbidden" in as_bob("get", "devices", "-A", fails=True).stderr


def test_acting_as_somebody_else(kubectl: Run, as_bob: As, people: People, namespace: str, bob: str) -> None:
    refused = kubectl("get", "devices", "--as", "carol", fails=True).stderr
    assert 'User "carol" cannot list resource "devices"' in refused
    kubectl("create", "rolebinding", "views", "--clusterrole=view", "--group=ops")
    assert kubectl("get", "devices", "--as", "carol", "--as-group", "ops").returncode == 0
    assert kubectl("auth", "can-i", "list", "devices", "--as", "carol", "--as-group=ops").stdout.strip() == "yes"
    account = f"system:serviceaccount:{namespace}:robot"
    kubectl("create", "rolebinding", "robots", "--clusterrole=edit", f"--serviceaccount={namespace}:robot")
    assert kubectl("auth", "can-i", "delete", "modeldeployments", "--as", account).stdout.strip() == "yes"
    # whoever may not act as others
    denied = as_bob("get", "devices", "--as", "carol", fails=True).stderr
    assert f'User "{bob}" cannot impersonate resource "users" in API group "" at the cluster scope' in denied
    people.grant(bob, "", rule(["impersonate"], ["users"], "carol", group=""), name=f"impersonates-{bob}")
    assert 'User "carol" cannot list' in as_bob("get", "devices", "--as", "carol", fails=True).stderr
    for more in (["--as-group", "ops"], ["--as-group", "system:masters"], ["--as-uid", "7"]):
        assert "cannot impersonate" in as_bob("get", "devices", "--as", "carol", *more, fails=True).stderr
    for other in ("dave", "admin", "system:admin", account):
        assert "cannot impersonate" in as_bob("get", "devices", "--as", other, fails=True).stderr


ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reconciled, namespace: NAMESPACE}
rules:
- {apiGroups: [skerry.dev], resources: [devices], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reconciled, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reconciled}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: USER}
"""


def test_auth_reconcile_and_apply_take_the_same_files(
    kubectl: Run, as_bob: As, bob: str, namespace: str, tmp_path: Path
) -> None:
    file, text = tmp_path / "roles.yaml", ROLES.replace("USER", bob).replace("NAMESPACE", namespace)
    file.write_text(text)
    reconciled = kubectl("auth", "reconcile", "-f", str(file)).stdout
    assert "role.rbac.authorization.k8s.io/reconciled reconciled" in reconciled
    assert as_bob("auth", "can-i", "list", "devices").stdout.strip() == "yes"
    file.write_text(text.replace("[get, list]", "[get, list, watch]"))
    kubectl("auth", "reconcile", "-f", str(file))
    assert as_bob("auth", "can-i", "watch", "devices").stdout.strip() == "yes"
    kubectl("apply", "-f", str(file))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    assert "unchanged" in kubectl("apply", "-f", str(file)).stdout
    assert "devices.skerry.dev" in kubectl("describe", "role", "reconciled").stdout
    assert bob in kubectl("describe", "rolebinding", "reconciled").stdout
    assert 'cannot get resource "roles"' in as_bob("auth", "reconcile", "-f", str(file), fails=True).stderr


def test_the_shipped_roles_are_there_to_be_read(kubectl: Run) -> None:
    names = kubectl("get", "clusterroles", "-o", "name").stdout
    for role in ("skerry-viewer", "skerry-operator", "skerry-model-publisher", "skerry-admin", "view", "cluster-admin"):
        assert f"clusterrole.rbac.authorization.k8s.io/{role}\n" in names
    assert "system:discovery" in kubectl("get", "clusterrolebindings", "-o", "wide").stdout
    assert "modeldeployments.skerry.dev" in kubectl("describe", "clusterrole", "edit").stdout
    assert "rules" in kubectl("explain", "clusterrole.rules", "--recursive").stdout.lower()
    for word in ("selfsubjectaccessreviews", "subjectaccessreviews", "localsubjectaccessreviews"):
        assert word in kubectl("api-resources", "--api-group=authorization.k8s.io", "-o", "name").stdout
    assert "resourceAttributes" in kubectl("explain", "selfsubjectaccessreview.spec").stdout


REVIEW = """
apiVersion: authorization.k8s.io/v1
kind: {kind}
metadata: {{}}
spec:
  user: {user}
  groups: [dev]
  resourceAttributes: {{group: skerry.dev, resource: devices, verb: list, namespace: {namespace}}}
"""


def test_asking_about_others(kubectl: Run, as_bob: As, namespace: str, bob: str) -> None:
    for kind in ("SubjectAccessReview", "LocalSubjectAccessReview"):
        text = REVIEW.format(kind=kind, user=bob, namespace=namespace)
        arguments = ("create", "-f", "-", "-o", "jsonpath={.status.allowed}")
        assert kubectl(*arguments, text=text).stdout == "false"
        kubectl("create", "rolebinding", f"for-{kind.lower()}", "--clusterrole=view", "--group=dev")
        assert kubectl(*arguments, text=text).stdout == "true"
        reason = kubectl("create", "-f", "-", "-o", "jsonpath={.status.reason}", text=text).stdout
        assert f'RoleBinding "for-{kind.lower()}/{namespace}" of ClusterRole "view"' in reason
        assert "forbidden" in as_bob(*arguments, text=text, fails=True).stderr
        kubectl("delete", "rolebinding", f"for-{kind.lower()}")
    elsewhere = REVIEW.format(kind="LocalSubjectAccessReview", user=bob, namespace="default")
    wrong = kubectl("create", "-f", "-", text=elsewhere, fails=True)
    assert "as in the path" in wrong.stderr


def test_skerry_tells_a_user_what_he_lacks_and_who_can_help(
    people: People, kubectl: Run, namespace: str, bob: str, tmp_path: Path
) -> None:
    file = people.kubeconfig(tmp_path / "kubeconfig", bob, "dev")

    def skerry(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "skerry.cli", *arguments, "-n", namespace, "--kubeconfig", str(file)],
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    refused = skerry("get", "devices")
    assert refused.returncode != 0
    said = " ".join(refused.stderr.split())
    assert f'User "{bob}" cannot list resource "devices"' in said
    command = f"kubectl create rolebinding -n {namespace} NAME --clusterrole=skerry-viewer --user={bob}"
    assert command in said
    kubectl(*command.replace("NAME", "helped").split()[1:])
    assert skerry("get", "devices").returncode == 0
