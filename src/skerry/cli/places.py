"""Where model references lead: to the hub's own registry or to any other, with the user's credentials.

Lives here: the options that say how to get into a registry, and the bar that shows how far a transfer is. Must not live
here: a verb.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from skerry.api.errors import InvalidError
from skerry.cli import options, output
from skerry.core import reference as references
from skerry.core.reference import Reference
from skerry.drivers.client.credentials import Credentials, find_credentials
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.client.repository import Progress, Repository, ignore_progress

MAX_PASSWORD = 64 * 1024

Username = Annotated[str, typer.Option("--username", "-u", help="At a registry elsewhere; see --password-stdin.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="HTTP, to registries on this machine only.")]
Form = Annotated[str, typer.Option("--output", "-o", help="text or json.")]


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to get into registries: the hub's kubeconfig, and what the user said of others."""

    kubeconfig: Path | None = None
    namespace: str = ""
    credentials: Credentials | None = None
    plain_http: bool = False

    def parse(self, text: str) -> Reference:
        """Parse a reference; what names no namespace is in the kubeconfig's, or the one that was given."""
        if text.startswith(references.SCHEME) or "/" in text.partition("@")[0].partition(":")[0]:
            return references.parse(text)
        namespace = self.namespace or options.load_connection(self.kubeconfig).namespace
        return references.parse(text, namespace=namespace)


def access(
    kubeconfig: Path | None,
    namespace: str,
    username: str = "",
    *,
    password_stdin: bool = False,
    plain_http: bool = False,
) -> Access:
    """Return what a verb's options say. Raises InvalidError for a user name without a password, or the reverse."""
    if bool(username) != password_stdin:
        raise InvalidError(
            "a user name and a password belong together",
            element="--username",
            hint="give --username NAME and --password-stdin, and the password on standard input",
        )
    credentials = None
    if username:
        password = sys.stdin.read(MAX_PASSWORD).rstrip("\r\n")
        if not password:
            raise InvalidError("there is none on standard input", element="--password-stdin")
        credentials = Credentials(username=username, password=password)
    return Access(kubeconfig=kubeconfig, namespace=namespace, credentials=credentials, plain_http=plain_http)


def check_form(form: str) -> bool:
    """Return whether JSON was asked for. Raises InvalidError."""
    if form not in ("text", "json"):
        raise InvalidError(f'"{form}" is not one of: text, json', element="--output")
    return form == "json"


@contextmanager
def open_repository(where: Reference, given: Access, progress: Progress = ignore_progress) -> Iterator[Repository]:
    """Open the repository that a reference names, on the hub or elsewhere."""
    if not where.host:
        with options.connect(given.kubeconfig, given.namespace) as client:
            yield Repository(client.http, where.repository, progress, hint="is the hub running?")
        return
    credentials = given.credentials or find_credentials(where.host, where.repository)
    with open_registry(where.host, credentials, plain_http=given.plain_http) as http:
        yield Repository(http, where.repository, progress)


@contextmanager
def shown(what: str) -> Iterator[Progress]:
    """Show a transfer on the terminal, and nothing in a pipe; gives what to call with each count of bytes."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=output.err, transient=True, disable=not output.err.is_terminal) as bars:
        task = bars.add_task(output.plain(what), total=None)

        def progress(name: str, count: int) -> None:
            bars.update(task, advance=count, description=output.plain(f"{what}: {name[:60]}"))

        yield progress
