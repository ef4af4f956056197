"""`skerry hub ...`: start a hub, make join tokens."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from skerry.api import duration
from skerry.api.errors import InvalidError, SkerryError, TimedOutError, UnsupportedError
from skerry.api.kinds.enrollment import JoinToken
from skerry.cli import options, output

app = typer.Typer(help="The control plane: start it, let devices in.", no_args_is_help=True)
tokens = typer.Typer(help="Join tokens: short-lived secrets that let devices enrol.", no_args_is_help=True)
app.add_typer(tokens, name="token")
stored = typer.Typer(help="Where a hub keeps everything.", no_args_is_help=True)
app.add_typer(stored, name="store")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def start(
    more: typer.Context,
    state_dir: options.StateDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback unless given.")] = None,
    api_port: Annotated[int | None, typer.Option(help="HTTPS port, 7443 at first; 0 takes a free one.")] = None,
    mqtt_port: Annotated[int | None, typer.Option(help="MQTT port, 8883 at first; 0 takes a free one.")] = None,
    advertise: Annotated[
        list[str] | None, typer.Option(help="Further names or addresses devices reach the hub by.")
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="Keep artifacts there, not on this disk: oci://host/repository.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Keep everything else there: postgresql://user@host/database, or sqlite.")
    ] = None,
    store_password_file: Annotated[Path | None, typer.Option(help="File with the password for --store.")] = None,
    keys_dir: Annotated[Path | None, typer.Option(help="Keys of all hubs that share a store.")] = None,
    artifacts_dir: Annotated[Path | None, typer.Option(help="Artifacts, where not in the state directory.")] = None,
) -> None:
    """Run the hub in the foreground. The first start makes the certificates, an admin credential and a kubeconfig.

    Further options go to the hub as they are, which knows them all: `python -m skerry.hub --help`.
    """
    try:
        import skerry.hub.app  # noqa: F401, PLC0415 - an extra; a plain install is an agent and a command line
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this installation has no hub (no module {error.name})", hint="install it with: pip install 'skerry[hub]'"
        ) from None
    arguments = ["--state-dir", str(state_dir or options.default_hub_dir())]
    # What is not given is left to the hub, which keeps the ports it has: devices know them.
    given: dict[str, object] = {
        "--host": host,
        "--api-port": api_port,
        "--mqtt-port": mqtt_port,
        "--registry": registry,
        "--store": store,
        "--store-password-file": store_password_file,
        "--keys-dir": keys_dir,
        "--artifacts-dir": artifacts_dir,
    }
    for option, value in given.items():
        if value is not None:
            arguments += [option, str(value)]
    for name in advertise or []:
        arguments += ["--advertise", name]
    os.execv(sys.executable, [sys.executable, "-m", "skerry.hub", *arguments, *more.args])  # noqa: S606


@app.command()
def wait(
    state_dir: options.StateDir = None,
    timeout: Annotated[str, typer.Option(help="Give up after this long.")] = "30s",
) -> None:
    """Wait until the hub with this state directory answers."""
    directory = state_dir or options.default_hub_dir()
    deadline = time.monotonic() + duration.to_seconds(timeout)
    cause = "it has not started"
    while time.monotonic() < deadline:
        try:
            with options.connect(directory / "kubeconfig") as client:
                client.check_ready()
        except SkerryError as error:
            cause = error.sentence
            time.sleep(0.1)  # there is no event to wait on before the hub listens
            continue
        output.say(f"hub at {client.server} is ready")
        return
    raise TimedOutError(f"is not ready after {timeout} ({cause})", element=f"hub in {directory}")


@app.command()
def url(state_dir: options.StateDir = None) -> None:
    """Print the URL that devices enrol at."""
    with options.connect((state_dir or options.default_hub_dir()) / "kubeconfig") as client:
        output.say(client.server)


@tokens.command("create")
def create_token(
    ttl: Annotated[str, typer.Option(help="How long it is good, as in 30m or 24h.")] = "1h",
    uses: Annotated[int, typer.Option(help="How many devices may enrol with it.")] = 1,
    label: Annotated[list[str] | None, typer.Option(help="key=value, put on every device that enrols with it.")] = None,
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Make a join token and print it; it is shown this once."""
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"generateName": "token-"},
        "spec": {"ttl": ttl, "uses": uses, "labels": _labels(label or [])},
    }
    with options.connect(kubeconfig, namespace) as client:
        token = client.create(raw, JoinToken)
    output.out.print(token.status.token)


@tokens.command("list")
def list_tokens(namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """List join tokens; their secrets are not stored, so they cannot be shown again."""
    from skerry.cli.get import show  # noqa: PLC0415

    show("tokens", namespace=namespace, kubeconfig=kubeconfig)


@stored.command("copy")
def copy_store(
    source: Annotated[str, typer.Argument(help="A hub's state directory, or postgresql://user@host/database.")],
    target: Annotated[str, typer.Argument(help="The same, of a store that is empty.")],
    source_password_file: Annotated[Path | None, typer.Option(help="File with the source's password.")] = None,
    target_password_file: Annotated[Path | None, typer.Option(help="File with the target's password.")] = None,
) -> None:
    """Copy a store into another one, with every revision and uid. The hubs that use it must not run."""
    try:
        from skerry.hub import stores  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this installation has no hub (no module {error.name})", hint="install it with: pip install 'skerry[hub]'"
        ) from None
    passwords = stores.Passwords(source=source_password_file, target=target_password_file)
    rows = 0

    def said(copied: int) -> None:
        nonlocal rows
        rows = copied

    newest = stores.copy(source, target, passwords=passwords, said=said)
    output.say(f"copied {rows} records and what is known of their past, up to revision {newest}")


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidError(f'"{pair}" is not a label', element="--label", hint="write key=value, as in site=lab")
        labels[key] = value
    return labels
