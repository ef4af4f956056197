"""Model packages as the command line shows them: reading a card, printing its table.

Lives here: what several verbs print of a package. Must not live here: a verb, how packages are made or sent.
"""

from __future__ import annotations

from pathlib import Path

from skerry.api import quantity
from skerry.api.errors import InvalidError
from skerry.api.kinds.variants import Variant
from skerry.cli import foreign, output
from skerry.core import card as cards
from skerry.core import pareto


def read_card(package: Path) -> cards.EvaluationCard:
    """Read a package's card. Raises InvalidError, UnsupportedError for a model's directory that is no package."""
    path = package / cards.CARD_FILE
    try:
        with path.open("rb") as file:
            return cards.decode(file.read(cards.MAX_CARD_BYTES + 1))
    except OSError as error:
        said = foreign.explain(package)
        if said is not None:
            raise said from None
        raise InvalidError(
            error.strerror or str(error), element=str(path), hint="make a package with `skerry model optimize`"
        ) from None


def print_card(card: cards.EvaluationCard) -> None:
    """Print a card's table of variants, those on the Pareto front marked, then what was rejected and why."""
    metric = card.evaluation.metric if card.evaluation is not None else "metric"
    variants = [packaged.variant for packaged in card.variants]
    front = pareto.front(variants)
    rows = [
        (
            v.name,
            quantity.human_bytes(v.blob.size),
            f"{v.metric:.4f}" if v.metric is not None else "",
            _interval(v),
            _change(card, v),
            f"{v.profile.latency_p50_ms:.3f} ms",
            f"{v.profile.latency_p95_ms:.3f} ms",
            quantity.human_bytes(v.profile.peak_memory_bytes),
            f"{v.error.max_abs:.2g}",
            "*" if v.name in front else "-",
            v.recipe,
        )
        for v in variants
    ]
    columns = ("VARIANT", "SIZE", metric.upper(), "95% INTERVAL", "CHANGE", "P50", "P95", "PEAK MEMORY", "MAX ERROR")
    output.print_table((*columns, "FRONT", "RECIPE"), rows)
    for rejected in card.rejected:
        output.say(f"rejected {rejected.name}: {rejected.reason}")
    _print_about(card.about)
    if card.evaluation is None:
        output.say(
            f"{card.model} {card.version}: NOT EVALUATED, nothing is known of its accuracy; {card.golden.samples} "
            "golden samples of drawn inputs with the model's own answers, by which devices measure agreement; "
            "* = the fastest"
        )
        return
    output.say(
        f"{card.model} {card.version}: source {metric} {card.evaluation.baseline:.4f} on {card.evaluation.samples} "
        f"test samples, {card.golden.samples} golden samples; * = no other variant is both better and faster"
    )


def _print_about(about: cards.About | None) -> None:
    """Print what the model's authors say of it."""
    if about is None:
        return
    said = {"licence": about.license, "task": about.task, "tags": ", ".join(about.tags), "about": about.description}
    for word, text in said.items():
        if text:
            output.say(f"{word}: {text}")


def _change(card: cards.EvaluationCard, variant: Variant) -> str:
    if card.evaluation is None or variant.metric is None:
        return ""
    return f"{round(variant.metric - card.evaluation.baseline, 4) or 0.0:+.4f}"


def _interval(variant: Variant) -> str:
    found = variant.metric_interval
    return f"{found.low:.4f}-{found.high:.4f}" if found is not None else ""
