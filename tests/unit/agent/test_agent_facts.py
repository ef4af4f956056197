"""Facts: read from where Linux keeps them, empty where it does not."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from skerry.agent import facts
from skerry.agent.settings import AgentSettings, EngineSettings, HardwareSettings, NetworkSettings
from skerry.api.kinds.device import EngineFacts


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:        1024000 kB\nMemFree: 1 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1024000 * 1024),
        ({"proc/self/cgroup": "0::/\n"}, 1024000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 1024000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "5000000\n"}, 5000000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "4000000\n",
                "sys/fs/cgroup/a/b/memory.max": "5000000\n",
            },
            4000000,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": "3000000\n"}, 3000000),
        (
            {"proc/self/cgroup": "4:cpu,memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "6000000"},
            6000000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            1024000 * 1024,
        ),
        ({"proc/self/cgroup": "nonsense\n\n::"}, 1024000 * 1024),
    ],
)
def test_memory_is_what_the_tightest_cgroup_leaves(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert facts.memory_bytes(write(tmp_path, {**MEMINFO, **files})) == expected


def test_missing_sources_give_empty_facts(tmp_path: Path) -> None:
    assert facts.memory_bytes(tmp_path) == 0
    assert facts.find_network(root=tmp_path).kind == "unknown"
    found = facts.read_os(tmp_path)
    assert (found.family, found.version, found.init) == ("", "", "")


@pytest.mark.parametrize(
    ("files", "init"),
    [
        ({"run/systemd/system/x": ""}, "systemd"),
        ({"run/openrc/softlevel": ""}, "openrc"),
        ({"proc/1/comm": "init\n", "etc/inittab": ""}, "sysvinit"),
        ({"proc/1/comm": "dumb-init\n"}, "dumb-init"),
    ],
)
def test_the_operating_system_is_named(tmp_path: Path, files: dict[str, str], init: str) -> None:
    release = 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID="3.20"\n# ID=no\n'
    found = facts.read_os(write(tmp_path, {"etc/os-release": release, **files}))
    assert (found.family, found.version, found.init) == ("alpine", "3.20", init)
    assert found.kernel == platform.release()


ROUTE = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
    "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\n"
    "{}\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\n"
    "eth9\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
)


@pytest.mark.parametrize(
    ("interface", "files", "kind"),
    [
        ("eth0", {"sys/class/net/eth0/type": "1\n"}, "ethernet"),
        ("wlp2s0", {"sys/class/net/wlp2s0/wireless/x": ""}, "wifi"),
        ("wwan0", {}, "cellular"),
        ("mod0", {"sys/class/net/mod0/uevent": "DEVTYPE=wwan\n"}, "cellular"),
        ("tun0", {"sys/class/net/tun0/type": "65534\n"}, "unknown"),
    ],
)
def test_the_network_is_the_best_default_route(
    tmp_path: Path, interface: str, files: dict[str, str], kind: str
) -> None:
    found = facts.find_network(root=write(tmp_path, {"proc/net/route": ROUTE.format(interface), **files}))
    assert (found.interface, found.kind) == (interface, kind)


@pytest.mark.parametrize(
    ("machine", "pointer", "arch"),
    [
        ("x86_64", 8, "amd64"),
        ("aarch64", 8, "arm64"),
        ("aarch64", 4, "arm"),
        ("armv7l", 4, "arm"),
        ("sparc", 8, "sparc"),
    ],
)
def test_architectures_have_their_go_names(machine: str, pointer: int, arch: str) -> None:
    assert facts._arch(machine, pointer) == arch


def test_this_machine(tmp_path: Path) -> None:
    found = facts.collect(AgentSettings(), tmp_path)
    assert found.hardware.cores == len(os.sched_getaffinity(0))
    assert found.hardware.memory_bytes > 16 * 1024**2
    assert 0 < found.hardware.storage_free_bytes <= found.hardware.storage_bytes
    assert found.boot_id
    assert "onnxruntime" in [engine.name for engine in found.engines]
    assert found.runtimes == ["process"]


def test_settings_have_the_last_word(tmp_path: Path) -> None:
    settings = AgentSettings(
        hardware=HardwareSettings(memory="72Mi", arch="arm"),
        engines=[EngineSettings(name="litert", version="2.0")],
        network=NetworkSettings(kind="cellular", interface="wwan0", metered=True),
    )
    found = facts.collect(settings, tmp_path)
    assert (found.hardware.arch, found.hardware.memory_bytes) == ("arm", 72 * 1024**2)
    assert found.engines == [EngineFacts(name="litert", version="2.0")]
    assert (found.network.kind, found.network.metered) == ("cellular", True)
