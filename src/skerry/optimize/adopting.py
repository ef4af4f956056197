"""Graphs as they are become a package: no recipe changes them, each is opened, compared, measured and written down.

With data they are judged as the factory judges what it makes; without, golden samples are drawn (`seeded`), the graph
of the highest precision gives the answers, and the card says that nothing was evaluated. Lives here: the order of
things. Must not live here: reading a kind of file (`importers`), costs (`profile`), what a directory says of its model
(the command line brings that).
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, cast

import msgspec
import numpy as np

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, StorageFullError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import (
    Blob,
    Evaluation,
    Format,
    Golden,
    Interval,
    Precision,
    Rejected,
    Requirements,
    SourceKind,
    Variant,
)
from skerry.core.card import GOLDEN_FILE, About, EvaluationCard, PackagedVariant, Provenance
from skerry.optimize import (
    bounds,
    dataset,
    evaluate,
    importers,
    importing,
    jobs,
    keys,
    making,
    package,
    profile,
    seeded,
)
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Dataset, Inputs
from skerry.optimize.importers import Source
from skerry.optimize.metrics import Metric
from skerry.optimize.package import Draft
from skerry.optimize.progress import Progress
from skerry.optimize.recipe import MAX_GOLDEN, Drop, ModelName, SourceSpec
from skerry.optimize.trial import Trial

RECIPE = "imported"
MAX_WISH_BYTES = 1024 * 1024
_MEASURED = 16
_ROUNDING = 1e-9
_BEST_FIRST: Sequence[Precision] = ("fp32", "fp16", "int8-dynamic", "int8", "int4")
_KINDS: Mapping[str, tuple[Format, SourceKind]] = {".onnx": ("onnx", "onnx"), ".tflite": ("tflite", "tflite")}
_WORD = re.compile(r"[^a-z0-9]+")


class Wish(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is to be adopted, in a file; paths are absolute."""

    name: ModelName
    version: ModelName
    directory: str
    """Where the graphs lie; files are called by their paths in it."""
    graphs: Annotated[list[str], msgspec.Meta(min_length=1, max_length=64)]
    skipped: list[str] = []
    """Programs that cannot be imported; the card names them."""
    out: str
    about: About = About()
    data: str = ""
    metric: str = "accuracy"
    allowed_drop: Drop = 0.01
    golden: Annotated[int, msgspec.Meta(ge=1, le=MAX_GOLDEN)] = 64
    runs: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


class _Graph(Source, Protocol):
    def declared(self) -> Sequence[TensorSpec]: ...

    def precision(self) -> Precision: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One graph, looked at once."""

    path: Path
    shown: str
    variant: str
    form: Format
    precision: Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """What all graphs are held against: the reference's tensors and answers, and the data where there are any."""

    wish: Wish
    scratch: Path
    signature: ModelSignature
    inputs: Inputs
    """The golden samples'."""
    expected: Sequence[Array]
    metric: Metric | None
    data: Dataset | None
    baseline: float
    interval: Interval | None
    tell: Progress


def read(file: Path) -> Wish:
    """Read a wish. Raises NotFoundError, InvalidError."""
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(MAX_WISH_BYTES), type=Wish)
    except OSError as error:
        raise NotFoundError(error.strerror or str(error), element=str(file)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(str(error)[:500], element=file.name) from None


def make_package(wish: Wish, tell: Progress) -> EvaluationCard:
    """Open, compare and measure all graphs and publish the package. Blocks for seconds to minutes.

    Raises InvalidError when none can be used, AlreadyExistsError, StorageFullError; then nothing is published.
    """
    started = time.monotonic()
    memory = bounds.free_memory()
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    package.check_target(Path(wish.out))
    files, rejected = _look(wish)
    tell("started", model=wish.name, version=wish.version, variants=[file.variant for file in files])
    for one in rejected:
        tell("variant.rejected", variant=one.name, reason=one.reason, metric=None, failed=True)
    with (
        package.draft(Path(wish.out)) as draft,
        tempfile.TemporaryDirectory(prefix="skerry-import-") as scratch,
    ):
        bench, digests = _set_up(wish, files[0], Path(scratch), tell)
        kept = []
        for file in files:
            try:
                made, read_from = _adopt(bench, file, draft)
            except (StorageFullError, MemoryError):
                raise
            except SkerryError as error:
                rejected.append(Rejected(name=file.variant, reason=f"{file.shown}: {error.sentence}"))
                tell("variant.rejected", variant=file.variant, reason=error.sentence, metric=None, failed=True)
                continue
            digests |= read_from
            kept.append(made)
        if not kept:
            raise InvalidError(f"no graph can be used ({_reasons(rejected)})", element=wish.directory)
        golden = Golden(blob=draft.take(Path(scratch) / jobs.GOLDEN_FILE, GOLDEN_FILE), samples=len(_any(bench.inputs)))
        card = _card(bench, files[0], kept=kept, rejected=rejected, golden=golden, digests=digests)
        draft.publish(card)
    names = [packaged.variant.name for packaged in kept]
    seconds = round(time.monotonic() - started, 2)
    tell("done", package=wish.out, kept=names, rejected=[one.name for one in rejected], seconds=seconds)
    return card


def _look(wish: Wish) -> tuple[list[_File], list[Rejected]]:
    """Open each graph once; return them in the order of their precision, and those that cannot be opened."""
    files: list[_File] = []
    rejected = [
        Rejected(name=_shown(wish, Path(path))[:200], reason="does not name its tensors or its precision")
        for path in wish.skipped
    ]
    for text in wish.graphs:
        path, shown = Path(text), _shown(wish, Path(text))
        try:
            if path.suffix not in _KINDS:
                raise UnsupportedError("is no kind of graph that is imported as it is", element=shown)
            precision = _open(path, wish.seed).precision()
        except SkerryError as error:
            rejected.append(Rejected(name=shown[:200], reason=error.sentence))
            continue
        form = _KINDS[path.suffix][0]
        files.append(_File(path=path, shown=shown, variant=f"{form}-{precision}", form=form, precision=precision))
    if not files:
        raise InvalidError(f"no graph can be used ({_reasons(rejected)})", element=wish.directory)
    ordered = sorted(files, key=lambda file: (_BEST_FIRST.index(file.precision), file.form, file.shown))
    return _named(ordered), rejected


def _named(files: Sequence[_File]) -> list[_File]:
    """Give each a name of its own: the second of one format and precision gets a word from its file's name."""
    named: list[_File] = []
    taken: set[str] = set()
    for file in files:
        word = _WORD.sub("-", file.path.stem.lower()).strip("-")[:24].strip("-") or "more"
        tries = [file.variant, f"{file.variant}-{word}", *(f"{file.variant}-{word}-{n}" for n in range(2, 70))]
        name = next(one for one in tries if one not in taken)
        taken.add(name)
        named.append(_File(path=file.path, shown=file.shown, variant=name, form=file.form, precision=file.precision))
    return named


def _open(path: Path, seed: int) -> _Graph:
    kind = _KINDS[path.suffix][1]
    return cast("_Graph", importers.open_source(SourceSpec(path=str(path), kind=kind), seed=seed))


def _set_up(wish: Wish, file: _File, scratch: Path, tell: Progress) -> tuple[_Bench, dict[str, str]]:
    """Run the reference on the data, or on what is drawn; write down what all are compared with."""
    source = _open(file.path, wish.seed)
    tell("source.loaded", kind=source.kind, seconds=0.0)
    if not wish.data:
        return _drawn(wish, source, scratch, tell), {}
    metric = importing.find_metric(wish.metric)
    data = dataset.load(Path(wish.data), targets=metric.targets)
    signature = source.signature(data.test.inputs)
    data = data.bound_to([spec.name for spec in signature.inputs]).with_golden(wish.golden, seed=wish.seed)
    value, interval = importing.baseline(metric, source, data, seed=wish.seed)
    tell("baseline", metric_name=metric.name, metric=value, samples=len(data.test))
    golden = source.predict(data.golden.inputs)
    importing.check_finite(golden, "golden samples")
    importing.check_golden(metric, golden, data)
    importing.write_samples(scratch, data, signature, golden)
    bench = _Bench(
        wish=wish,
        scratch=scratch,
        signature=signature,
        inputs=data.golden.inputs,
        expected=golden,
        metric=metric,
        data=data,
        baseline=value,
        interval=interval,
        tell=tell,
    )
    return bench, {data.name: data.digest}


def _drawn(wish: Wish, source: _Graph, scratch: Path, tell: Progress) -> _Bench:
    problem: InvalidError | None = None
    for inputs in seeded.draws(source.declared(), wish.golden, seed=wish.seed):
        try:
            signature, expected = source.signature(inputs), source.predict(inputs)
            importing.check_finite(expected, "drawn inputs")
        except InvalidError as error:
            problem = error
            continue
        (scratch / jobs.SIGNATURE_FILE).write_bytes(msgspec.json.encode(signature))
        importing.write_arrays(scratch / jobs.TEST_FILE, inputs)
        importing.write_arrays(scratch / jobs.MEASURED_FILE, {name: a[:_MEASURED] for name, a in inputs.items()})
        arrays = {f"input.{name}": samples for name, samples in inputs.items()}
        arrays |= {f"output.{spec.name}": out for spec, out in zip(signature.outputs, expected, strict=True)}
        importing.write_arrays(scratch / jobs.GOLDEN_FILE, arrays, compress=True)
        return _Bench(
            wish=wish,
            scratch=scratch,
            signature=signature,
            inputs=inputs,
            expected=expected,
            metric=None,
            data=None,
            baseline=0.0,
            interval=None,
            tell=tell,
        )
    cause = problem.cause if problem is not None else "nothing could be drawn"
    raise InvalidError(
        f"does not take inputs that were drawn at random: {cause}", element="model", hint="give samples with --data"
    )


def _adopt(bench: _Bench, file: _File, draft: Draft) -> tuple[PackagedVariant, dict[str, str]]:
    """Make one file a variant; return it and the digests of what it was read from."""
    tell, wish = bench.tell, bench.wish
    tell("variant.started", variant=file.variant, precision=file.precision)
    source = _open(file.path, wish.seed)
    _check_same(source.signature(bench.inputs), bench.signature)
    few = {name: samples[:_MEASURED] for name, samples in bench.inputs.items()}
    raw = source.onnx(few, opset=importing.OPSET) if file.form == "onnx" else source.native()
    folder = os.path.dirname(file.shown)
    digests = {os.path.join(folder, name): digest for name, digest in source.digests.items()}
    del source  # the process that judges needs the memory
    name = jobs.file_name(wish.name, file.variant)
    blob = draft.add(name, raw)
    model = draft.directory / name
    try:
        variant = _judged(bench, file, model, blob)
    except BaseException:
        draft.remove(name)
        raise
    tell(
        "variant.done",
        variant=variant.name,
        precision=variant.precision,
        recipe=RECIPE,
        file=name,
        size=blob.size,
        metric_name=bench.metric.name if bench.metric is not None else None,
        metric=variant.metric,
        metric_drop=variant.metric_drop,
        latency_p50_ms=variant.profile.latency_p50_ms,
        latency_p95_ms=variant.profile.latency_p95_ms,
        peak_memory_bytes=variant.profile.peak_memory_bytes,
    )
    return PackagedVariant(variant=variant, file=name), digests


def _judged(bench: _Bench, file: _File, model: Path, blob: Blob) -> Variant:
    """Compare one model file with the reference, judge it where there are data, and measure it."""
    engine, signature_file = jobs.ENGINES[file.form], bench.scratch / jobs.SIGNATURE_FILE
    outputs, said = Trial(engine, model, signature_file, bench.signature).answers(bench.scratch / jobs.TEST_FILE)
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise InvalidError("gives outputs that are not finite")
    tested = len(bench.data.test) if bench.data is not None else 0
    error = evaluate.numerical_error([output[tested:] for output in outputs], bench.expected)
    metric, interval, drop = _metric(bench, [output[:tested] for output in outputs])
    bench.tell("variant.measuring", variant=file.variant)
    costs = profile.measure(
        model,
        profile.Conditions(
            engine=engine,
            signature=bench.signature,
            signature_file=signature_file,
            samples_file=bench.scratch / jobs.MEASURED_FILE,
            runs=bench.wish.runs,
        ),
    )
    operators, least = making.contents(model, said.engine_version)
    needs = Requirements(
        engine=engine, engine_min_version=least, precision=file.precision, memory_bytes=costs.peak_memory_bytes
    )
    return Variant(
        name=file.variant,
        format=file.form,
        precision=file.precision,
        recipe=RECIPE,
        needs=needs,
        blob=blob,
        metric=metric,
        metric_interval=interval,
        metric_drop=drop,
        error=error,
        profile=costs,
        operators=operators,
        details={"file": file.shown[:200]},
    )


def _metric(bench: _Bench, outputs: Sequence[Array]) -> tuple[float | None, Interval | None, float | None]:
    """Judge answers on the test set. Raises InvalidError where more than the allowed drop is lost."""
    if bench.metric is None or bench.data is None:
        return None, None, None
    value, sure = bench.metric.measure(outputs, bench.data.test.targets, seed=bench.wish.seed)
    drop = round(bench.metric.drop(bench.baseline, value), 9)
    if drop > bench.wish.allowed_drop + _ROUNDING:
        raise InvalidError(
            f"{bench.metric.name} {value:.4f} is {drop:.4f} worse than the reference's {bench.baseline:.4f}, "
            f"more than the allowed {bench.wish.allowed_drop:g}"
        )
    return value, Interval(low=sure.low, high=sure.high), drop


def _check_same(ours: ModelSignature, wanted: ModelSignature) -> None:
    if ours != wanted:
        names = ", ".join(spec.name for spec in (*wanted.inputs, *wanted.outputs))
        raise InvalidError(f"its tensors are not those of the graph that is the reference ({names[:200]})")


def _card(
    bench: _Bench,
    reference: _File,
    *,
    kept: Sequence[PackagedVariant],
    rejected: Sequence[Rejected],
    golden: Golden,
    digests: Mapping[str, str],
) -> EvaluationCard:
    wish, evaluation = bench.wish, None
    if bench.metric is not None and bench.data is not None:
        evaluation = Evaluation(
            metric=bench.metric.name,
            higher_is_better=bench.metric.higher_is_better,
            baseline=bench.baseline,
            baseline_interval=bench.interval,
            samples=len(bench.data.test),
            allowed_drop=wish.allowed_drop,
        )
    return EvaluationCard(
        model=wish.name,
        version=wish.version,
        signature=bench.signature,
        evaluation=evaluation,
        golden=golden,
        variants=list(kept),
        rejected=list(rejected),
        provenance=Provenance(
            source_kind=_KINDS[reference.path.suffix][1],
            source_digests=dict(digests),
            tools=dict(keys.tools()),
            seed=wish.seed,
        ),
        about=wish.about if wish.about != About() else None,
    )


def _shown(wish: Wish, path: Path) -> str:
    return os.path.relpath(path, wish.directory)


def _any(inputs: Inputs) -> Array:
    return next(iter(inputs.values()))


def _reasons(rejected: Sequence[Rejected]) -> str:
    return "; ".join(f"{one.name}: {one.reason}" for one in rejected)[:1000]
