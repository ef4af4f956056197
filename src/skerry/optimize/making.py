"""The making of one variant: recipes in their order until one keeps the metric within the allowed drop.

Runs in a worker process. Lives here: which recipes apply, what each made is worth, the verdict. Must not live here: how
a recipe works (`passes`), what a variant costs (`profile`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from skerry.api.errors import InvalidError, SkerryError, StorageFullError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Engine, Interval, NumericalError
from skerry.optimize import beside, evaluate, importers, importing, jobs, passes, trial
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line, is_out_of_memory, is_out_of_space
from skerry.optimize.importers import Source
from skerry.optimize.jobs import Facts, VariantJob, Verdict
from skerry.optimize.metrics import Metric
from skerry.optimize.passes import Form, Material, Recipe
from skerry.optimize.passes.material import first
from skerry.optimize.progress import Progress
from skerry.optimize.standby import Standby
from skerry.optimize.trial import Trial

_ROUNDING = 1e-9
_SAMPLE = 8
"""Samples for tracing and for checking what was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """What every recipe's result is judged against."""

    job: VariantJob
    facts: Facts
    metric: Metric
    targets: Array
    golden: Sequence[Array]
    scratch: Path
    tell: Progress
    ready: Standby

    @property
    def source(self) -> Path:
        return Path(self.job.source)

    @property
    def engine(self) -> Engine:
        return jobs.ENGINES[jobs.parse_name(self.job.variant.name)[0]]

    @property
    def allowed(self) -> float:
        own = self.job.variant.allowed_drop
        return self.job.optimization.allowed_drop if own is None else own


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A variant as one recipe made it, judged but not yet measured."""

    recipe: str
    file: Path
    metric: float
    interval: Interval
    drop: float
    error: NumericalError
    engine_version: str
    details: Mapping[str, Any]


@dataclass(kw_only=True)
class _Trials:
    """What came of the recipes so far."""

    best: _Candidate | None = None
    tried: list[str] = field(default_factory=list)


def run(job: VariantJob, tell: Progress, ready: Standby) -> None:
    """Do it, and write the verdict, whatever it is. Raises StorageFullError."""
    directory = Path(job.directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".scratch-") as scratch:
        try:
            verdict = _verdict(_set_up(job, Path(scratch), tell, ready), directory)
        except StorageFullError:
            raise
        except MemoryError as error:
            verdict = Verdict(outcome="failed", reason=too_little_memory(error))
        except SkerryError as error:
            verdict = Verdict(outcome="failed", reason=error.sentence)
    read = beside.imported(job.optimization, job.variant) | beside.elsewhere(job.optimization, job.variant)
    verdict = msgspec.structs.replace(verdict, read=read)
    (directory / jobs.VERDICT_FILE).write_bytes(msgspec.json.encode(verdict, order="sorted"))


def too_little_memory(error: BaseException) -> str:
    """Return the sentence for a worker that reached its bound."""
    return f"too little memory ({first_line(error)}); allow more with --memory, or run it on a larger machine"


def recipes_for(job: VariantJob, facts: Facts) -> Sequence[Recipe]:
    """Return the recipes that can be tried. Raises UnsupportedError, InvalidError that say what is missing."""
    name = job.variant.name
    named = passes.recipes(*jobs.parse_name(name), job.variant)
    fitting = [recipe for recipe in named if recipe.form in facts.forms]
    if not fitting:
        needed = " or ".join(sorted({recipe.form for recipe in named}))
        cause = facts.graph_problem or f"a {facts.kind} source has no {needed} form, from which it is made"
        raise UnsupportedError(cause, element=name)
    complete = [recipe for recipe in fitting if not recipe.missing()]
    if not complete:
        best = fitting[0]
        hint = f"pip install 'skerry[{best.extra}]'"
        raise UnsupportedError(
            f"needs {', '.join(sorted(best.missing()))}, not installed here", element=name, hint=hint
        )
    return complete


def _set_up(job: VariantJob, scratch: Path, tell: Progress, ready: Standby) -> _Bench:
    source = Path(job.source)
    facts, metric = jobs.read_facts(source), importing.find_metric(job.optimization.metric)
    with np.load(source / jobs.GOLDEN_FILE, allow_pickle=False) as stored:
        golden = [stored[f"output.{spec.name}"] for spec in facts.signature.outputs]
    with np.load(source / jobs.TARGETS_FILE, allow_pickle=False) as stored:
        targets = stored["targets"]
    return _Bench(
        job=job, facts=facts, metric=metric, targets=targets, golden=golden, scratch=scratch, tell=tell, ready=ready
    )


def _verdict(bench: _Bench, directory: Path) -> Verdict:
    recipes = recipes_for(bench.job, bench.facts)
    trials = _try(bench, recipes)
    best = trials.best
    if best is None:
        return Verdict(outcome="failed", reason=f"could not be made ({'; '.join(trials.tried)})", tried=trials.tried)
    if best.drop > bench.allowed + _ROUNDING:
        reason = (
            f"{bench.metric.name} {best.metric:.4f} is {best.drop:.4f} "
            f"{'below' if bench.metric.higher_is_better else 'above'} the source model's {bench.facts.baseline:.4f}, "
            f"more than the allowed {bench.allowed:g} (tried {'; '.join(trials.tried)})"
        )
        return Verdict(outcome="rejected", reason=reason, metric=best.metric, tried=trials.tried, recipe=best.recipe)
    target = directory / jobs.file_name("model", bench.job.variant.name)
    best.file.rename(target)
    operators, least = contents(target, best.engine_version)
    return Verdict(
        outcome="kept",
        tried=trials.tried,
        recipe=best.recipe,
        file=target.name,
        metric=best.metric,
        interval=best.interval,
        drop=round(best.drop, 9),
        error=best.error,
        engine_version=best.engine_version,
        engine_min_version=least,
        operators=operators,
        details={name: _text(value) for name, value in best.details.items()},
    )


def _try(bench: _Bench, recipes: Sequence[Recipe]) -> _Trials:
    """Try one recipe after the other until one is within the allowed drop; keep the best."""
    trials, load = _Trials(), _Loader(bench)
    bench.ready.start(trial.arguments(bench.engine))  # it imports the engine while the first recipe is at work
    for recipe, following in zip(recipes, (*recipes[1:], None), strict=True):
        try:
            candidate = _judge(bench, recipe, load)
        except StorageFullError:
            raise
        except SkerryError as error:
            reason = error.sentence
        except Exception as error:  # noqa: BLE001 - conversion libraries have no common exception type
            _raise_if_exhausted(bench.job, error)
            reason = f"{type(error).__name__}: {first_line(error)}"
        else:
            if trials.best is None or candidate.drop < trials.best.drop:
                trials.best = candidate
            reason = f"{bench.metric.name} {candidate.metric:.4f}"
            if candidate.drop <= bench.allowed + _ROUNDING:
                return trials
        trials.tried.append(f"{recipe.name}: {reason}")
        if following is not None:
            name = bench.job.variant.name
            bench.tell("variant.retried", variant=name, recipe=recipe.name, reason=reason, next=following.name)
    return trials


def _raise_if_exhausted(job: VariantJob, error: Exception) -> None:
    """Raise for want of disk or memory: the next recipe would fail in the same way."""
    if is_out_of_space(error):
        raise jobs.no_space(job) from error
    if is_out_of_memory(error):
        raise MemoryError(first_line(error)) from error


class _Loader:
    """The source in the forms that recipes start from, pruned where the options say so; each form is made once."""

    def __init__(self, bench: _Bench) -> None:
        self._bench = bench
        self._source: Source | None = None
        self._made: dict[Form, Any] = {}
        self.said: dict[str, str] = {}
        """What pruning has to say for the card."""

    def __call__(self, form: Form, sample: Inputs) -> Callable[[], Any]:
        """Return what gives that form; `sample` is for checking what pruning did."""

        def load() -> Any:
            if form not in self._made:
                self._made[form] = self._load(form, sample)
            return self._made[form]

        return load

    def _load(self, form: Form, sample: Inputs) -> Any:
        spec = self._bench.job.variant.pruning
        if spec is None:
            return self._graph() if form == "onnx" else self._open().native()
        from skerry.optimize.passes import prune  # noqa: PLC0415 - heavy

        if form == "onnx" and spec.fine_tune is not None and "torch" in self._bench.facts.forms:
            source = self._open()  # only a module can be trained on: it is pruned in place, and exported anew
            _, said = prune.apply("torch", source.native(), spec, sample)
            pruned: Any = source.onnx(sample, opset=self._bench.job.optimization.opset or importing.OPSET)
        else:
            pruned, said = prune.apply(form, self._graph() if form == "onnx" else self._open().native(), spec, sample)
        self.said.update(said)
        return pruned

    def _graph(self) -> bytes:
        return (self._bench.source / jobs.GRAPH_FILE).read_bytes()

    def _open(self) -> Source:
        if self._source is None:
            wanted = self._bench.job.optimization
            self._source = importers.open_source(wanted.source, seed=wanted.seed)
        return self._source


def _judge(bench: _Bench, recipe: Recipe, load: _Loader) -> _Candidate:
    out = bench.scratch / f"{recipe.name}{jobs.SUFFIXES[jobs.parse_name(bench.job.variant.name)[0]]}"
    details: MutableMapping[str, Any] = {}

    def judged(file: Path) -> tuple[float, Interval, Sequence[Array], str]:
        outputs, version = _answers(bench, file)
        count = bench.facts.samples
        value, interval = bench.metric.measure(
            [output[:count] for output in outputs], bench.targets, seed=bench.job.optimization.seed
        )
        return value, Interval(low=interval.low, high=interval.high), [output[count:] for output in outputs], version

    calibration = _read(bench.source / jobs.CALIBRATION_FILE, bench.facts.signature)
    sample = first(calibration, _SAMPLE)
    recipe.build(
        Material(
            load=load(recipe.form, sample),
            inputs_sample=sample,
            calibration=calibration,
            signature=bench.facts.signature,
            out=out,
            options=bench.job.variant,
            seed=bench.job.optimization.seed,
            drop=lambda file: bench.metric.drop(bench.facts.baseline, judged(file)[0]),
            allowed_drop=bench.allowed,
            detail=details,
        )
    )
    _check_signature(out, bench.facts.signature)
    value, interval, golden, version = judged(out)
    return _Candidate(
        recipe=recipe.name,
        file=out,
        metric=value,
        interval=interval,
        drop=bench.metric.drop(bench.facts.baseline, value),
        error=evaluate.numerical_error(golden, bench.golden),
        engine_version=version,
        details={**load.said, **details},
    )


def _answers(bench: _Bench, file: Path) -> tuple[list[Array], str]:
    """Run test set and golden samples, one after the other, through the engine that devices use."""
    own = Trial(bench.engine, file, bench.source / jobs.SIGNATURE_FILE, bench.facts.signature, ready=bench.ready)
    outputs, costs = own.answers(bench.source / jobs.TEST_FILE)
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise InvalidError("gives outputs that are not finite")
    return outputs, costs.engine_version


def _read(file: Path, signature: ModelSignature) -> Inputs:
    with np.load(file, allow_pickle=False) as stored:
        return {spec.name: stored[spec.name] for spec in signature.inputs}


def _check_signature(file: Path, signature: ModelSignature) -> None:
    if file.suffix == ".onnx":
        from skerry.optimize import graph  # noqa: PLC0415 - heavy

        if graph.signature(graph.parse(file.read_bytes())) != signature:
            raise InvalidError("changes the model's tensors")


def contents(file: Path, engine_version: str) -> tuple[dict[str, int], str]:
    """Return the operators in the file where the format tells, and the oldest engine that is known to run it."""
    installed = ".".join(engine_version.split(".")[:2])
    if file.suffix != ".onnx":
        return {}, installed
    from skerry.optimize import graph  # noqa: PLC0415 - heavy

    model = graph.parse(file.read_bytes())
    counted = Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return dict(sorted(counted.items())), graph.engine_min_version(model, engine_version)


def _text(value: Any) -> str:
    """Return what a recipe says in one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return msgspec.json.encode(value, enc_hook=str).decode()
