"""`skerry registry ...`: the hub's own registry: tokens to log in with, and its garbage.

Lives here: what these verbs take and print. Must not live here: what is garbage (`core.garbage`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from skerry.api import quantity
from skerry.api.kinds.registry_token import RegistryToken
from skerry.cli import options, output, places
from skerry.core.garbage import Item, Report

app = typer.Typer(help="The hub's registry: what lies there, and what nothing needs any more.", no_args_is_help=True)


@app.command("gc")
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed, and why.")] = False,
    grace: Annotated[str, typer.Option(help="What was looked at within this time stays; 24h.")] = "",
    kept: Annotated[bool, typer.Option("--kept", help="Say of what stays why, too.")] = False,
    form: places.Form = "text",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Remove from the registry what no tag, version, rollout or device needs. See what goes with --dry-run first."""
    as_json = places.check_form(form)
    with options.connect(kubeconfig) as client:
        report = client.collect_garbage(dry_run=dry_run, grace=grace)
    if as_json:
        output.print_json(report)
        return
    _print(report, kept=kept)


@app.command("token")
def make_token(
    push: Annotated[bool, typer.Option("--push", help="Allow to push, too.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Allow to delete, too.")] = False,
    repository: Annotated[
        list[str] | None, typer.Option(help="Of the namespace, as in default/digits; may be repeated. All of them.")
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it is good, as in 12h; at most 90 days (2160h).")] = "12h",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Make a token to log in to the registry with, as a password under any user name; it is shown this once."""
    actions = ["pull", *(["push"] if push else []), *(["delete"] if delete else [])]
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "RegistryToken",
        "metadata": {"generateName": "registry-"},
        "spec": {"ttl": ttl, "actions": actions, "repositories": repository or []},
    }
    with options.connect(kubeconfig, namespace) as client:
        token = client.create(raw, RegistryToken)
    output.out.print(token.status.token, soft_wrap=True)


def _print(report: Report, *, kept: bool) -> None:
    rows = [_row("remove" if report.dry_run else "removed", item) for item in report.removed]
    rows += [_row("keep", item) for item in report.kept] if kept else []
    if rows:
        output.print_table(("ACTION", "REPOSITORY", "KIND", "DIGEST", "SIZE", "WHY"), rows)
    for repository, why in sorted(report.left_alone.items()):
        output.say(f"{repository}: left alone, {why}")
    verb = "would be removed" if report.dry_run else "removed"
    output.say(
        f"{report.removed_count} {verb}, {quantity.human_bytes(report.freed_bytes)} "
        f"{'to be freed' if report.dry_run else 'freed'}, {report.kept_count} kept"
    )


def _row(action: str, item: Item) -> tuple[str, str, str, str, str, str]:
    size = quantity.human_bytes(item.size)
    return action, item.repository, item.kind, item.digest, size, item.reason
