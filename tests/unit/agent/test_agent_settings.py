"""Settings: everything optional, nothing unknown, every mistake named with its file and place."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.agent import settings as configured
from skerry.agent.settings import AgentSettings
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import EngineFacts, Hardware

EXAMPLE = """
[hardware]
memory = "72Mi"
cores = 2

[[engines]]
name = "onnxruntime"
precisions = ["int8"]

[probes]
samples = 32

[hub]
url = "https://127.0.0.1:7443"
mqtt_host = "127.0.0.1"
mqtt_port = 8883

[link]
heartbeat = "5s"
"""


def load(tmp_path: Path, text: str) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return configured.load(path)


def test_no_file_means_defaults(tmp_path: Path) -> None:
    assert configured.load(tmp_path / "agent.toml") == AgentSettings()


def test_settings_are_read(tmp_path: Path) -> None:
    found = load(tmp_path, EXAMPLE)
    assert found.hub.mqtt_port == 8883
    assert found.link.heartbeat == "5s"
    measured = Hardware(arch="arm64", cores=4, memory_bytes=1 << 30, storage_bytes=5, storage_free_bytes=3)
    told = configured.hardware(found.hardware, measured)
    assert (told.arch, told.cores, told.memory_bytes, told.storage_free_bytes) == ("arm64", 2, 72 * 1024**2, 3)
    engines = configured.engines(
        found.engines, [EngineFacts(name="onnxruntime", version="1.26"), EngineFacts(name="x")]
    )
    assert engines == [EngineFacts(name="onnxruntime", version="1.26", precisions=["int8"])]


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ("colour = 1", "agent.toml", 'unknown key "colour"'),
        ("[hardware]\nmemroy = '1Mi'", "agent.toml, hardware", 'unknown key "memroy"'),
        ("[[engines]]\nname = 'x'\nport = 1", "agent.toml, engines[0]", 'unknown key "port"'),
        ("[hardware]\nmemory = '72 MB'", "agent.toml, hardware.memory", ""),
        ("[probes]\nsamples = 0", "agent.toml, probes.samples", ">= 1"),
        ("[link]\nheartbeat = 'often'", "agent.toml, link.heartbeat", ""),
        ("[network]\nkind = 'pigeon'", "agent.toml, network.kind", '"pigeon" is no kind of network'),
        ("[hub]\nmqtt_port = 70000", "agent.toml, hub.mqtt_port", "65535"),
        ("[hardware", "agent.toml", "is not TOML"),
        ("a = " + "[" * 5000, "agent.toml", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, place: str, cause: str) -> None:
    with pytest.raises(InvalidError) as caught:
        load(tmp_path, text)
    assert caught.value.element.endswith(place)
    assert cause in caught.value.cause


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").mkdir()
    with pytest.raises(InvalidError, match="cannot be read"):
        configured.load(tmp_path / "agent.toml")
    with pytest.raises(InvalidError, match="larger than"):
        load(tmp_path / "agent.toml", "# " + "x" * configured.MAX_BYTES)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_invalid(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "agent.toml").write_bytes(raw)
    try:
        found = configured.load(tmp_path / "agent.toml")
    except InvalidError:
        return
    assert tomllib.loads(raw.decode()) == {}
    assert found == AgentSettings()
