"""What is particular to the SQLite store: its file, its lock, and how it fails."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from skerry.api.errors import IntegrityError, SkerryError, StorageFullError, UnavailableError, UnsupportedError
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.sqlite import SqliteSettings, open_store
from skerry.drivers.store.statements import SCHEMA_VERSION


async def refused(path: Path, kind: type[SkerryError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        async with open_store(path):
            raise AssertionError("opened")
    assert str(path) in caught.value.element


async def test_only_the_owner_can_read_its_files(tmp_path: Path) -> None:
    path = tmp_path / "state" / "hub.db"
    async with open_store(path) as store:
        await store.create("k", b"secret")
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("hub.db", "hub.db-wal", "hub.db-shm", "hub.db.lock"), 0o600)


async def test_a_file_that_was_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path) as store:
        await store.create("k", b"")
    path.chmod(0o644)
    async with open_store(path) as store:
        assert await store.get("k") is not None
        assert path.stat().st_mode & 0o777 == 0o600


async def test_two_hubs_cannot_share_it(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path) as store:
        await refused(path, UnavailableError, f"in use by another hub .process {os.getpid()}")
        code = (
            "import asyncio, sys; from pathlib import Path; from skerry.drivers.store.sqlite import open_store\n"
            "async def main():\n"
            "    async with open_store(Path(sys.argv[1])): pass\n"
            "asyncio.run(main())"
        )
        command = [sys.executable, "-c", code, str(path)]
        other = await asyncio.to_thread(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        )
        assert other.returncode != 0
        assert "in use by another hub" in other.stderr
        await store.create("k", b"")
    async with open_store(path) as store:
        assert await store.get("k") is not None


async def test_an_exception_in_the_body_passes_and_frees_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    with pytest.raises(KeyError, match="mine"):
        async with open_store(path):
            raise KeyError("mine")
    async with open_store(path):
        pass


async def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    path.write_bytes(b"my diary, in plain text\n" * 100)
    await refused(path, IntegrityError, "not a database")
    assert path.read_bytes() == b"my diary, in plain text\n" * 100


async def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    await refused(path, UnsupportedError, "other tables")


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path) as store:
        for number in range(200):
            await store.create(f"k/{number}", bytes(500))
    raw = bytearray(path.read_bytes())
    raw[4096:-4096] = b"\xa5" * (len(raw) - 8192)
    path.write_bytes(raw)
    await refused(path, IntegrityError, "damaged")


async def test_damage_done_while_it_is_open_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path) as store:
        for number in range(500):
            await store.create(f"k/{number}", bytes(2000))
    settings = SqliteSettings(check_up_to_bytes=0)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 4)
        file.write(b"\xa5" * (size - 4096 * 4))
    with pytest.raises(IntegrityError, match="damaged"):
        async with open_store(path, settings) as store:
            await store.list("")


async def test_a_later_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE facts SET number = {SCHEMA_VERSION + 1} WHERE name = 'schema'")
    connection.close()
    await refused(path, UnsupportedError, f"schema version {SCHEMA_VERSION + 1}")


@pytest.mark.parametrize("what", ["directory", "link"])
async def test_what_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "hub.db"
    if what == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    await refused(path, UnavailableError, "cannot be used")
    assert not (tmp_path / "elsewhere").exists()


async def test_a_full_database_refuses_whole_writes_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    async with open_store(path, SqliteSettings(max_bytes=400_000)) as store:
        await store.create("small", b"1")
        written = 0
        refusal = None
        while refusal is None:
            try:
                await store.create(f"big/{written}", bytes(20_000))
                written += 1
            except StorageFullError as error:
                refusal = error
        assert "nothing was changed" in str(refusal)
        assert refusal.element == str(path)
        assert written > 5
        assert await store.revision() == written + 1
        results = await asyncio.gather(
            *(store.create(f"more/{n}", bytes(100_000)) for n in range(5)), return_exceptions=True
        )
        assert all(isinstance(result, StorageFullError) for result in results)
        assert len({id(result) for result in results}) == 5  # everybody gets an error of his own
        assert await store.get("more/0") is None
        assert (await store.list("big/")).revision == written + 1
        await store.delete("big/0")
        await store.compact(await store.revision())
        record = await store.create("after", bytes(10_000))
        assert record.revision == written + 3
    async with open_store(path) as store:
        assert await store.revision() == written + 3


async def test_a_foreign_lock_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry.drivers.store.sqlite._BUSY_SECONDS", 0.05)
    path = tmp_path / "hub.db"
    async with open_store(path, SqliteSettings(log=LogSettings())) as store:
        shell = sqlite3.connect(path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked by another program"):
            await store.create("k", b"")
        shell.execute("ROLLBACK")
        shell.close()
        assert (await store.create("k", b"")).revision == 1
