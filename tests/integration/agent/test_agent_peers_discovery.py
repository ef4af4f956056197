"""Neighbours by multicast DNS: what is taken of what anybody may say, and, where there is multicast, two that meet."""

# ruff: noqa: ASYNC110 - what others announce has no event to wait for
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.agent import peers_discovery
from skerry.agent.peers_discovery import SERVICE, addresses, take
from skerry.agent.settings import PeerSettings
from skerry.api.errors import UnsupportedError

WAIT = 20.0


def taken(
    name: str = f"db.{SERVICE}", told: tuple[str, ...] = ("192.168.1.7",), port: int = 7445, site: str | None = "north"
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    take(found, name, told, port, {"site": site}, uid="da", site="north")
    return found


def test_a_neighbour_of_the_site_is_taken() -> None:
    assert taken() == {"db": ("192.168.1.7", 7445)}
    assert taken(told=("8.8.8.8", "fe80::1")) == {"db": ("fe80::1", 7445)}


@pytest.mark.parametrize(
    "said",
    [
        {"name": f"da.{SERVICE}"},  # this device itself
        {"name": f"DROP TABLE.{SERVICE}"},
        {"name": f"{'x' * 41}.{SERVICE}"},
        {"name": "db._http._tcp.local."},
        {"name": SERVICE},
        {"told": ("8.8.8.8",)},
        {"told": ("224.0.0.251",)},
        {"told": ("0.0.0.0",)},
        {"told": ("no address",)},
        {"told": ()},
        {"port": 0},
        {"port": 70000},
        {"site": "south"},
        {"site": None},
    ],
)
def test_anything_else_is_not(said: dict[str, Any]) -> None:
    assert taken(**said) == {}


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_discovery, "MAX_FOUND", 2)
    found: dict[str, Any] = {}
    for uid in ("db", "dc", "dd", "db"):
        take(found, f"{uid}.{SERVICE}", ["10.0.0.1"], 1, {"site": ""}, uid="da", site="")
    assert set(found) == {"db", "dc"}


@given(st.text(), st.lists(st.text()), st.integers(), st.dictionaries(st.text(), st.none() | st.text()))
def test_whatever_is_said_is_taken_or_not(
    name: str, told: list[str], port: int, properties: dict[str, str | None]
) -> None:
    found: dict[str, Any] = {}
    take(found, f"{name}.{SERVICE}", told, port, properties, uid="da", site="")
    assert all(0 < number < 65536 for _, number in found.values())


def test_what_is_announced_is_where_it_listens() -> None:
    assert addresses("192.168.1.7:7445") == ["192.168.1.7"]
    assert addresses("[fe80::1]:7445") == ["fe80::1"]
    assert "127.0.0.1" not in addresses("0.0.0.0:7445")


def has_multicast() -> bool:
    """Whether a datagram to a group comes back over the loopback."""
    group = "224.0.0.251"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        try:
            listening.bind(("", 0))
            joined = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            listening.settimeout(1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
                sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
                sending.sendto(b"x", (group, listening.getsockname()[1]))
            return listening.recv(1) == b"x"
        except OSError:
            return False


async def test_two_devices_find_each_other() -> None:
    pytest.importorskip("zeroconf")
    if not has_multicast():
        pytest.skip("this machine carries no multicast over the loopback")
    one, two = (PeerSettings(listen=f"127.0.0.1:{port}", discover=True, site="north") for port in (7445, 7446))
    other = PeerSettings(listen="127.0.0.1:7447", discover=True, site="south")

    def discover(uid: str, wanted: PeerSettings, port: int) -> Any:
        number: Callable[[], int] = lambda: port  # noqa: E731 - a listener's port
        return peers_discovery.discovered(uid, wanted, number, interfaces=["127.0.0.1"])

    async with asyncio.timeout(WAIT), discover("da", one, 7445) as by_one, discover("dc", other, 7447) as by_other:
        async with discover("db", two, 7446) as by_two:
            while not (by_one and by_two):
                await asyncio.sleep(0.05)
            assert by_one == {"db": ("127.0.0.1", 7446)}
            assert by_two == {"da": ("127.0.0.1", 7445)}
        while by_one:
            await asyncio.sleep(0.05)
        assert by_other == {}


async def test_without_zeroconf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zeroconf", None)
    with pytest.raises(UnsupportedError, match=r"install skerry\[peers\]"):
        async with peers_discovery.discovered("da", PeerSettings(discover=True), lambda: 0):
            pass
