"""`skerry explain`: why a device runs the variant it runs."""

from __future__ import annotations

from typing import Annotated, Any

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
        _print_candidates(answer)
        _print_class(answer)
        _print_answers(answer)


def _print_candidates(answer: dict[str, Any]) -> None:
    candidates = answer.get("candidates", [])
    rows = [
        (
            candidate["variant"],
            "yes" if candidate["taken"] else "no",
            _number(candidate.get("latencyP95Ms"), "{:.2f} ms"),
            _bytes(candidate.get("peakMemoryBytes")),
            _number(candidate.get("metric"), "{:.4f}"),
            candidate.get("measuredOn"),
            candidate["reason"],
        )
        for candidate in candidates
    ]
    output.print_table(("VARIANT", "TAKEN", "P95", "MEMORY", "METRIC", "MEASURED", "WHY"), rows)
    if answer.get("reason") and not any(candidate["taken"] for candidate in candidates):
        output.say(answer["reason"])


def _print_class(answer: dict[str, Any]) -> None:
    """Print what is known on the device's class now; it may have been learnt after the choice."""
    name, costs = answer.get("deviceClass"), answer.get("classCosts") or []
    if not name:
        return
    members = answer.get("classMembers", 0)
    known = "measured there" if costs else "nothing was measured there yet"
    output.out.print(f"\nclass {name}, {members} device{'' if members == 1 else 's'}: {known}", markup=False)
    rows = [
        (
            cost["variant"],
            _number(cost.get("latencyP50Ms"), "{:.2f} ms"),
            _number(cost.get("latencyP95Ms"), "{:.2f} ms"),
            _bytes(cost.get("peakMemoryBytes")),
            _number(cost.get("maxAbsError"), "{:.2g}"),
            str(cost.get("samples", 0)),
            cost.get("failure") or f"{cost['source']} on {', '.join(cost.get('measuredBy', []))}",
        )
        for cost in costs
    ]
    if rows:
        output.print_table(("VARIANT", "P50", "P95", "MEMORY", "MAX-ERROR", "SAMPLES", "HOW"), rows)


def _print_answers(answer: dict[str, Any]) -> None:
    """Print what the device refused, and what it was asked to measure."""
    for refused in answer.get("refusals") or []:
        why = refused.get("message") or "it does not say why"
        output.out.print(f"\nrefused {refused['variant']} ({refused['refusal']}): {why}", markup=False)
    if answer.get("trust"):
        output.out.print(f"\ntrust policy: {answer['trust']}", markup=False)
    own = answer.get("deviceTrust")
    if own:
        said = f": {own['message']}" if own.get("message") else ""
        text = f"the device obeys trust anchor {own.get('anchor', 0)} and policy {own.get('policy', 0)}{said}"
        output.out.print(text, markup=False)
    for asked in answer.get("benchmarks") or []:
        said = f": {asked['message']}" if asked.get("message") else ""
        phase = asked.get("phase", "Pending")
        output.out.print(f"benchmark of {asked.get('variant', '')}: {phase}{said}", markup=False)


def _bytes(value: int | None) -> str | None:
    return quantity.human_bytes(value) if value else None


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
