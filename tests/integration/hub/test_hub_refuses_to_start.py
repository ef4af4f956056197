"""What keeps a hub from starting, within this process: each one sentence, nothing made or mended by guessing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skerry.api.errors import IntegrityError, InvalidError, SkerryError, UnavailableError
from skerry.hub.app import HubReady, run_hub
from skerry.hub.settings import HubSettings

TIMEOUT = 30


async def run_once(state_dir: Path, **settings: Any) -> HubReady:
    """Start a hub and end it as soon as it is ready."""
    stop, seen = asyncio.Event(), list[HubReady]()

    def ready(what: HubReady) -> None:
        seen.append(what)
        stop.set()

    async with asyncio.timeout(TIMEOUT):
        await run_hub(
            HubSettings(**({"state_dir": state_dir, "api_port": 0, "mqtt_port": 0} | settings)), stop=stop, ready=ready
        )
    return seen[0]


async def test_starting_and_ending_leaves_no_task_and_keeps_the_ports(tmp_path: Path) -> None:
    first = await run_once(tmp_path / "hub")
    second = await run_once(tmp_path / "hub", api_port=None, mqtt_port=None)
    assert (first.first_start, second.first_start) == (True, False)
    assert (first.url, first.mqtt_port) == (second.url, second.mqtt_port)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def damage_ca(state: Path) -> None:
    (state / "pki" / "ca.key").write_bytes((state / "pki" / "hub.key").read_bytes())


def lose_pki(state: Path) -> None:
    for file in (state / "pki").iterdir():
        file.unlink()


def damage_record(state: Path) -> None:
    (state / "hub.json").write_text("{")


def damage_store(state: Path) -> None:
    (state / "hub.db").write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_ca, r"ca\.crt: does not belong to the key in"),
        (lose_pki, r"ca\.key: is missing though this hub was set up before"),
        (damage_record, r"hub\.json: cannot be read"),
        (damage_store, r"hub\.db: "),
    ],
)
async def test_damage_is_named_and_not_mended_by_guessing(
    tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    await run_once(tmp_path / "hub")
    damage(tmp_path / "hub")
    before = {f: f.read_bytes() for f in (tmp_path / "hub" / "pki").iterdir()}
    with pytest.raises(IntegrityError, match=sentence) as caught:
        await run_once(tmp_path / "hub")
    assert caught.value.hint
    assert {f: f.read_bytes() for f in (tmp_path / "hub" / "pki").iterdir()} == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"host": "0.0.0.0"}, "--host: listens on all addresses .* name it with --advertise"),
        ({"host": "::"}, "--host: listens on all addresses .* name it with --advertise"),
        ({"host": "192.0.2.1"}, r"cannot listen on 192\.0\.2\.1"),
        ({"host": "not a host"}, '"not a host" is no address of this machine'),
        ({"advertise": ("not a name",)}, 'name "not a name": is neither a host name nor an address'),
    ],
)
async def test_addresses_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((InvalidError, UnavailableError), match=sentence):
        await run_once(tmp_path / "hub", **settings)
    assert not (tmp_path / "hub" / "pki").exists()


@pytest.mark.parametrize("option", ["api_port", "mqtt_port"])
async def test_a_port_in_use_is_named(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"port.*\b{port}\b") as caught:
            await run_once(tmp_path / "hub", **{option: port})
    assert caught.value.hint
    await run_once(tmp_path / "hub")  # nothing is left that would stand in the way


async def test_a_directory_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match=r"^state directory .*/file: cannot be used"):
        await run_once(tmp_path / "file")


@pytest.mark.parametrize("kilobytes", [4, 16, 64])
async def test_a_full_disk_is_one_sentence_and_leaves_no_half_files(tmp_path: Path, kilobytes: int) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    options = f"size={kilobytes}k"
    if (
        os.getuid() != 0
        or subprocess.run(  # noqa: ASYNC221 - milliseconds
            ["mount", "-t", "tmpfs", "-o", options, "none", str(mount)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(SkerryError) as caught:
            await run_once(mount / "hub")
        assert caught.value.element
        assert not [f for f in (mount / "hub").rglob("*.tmp") if f.parent.name == "pki"]
        subprocess.run(  # noqa: ASYNC221
            ["mount", "-o", "remount,size=64m", str(mount)], check=True
        )
        assert (await run_once(mount / "hub")).url
    finally:
        subprocess.run(["umount", str(mount)], check=True)  # noqa: ASYNC221
