"""kubectl port-forward, and the same by libraries' protocol; logs that are followed; top; the plugin."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.integration.agent.test_agent_hub import device, until
from tests.integration.remote.conftest import POD, Lab

from skerry.api.errors import SkerryError
from skerry.core import channels
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.kit import websocket_client
from skerry.kit.websocket import RefusedError

BASE = f"/api/v1/namespaces/default/pods/{POD}"


def forwarded(running: subprocess.Popen[bytes]) -> int:
    assert running.stdout is not None
    while (line := running.stdout.readline()) and not line.startswith(b"Forwarding from 127.0.0.1:"):
        pass
    assert line, "it ended"
    return int(re.findall(rb"127\.0\.0\.1:(\d+)", line)[0])


def echoed(port: int, content: bytes) -> bytes:
    """What comes back of what is said, both ways at the same time."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:

        def send() -> None:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = b""
        while data := connection.recv(65536):
            back += data
        sender.join()
    return back


def test_a_model_answers_through_kubectl(lab: Lab) -> None:
    port = forwarded(lab.start("port-forward", f"pod/{POD}", f":{lab.port}"))
    row = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}]}
    for _ in range(3):
        answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/digits/infer", json=row, timeout=30)
        assert answer.json()["model_version"] == "v1"


def test_many_connections_at_a_time_lose_nothing(lab: Lab) -> None:
    port = forwarded(lab.start("port-forward", f"pod/{POD}", f":{lab.echo}"))
    contents = [random.Random(seed).randbytes(400_000) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: echoed(port, content), contents)) == contents


def test_only_the_workload_s_own_ports(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as private:
        number = private.getsockname()[1]
        running = lab.start("port-forward", f"pod/{POD}", f":{number}")
        port = forwarded(running)
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            assert connection.recv(1) == b""
        said = running.stdout.read() if running.stdout else b""
        assert f"port {number} of digits: is not one of its own".encode() in said
        private.settimeout(0)
        with pytest.raises(BlockingIOError):
            private.accept()


def test_libraries_forward_by_channels(lab: Lab) -> None:
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))

    async def talk() -> None:
        url = f"{connection.server}{BASE}/portforward?ports={lab.echo}&ports=1"
        async with websocket_client.connect(
            url, tls=connection.tls(), protocols=[channels.V4], timeout_seconds=30
        ) as socket:
            head = {await socket.receive() for _ in range(4)}
            echo, one = lab.echo.to_bytes(2, "little"), (1).to_bytes(2, "little")
            assert head == {b"\0" + echo, b"\1" + echo, b"\2" + one, b"\3" + one}
            said = await socket.receive()
            assert said is not None
            assert said.startswith(b"\3port 1 of digits: is not one of its own")
            await socket.send(b"\0hello")
            assert await socket.receive() == b"\0hello"

    asyncio.run(talk())


def test_the_command_line_forwards_and_executes(lab: Lab) -> None:
    done = lab.skerry("device", "exec", "device/till-1", "--", "sh", "-c", "echo hi; exit 5")
    assert (done.returncode, done.stdout) == (5, b"hi\n")
    content = random.Random(2).randbytes(500_000)
    assert lab.skerry("device", "exec", "device/till-1", "-i", "--", "cat", stdin=content).stdout == content
    assert b'pods "x.till-1"' in lab.skerry("device", "exec", "device/till-1", "-d", "x", "--", "true").stderr
    command = [sys.executable, "-m", "skerry.cli", "device", "forward", "device/till-1", f"0:{lab.echo}"]
    environment = lab.environment | {"SKERRY_KUBECONFIG": lab.environment["KUBECONFIG"]}
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE) as running:
        try:
            port = forwarded(running)
            assert echoed(port, content) == content
        finally:
            running.terminate()


# --- the device's end -------------------------------------------------------------------------------------------------


def dial(lab: Lab, tunnel: str, *, pem: Path | None) -> int:
    """The status with which a connection for a tunnel is refused."""
    connection = load_kubeconfig(Path(lab.environment["KUBECONFIG"]))
    tls = ssl.create_default_context(cadata=connection.ca.decode())
    if pem is not None:
        tls.load_cert_chain(pem)
    url = f"{connection.server}/apis/skerry.dev/v1alpha1/tunnels/{tunnel}"

    async def connect() -> int:
        try:
            async with websocket_client.connect(url, tls=tls, timeout_seconds=30):
                return 101
        except RefusedError as error:
            return error.status

    return asyncio.run(connect())


def test_a_tunnel_is_for_the_device_that_was_asked(lab: Lab) -> None:
    pem = lab.site.directory / "till-1/device.pem"
    assert dial(lab, "guessed", pem=pem) == 410
    assert dial(lab, "guessed", pem=None) == 401


# --- logs, top, the plugin --------------------------------------------------------------------------------------------


def test_logs_are_followed(lab: Lab) -> None:
    watching = lab.start("logs", "-f", POD, "--tail=1", "--timestamps")
    assert watching.stdout is not None
    first = watching.stdout.readline()
    assert first[:4].isdigit()
    with lab.server_log.open("ab") as log:
        log.write(b"2026-11-23T10:00:00.000Z INFO more (x)\nand a line\n")
    assert watching.stdout.readline() == b"2026-11-23T10:00:00.000Z 2026-11-23T10:00:00.000Z INFO more (x)\n"
    assert watching.stdout.readline() == b"2026-11-23T10:00:00.000Z and a line\n"
    content = lab.server_log.read_bytes()
    lab.server_log.write_bytes(b"2026-11-23T10:00:01.000Z INFO anew (x)\n")  # as it is cut when it is long
    try:
        assert watching.stdout.readline().endswith(b"INFO anew (x)\n")
    finally:
        lab.server_log.write_bytes(content)


def test_logs_as_they_are(lab: Lab) -> None:
    everything = lab.kubectl("logs", POD).stdout
    assert b"serve.listening" in everything
    assert lab.kubectl("logs", POD, "--tail=1").stdout == everything.splitlines(keepends=True)[-1]
    assert lab.kubectl("logs", POD, "--limit-bytes=20").stdout == everything[:20]
    assert lab.kubectl("logs", POD, "--since-time=2999-01-01T00:00:00Z").stdout == b""
    assert b"no time" in lab.kubectl("get", "--raw", f"{BASE}/log?sinceTime=x").stderr
    followed = subprocess.run(
        [sys.executable, "-m", "skerry.cli", "logs", "device/till-1", "deployment/digits", "--tail", "1"],
        env=lab.environment | {"SKERRY_KUBECONFIG": lab.environment["KUBECONFIG"], "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert followed.stdout == everything.splitlines(keepends=True)[-1]


def test_top_shows_what_is_used(lab: Lab) -> None:
    until(lambda: lab.kubectl("top", "pods").returncode == 0, "a sample came")
    header, row = lab.kubectl("top", "pods").stdout.decode().splitlines()
    assert header.split() == ["NAME", "CPU(cores)", "MEMORY(bytes)"]
    name, cpu, memory = row.split()
    assert (name, cpu.endswith("m")) == (POD, True)
    assert 5 < int(memory.removesuffix("Mi")) < 2000
    nodes = lab.kubectl("top", "nodes").stdout.decode().splitlines()
    assert nodes[1].split()[0] == "till-1.default"
    assert "%" in nodes[1]
    raw = json.loads(lab.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/till-1.default").stdout)
    assert (raw["kind"], raw["apiVersion"]) == ("NodeMetrics", "metrics.k8s.io/v1beta1")
    assert float(raw["window"].removesuffix("s")) > 0
    listed = json.loads(lab.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/pods?labelSelector=a%3Db").stdout)
    assert (listed["kind"], listed["items"]) == ("PodMetricsList", [])
    assert b"NotFound" in lab.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/x.default").stderr


def test_skerry_is_a_plugin_of_kubectl(lab: Lab, tmp_path: Path) -> None:
    program = tmp_path / "kubectl-skerry"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={":".join(sys.path)} exec {sys.executable} -m skerry.cli.kubectl_plugin "$@"\n'
    )
    program.chmod(0o755)
    path = f"{tmp_path}:{lab.environment['PATH']}"
    assert str(program).encode() in lab.kubectl("plugin", "list", PATH=path).stdout
    done = lab.kubectl(
        "skerry", "rollout", "status", "deployment/digits", "--context", "skerry", "-n", "default", PATH=path
    )
    assert b"Succeeded" in done.stdout, done
    nowhere = lab.kubectl("skerry", "get", "devices", "--context=other", PATH=path)
    assert (nowhere.returncode, b'no context "other"' in nowhere.stderr) == (1, True)
    assert b"kubectl skerry" in lab.kubectl("skerry", "--help", PATH=path).stdout
    assert device(lab.client, "till-1").metadata.name == "till-1"
    with pytest.raises(SkerryError):
        load_kubeconfig(Path(lab.environment["KUBECONFIG"]), "other")
