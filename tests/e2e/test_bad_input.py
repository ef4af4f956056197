"""What users get wrong, as they see it: one clear sentence, an exit code that is not 0, nothing half-written."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.e2e.conftest import DEPLOYMENT
from tests.e2e.site import Site

from skerry.cli.demo.programs import Programs, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("bad-input")
    with Programs(directory) as programs:
        site = Site(directory, programs)
        site.start_hub()
        yield site


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for words in expected:
        assert words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("modelVersion:", "modelVersoin:"), ["spec.modelVersoin", 'did you mean "modelVersion"?']),
        (("bakeTime: 500ms", "bakeTime: half a second"), ["spec.strategy.bakeTime", "is not a duration", "300ms"]),
        (("min: 0.9", "min: 90"), ["spec.strategy.gates.accuracy.min", "1"]),
        (("{count: 1}", "{count: 1, percent: 5}"), ["spec.strategy.waves[0]", "both count and percent"]),
        (("matchLabels: {site: lab}", "matchLabels: {site: l@b}"), ["spec.deviceSelector", "l@b"]),
        (("kind: ModelDeployment", "kind: ModelDeploymnet"), ["kind", 'did you mean "ModelDeployment"?']),
        (("name: digits", "name: Digits!"), ["metadata.name", "Digits!"]),
        (("spec:", "spec: {"), ["line"]),
    ],
)
def test_a_wrong_manifest_names_the_field_and_changes_nothing(
    hub: Site, tmp_path: Path, change: tuple[str, str], expected: list[str]
) -> None:
    good, bad = tmp_path / "a-good.yaml", tmp_path / "b-bad.yaml"
    good.write_text(DEPLOYMENT)
    bad.write_text(DEPLOYMENT.replace(*change))
    refused(hub.try_skerry("apply", "-f", str(tmp_path)), str(bad), *expected)
    assert "No modeldeployments found" in hub.try_skerry("get", "deployments").stderr


def test_a_selector_that_matches_nothing_is_said_and_not_waited_for(hub: Site, package: Path, tmp_path: Path) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT.replace("{site: lab}", "{site: lab2}"))
    hub.skerry("apply", "-f", str(path))
    refused(hub.try_skerry("rollout", "status", "deployment/digits", "--watch"), 'model version "digits-v1"', "push it")
    hub.skerry("model", "push", str(package))
    refused(
        hub.try_skerry("rollout", "status", "deployment/digits", "--watch"),
        "no device matches site=lab2",
        "deviceSelector",
    )
    hub.skerry("delete", "deployment/digits")


def test_what_is_no_model_is_refused_before_anything_is_made(hub: Site, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_text("these are no weights")
    (tmp_path / "model.py").write_text("def build_model():\n    return 7\n")
    (tmp_path / "data.npz").write_bytes(b"PK\x03\x04 and no more")
    arguments = ["model", "optimize", "--torch", f"{tmp_path}/model.py:build_model", "--data", f"{tmp_path}/data.npz"]
    arguments += ["--weights", f"{tmp_path}/weights.pt", "--name", "digits", "--model-version", "v1"]
    refused(hub.try_skerry(*arguments, "--out", str(tmp_path / "package")), "data.npz")
    assert not (tmp_path / "package").exists()
    refused(hub.try_skerry("model", "push", str(tmp_path)), "card.json", "skerry model optimize")


def test_a_package_that_was_changed_is_not_pushed(hub: Site, package: Path, tmp_path: Path) -> None:
    changed = tmp_path / "package"
    changed.mkdir()
    for file in package.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    card = json.loads((changed / "card.json").read_text())
    card["version"] = "v9"
    (changed / "card.json").write_text(json.dumps(card))
    model = changed / card["variants"][0]["file"]
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    refused(hub.try_skerry("model", "push", str(changed)), model.name)
    assert "digits-v9" not in hub.try_skerry("get", "models").stdout


def test_a_port_in_use_is_named(hub: Site, tmp_path: Path) -> None:
    taken = json.loads((hub.directory / "hub" / "hub.json").read_text())["apiPort"]
    started = hub.try_skerry("hub", "start", "--state-dir", str(tmp_path / "other"), "--api-port", str(taken))
    refused(started, str(taken), "in use", "--api-port")


def test_a_token_that_is_used_up_expired_or_forged_lets_nobody_in(hub: Site, tmp_path: Path) -> None:
    url = hub.skerry("hub", "url", "--state-dir", str(hub.directory / "hub")).strip()

    def enroll(name: str, token: str) -> subprocess.CompletedProcess[str]:
        arguments = ["agent", "enroll", "--hub", url, "--token", token, "--name", name]
        return hub.try_skerry(*arguments, "--state-dir", str(tmp_path / name))

    once = hub.skerry("hub", "token", "create", "--uses", "1").strip()
    assert enroll("first", once).returncode == 0
    refused(enroll("second", once), "used up", "skerry hub token create")
    short = hub.skerry("hub", "token", "create", "--ttl", "1s").strip()
    made = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > made + timedelta(seconds=1), "the token's end", seconds=10)
    refused(enroll("third", short), "expired", "skerry hub token create")
    version, identifier, secret, fingerprint = once.split(".")
    refused(enroll("fourth", f"{version}.{identifier}.{secret[::-1]}.{fingerprint}"))
    refused(enroll("fifth", f"{version}.{identifier}.{secret}.{fingerprint[::-1]}"), "another CA", "nothing was sent")
    refused(enroll("sixth", "not a token"), "token")
    names = hub.skerry("get", "devices", "-o", "name").split()
    assert names == ["device/first"]


def test_asking_devices_and_deployments_that_are_not_there(hub: Site, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text('{"inputs": []}')
    ask = ("predict", "device/none", "deployment/none", "--input", str(tmp_path / "sample.json"))
    refused(hub.try_skerry(*ask), '"none"')
    refused(hub.try_skerry("logs", "device/none", "deployment/none"), '"none"')
    refused(hub.try_skerry("explain", "deployment/none", "device/none"), '"none"')
    refused(hub.try_skerry("rollout", "undo", "deployment/none"), '"none"')
    refused(hub.try_skerry("get", "nonsense"), "not a kind", "devices")
    refused(hub.try_skerry("get", "device/x/y"))


def test_a_hub_that_is_not_there_is_said_with_how_to_start_one(tmp_path: Path, hub: Site) -> None:
    text = hub.kubeconfig.read_text()
    port = json.loads((hub.directory / "hub" / "hub.json").read_text())["apiPort"]
    gone = tmp_path / "kubeconfig"
    gone.write_text(text.replace(f":{port}", ":1"))
    refused(hub.try_skerry("get", "devices", "--kubeconfig", str(gone)), "127.0.0.1:1", "skerry hub start")
