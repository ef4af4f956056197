"""A PostgreSQL server of the tests' own: as a user that may run one, on a socket in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

START_SECONDS = 60
_USERS = ("postgres", "nobody")
"""Who runs the server where the tests are run by root, whom PostgreSQL refuses."""


class Server:
    """One server; each test gets a schema of its own in its one database."""

    def __init__(self, directory: Path, *, fsync: bool = False) -> None:
        self.directory = directory
        self._fsync = "on" if fsync else "off"
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            name = next(user for user in _USERS if _exists(user))
            self._user = {"user": name, "group": _group(name), "extra_groups": []}
            shutil.chown(directory, user=name)
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0
        self._run("initdb", "-D", str(directory / "data"), "-U", "skerry", "-A", "trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        """Start it and wait until it lets one in."""
        command = [
            _binary("postgres"),
            "-D",
            str(self.directory / "data"),
            "-k",
            str(self.directory),
            "-c",
            f"fsync={self._fsync}",
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-c", "listen_addresses=", "-c", "max_connections=60"],
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)  # there is no event to wait on before it listens

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT at once, as a crash does; SIGINT in order, ending all sessions."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_SECONDS)
            self._process = None

    def execute(self, statement: str, *, schema: str = "") -> None:
        with psycopg.connect(self.url(schema), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)

    def query(self, statement: str, *, schema: str = "") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(schema), autocommit=True, connect_timeout=5) as connection:
            return connection.execute(statement).fetchall()

    def new_schema(self) -> str:
        """Make an empty schema; return its name."""
        self._schemas += 1
        name = f"hubs_{self._schemas}"
        self.execute(f"CREATE SCHEMA {name}")
        return name

    def url(self, schema: str = "") -> str:
        options = quote(f"-c search_path={schema} ") if schema else ""
        return f"postgresql://skerry@/postgres?host={quote(str(self.directory), safe='')}" + (
            f"&options={options}" if options else ""
        )

    def new_url(self) -> str:
        """Return the address of an empty schema."""
        return self.url(self.new_schema())

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([_binary(name), *arguments], check=True, capture_output=True, timeout=120, **self._user)


@contextmanager
def running(*, fsync: bool = False) -> Iterator[Server]:
    """Run a server for a while; skip the test where there is none to run.

    Without fsync unless asked: the tests end processes, not the machine.
    """
    if not is_installed():
        pytest.skip("needs PostgreSQL's server: install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="skerry-pg-"))
    directory.chmod(0o755)
    try:
        server = Server(directory, fsync=fsync)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


def is_installed() -> bool:
    """Return whether there is a server to run."""
    return bool(_find("initdb") and _find("postgres"))


def _find(name: str) -> str:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: -int(path.parts[-3]))
    return shutil.which(name) or (str(installed[0]) if installed else "")


def _binary(name: str) -> str:
    return _find(name)


def _exists(user: str) -> bool:
    return subprocess.run(["id", user], capture_output=True, check=False).returncode == 0


def _group(user: str) -> int:
    return int(subprocess.run(["id", "-g", user], capture_output=True, check=True).stdout)
