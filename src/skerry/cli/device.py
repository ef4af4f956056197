"""`skerry device ...`: what an operator tells one device, beside what it is to run."""

from __future__ import annotations

import typer

from skerry.cli import conversation, hold, reconcile

app = typer.Typer(help="Tell one device something.", no_args_is_help=True)
for verb in (hold.hold, hold.release, hold.cordon, hold.uncordon, reconcile.reconcile):
    app.command()(verb)
app.command("exec")(conversation.execute)
app.command()(conversation.forward)
