"""The way through the factory: source, baseline, graph, then each variant made, judged, measured, kept or rejected.

Lives here: the order of things and the verdicts. Must not live here: how any step is done.
"""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from skerry.api.errors import InvalidError, SkerryError, StorageFullError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Evaluation, Golden, NumericalError, Precision, Rejected, Requirements, Variant
from skerry.core.card import GOLDEN_FILE, EvaluationCard, PackagedVariant, Provenance
from skerry.optimize import evaluate, graph, package, profile
from skerry.optimize.dataset import Array, Dataset
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import Source
from skerry.optimize.metrics import METRICS
from skerry.optimize.package import Draft
from skerry.optimize.passes import Material, Recipe, recipes, simplify
from skerry.optimize.progress import Progress
from skerry.optimize.recipe import VariantOptions
from skerry.optimize.request import Request

TOOLS = ("skerry", "torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "onnxconverter-common", "numpy")
_ROUNDING = 1e-9
_SAME = 0.99999
"""Cosine of two outputs that differ by rounding alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run made: the card that was published, and the variants that could not be made at all."""

    card: EvaluationCard
    failed: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """What every variant is judged against."""

    request: Request
    data: Dataset
    baseline: float
    golden_outputs: Sequence[Array]
    exported: bytes
    signature: ModelSignature
    conditions: profile.Conditions
    draft: Draft
    scratch: Path
    progress: Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A variant as one recipe made it, judged but not yet measured."""

    recipe: str
    content: bytes
    metric: float
    error: NumericalError


def make_package(request: Request, source: Source, data: Dataset, progress: Progress) -> Outcome:
    """Make, judge and measure all variants and publish the package. Blocks for seconds to minutes.

    Raises InvalidError when no variant survives, AlreadyExistsError, StorageFullError; then nothing is published.
    """
    started = time.monotonic()
    data = data.with_golden(request.golden, seed=request.seed)
    with package.draft(request.out) as draft, tempfile.TemporaryDirectory(prefix="skerry-factory-") as scratch:
        bench = _set_up(request, source, data, draft=draft, scratch=Path(scratch), progress=progress)
        golden = _write_golden(bench)
        results = [_make_variant(bench, precision) for precision in request.variants]
        kept = [result for result in results if isinstance(result, PackagedVariant)]
        rejected = [result.rejected for result in results if isinstance(result, _Refusal)]
        if not kept:
            reasons = "; ".join(f"{r.name}: {r.reason}" for r in rejected)
            hint = "allow a larger --allowed-drop, or train the model so that it survives conversion"
            raise InvalidError(f"no variant survives ({reasons})", element=request.name, hint=hint)
        card = EvaluationCard(
            model=request.name,
            version=request.version,
            signature=bench.signature,
            evaluation=Evaluation(
                metric=request.metric,
                baseline=bench.baseline,
                samples=len(data.test_x),
                allowed_drop=request.allowed_drop,
            ),
            golden=golden,
            variants=kept,
            rejected=rejected,
            provenance=Provenance(
                source_kind=source.kind,
                source_digests={**source.digests, data.name: data.digest},
                tools=_tools(),
                seed=request.seed,
            ),
        )
        draft.publish(card)
    progress(
        "done",
        package=str(request.out),
        kept=[packaged.variant.name for packaged in kept],
        rejected=[refused.name for refused in rejected],
        seconds=round(time.monotonic() - started, 2),
    )
    return Outcome(card=card, failed=[r.rejected.name for r in results if isinstance(r, _Refusal) and r.failed])


def _set_up(
    request: Request, source: Source, data: Dataset, *, draft: Draft, scratch: Path, progress: Progress
) -> _Bench:
    outputs = source.predict(data.test_x)
    baseline = _baseline(request.metric, outputs, data)
    progress("baseline", metric_name=request.metric, metric=baseline, samples=len(data.test_x))
    golden_outputs = source.predict(data.golden_x)
    _check_finite(golden_outputs, "golden samples")
    started = time.monotonic()
    exported = _simplified(source.export(data.test_x), data.golden_x)
    progress("exported", size=len(exported), seconds=round(time.monotonic() - started, 2))
    signature = graph.signature(graph.parse(exported))
    return _Bench(
        request=request,
        data=data,
        baseline=baseline,
        golden_outputs=golden_outputs,
        exported=exported,
        signature=signature,
        conditions=profile.conditions(scratch, signature, data.golden_x, runs=request.runs),
        draft=draft,
        scratch=scratch,
        progress=progress,
    )


def _baseline(metric: str, outputs: Sequence[Array], data: Dataset) -> float:
    scores = outputs[0]
    if scores.ndim != 2 or scores.shape[1] < 2:
        hint = "the first output must be scores of shape [batch, classes], with at least two classes"
        raise InvalidError(f"its first output has shape [batch, {_dims(scores)}]", element="model", hint=hint)
    _check_finite(outputs, "test set")
    for labels, array in ((data.test_y, "test_y"), (data.golden_y, "golden_y")):
        if labels.max() >= scores.shape[1]:
            cause = f"holds class {labels.max()}, but the model knows {scores.shape[1]} classes, counted from 0"
            raise InvalidError(cause, element=data.element(array), hint="use the labels the model was trained with")
    return METRICS[metric](scores, data.test_y)


def _dims(scores: Array) -> str:
    return ", ".join(map(str, scores.shape[1:])) or "no dimension"


def _check_finite(outputs: Sequence[Array], samples: str) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise InvalidError(f"gives NaN or infinite outputs on the {samples}", element="model", hint="train it again")


def _simplified(exported: bytes, samples: Array) -> bytes:
    """Return the simplified graph if the simplifier can cope with it and the result does the same."""
    try:
        simplified = simplify.simplify(exported)
        before, after = evaluate.Runner(exported).predict(samples), evaluate.Runner(simplified).predict(samples)
        if evaluate.numerical_error(after, before).cosine > _SAME:
            return simplified
    except Exception:  # noqa: BLE001, S110 - it fails in many ways, and is only there to help
        pass
    return simplify.infer_shapes(exported)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refusal:
    """A variant that is not kept; `failed` when it could not even be made."""

    rejected: Rejected
    failed: bool


def _make_variant(bench: _Bench, precision: Precision) -> PackagedVariant | _Refusal:
    name = f"onnx-{precision}"
    bench.progress("variant.started", variant=name, precision=precision)
    try:
        best, tried = _try_recipes(bench, name, recipes("onnx", precision, VariantOptions()))
        if best is None:
            return _refuse(bench, name, f"could not be made ({'; '.join(tried)})", failed=True)
        drop = bench.baseline - best.metric
        if drop > bench.request.allowed_drop + _ROUNDING:
            metric = bench.request.metric
            reason = (
                f"{metric} {best.metric:.4f} is {drop:.4f} below the source model's {bench.baseline:.4f}, more than "
                f"the allowed {bench.request.allowed_drop:g} (tried {'; '.join(tried)})"
            )
            return _refuse(bench, name, reason, metric=best.metric)
        return _keep(bench, name, precision, best)
    except StorageFullError:
        raise
    except SkerryError as error:
        return _refuse(bench, name, error.sentence, failed=True)


def _try_recipes(bench: _Bench, name: str, recipes: Sequence[Recipe]) -> tuple[_Candidate | None, list[str]]:
    """Return the first candidate within the allowed drop, else the best, and what came of each recipe tried."""
    best: _Candidate | None = None
    tried: list[str] = []
    for recipe, following in zip(recipes, (*recipes[1:], None), strict=True):
        try:
            candidate = _judge(bench, recipe)
        except SkerryError as error:
            reason = error.sentence
        except Exception as error:  # noqa: BLE001 - conversion libraries have no common exception type
            reason = f"{type(error).__name__}: {first_line(error)}"
        else:
            if best is None or candidate.metric > best.metric:
                best = candidate
            reason = f"{bench.request.metric} {candidate.metric:.4f}"
            if bench.baseline - candidate.metric <= bench.request.allowed_drop + _ROUNDING:
                return candidate, tried
        tried.append(f"{recipe.name}: {reason}")
        if following is not None:
            bench.progress("variant.retried", variant=name, recipe=recipe.name, reason=reason, next=following.name)
    return best, tried


def _judge(bench: _Bench, recipe: Recipe) -> _Candidate:
    material = Material(
        load=lambda: bench.exported,
        inputs_sample={bench.signature.inputs[0].name: bench.data.golden_x},
        calibration={bench.signature.inputs[0].name: bench.data.calibration_x},
        signature=bench.signature,
        out=bench.scratch / "candidate.onnx",
        seed=bench.request.seed,
    )
    recipe.build(material)
    content = material.out.read_bytes()
    if graph.signature(graph.parse(content)) != bench.signature:
        raise InvalidError("changes the model's tensors")
    runner = evaluate.Runner(content)
    scores = runner.predict(bench.data.test_x)[0]
    if not np.isfinite(scores).all():
        raise InvalidError("gives outputs that are not finite")
    return _Candidate(
        recipe=recipe.name,
        content=content,
        metric=METRICS[bench.request.metric](scores, bench.data.test_y),
        error=evaluate.numerical_error(runner.predict(bench.data.golden_x), bench.golden_outputs),
    )


def _keep(bench: _Bench, name: str, precision: Precision, candidate: _Candidate) -> PackagedVariant:
    file = f"{bench.request.name}-{precision}.onnx"
    blob = bench.draft.add(file, candidate.content)
    try:
        costs = profile.measure(bench.draft.directory / file, bench.conditions)
    except SkerryError:
        bench.draft.remove(file)
        raise
    version = graph.engine_min_version(graph.parse(candidate.content), onnxruntime.__version__)
    variant = Variant(
        name=name,
        format="onnx",
        precision=precision,
        recipe=candidate.recipe,
        needs=Requirements(
            engine="onnxruntime",
            engine_min_version=version,
            precision=precision,
            memory_bytes=costs.peak_memory_bytes,
        ),
        blob=blob,
        metric=candidate.metric,
        metric_drop=round(bench.baseline - candidate.metric, 9),
        error=candidate.error,
        profile=costs,
    )
    bench.progress(
        "variant.done",
        variant=name,
        precision=precision,
        recipe=candidate.recipe,
        file=file,
        size=blob.size,
        metric_name=bench.request.metric,
        metric=variant.metric,
        metric_drop=variant.metric_drop,
        latency_p50_ms=costs.latency_p50_ms,
        latency_p95_ms=costs.latency_p95_ms,
        peak_memory_bytes=costs.peak_memory_bytes,
    )
    return PackagedVariant(variant=variant, file=file)


def _refuse(bench: _Bench, name: str, reason: str, *, metric: float | None = None, failed: bool = False) -> _Refusal:
    bench.progress("variant.rejected", variant=name, reason=reason, metric=metric, failed=failed)
    return _Refusal(rejected=Rejected(name=name, reason=reason, metric=metric), failed=failed)


def _write_golden(bench: _Bench) -> Golden:
    arrays = {f"input.{bench.signature.inputs[0].name}": bench.data.golden_x, "labels": bench.data.golden_y}
    for spec, output in zip(bench.signature.outputs, bench.golden_outputs, strict=True):
        arrays[f"output.{spec.name}"] = output
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{key: np.ascontiguousarray(a) for key, a in arrays.items()})
    return Golden(blob=bench.draft.add(GOLDEN_FILE, buffer.getvalue()), samples=len(bench.data.golden_x))


def _tools() -> dict[str, str]:
    return {tool: importlib.metadata.version(tool) for tool in TOOLS}
