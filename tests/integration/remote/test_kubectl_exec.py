"""kubectl exec, attach and cp: commands beside a workload, over a connection that its device opened."""

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
import threading
from pathlib import Path

import pytest
from tests.integration.agent.test_agent_hub import device, until
from tests.integration.remote.conftest import POD, Lab, processes


def test_output_and_exit_codes_travel(lab: Lab) -> None:
    done = lab.kubectl("exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr == b"err\ncommand terminated with exit code 3\n"
    assert lab.kubectl("exec", POD, "--", "true").returncode == 0
    assert lab.kubectl("exec", POD, "--", "no-such-program").returncode == 127
    assert lab.kubectl("exec", POD, "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_a_command_has_the_workload_s_surroundings_and_nothing_of_the_agent_s(lab: Lab) -> None:
    shown = lab.kubectl("exec", POD, "--", "sh", "-c", "pwd; ls; id -u; env; grep NoNewPrivs /proc/self/status")
    words = shown.stdout.decode()
    assert "/workloads/digits/slots/" in words.splitlines()[0]
    assert "model.onnx" in words
    assert f"\n{os.getuid()}\n" in words
    assert "NoNewPrivs:\t1" in words
    assert "KUBECONFIG" not in words
    assert "SKERRY_INSTANCE" not in words, "or the runtime would take it for a server"
    assert device(lab.client, "till-1").status.workloads[0].restarts == 0


def test_input_comes_to_its_end_and_nothing_is_lost(lab: Lab) -> None:
    content = random.Random(1).randbytes(3_000_000)
    done = lab.kubectl("exec", "-i", POD, "--", "md5sum", stdin=content)
    assert done.stdout.split()[0].decode() == hashlib.md5(content).hexdigest()
    back = lab.kubectl("exec", "-i", POD, "--", "cat", stdin=content)
    assert back.stdout == content
    # A command that does not read its input does not wait for it, nor do we.
    assert lab.kubectl("exec", "-i", POD, "--", "true", stdin=content).returncode == 0


def test_a_terminal_has_a_size_and_signals(lab: Lab) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    script = "tty; until stty size | grep -q '33 101'; do :; done; stty size; exec cat"
    running = lab.start("exec", "-it", POD, "--", "sh", "-c", script, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""

    def shows(word: bytes) -> None:
        nonlocal seen
        while word not in seen:
            seen += os.read(ours, 4096)

    shows(b"33 101")
    assert b"/dev/pts/" in seen
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
    os.write(ours, b"typed\r")
    shows(b"typed\r\ntyped")  # the terminal's echo, and cat's
    os.write(ours, b"\x03")
    assert running.wait(30) == 130, "Ctrl-C is the command's"
    os.close(ours)


def test_nothing_is_left_when_the_client_leaves(lab: Lab) -> None:
    script = "sleep 54321 & setsid sleep 54321 & sleep 54321"
    running = lab.start("exec", POD, "--", "sh", "-c", script)
    until(lambda: len(processes("54321")) == 3, "all run")
    running.kill()
    until(lambda: not processes("54321"), "all are gone")


def test_nothing_is_left_when_the_command_ends(lab: Lab) -> None:
    lab.kubectl("exec", POD, "--", "sh", "-c", "sleep 54322 & setsid sleep 54322 & exit 0")
    assert not processes("54322")


def test_nothing_is_left_when_the_agent_is_killed_and_clients_are_told(lab: Lab) -> None:
    script = "sleep 54323 & setsid sleep 54323 & sleep 54323"
    running = lab.start("exec", POD, "--", "sh", "-c", script)
    until(lambda: len(processes("54323")) == 3, "all run")
    assert lab.site.end("till-1", signal.SIGKILL) == -signal.SIGKILL
    said, _ = running.communicate(timeout=30)
    assert (running.returncode, b"the connection to the device broke" in said) == (1, True)
    until(lambda: not processes("54323"), "all are gone, with nobody there but their keeper")
    lab.restart_agent()
    assert lab.kubectl("exec", POD, "--", "true").returncode == 0


def test_what_an_agent_and_its_keeper_left_is_swept_at_the_next_start(lab: Lab) -> None:
    runtime = (lab.site.directory / "till-1/runtime/runtime-id").read_text().strip()
    lab.site.end("till-1")
    left = subprocess.Popen(["sleep", "54324"], env={"SKERRY_SESSION": f"{runtime}/0"})
    other = subprocess.Popen(["sleep", "54324"], env={"SKERRY_SESSION": "another/0"})
    try:
        lab.restart_agent()
        assert left.wait(30) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for one in (left, other):
            one.kill()
            one.wait()


def test_copying_files_is_tar_on_the_device(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(300_000))
    target = tmp_path / "on-the-device"
    assert lab.kubectl("cp", str(tmp_path / "up"), f"{POD}:{target}").returncode == 0
    assert target.read_bytes() == (tmp_path / "up").read_bytes()
    assert lab.kubectl("cp", f"{POD}:model.onnx", str(tmp_path / "down")).returncode == 0
    [model] = (lab.site.directory / "till-1/workloads/digits/slots").glob("*/model.onnx")
    assert (tmp_path / "down").read_bytes() == model.read_bytes()
    lab.kubectl("cp", f"{POD}:nothing", str(tmp_path / "x"))  # what kubectl says then depends on who is quicker
    assert not (tmp_path / "x").exists()


def test_attach_shows_what_is_logged_and_takes_no_input(lab: Lab) -> None:
    said = lab.kubectl("attach", POD, "-i", stdin=b"x").stderr
    assert b"reads no input" in said
    watching = lab.start("attach", POD)
    assert watching.stdout is not None
    until(lambda: "remote.began purpose=attach" in (lab.site.directory / "till-1.log").read_text(), "begun")
    stop = threading.Event()

    def write() -> None:
        """Again and again: from when on it is watched, nobody can see."""
        with lab.server_log.open("ab", buffering=0) as log:
            while not stop.wait(0.1):
                log.write(b"2026-11-23T10:00:00Z INFO shown (x)\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while b"INFO shown" not in (line := watching.stdout.readline()):
            assert line, "it ended"
    finally:
        stop.set()
        writer.join()


def test_a_device_s_owner_has_the_last_word(lab: Lab) -> None:
    """By default logs and ports, no commands; and a list of nothing allows nothing."""
    settings = lab.site.directory / "till-1/agent.toml"
    before = settings.read_text()
    lab.site.end("till-1")
    try:
        settings.write_text("")
        lab.restart_agent()
        refused = lab.kubectl("exec", POD, "--", "true")
        assert refused.returncode == 1
        assert b"(Forbidden)" in refused.stderr
        assert b"exec is switched off on this device by its owner" in refused.stderr
        assert b"[remote]" in refused.stderr
        assert b"forward" not in lab.kubectl("logs", POD).stderr
        lab.site.end("till-1")
        settings.write_text("[remote]\nallow = []\n")
        lab.restart_agent()
        refused = lab.kubectl("logs", "-f", POD)
        assert b"logs is switched off on this device by its owner" in refused.stderr
    finally:
        lab.site.end("till-1")
        settings.write_text(before)
        lab.restart_agent()


def test_what_asks_for_no_upgrade_is_told(lab: Lab) -> None:
    said = lab.kubectl("get", "--raw", f"/api/v1/namespaces/default/pods/{POD}/exec?command=ls&stdout=1").stderr
    assert b"an upgrade to WebSocket or SPDY/3.1 is required" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("exec", "nobody.till-1", "--", "true"), b"NotFound"),
        (("exec", POD, "-c", "other", "--", "true"), b'container "other" is not valid'),
        (("port-forward", "pod/nobody.till-1", ":80"), b"NotFound"),
    ],
)
def test_what_is_not_there_is_said(lab: Lab, arguments: tuple[str, ...], word: bytes) -> None:
    done = lab.kubectl(*arguments)
    assert done.returncode != 0
    assert word in done.stderr


def test_more_than_a_device_bears_is_refused(lab: Lab) -> None:
    running = [lab.start("exec", POD, "--", "sleep", "54325") for _ in range(6)]
    until(lambda: len(processes("54325")) >= 6, "as many as may be")
    said = lab.kubectl("exec", POD, "--", "true").stderr
    assert b"as many as this device has at a time" in said
    running[0].kill()
    until(lambda: lab.kubectl("exec", POD, "--", "true").returncode == 0, "one has left")


def test_who_may_only_read_may_not_begin_one(lab: Lab) -> None:
    """WebSocket makes a GET of it, which must not make it a thing for readers."""
    bound = lab.kubectl("create", "clusterrolebinding", "reader", "--clusterrole=skerry-viewer", "--user=joe")
    assert bound.returncode == 0, bound
    until(lambda: lab.kubectl("get", "pods", "--as=joe").returncode == 0, "the role counts")
    assert b"serve." in lab.kubectl("logs", POD, "--as=joe").stdout
    for words in (("exec", POD, "--", "true"), ("attach", POD), ("port-forward", f"pod/{POD}", ":80")):
        done = lab.kubectl("--as=joe", *words)
        assert done.returncode != 0
        assert b'User "joe" cannot create resource "pods/' in done.stderr
    assert lab.kubectl("auth", "can-i", "create", "pods/exec", "--as=joe").stdout == b"no\n"
    assert lab.kubectl("auth", "can-i", "get", "pods", "--subresource=log", "--as=joe").stdout == b"yes\n"


def test_long_commands_pass(lab: Lab) -> None:
    words = "x" * 20_000
    assert lab.kubectl("exec", POD, "--", "echo", words).stdout == words.encode() + b"\n"
    assert b"more than" in lab.kubectl("exec", POD, "--", "echo", "x" * 40_000).stderr
