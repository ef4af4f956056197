"""`skerry explain`: why a device runs the variant it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry.api import quantity
from skerry.cli import options, output


def explain(
    deployment: Annotated[str, typer.Argument(help="deployment/NAME")],
    device: Annotated[str, typer.Argument(help="device/NAME")],
    form: Annotated[str, typer.Option("--output", "-o", help="table, json or yaml.")] = "table",
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Show every variant considered for a device, what was measured, and why each was or was not taken."""
    wanted = options.reference(deployment, expected="deployment")
    where = options.reference(device, expected="device")
    with options.connect(kubeconfig, namespace) as client:
        answer = client.explain(wanted.name, where.name)
    if form == "json":
        output.print_json(answer)
    elif form == "yaml":
        output.print_yaml(answer)
    else:
        rows = [
            (
                candidate["variant"],
                "yes" if candidate["taken"] else "no",
                _number(candidate.get("latencyP95Ms"), "{:.2f} ms"),
                quantity.human_bytes(candidate["peakMemoryBytes"]) if candidate.get("peakMemoryBytes") else None,
                _number(candidate.get("metric"), "{:.4f}"),
                candidate.get("measuredOn"),
                candidate["reason"],
            )
            for candidate in answer.get("candidates", [])
        ]
        output.print_table(("VARIANT", "TAKEN", "P95", "MEMORY", "METRIC", "MEASURED", "WHY"), rows)
        if answer.get("reason") and not any(candidate["taken"] for candidate in answer.get("candidates", [])):
            output.say(answer["reason"])


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
