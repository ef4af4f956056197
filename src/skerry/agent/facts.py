"""What this machine is: hardware, operating system, network, and what serves on it; read from /proc and /sys.

Lives here: reading and naming. Every source may be missing (old kernels, containers, tiny systems): then the fact is
empty, never a guess. Must not live here: importing an engine to find out about it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import socket
import struct
from pathlib import Path
from typing import Literal

import msgspec

import skerry
from skerry.agent import engines, sealed
from skerry.agent import settings as configured
from skerry.agent.settings import AgentSettings
from skerry.api.kinds.device import DeviceFacts, Hardware, LimitFacts, Network, OperatingSystem
from skerry.drivers.runtime import limits

GOARCH = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv8l": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "loongarch64": "loong64",
    "mips64": "mips64",
}
_SIOCGIFADDR = 0x8915
_READ_LIMIT = 1024 * 1024


def collect(settings: AgentSettings, state_dir: Path) -> DeviceFacts:
    """Return everything about this device, with the settings' word where they have one."""
    return DeviceFacts(
        hostname=socket.gethostname()[:253],
        agent_version=skerry.__version__,
        boot_id=read_boot_id(),
        hardware=configured.hardware(settings.hardware, measure_hardware(state_dir)),
        os=read_os(),
        engines=configured.engines(settings.engines, engines.find(settings.servers.python)),
        runtimes=["process"],
        network=configured.network(settings.network) if settings.network.kind else find_network(settings),
        limits=find_limits(),
        protection=sealed.source_of(state_dir, settings.protection),
    )


def read_boot_id() -> str:
    """Return the kernel's id of this boot; empty where there is none."""
    return _read("/proc/sys/kernel/random/boot_id")


def measure_hardware(state_dir: Path) -> Hardware:
    """Return the machine's hardware; memory is what a cgroup leaves of it."""
    total, free = _storage(state_dir)
    return Hardware(
        arch=_arch(platform.machine().lower(), struct.calcsize("P")),
        cpu_model=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes(),
        storage_bytes=total,
        storage_free_bytes=free,
        accelerators=_accelerators(),
    )


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory of the machine, or of the tightest cgroup (v1 or v2) around this process, in bytes."""
    limits = [_meminfo(root), *_cgroup_limits(root)]
    return min((limit for limit in limits if limit > 0), default=0)


def read_os(root: Path = Path("/")) -> OperatingSystem:
    """Return the Linux it runs (os-release(5))."""
    release = _os_release(root)
    return OperatingSystem(
        family=release.get("ID", "").lower()[:256],
        version=release.get("VERSION_ID", "")[:256],
        kernel=os.uname().release,
        libc=_libc(),
        init=_init(root),
    )


def find_limits() -> LimitFacts:
    """Return by which way workloads are held to their limits; tried out once for as long as the agent runs."""
    way = limits.find()
    return LimitFacts(way=way.name, memory=way.memory, cpu=way.cpu, reason=way.reason)


def find_network(settings: AgentSettings | None = None, root: Path = Path("/")) -> Network:
    """Return the network behind the default route; the interface can be set."""
    interface = (settings.network.interface if settings else "") or _default_interface(root)
    if not interface:
        return Network()
    kind = _network_kind(interface, root)
    found = Network(kind=kind, interface=interface, address=_address(interface), metered=kind == "cellular")
    if settings is None:
        return found
    metered = settings.network.metered
    return msgspec.structs.replace(
        found,
        address=settings.network.address or found.address,
        metered=found.metered if metered is None else metered,
    )


def _arch(machine: str, pointer_bytes: int) -> str:
    name = GOARCH.get(machine, machine)
    if pointer_bytes == 4:  # a 32-bit system on a 64-bit kernel, as on many Raspberry Pis
        return {"arm64": "arm", "amd64": "386"}.get(name, name)
    return name


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model", "uarch"):
            return value.strip()[:200]
    return _read("/sys/firmware/devicetree/base/model").strip("\0")[:200]


def _meminfo(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_limits(root: Path) -> list[int]:
    limits = []
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, file = mount, "memory.max"
        elif "memory" in controllers.split(","):
            base, file = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):  # a limit anywhere above holds here too
            text = _read(base.joinpath(*parts[:depth], file)).strip()
            if text.isascii() and text.isdigit() and int(text) < 1 << 60:  # v1 writes "no limit" as a huge number
                limits.append(int(text))
    return limits


def _storage(state_dir: Path) -> tuple[int, int]:
    try:
        found = os.statvfs(state_dir)
    except OSError:
        return 0, 0
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail


def _accelerators() -> list[str]:
    known = {
        "/dev/nvidia0": "nvidia-gpu",
        "/dev/nvhost-gpu": "nvidia-jetson",
        "/dev/apex_0": "google-edgetpu",
        "/dev/hailo0": "hailo",
        "/dev/kfd": "amd-gpu",
        "/dev/rknpu": "rockchip-npu",
    }
    return [name for path, name in known.items() if Path(path).exists()]


def _os_release(root: Path) -> dict[str, str]:
    text = _read(root / "etc/os-release") or _read(root / "usr/lib/os-release")
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'")[:200] for key, _, value in pairs}


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # not glibc
        return "musl" if any(Path("/lib").glob("ld-musl-*")) else ""


def _init(root: Path) -> str:
    if (root / "run/systemd/system").is_dir():
        return "systemd"
    if (root / "run/openrc").is_dir():
        return "openrc"
    name = _read(root / "proc/1/comm").strip()[:64]
    return "sysvinit" if name == "init" and (root / "etc/inittab").is_file() else name


def _default_interface(root: Path) -> str:
    best: tuple[int, str] | None = None
    for line in _read(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "00000000" and fields[7] == "00000000" and fields[6].isdigit():
            best = min(best or (1 << 62, ""), (int(fields[6]), fields[0]))
    if best is not None:
        return best[1]
    for line in _read(root / "proc/net/ipv6_route").splitlines():
        fields = line.split()
        if len(fields) >= 10 and set(fields[0]) == {"0"} and fields[1] == "00" and fields[9] != "lo":
            return fields[9]
    return ""


def _network_kind(interface: str, root: Path) -> Literal["ethernet", "wifi", "cellular", "loopback", "unknown"]:
    device = root / "sys/class/net" / interface
    if interface == "lo":
        return "loopback"
    if (device / "wireless").exists() or (device / "phy80211").exists():
        return "wifi"
    if interface.startswith(("wwan", "ppp", "rmnet", "usb_rmnet")) or "DEVTYPE=wwan" in _read(device / "uevent"):
        return "cellular"
    return "ethernet" if _read(device / "type").strip() == "1" else "unknown"


def _address(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _read(path: Path | str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_READ_LIMIT).decode(errors="replace").strip("\0\n")
    except OSError:
        return ""
