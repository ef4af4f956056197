"""A picture of a package's variants: the metric against latency, size as area, the Pareto front as a line.

Needs matplotlib, the extra `plot`. Must not live here: who is on the front (`core.pareto`).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from skerry.api.errors import UnsupportedError
from skerry.api.kinds.variants import Variant
from skerry.api.quantity import human_bytes
from skerry.core import pareto
from skerry.core.card import EvaluationCard

FILE = "pareto.png"
_INCHES = (9.0, 5.5)
_LARGEST = 1200.0
"""Area of the largest file's disc, in square points."""
_LEVELS = (40.0, -40.0, 70.0, -70.0, 100.0, -100.0)
"""Heights of the labels beside their discs, in points, so that neighbours do not cover each other."""
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
    assert card.evaluation is not None  # the factory draws what it judged
    variants = [packaged.variant for packaged in card.variants]
    figure = Figure(figsize=_INCHES, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = sorted((v for v in variants if v.name in pareto.front(variants)), key=lambda v: v.profile.latency_p50_ms)
    places = [v.profile.latency_p50_ms for v in best], [v.metric for v in best if v.metric is not None]
    axes.plot(*places, color="#555555", linewidth=1, linestyle="--", zorder=1, label="Pareto front")
    _discs(axes, variants, {v.name for v in best})
    axes.axhline(card.evaluation.baseline, color="#999999", linewidth=0.8, label="source model", zorder=0)
    axes.set_xscale("log")
    for shown in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        shown("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.margins(x=0.2, y=0.3)
    axes.set_xlabel("latency of one sample on one thread, median, ms")
    better = "" if card.evaluation.higher_is_better else " (lower is better)"
    axes.set_ylabel(f"{card.evaluation.metric}{better}, with its 95 % interval")
    machine = variants[0].profile.machine if variants else ""
    axes.set_title(f"{card.model} {card.version} on {machine}; area: size of the file", fontsize=9)
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=6, frameon=False)
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _discs(axes: Any, variants: Sequence[Variant], best: set[str]) -> None:
    largest = max(v.blob.size for v in variants)
    for kind, colour in _COLOURS.items():
        if any(v.format == kind for v in variants):
            axes.scatter([], [], s=60, c=colour, alpha=0.55, label=kind)
    for place, variant in enumerate(sorted(variants, key=lambda v: (v.profile.latency_p50_ms, v.name))):
        point = variant.profile.latency_p50_ms, variant.metric
        area = max(_LARGEST * variant.blob.size / largest, 12.0)
        edge = "black" if variant.name in best else "none"
        colour = _COLOURS[variant.format]
        if (sure := variant.metric_interval) is not None:
            axes.vlines(point[0], sure.low, sure.high, color=colour, linewidth=1, alpha=0.6, zorder=1)
        axes.scatter(*point, s=area, c=colour, alpha=0.55, edgecolors=edge, linewidths=1.4, zorder=2)
        axes.annotate(
            f"{variant.name}\n{human_bytes(variant.blob.size)}",
            point,
            xytext=(0, _LEVELS[place % len(_LEVELS)]),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0},
        )
