from __future__ import annotations

import argparse
import base64
import json
import logging
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError, UnavailableError
from skerry.hub import kubeconfig, pki
from skerry.hub.settings import HubSettings
from skerry.hub.state import HubRecord, claim
from skerry.kit import logs
from skerry.kit.settings import add_options, from_options

RECORD = HubRecord(api_port=1, mqtt_port=2, url="https://h:1", mqtt_host="h", kubeconfig="k", ca_fingerprint="f")


def parse(*argv: str) -> HubSettings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, HubSettings)
    settings: HubSettings = from_options(HubSettings, parser.parse_args(argv))
    return settings


def test_what_is_not_given_keeps_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SKERRY_STATE_DIR", str(tmp_path))
    assert parse() == HubSettings()
    assert parse().state_dir == tmp_path
    given = parse("--api-port", "0", "--advertise", "a", "--advertise", "b", "--log-format", "json")
    assert (given.api_port, given.mqtt_port, given.advertise, given.log_format) == (0, None, ("a", "b"), "json")


def test_the_default_state_directory_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKERRY_STATE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert HubSettings().state_dir == Path("/home/ada/.local/share/skerry/hub")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert HubSettings().state_dir == Path("/data/skerry/hub")


@pytest.mark.parametrize(
    "argv",
    [("--api-port", "65536"), ("--api-port", "-1"), ("--mqtt-port", "x"), ("--api-port", "²"), ("--log-level", "x")],
)
def test_values_out_of_range_are_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(argparse.ArgumentError, match=r"is not (a port|one of)"):
        parse(*argv)


def test_every_setting_says_why() -> None:
    assert all(f.metadata["reason"] for f in HubSettings.__dataclass_fields__.values())


def test_the_record_survives_and_damage_is_named(tmp_path: Path) -> None:
    with claim(tmp_path / "new" / "hub") as state:
        assert state.read_record() is None
        state.write_record(RECORD)
        assert state.read_record() == RECORD
        assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
        assert stat.S_IMODE((state.path / "hub.json").stat().st_mode) == 0o600
        for damaged in (b"", b"{}", b'{"apiPort": 99999999}', b"\xff"):
            (state.path / "hub.json").write_bytes(damaged)
            with pytest.raises(IntegrityError, match=r"hub\.json: cannot be read .*delete it"):
                state.read_record()


def test_a_directory_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from skerry.hub.state import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UnavailableError) as caught, claim(tmp_path):
            pass
        assert f"state directory {tmp_path}: another hub runs there (process {holder.pid})" in str(caught.value)
        assert "--state-dir" in caught.value.hint
        holder.kill()
    with claim(tmp_path):
        pass


def test_a_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnavailableError, match=r"state directory .*: cannot be used \(.*\); name one"), claim(path):
            pass


def test_the_kubeconfig_is_private_complete_and_written_when_it_changes_only(
    tmp_path: Path, live_authority: pki.Authority
) -> None:
    path = tmp_path / "kubeconfig"
    kubeconfig.write(path, live_authority, "https://hub:7443")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = yaml.safe_load(path.read_text())
    assert content["clusters"][0]["cluster"]["server"] == "https://hub:7443"
    authority = base64.b64decode(content["clusters"][0]["cluster"]["certificate-authority-data"])
    assert authority == live_authority.ca_pem
    user = content["users"][0]["user"]
    assert base64.b64decode(user["client-certificate-data"]) == live_authority.admin_certificate_file.read_bytes()
    assert base64.b64decode(user["client-key-data"]) == live_authority.admin_key_file.read_bytes()
    before = path.stat().st_ino
    kubeconfig.write(path, live_authority, "https://hub:7443")
    assert path.stat().st_ino == before
    path.chmod(0o644)
    kubeconfig.write(path, live_authority, "https://hub:7443")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kubeconfig.write(path, live_authority, "https://hub:1")
    assert yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"] == "https://hub:1"


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("skerry.x", logging.WARNING, "f", 1, message, args, None)


@given(st.text(max_size=300))
def test_whatever_a_device_sends_a_log_line_stays_one_line(text: str) -> None:
    plain = logs.PlainFormatter().format(record("device.said text=%s", text))
    assert plain.isprintable()
    assert " WARNING device.said text=" in plain
    entry = logs.JsonFormatter().format(record("device.said text=%s", text))
    assert entry.isprintable()
    parsed = json.loads(entry)
    assert (parsed["event"], parsed["level"]) == ("device.said", "warning")
    assert parsed["message"] == f"device.said text={text}"


def test_a_huge_message_is_cut_and_a_bug_keeps_its_trace() -> None:
    assert len(logs.PlainFormatter().format(record("x %s", "y" * 100_000))) < 9000
    try:
        raise ValueError("why")
    except ValueError:
        broken = record("x.failed")
        broken.exc_info = sys.exc_info()
    assert "ValueError: why" in logs.PlainFormatter().format(broken)
    assert "ValueError: why" in json.loads(logs.JsonFormatter().format(broken))["trace"]
