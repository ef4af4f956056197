from __future__ import annotations

import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.hub.conftest import HubProcess

StartHub = Callable[..., "HubProcess"]
API = "/apis/skerry.dev/v1alpha1/namespaces/default"


def test_the_first_start_sets_everything_up_and_sigterm_ends_it_in_order(hub: HubProcess) -> None:
    record = hub.record
    assert record["pid"] == hub.process.pid
    assert record["url"] == f"https://127.0.0.1:{record['apiPort']}"
    assert f"Set up and started the hub at {record['url']}" in hub.announced
    assert f"kubeconfig  {hub.state_dir / 'kubeconfig'}" in hub.announced
    assert hub.call(hub.context(), "GET", "/readyz") == (200, b"ok")
    assert hub.items("devices") == []
    status, refused = hub.call(hub.context(), "GET", f"{API}/devices")
    assert (status, refused["kind"], refused["reason"]) == (401, "Status", "Unauthorized")
    for path in [hub.state_dir, *hub.state_dir.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    hub.terminate()
    assert "pid" not in hub.record


def test_sigint_ends_it_too_even_with_a_watch_open(hub: HubProcess) -> None:
    connection = hub.connect(hub.admin)
    connection.request("GET", f"{API}/devices?watch=true")
    answer = connection.getresponse()
    assert answer.status == 200
    hub.terminate(signal.SIGINT)
    connection.close()


def test_a_killed_hub_comes_back_with_everything_at_the_same_place(hub: HubProcess, start_hub: StartHub) -> None:
    before, ca = hub.record, (hub.state_dir / "pki" / "ca.crt").read_bytes()
    tokens = [hub.create_token(uses=n) for n in range(1, 21)]  # each was acknowledged
    kubeconfig = (hub.state_dir / "kubeconfig").read_bytes()
    hub.kill()
    again = start_hub(ports=False).wait_ready()  # without options: the ports are those devices know
    assert "Started the hub" in again.announced
    kept = ("apiPort", "mqttPort", "url", "caFingerprint")
    assert {k: again.record[k] for k in kept} == {k: before[k] for k in kept}
    assert (again.state_dir / "pki" / "ca.crt").read_bytes() == ca
    assert (again.state_dir / "kubeconfig").read_bytes() == kubeconfig
    assert {item["metadata"]["name"] for item in again.items("jointokens")} == {t.split(".")[1] for t in tokens}
    again.terminate()


@pytest.mark.parametrize("reached", ["pki/desired.key", "hub.db"])
def test_a_first_start_that_was_killed_goes_on_where_it_was(start_hub: StartHub, tmp_path: Path, reached: str) -> None:
    first = start_hub()
    deadline = time.monotonic() + 30
    while not (tmp_path / "hub" / reached).exists():
        assert time.monotonic() < deadline
        assert first.process.poll() is None
    first.kill()
    kept = {file: file.read_bytes() for file in (tmp_path / "hub" / "pki").glob("*.key")}
    again = start_hub().wait_ready()
    assert {file: file.read_bytes() for file in kept} == kept
    assert again.items("devices") == []
    again.terminate()


def test_a_port_in_use_is_one_sentence_with_a_hint(start_hub: StartHub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = start_hub("--api-port", str(port)).failure()
    assert said == (
        f"error: API port {port}: in use by another program on 127.0.0.1\n"
        "hint: stop that program, or choose another with --api-port\n"
    )


def test_a_second_hub_on_the_same_directory_is_refused(hub: HubProcess, start_hub: StartHub) -> None:
    said = start_hub().failure()
    assert said == (
        f"error: state directory {hub.state_dir}: another hub runs there (process {hub.process.pid})\n"
        "hint: stop that one first, or give this one a directory of its own with --state-dir\n"
    )
    hub.terminate()


def test_names_given_later_are_in_the_certificate_and_in_what_devices_are_told(
    hub: HubProcess, start_hub: StartHub
) -> None:
    hub.terminate()
    again = start_hub("--advertise", "localhost", "--log-format", "json").wait_ready()
    assert again.record["url"] == f"https://localhost:{hub.record['apiPort']}"
    assert again.record["mqttHost"] == "localhost"
    again.process.send_signal(signal.SIGTERM)
    _, said = again.process.communicate(timeout=20)
    assert again.process.returncode == 0
    (line,) = said.decode().splitlines()
    assert '"event": "hub.moved"' in line


def test_a_client_that_only_connects_does_not_keep_it_from_ending(hub: HubProcess) -> None:
    lines: list[Any] = [socket.create_connection(("127.0.0.1", hub.record[port])) for port in ("apiPort", "mqttPort")]
    connection = hub.connect(hub.admin)
    connection.connect()
    assert hub.call(hub.context(), "GET", "/livez")[0] == 200
    hub.process.send_signal(signal.SIGTERM)
    hub.process.communicate(timeout=20)
    assert hub.process.returncode == 0
    for line in lines:
        line.close()
    connection.close()
