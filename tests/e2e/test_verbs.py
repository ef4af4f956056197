"""Every verb of the command line once, against a real hub and a real device, with a look at what it prints."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.e2e.conftest import DEPLOYMENT
from tests.e2e.site import PATIENCE, Site

from skerry.cli.demo.programs import SKERRY, Programs, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("verbs")
    with Programs(directory) as programs:
        site = Site(directory, programs)
        site.start_hub()
        site.add_devices("till")
        site.skerry("model", "push", str(package))
        (directory / "deployment.yaml").write_text(DEPLOYMENT.replace("bakeTime: 500ms", "bakeTime: 0s"))
        site.skerry("apply", "-f", str(directory / "deployment.yaml"))
        site.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
        yield site


def columns(printed: str) -> list[str]:
    return printed.splitlines()[0].split()


def test_get_prints_tables(lab: Site) -> None:
    assert columns(lab.skerry("get", "devices"))[:3] == ["NAME", "STATUS", "ARCH"]
    assert {"UID", "OS", "CORES"} <= set(columns(lab.skerry("get", "devices", "-o", "wide")))
    for words in (
        ("models",),
        ("deployments",),
        ("rollouts",),
        ("tokens",),
        ("mv",),
        ("device", "till"),
        ("device/till",),
    ):
        assert columns(lab.skerry("get", *words))[0] == "NAME"
    assert lab.skerry("get", "deployments", "-o", "name") == "modeldeployment/digits\n"


def test_get_selects_by_label(lab: Site) -> None:
    assert lab.skerry("get", "devices", "-l", "site=lab", "-o", "name") == "device/till\n"
    assert lab.skerry("get", "devices", "-l", "site!=lab", "-o", "name") == ""


def test_get_prints_objects_that_programs_read(lab: Site) -> None:
    shown = json.loads(lab.skerry("get", "device", "till", "-o", "json"))
    assert (shown["kind"], shown["metadata"]["name"]) == ("Device", "till")
    assert yaml.safe_load(lab.skerry("get", "device/till", "-o", "yaml"))["metadata"] == shown["metadata"]
    listed = json.loads(lab.skerry("get", "rollouts", "-o", "json"))
    assert next(item["metadata"]["name"] for item in listed["items"]) == "digits-1"


def test_what_is_printed_can_be_applied_again(lab: Site, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(lab.skerry("get", "deployment", "digits", "-o", "yaml"))
    assert "digits" in lab.skerry("apply", "-f", str(path))


def test_watching_prints_what_changes_until_interrupted(lab: Site) -> None:
    log = lab.directory / "watch.log"
    with log.open("w") as output:
        watching = subprocess.Popen(
            [*SKERRY, "get", "tokens", "-w", "--kubeconfig", str(lab.kubeconfig)], stdout=output, stderr=output
        )
    try:
        wait_until(lambda: "NAME" in log.read_text(), "the first table", seconds=PATIENCE)
        before = len(log.read_text().splitlines())
        lab.skerry("hub", "token", "create")
        wait_until(lambda: len(log.read_text().splitlines()) > before, "the new token's row", seconds=PATIENCE)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130
        assert "Traceback" not in log.read_text()
    finally:
        watching.kill()


def test_describe_shows_the_whole_object(lab: Site) -> None:
    assert "Observed manifest version: 1" in lab.skerry("describe", "device/till")
    rollout = lab.skerry("describe", "rollout", "digits-1")
    assert "Phase: Succeeded" in rollout
    assert "GATE" in rollout
    assert "successRatio" in rollout
    assert "Model version: digits-v1" in lab.skerry("describe", "deployment", "digits")
    assert "Baseline: " in lab.skerry("describe", "model", "digits-v1")


def test_describe_into_a_closed_pipe_ends_in_silence(lab: Site) -> None:
    command = (
        f"{' '.join(SKERRY)} describe model digits-v1 --kubeconfig {lab.kubeconfig} | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rollouts_pause_resume_and_keep_a_history(lab: Site, tmp_path: Path) -> None:
    assert "paused" in lab.skerry("rollout", "pause", "deployment/digits")
    assert json.loads(lab.skerry("get", "deployment", "digits", "-o", "json"))["spec"]["paused"] is True
    assert "resumed" in lab.skerry("rollout", "resume", "deployment/digits")
    changed = tmp_path / "deployment.yaml"
    changed.write_text(DEPLOYMENT.replace("bakeTime: 500ms", "bakeTime: 0s") + "  serving: {threads: 2}\n")
    lab.skerry("apply", "-f", str(changed))
    lab.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    lab.skerry("rollout", "undo", "deployment/digits")
    assert "Succeeded" in lab.skerry("rollout", "status", "deployment/digits", "--watch", "--timeout", "60s")
    history = lab.skerry("rollout", "history", "deployment/digits").splitlines()
    assert len(history) == 4, "a header and three revisions"
    serving = json.loads(lab.skerry("get", "deployment", "digits", "-o", "json"))["spec"].get("serving", {})
    assert serving.get("threads", 1) == 1


def test_explain_and_logs_and_predict_reach_the_device(lab: Site, tmp_path: Path) -> None:
    explained = json.loads(lab.skerry("explain", "deployment/digits", "device/till", "-o", "json"))
    assert [c["variant"] for c in explained["candidates"] if c["taken"]] == ["onnx-fp32"]
    assert "serve.ready" in lab.skerry("logs", "device/till", "deployment/digits")
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}]}
    (tmp_path / "sample.json").write_text(json.dumps(request))
    answered = lab.skerry(
        "predict", "device/till", "deployment/digits", "--input", str(tmp_path / "sample.json"), "-o", "json"
    )
    assert json.loads(answered)["outputs"][0]["shape"] == [1, 10]


def test_a_request_that_does_not_fit_is_answered_with_the_servers_sentence(lab: Site, tmp_path: Path) -> None:
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 9, 9], "data": [0.0] * 81}]}
    (tmp_path / "sample.json").write_text(json.dumps(request))
    done = lab.try_skerry("predict", "device/till", "deployment/digits", "--input", str(tmp_path / "sample.json"))
    assert done.returncode == 1
    assert "input" in done.stderr
    assert "Traceback" not in done.stderr


def test_deleting_the_deployment_takes_the_model_off_the_device(lab: Site) -> None:
    lab.skerry("delete", "deployment/digits")

    def gone() -> bool:
        device = json.loads(lab.skerry("get", "device", "till", "-o", "json"))
        return not device["status"].get("workloads")

    wait_until(gone, "the workload's removal", seconds=PATIENCE)
