"""kubectl as it was before it spoke WebSocket: the same conversations over `Upgrade: SPDY/3.1`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import random
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.agent.test_agent_hub import until
from tests.integration.remote.conftest import POD, Lab, processes
from tests.integration.remote.test_kubectl_forward import echoed, forwarded

OLD = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false", "KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}


@pytest.fixture
def old(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name, value in OLD.items():
        monkeypatch.setitem(lab.environment, name, value)
    yield lab
    assert "Traceback" not in (lab.site.directory / "hub.log").read_text()


def test_output_input_and_exit_codes_travel(old: Lab) -> None:
    done = old.kubectl("exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr == b"err\ncommand terminated with exit code 3\n"
    assert old.kubectl("exec", POD, "--", "true").returncode == 0
    content = random.Random(1).randbytes(3_000_000)
    back = old.kubectl("exec", "-i", POD, "--", "cat", stdin=content)
    assert back.stdout == content, "far more than a SPDY window, both ways"
    # A command that does not read its input: what it says arrives, though the client is still talking.
    done = old.kubectl("exec", "-i", POD, "--", "sh", "-c", "echo enough; exit 4", stdin=content)
    assert (done.returncode, done.stdout) == (4, b"enough\n")


def test_what_is_read_late_is_not_lost(old: Lab) -> None:
    """The command ends at once, and its client reads on long after that."""
    running = old.start("exec", POD, "--", "sh", "-c", "head -c 4000000 /dev/zero; exit 5", stderr=subprocess.DEVNULL)
    assert running.stdout is not None
    first = running.stdout.read(1)
    rest = running.stdout.read()
    assert (len(first + rest), running.wait(30)) == (4_000_000, 5)


def test_a_terminal_has_a_size_and_signals(old: Lab) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    script = "until stty size | grep -q '33 101'; do :; done; stty size; exec cat"
    running = old.start("exec", "-it", POD, "--", "sh", "-c", script, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"33 101" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"typed\r")
    while b"typed\r\ntyped" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"\x03")
    assert running.wait(30) == 130, "Ctrl-C is the command's"
    os.close(ours)


def test_files_are_copied(old: Lab, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(300_000))
    target = tmp_path / "on-the-device"
    assert old.kubectl("cp", str(tmp_path / "up"), f"{POD}:{target}").returncode == 0
    assert hashlib.md5(target.read_bytes()).digest() == hashlib.md5((tmp_path / "up").read_bytes()).digest()
    assert old.kubectl("cp", f"{POD}:model.onnx", str(tmp_path / "down")).returncode == 0
    [model] = (old.site.directory / "till-1/workloads/digits/slots").glob("*/model.onnx")
    assert (tmp_path / "down").read_bytes() == model.read_bytes()


def test_ports_are_forwarded(old: Lab) -> None:
    running = old.start("port-forward", f"pod/{POD}", f":{old.echo}", ":1")
    port = forwarded(running)
    contents = [random.Random(seed).randbytes(400_000) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: echoed(port, content), contents)) == contents
    assert echoed(port, b"again") == b"again"


def test_a_lost_device_is_no_success_and_nothing_is_left(old: Lab) -> None:
    running = old.start("exec", POD, "--", "sh", "-c", "echo begun; exec sleep 54331")
    until(lambda: len(processes("54331")) == 1, "it runs")
    forwarding = old.start("port-forward", f"pod/{POD}", f":{old.echo}")
    assert echoed(forwarded(forwarding), b"x") == b"x"
    assert old.site.end("till-1", signal.SIGKILL) == -signal.SIGKILL
    said, _ = running.communicate(timeout=30)
    assert (running.returncode, b"the connection to the device broke" in said) == (1, True), said
    said, _ = forwarding.communicate(timeout=30)
    assert b"lost connection to pod" in said
    old.restart_agent()
    until(lambda: old.kubectl("exec", POD, "--", "true").returncode == 0, "it can be talked to again")
    assert not processes("54331")


def test_a_client_that_leaves_ends_its_command(old: Lab) -> None:
    running = old.start("exec", POD, "--", "sleep", "54332")
    until(lambda: len(processes("54332")) == 1, "it runs")
    running.kill()
    until(lambda: not processes("54332"), "it is gone")


def test_refusals_are_answers_with_a_reason(old: Lab) -> None:
    assert b"reads no input" in old.kubectl("attach", POD, "-i", stdin=b"x").stderr
    assert b'(NotFound): pods "nobody.till-1"' in old.kubectl("exec", "nobody.till-1", "--", "true").stderr
    bound = old.kubectl("create", "clusterrolebinding", "old-reader", "--clusterrole=skerry-viewer", "--user=jane")
    assert bound.returncode == 0, bound
    until(lambda: old.kubectl("get", "pods", "--as=jane").returncode == 0, "the role counts")
    for words in (("exec", POD, "--", "true"), ("attach", POD), ("port-forward", f"pod/{POD}", ":80")):
        done = old.kubectl("--as=jane", *words)
        assert done.returncode != 0
        assert b'User "jane" cannot create resource "pods/' in done.stderr


def test_who_did_it_is_in_the_audit_log(old: Lab) -> None:
    assert old.kubectl("exec", POD, "--", "echo", "written-down").returncode == 0
    entries = old.skerry("audit", "--resource", "pods/exec", "-o", "json").stdout
    assert b"written-down" in entries
