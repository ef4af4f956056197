"""`skerry device ...`: what an operator tells one device, beside what it is to run."""

from __future__ import annotations

import typer

from skerry.cli import reconcile

app = typer.Typer(help="Tell one device something.", no_args_is_help=True)
app.command()(reconcile.reconcile)


@app.callback()
def _group() -> None:
    """Keep it a group while it has one command."""
