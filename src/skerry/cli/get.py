"""`skerry get`: list objects as the hub prints them, or as JSON or YAML; watch them change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skerry.api.errors import InvalidError
from skerry.cli import options, output
from skerry.drivers.client.api import HubClient

_FORMS = ("", "wide", "name", "json", "yaml")


def get(
    what: Annotated[str, typer.Argument(help="devices, models, deployments, rollouts, ...; or kind/NAME.")],
    name: Annotated[str, typer.Argument(help="One object's name.")] = "",
    form: Annotated[str, typer.Option("--output", "-o", help="wide, name, json or yaml.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on printing what changes.")] = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Labels, as in site=lab,tier!=test.")] = "",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show objects."""
    if form not in _FORMS:
        raise InvalidError(
            f'"{form}" is not an output form', element="--output", hint=f"one of:{', '.join(_FORMS)[1:]}"
        )
    word, _, slashed = what.partition("/")
    show(word, slashed or name, form=form, watch=watch, selector=selector, namespace=namespace, kubeconfig=kubeconfig)


def show(
    word: str,
    name: str = "",
    *,
    form: str = "",
    watch: bool = False,
    selector: str = "",
    namespace: str = "",
    kubeconfig: Path | None = None,
) -> None:
    """Print objects of one kind."""
    info = options.kind_of(word)
    with options.connect(kubeconfig, namespace) as client:
        if form in ("json", "yaml"):
            _show_objects(client, info.plural, name, form, selector)
            return
        table = client.table(info.type, name=name, labels=selector)
        if form == "name":
            for row in table["rows"]:
                output.say(f"{info.singular}/{row['object']['metadata']['name']}")
        else:
            _print_rows(table, wide=form == "wide", nothing=f"No {info.plural} found.")
        if watch:
            version = table.get("metadata", {}).get("resourceVersion", "")
            for change in client.watch_table(info.type, name=name, labels=selector, resource_version=version):
                _print_rows(change, wide=form == "wide", header=False)


def _show_objects(client: HubClient, plural: str, name: str, form: str, selector: str) -> None:
    info = options.kind_of(plural)
    raw = client.get_raw(info.type, name) if name else client.list_raw(info.type, labels=selector)
    for item in raw.get("items", [raw]):  # as kubectl does: whose each field is would be most of what is shown
        item["metadata"].pop("managedFields", None)
    (output.print_json if form == "json" else output.print_yaml)(raw)


def _print_rows(table: dict[str, Any], *, wide: bool, header: bool = True, nothing: str = "") -> None:
    columns = table.get("columnDefinitions") or []
    shown = [i for i, column in enumerate(columns) if wide or not column.get("priority")]
    rows = [[row["cells"][i] for i in shown] for row in table.get("rows") or []]
    if not rows and nothing:
        output.err.print(nothing)
        return
    output.print_table([columns[i]["name"].upper() for i in shown], rows, header=header)
