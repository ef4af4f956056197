"""The audit log of a real hub: what goes into it, what does not, and that it survives whatever ends the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.api.kubectl import KUBECTL
from tests.integration.hub.conftest import API, HubProcess

START = Callable[..., HubProcess]
AUDIT = "/apis/skerry.dev/v1alpha1/auditevents"
ANNOTATION = "audit.skerry.dev/"


def entries(hub: HubProcess, query: str = "") -> list[dict[str, Any]]:
    status, page = hub.call(hub.admin, "GET", f"{AUDIT}?limit=1000&form=log{query}")
    assert status == 200, page
    assert (page["kind"], page["apiVersion"]) == ("EventList", "audit.k8s.io/v1")
    items: list[dict[str, Any]] = page["items"]
    return items


def skerry(hub: HubProcess, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "skerry.cli", "audit", *arguments],
        env={"SKERRY_KUBECONFIG": str(hub.state_dir / "kubeconfig"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == fails, done
    return done


def test_writes_and_refusals_are_recorded_with_who_what_and_what_came_of_it(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    token = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
    status, created = hub.call(
        hub.admin, "POST", f"{API}/jointokens", token, **{"User-Agent": "me/1", "Audit-ID": "x1"}
    )
    assert status == 201
    name = created["metadata"]["name"]
    assert hub.call(hub.admin, "PATCH", f"{API}/jointokens/none", {"metadata": {"labels": {"a": "b"}}})[0] == 415
    assert hub.call(hub.context(), "GET", f"{API}/devices")[0] == 401
    assert hub.call(hub.admin, "GET", f"{API}/jointokens")[0] == 200  # a read, which is not recorded
    everything = entries(hub, "&stage=all")
    made = [item for item in everything if item["auditID"] == "x1"]
    assert [item["stage"] for item in made] == ["RequestReceived", "ResponseComplete"]
    entry = made[1]
    assert entry["verb"] == "create"
    assert entry["user"]["username"] == "admin"
    assert "skerry:admins" in entry["user"]["groups"]
    assert entry["userAgent"] == "me/1"
    assert entry["sourceIPs"] == ["127.0.0.1"]
    assert entry["responseStatus"] == {"code": 201}
    assert entry["objectRef"]["resource"] == "jointokens"
    assert (entry["objectRef"]["name"], entry["objectRef"]["uid"]) == (name, created["metadata"]["uid"])
    assert "." in entry["requestReceivedTimestamp"]
    assert len(entry["annotations"][f"{ANNOTATION}request-sha256"]) == 64
    denied = [item for item in everything if item.get("responseStatus", {}).get("code") == 401]
    assert [(item["verb"], item["user"]["username"]) for item in denied] == [("list", "system:anonymous")]
    assert denied[0]["responseStatus"]["reason"] == "Unauthorized"
    assert not [item for item in everything if item["verb"] == "list" and item["user"]["username"] == "admin"]
    # Neither the token that the answer has nor a header is anywhere in the log.
    raw = b"".join(path.read_bytes() for path in (hub.state_dir / "audit").rglob("*.jsonl"))
    assert created["status"]["token"].encode() not in raw
    assert b"skj1." not in raw


def test_callers_are_named_however_they_log_in_and_no_credential_is_recorded(start_hub: START) -> None:
    hub = start_hub("--audit-level", "request").wait_ready()
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}
    assert hub.call(hub.admin, "POST", accounts, account)[0] == 201
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    status, made = hub.call(hub.admin, "POST", f"{accounts}/robot/token", wanted)
    assert status == 201, made
    token = made["status"]["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert hub.call(hub.context(), "GET", f"{API}/devices", **bearer)[0] == 403
    acting = {"Impersonate-User": "alice", "Impersonate-Group": "ops"}
    assert hub.call(hub.admin, "DELETE", f"{API}/devices/x", **acting)[0] == 403
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    assert hub.call(hub.admin, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)[0] == 201
    asked = entries(hub, "&resource=serviceaccounts/token")
    assert [item["objectRef"]["subresource"] for item in asked] == ["token"]
    robot, alice = entries(hub, "&outcome=denied")
    assert robot["user"]["username"] == "system:serviceaccount:default:robot"
    assert (alice["user"]["username"], alice["impersonatedUser"]["username"]) == ("admin", "alice")
    assert "ops" in alice["impersonatedUser"]["groups"]
    assert entries(hub, "&resource=tokenreviews")
    raw = b"".join(path.read_bytes() for path in (hub.state_dir / "audit").rglob("*.jsonl"))
    assert token.encode() not in raw
    assert token.rsplit(".", 1)[1].encode() not in raw


def test_every_answer_names_its_request(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    for path, code in ((f"{API}/devices", 200), (f"{API}/devices/none", 404), ("/nowhere", 404)):
        connection = hub.connect(hub.admin)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == code
        assert answer.headers["Audit-Id"]
        connection.close()


def test_the_log_is_asked_by_who_what_and_outcome_page_by_page(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    for _ in range(3):
        hub.create_token()
    assert hub.call(hub.context(), "DELETE", f"{API}/devices/x")[0] == 401
    assert hub.call(hub.admin, "DELETE", f"{API}/devices/x")[0] == 404
    assert len(entries(hub, "&verb=create&resource=jointokens.skerry.dev&user=admin")) == 3
    assert [item["responseStatus"]["code"] for item in entries(hub, "&outcome=denied")] == [401]
    assert [item["responseStatus"]["code"] for item in entries(hub, "&outcome=failed&name=x")] == [404]
    assert entries(hub, "&namespace=nowhere") == []
    assert hub.call(hub.admin, "GET", f"{AUDIT}?since=yesterday")[0] == 400
    assert hub.call(hub.admin, "GET", f"{AUDIT}?continue=x")[0] == 400
    assert hub.call(hub.admin, "GET", f"{AUDIT}?form=x")[0] == 400
    assert hub.call(hub.context(), "GET", AUDIT)[0] == 401
    assert hub.call(hub.admin, "DELETE", AUDIT)[0] in (404, 405)
    found, place = [], ""
    while True:
        page = hub.call(hub.admin, "GET", f"{AUDIT}?limit=1&form=log&continue={place}")[1]
        found += page["items"]
        place = page["metadata"].get("continue", "")
        if not place:
            break
    assert found[:3] == entries(hub)[:3]


def test_the_command_line_shows_and_verifies_it(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    hub.create_token()
    assert hub.call(hub.context(), "GET", f"{API}/devices")[0] == 401
    shown = skerry(hub).stdout.splitlines()
    assert shown[0].split() == ["TIME", "USER", "VERB", "OBJECT", "NAMESPACE", "CODE", "FROM"]
    assert "jointokens/t-" in shown[1]
    assert " 201 " in shown[1]
    assert "system:anonymous" in shown[2]
    lines = [json.loads(line) for line in skerry(hub, "-o", "json", "--outcome", "allowed").stdout.splitlines()]
    assert {line["responseStatus"]["code"] for line in lines} == {201}
    whole = skerry(hub, "verify").stdout
    newest = whole.splitlines()[-1].removeprefix("newest ")
    assert skerry(hub, "verify", "--newest", newest).stdout == whole
    hub.terminate()
    directory = hub.state_dir / "audit"
    assert newest in skerry(hub, "verify", "--directory", str(directory)).stdout
    file = next(directory.glob("*.jsonl"))
    file.write_bytes(file.read_bytes().replace(b'"admin"', b'"chris"', 1))
    failed = skerry(hub, "verify", "--directory", str(directory), fails=True)
    assert "entry 1 is not the one that entry 2 was written after: it was changed" in failed.stderr
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    failed = skerry(hub, "verify", "--directory", str(directory), "--newest", newest, fails=True)
    assert "is missing" in failed.stderr


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl")
def test_kubectl_lists_and_follows_it(start_hub: START, tmp_path: Path) -> None:
    hub = start_hub().wait_ready()
    for _ in range(3):
        hub.create_token()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "KUBECONFIG": str(hub.state_dir / "kubeconfig"),
    }
    assert KUBECTL is not None

    def run(*arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        command = [str(KUBECTL), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode != 0) == fails, done
        return done

    rows = run("get", "auditevents", "--chunk-size=1").stdout.splitlines()
    assert rows[0].split() == ["TIME", "USER", "VERB", "OBJECT", "NAMESPACE", "CODE"]
    assert len([line for line in rows if "jointokens/t-" in line]) == 3
    listed = json.loads(run("get", "--raw", AUDIT).stdout)
    assert {item["verb"] for item in listed["items"]} == {"create"}
    items = json.loads(run("get", "auditevents", "--chunk-size=1", "-o", "json").stdout)["items"]
    logged = hub.call(hub.admin, "GET", f"{AUDIT}?form=log")[1]["items"]
    assert [item["metadata"]["name"] for item in items] == [entry["auditID"] for entry in logged]
    assert {(item["kind"], item["apiVersion"]) for item in items} == {("AuditEvent", "skerry.dev/v1alpha1")}
    whole = {"kind": "Event", "apiVersion": "audit.k8s.io/v1"}
    shown = [{key: item[key] for key in item if key != "metadata"} | whole for item in items]
    assert shown == logged
    assert run("get", "auditevents", "-o", "jsonpath={.items[0].user.username}").stdout == "admin"
    assert run("get", "auditevents", "-o", "name").stdout.startswith("auditevent.skerry.dev/")
    assert run("auth", "can-i", "watch", "auditevents").stdout.strip() == "yes"
    assert "is not for the audit log" in run("get", "auditevents", "-l", "a=b", fails=True).stderr
    begins = hub.call(hub.admin, "GET", f"{AUDIT}?limit=1000")[1]["metadata"]["resourceVersion"]
    hub.create_token()
    watch = hub.connect(hub.admin)
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    watch.request("GET", f"{AUDIT}?watch=true&resourceVersion={begins}", headers=accept)
    line = json.loads(watch.getresponse().readline())
    watch.close()
    assert (line["type"], line["object"]["kind"]) == ("ADDED", "Table")
    assert line["object"]["rows"][0]["cells"][2] == "create"


def test_nothing_that_was_answered_is_lost_when_the_hub_is_killed(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    state = hub.state_dir
    names = []
    for _ in range(5):
        token = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
        names.append(hub.call(hub.admin, "POST", f"{API}/jointokens", token)[1]["metadata"]["name"])
    hub.kill()
    again = start_hub(state_dir=state).wait_ready()
    found = [item["objectRef"]["name"] for item in entries(again, "&verb=create&resource=jointokens")]
    assert found == names
    assert "entries, from 1" in skerry(again, "verify").stdout


def test_reads_and_what_was_sent_are_recorded_when_asked_for_without_secrets(start_hub: START) -> None:
    hub = start_hub("--audit-level", "request").wait_ready()
    token = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"generateName": "t-", "annotations": {"my-password": "hunter22"}},
        "spec": {"uses": 3},
    }
    assert hub.call(hub.admin, "POST", f"{API}/jointokens", token)[0] == 201
    assert hub.call(hub.admin, "GET", f"{API}/jointokens?access_token=hunter22")[0] == 200
    assert hub.call(hub.context(), "GET", "/healthz")[0] == 200
    found = entries(hub)
    assert [(item["verb"], item["level"]) for item in found[:2]] == [("create", "Request"), ("list", "Metadata")]
    assert found[0]["requestObject"]["spec"] == {"uses": 3}
    assert "hunter22" not in json.dumps(found)
    assert not [item for item in found if item["requestURI"] == "/healthz"]


def test_refusals_without_number_do_not_fill_the_log_and_are_counted(start_hub: START) -> None:
    hub = start_hub().wait_ready()
    stranger = hub.connect(hub.context())
    for _ in range(120):
        stranger.request("GET", f"{API}/devices")
        answer = stranger.getresponse()
        answer.read()
        assert answer.status == 401
    stranger.close()
    hub.create_token()
    found = entries(hub)
    written = [item for item in found if item["responseStatus"]["code"] == 401]
    assert 50 <= len(written) < 120
    counted = sum(int(item["annotations"].get(f"{ANNOTATION}refusals-not-recorded", 0)) for item in found)
    assert len(written) + counted == 120


def test_two_hubs_do_not_share_a_log(start_hub: START, tmp_path: Path) -> None:
    start_hub("--audit-log-dir", str(tmp_path / "log")).wait_ready()
    second = start_hub("--audit-log-dir", str(tmp_path / "log"), state_dir=tmp_path / "second")
    assert "is in use by another hub" in second.failure()
