"""A picture of a package's variants: the metric against latency, size as area, the Pareto front as a line.

Needs matplotlib, the extra `plot`. Must not live here: who is on the front (`core.pareto`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from skerry.api.errors import UnsupportedError
from skerry.api.kinds.variants import Variant
from skerry.api.quantity import human_bytes
from skerry.core import pareto
from skerry.core.card import EvaluationCard

FILE = "pareto.png"
_INCHES = (8.0, 5.0)
_LARGEST = 1600.0
"""Area of the largest file's disc, in square points."""
_COLOURS = {"onnx": "#0072b2", "tflite": "#e69f00", "executorch": "#009e73", "torchscript": "#cc79a7"}
"""Okabe and Ito's: told apart by colour-blind people, too."""


def draw(card: EvaluationCard) -> bytes:
    """Return the picture as PNG, the same bytes for the same card. Raises UnsupportedError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - heavy, and an extra
        from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and an extra
    except ModuleNotFoundError as error:
        hint = "pip install 'skerry[plot]'"
        raise UnsupportedError("needs matplotlib, not installed here", element=FILE, hint=hint) from error
    variants = [packaged.variant for packaged in card.variants]
    figure = Figure(figsize=_INCHES, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = sorted((v for v in variants if v.name in pareto.front(variants)), key=lambda v: v.profile.latency_p50_ms)
    line = {"color": "#555555", "linewidth": 1, "linestyle": "--", "zorder": 1, "label": "Pareto front"}
    axes.plot([v.profile.latency_p50_ms for v in best], [v.metric for v in best], **line)
    _discs(axes, variants, {v.name for v in best})
    axes.axhline(card.evaluation.baseline, color="#999999", linewidth=0.8, label="source model", zorder=0)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.35)
    axes.set_xlabel("latency, batch 1, one thread, median, ms")
    axes.set_ylabel(card.evaluation.metric + ("" if card.evaluation.higher_is_better else " (lower is better)"))
    machine = variants[0].profile.machine if variants else ""
    axes.set_title(f"{card.model} {card.version} on {machine}\narea: size of the file", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, loc="best", markerscale=0.5)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _discs(axes: object, variants: Sequence[Variant], best: set[str]) -> None:
    largest = max(v.blob.size for v in variants)
    for place, variant in enumerate(sorted(variants, key=lambda v: (v.metric, v.profile.latency_p50_ms))):
        point = variant.profile.latency_p50_ms, variant.metric
        area = max(_LARGEST * variant.blob.size / largest, 12.0)
        edge = "black" if variant.name in best else "none"
        colour = _COLOURS[variant.format]
        axes.scatter(*point, s=area, c=colour, alpha=0.55, edgecolors=edge, linewidths=1.2, zorder=2)  # type: ignore[attr-defined]
        up = math.sqrt(area / math.pi) + 4 + 9 * (place % 3)
        axes.annotate(  # type: ignore[attr-defined]
            f"{variant.name}, {human_bytes(variant.blob.size)}",
            point,
            xytext=(0, up if place % 2 else -up - 7),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
