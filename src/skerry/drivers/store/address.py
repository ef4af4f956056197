"""Where a PostgreSQL database is and how one gets in: a libpq URL, made safe by default.

Lives here: reading the URL, the rule on TLS, what every session is set to. Must not live here: connections' use.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import conninfo

from skerry.api.errors import InvalidError

_ENCRYPTED = ("require", "verify-ca", "verify-full")
_CONNECT_SECONDS = 5
_SESSION = {
    "client_encoding": "UTF8",
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "60s",
    "lock_timeout": "15s",
    # A hub that stops in the middle of a transaction holds the log; the server ends it, and the others go on.
    "idle_in_transaction_session_timeout": "10s",
    # Each statement finds its rows by an index, one after the other. Without this the planner, once it knows how many
    # there are, goes through all of a list for one page of it.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
}
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_DURABLE = """
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""


@dataclass(frozen=True, kw_only=True)
class Address:
    """A database's place. `parameters` may hold a password and are for libpq alone; `shown` is for people."""

    parameters: Mapping[str, Any]
    shown: str

    def __repr__(self) -> str:
        """Return what may be logged."""
        return f"Address({self.shown!r})"

    def connect(self) -> psycopg.Connection[Any]:
        """Connect. Raises psycopg.OperationalError."""
        connection = psycopg.connect(**self.parameters, autocommit=True)
        try:
            connection.execute(_DURABLE)
        except BaseException:
            connection.close()
            raise
        return connection

    async def connect_async(self, **settings: str) -> psycopg.AsyncConnection[Any]:
        """Connect for the event loop, with further settings of the session. Raises psycopg.OperationalError."""
        options = f"{self.parameters['options']} {_options(settings)}"
        return await psycopg.AsyncConnection.connect(**{**self.parameters, "options": options}, autocommit=True)


def read(url: str, *, password: str = "") -> Address:
    """Read `postgresql://user@host:port/database?parameter=value`, as libpq has it.

    Over a network TLS is a must, and the server's certificate is verified unless less is asked for. Raises
    InvalidError.
    """
    try:
        given = {name: str(value) for name, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError as error:
        raise InvalidError(
            f"is not an address that PostgreSQL knows: {error}".strip()[:200],
            element="--store",
            hint="write postgresql://user@host/database",
        ) from None
    if given.get("service") or os.environ.get("PGSERVICE"):
        raise InvalidError(
            "names a service, whose address is written elsewhere", element="--store", hint="write the address itself"
        )
    for name, variable in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR")):
        if variable in os.environ:  # as libpq would, but where it counts for the rule on TLS
            given.setdefault(name, os.environ[variable])
    if password:
        given["password"] = password
    if not _is_local(given):
        mode = given.setdefault("sslmode", "verify-full")
        if mode not in _ENCRYPTED:
            raise InvalidError(
                f"sslmode={mode} would send everything in plain text",
                element="--store",
                hint="use sslmode=verify-full with sslrootcert=FILE; only on this machine TLS may be left out",
            )
        if mode != "require":
            given.setdefault("sslrootcert", "system")
    parameters: dict[str, Any] = {"application_name": "skerry-hub", "connect_timeout": _CONNECT_SECONDS, **_KEEPALIVE}
    parameters |= given
    parameters["options"] = f"{given.get('options', '')} {_options(_SESSION)}".strip()
    return Address(parameters=parameters, shown=_shown(given))


def _options(settings: Mapping[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _is_local(given: Mapping[str, str]) -> bool:
    """Return whether every server named is on this machine: a socket of the file system, or a loopback address."""
    hosts = (given.get("hostaddr") or given.get("host") or "").split(",")
    return all(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    if not host or host[0] in "/@" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(given: Mapping[str, str]) -> str:
    """Return the address without anything that need not be known."""
    host, port = given.get("host") or given.get("hostaddr") or "", given.get("port", "")
    return f"postgresql://{host}{f':{port}' if port else ''}/{given.get('dbname', '')}"
