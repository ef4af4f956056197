"""`skerry kubeconfig`: a kubeconfig for oneself, for another user, or for a service account."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from skerry.api import duration
from skerry.api.errors import InvalidError, UnsupportedError
from skerry.cli import options, output
from skerry.drivers.client import identities, kubeconfig_file
from skerry.drivers.client.api import HubClient, load_kubeconfig
from skerry.drivers.client.kubeconfig import Connection
from skerry.drivers.client.kubeconfig_file import Entries

CLUSTER = "skerry"
_ACCOUNT = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)")
_ROUNDING = timedelta(minutes=1)


def kubeconfig(
    user: Annotated[str, typer.Option(help="For this user: makes a key and has its certificate approved.")] = "",
    group: Annotated[list[str] | None, typer.Option(help="A group of that user; repeat it for more.")] = None,
    service_account: Annotated[str, typer.Option(help="For this service account: namespace/name.")] = "",
    life: Annotated[str, typer.Option("--duration", help="How long it is good; the hub may make it shorter.")] = "8h",
    context: Annotated[str, typer.Option(help="What the context is called, and cluster and user with it.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="The context's namespace.")] = "",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output by default.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Add to the file: -o, else $KUBECONFIG, else ~/.kube/config.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there of the same name.")] = False,
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Write a kubeconfig: for oneself, or with --user or --service-account for somebody else."""
    if user and service_account:
        raise InvalidError("is for either, not both", element="--user, --service-account")
    if group and not user:
        raise InvalidError("belongs to --user", element="--group")
    source = options.find_kubeconfig(kubeconfig)
    connection = load_kubeconfig(source)
    made = _made_for(connection, user, list(group or []), service_account, life) if user or service_account else None
    entries = _entries(connection, made, who=user or service_account, context=context, namespace=namespace)
    _deliver(entries, out, None if made else source, merge=merge, force=force)
    if made is not None:
        _say(f"good until {made.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC")


def _made_for(
    connection: Connection, user: str, groups: list[str], service_account: str, life: str
) -> identities.Obtained:
    seconds = int(duration.to_seconds(life))
    with HubClient(connection) as client:
        if user:
            made = identities.obtain_certificate(client, user, groups, seconds)
        else:
            named = _ACCOUNT.fullmatch(service_account)
            if named is None:
                raise InvalidError(
                    f'"{service_account[:80]}" is not namespace/name',
                    element="--service-account",
                    hint="as in default/ci",
                )
            made = identities.obtain_token(client, named[1], named[3], seconds)
    if made.expires < datetime.now(UTC) + timedelta(seconds=seconds) - _ROUNDING:
        _say(f"the hub gives no more than until {made.expires.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    return made


def _entries(
    connection: Connection, made: identities.Obtained | None, *, who: str, context: str, namespace: str
) -> Entries:
    account_namespace = who.partition("/")[0] if made is not None and made.token else ""
    if made is None and (connection.program or connection.token_file):
        raise UnsupportedError(
            "logs in by a program or a file, which cannot be copied",
            element=connection.source,
            hint="copy that kubeconfig, or make credentials with --user or --service-account",
        )
    name = f"{who}@{CLUSTER}" if who else CLUSTER
    return Entries(
        context=context or name,
        cluster_name=context or CLUSTER,
        user_name=context or (name if who else "admin"),
        server=connection.server,
        namespace=namespace or account_namespace or connection.namespace,
        ca=connection.ca,
        certificate=connection.certificate if made is None else made.certificate,
        key=connection.key if made is None else made.key,
        token=connection.token if made is None else made.token,
    )


def _deliver(entries: Entries, out: Path | None, copied: Path | None, *, merge: bool, force: bool) -> None:
    if merge:
        path = out or _usual()
        if copied is not None and path.exists() and path.samefile(copied):
            raise InvalidError("is the very file that is read", element=str(path), hint="name another one with -o")
        current = kubeconfig_file.merge(path, entries, replace=force)
        _say(f'added context "{entries.context}" to {path}')
        if not current:
            _say(f"use it with: kubectl config use-context {entries.context}")
    elif out is None or str(out) == "-":
        if force:
            raise InvalidError("is for a file", element="--force", hint="name one with -o")
        sys.stdout.write(kubeconfig_file.render(entries))
    else:
        kubeconfig_file.write_new(out, entries, replace=force)
        _say(f'wrote {out} with context "{entries.context}"')


def _usual() -> Path:
    listed = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(listed) if listed else Path.home() / ".kube/config"


def _say(text: str) -> None:
    """Tell people; standard output may be the file itself."""
    output.err.print(output.plain(text), highlight=False, markup=False)
