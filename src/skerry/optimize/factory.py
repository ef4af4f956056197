"""The way through the factory: import, variants in parallel, measurements one by one, then the package.

Each step is looked up in the cache first and put there when it is done, so that the same is not made twice and a run
that was interrupted goes on where it stopped. Lives here: the order of things. Must not live here: how any step is done
(`importing`, `making` and `profile` do that, the first two in worker processes).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from skerry.api import quantity
from skerry.api.errors import InvalidError, SkerryError, StorageFullError, UnsupportedError
from skerry.api.kinds.variants import Evaluation, Golden, Profile, Rejected, Requirements, Variant
from skerry.core.card import GOLDEN_FILE, EvaluationCard, PackagedVariant, Provenance
from skerry.optimize import beside, bounds, jobs, keys, package, pareto, passes, profile, provenance
from skerry.optimize.cache import Cache, is_current
from skerry.optimize.jobs import Facts, Verdict
from skerry.optimize.package import Draft
from skerry.optimize.pool import Ended, Event, Job, Pool
from skerry.optimize.progress import Progress
from skerry.optimize.recipe import Optimization, VariantSpec
from skerry.optimize.standby import Standby

_RELAYED = {"source.loaded", "baseline", "exported", "variant.retried"}
_FAILED = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run made: the card that was published, and the variants that could not be made at all."""

    card: EvaluationCard
    failed: Sequence[str]


@dataclass(kw_only=True)
class _Run:
    """One run: what is wanted, what there is, and what workers said."""

    wanted: Optimization
    cache: Cache
    tell: Progress
    memory: int
    ready: Standby
    imported: str = ""
    """The import's key, from the files as they were when the run began."""
    keep_failures: bool = False
    take_failures: bool = False
    """Believe a cached verdict that a variant could not be made: it is of this very attempt."""
    expected: Sequence[VariantSpec] = ()
    """Variants whose workers are to get ready once the source is loaded."""
    errors: dict[str, Event] = field(default_factory=dict)

    def hear(self, job: Job, event: Event) -> None:
        """Take what a worker says: pass it on, or keep why it failed."""
        name = event.pop("event", "")
        if name == _FAILED:
            self.errors[job.name] = event
        elif name in _RELAYED:
            if name == "source.loaded":
                expected, self.expected = self.expected, ()  # an import that runs again says it again
                for spec in expected:
                    self.ready.start(jobs.WORKER, ahead=_loads(spec))
            self.tell(name, **{_snake(key): value for key, value in event.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """What a worker made of a variant."""

    spec: VariantSpec
    directory: Path
    verdict: Verdict
    key: str


def make_package(
    wanted: Optimization, cache: Cache, tell: Progress, ready: Standby, *, take_failures: bool = False
) -> Outcome:
    """Make, judge and measure all variants and publish the package. Blocks for seconds to minutes, or hours.

    `ready` may have workers that wait. `take_failures` believes what other steps (`make_step`) of this attempt found
    that cannot be made; without it that is tried again. Raises InvalidError when no variant survives or
    a file changed meanwhile, AlreadyExistsError, StorageFullError; then nothing is published.
    """
    started = time.time()
    clock = time.monotonic()
    with package.draft(Path(wanted.out)) as draft, _room(cache):
        run = _Run(
            wanted=wanted,
            cache=cache,
            tell=tell,
            memory=_memory(wanted),
            ready=ready,
            imported=keys.of_import(wanted),
            take_failures=take_failures,
        )
        source = _import(run, wanted.variants)
        facts = jobs.read_facts(source)
        golden = Golden(blob=draft.take(source / jobs.GOLDEN_FILE, GOLDEN_FILE), samples=facts.golden_samples)
        made = _make_variants(run, source, facts, wanted.variants)
        results = [_measured(run, draft, source, facts, made[spec.name]) for spec in wanted.variants]
        kept = [result for result in results if isinstance(result, PackagedVariant)]
        refused = [result for result in results if isinstance(result, _Refusal)]
        if not kept:
            reasons = "; ".join(f"{r.rejected.name}: {r.rejected.reason}" for r in refused)
            hint = "allow a larger --allowed-drop, or train the model so that it survives conversion"
            raise InvalidError(f"no variant survives ({reasons})", element=wanted.name, hint=hint)
        card = _card(wanted, facts, golden=golden, kept=kept, rejected=[refusal.rejected for refusal in refused])
        draft.add(provenance.FILE, provenance.encode(card, wanted, started=started, finished=time.time()))
        if wanted.plot:
            _draw(card, draft, tell)
        draft.publish(card)
    tell(
        "done",
        package=wanted.out,
        kept=[packaged.variant.name for packaged in kept],
        rejected=[refusal.rejected.name for refusal in refused],
        seconds=round(time.monotonic() - clock, 2),
    )
    return Outcome(card=card, failed=[refusal.rejected.name for refusal in refused if refusal.failed])


def _draw(card: EvaluationCard, draft: Draft, tell: Progress) -> None:
    try:
        draft.add(pareto.FILE, pareto.draw(card))
    except UnsupportedError as error:
        tell("plot.skipped", reason=error.sentence)


def make_step(wanted: Optimization, cache: Cache, tell: Progress, step: str, ready: Standby) -> None:
    """Do one step and leave it in the cache: `import`, or a variant's name, of which a failure is kept as well.

    Raises InvalidError for a variant that is not wanted, and what the import may raise.
    """
    specs = [spec for spec in wanted.variants if spec.name == step]
    if step != "import" and not specs:
        known = ", ".join(["import", *(spec.name for spec in wanted.variants)])
        raise InvalidError("is not a step of this run", element=f"--step {step[:80]}", hint=f"choose from {known}")
    run = _Run(
        wanted=wanted,
        cache=cache,
        tell=tell,
        memory=_memory(wanted),
        ready=ready,
        imported=keys.of_import(wanted),
        keep_failures=True,
    )
    source = _import(run, specs)
    for spec in specs:
        facts = jobs.read_facts(source)
        made = _make_variants(run, source, facts, specs)[spec.name]
        if made.verdict.outcome == "kept":
            _costs(run, made, made.directory / made.verdict.file, _conditions(run, source, facts, spec))
        else:
            _refuse(run, made)


def _memory(wanted: Optimization) -> int:
    return int(quantity.parse(wanted.resources.memory)) if wanted.resources.memory else bounds.free_memory()


@contextmanager
def _room(cache: Cache) -> Iterator[None]:
    """Make room in the cache when all is done, whatever came of it."""
    try:
        yield
    finally:
        cache.prune()


def _import(run: _Run, specs: Sequence[VariantSpec]) -> Path:
    """Return the directory of the finished import; workers for the variants get ready meanwhile.

    Raises what the worker says.
    """
    key, places = run.imported, beside.places(run.wanted)
    found = run.cache.find("import", key, places=places)
    if found is not None:
        run.ready.close()  # what waits may have a framework in it that the variants do not need
        facts = jobs.read_facts(found)
        run.tell("source.cached", kind=facts.kind)
        run.tell("baseline", metric_name=facts.metric, metric=facts.baseline, samples=facts.samples)
        if facts.graph_bytes:
            run.tell("exported", size=facts.graph_bytes, seconds=0.0)
        return found
    directory = run.cache.work()
    job = _write_job(
        "import", jobs.ImportJob(optimization=run.wanted, directory=str(directory)), need=0, memory=run.memory
    )
    run.expected = specs[: min(_parallel(run), bounds.processors()) - 1]  # one processor is the import's
    (ended,) = _pool(run, parallel=1).run([job])
    (directory / jobs.JOB_FILE).unlink()
    _raise_failure(run, ended)
    facts = jobs.read_facts(directory)
    keys.check_unchanged(run.wanted, key, facts.digests)
    _check_current(facts.read, places)
    return run.cache.keep("import", key, directory, inputs=facts.read)


def _check_current(read: Mapping[str, str], places: Mapping[str, Path]) -> None:
    """Refuse to keep what was made from the user's code as it is no more. Raises InvalidError."""
    for name, digest in read.items():
        if not is_current({name: digest}, places):
            raise keys.changed(name.partition("/")[2])


def _raise_failure(run: _Run, ended: Ended) -> None:
    if said := run.errors.get(ended.job.name):
        raise InvalidError(said["cause"] or said["sentence"], element=said["element"], hint=said["hint"])
    if ended.problem:
        raise InvalidError(ended.problem, element="source")


def _make_variants(run: _Run, source: Path, facts: Facts, specs: Sequence[VariantSpec]) -> dict[str, _Made]:
    """Return what was made of each variant."""
    made: dict[str, _Made] = {}
    todo: dict[str, tuple[VariantSpec, Job, Path, str]] = {}
    for spec in specs:
        key = keys.of_variant(run.wanted, spec, facts, imported=run.imported)
        if cached := _cached(run, spec, key):
            made[spec.name] = cached
            continue
        directory = run.cache.work()
        job = jobs.VariantJob(optimization=run.wanted, variant=spec, source=str(source), directory=str(directory))
        need = bounds.need(source, facts, passes.RECIPES.get(jobs.parse_name(spec.name), ()))
        todo[spec.name] = spec, _write_job(spec.name, job, need=need, memory=run.memory), directory, key
    for ended in _pool(run, parallel=_parallel(run)).run([job for _, job, _, _ in todo.values()]):
        spec, _, directory, key = todo[ended.job.name]
        (directory / jobs.JOB_FILE).unlink()
        verdict = _heard(run, ended) or jobs.read_verdict(directory)
        keys.check_unchanged(run.wanted, run.imported, facts.digests)
        _check_current(verdict.read, beside.places(run.wanted, spec))
        if keys.of_variant(run.wanted, spec, facts, imported=run.imported) != key:
            raise keys.changed(spec.name)
        if (
            verdict.outcome != "failed" or run.keep_failures
        ):  # why it failed may be gone the next time: a library, memory
            (directory / jobs.VERDICT_FILE).write_bytes(msgspec.json.encode(verdict, order="sorted"))
            directory = run.cache.keep("variant", key, directory, inputs=verdict.read)
        made[spec.name] = _Made(spec=spec, directory=directory, verdict=verdict, key=key)
        if verdict.outcome == "kept":
            run.tell("variant.made", variant=spec.name)
    return made


def _cached(run: _Run, spec: VariantSpec, key: str) -> _Made | None:
    """Return the variant as it was made before; not one that could not be, whose reason may be gone by now."""
    found = run.cache.find("variant", key, places=beside.places(run.wanted, spec))
    verdict = jobs.read_verdict(found) if found else None
    if found is None or verdict is None:
        return None
    if verdict.outcome == "failed" and not run.take_failures:
        run.cache.drop(found)
        return None
    run.tell("variant.cached", variant=spec.name)
    return _Made(spec=spec, directory=found, verdict=verdict, key=key)


def _heard(run: _Run, ended: Ended) -> Verdict | None:
    """Return the verdict on a variant whose worker could not write one."""
    said = run.errors.get(ended.job.name, {}).get("sentence") or ended.problem
    return Verdict(outcome="failed", reason=said) if said else None


def _pool(run: _Run, *, parallel: int) -> Pool:
    def started(job: Job) -> None:
        run.errors.pop(job.name, None)  # of an attempt that was stopped for memory
        if job.name != "import":
            _, precision = jobs.parse_name(job.name)
            run.tell("variant.started", variant=job.name, precision=precision)

    timeout = run.wanted.resources.timeout_seconds
    return Pool(
        memory=run.memory,
        parallel=parallel,
        timeout_seconds=timeout,
        tell=run.hear,
        started=started,
        ready=run.ready,
    )


def _parallel(run: _Run) -> int:
    return run.wanted.resources.parallel or bounds.processors()


def _loads(spec: VariantSpec) -> list[str]:
    """Return what the first recipe of a variant imports."""
    return list(next((recipe.loads for recipe in passes.RECIPES.get(jobs.parse_name(spec.name), ())), ()))


def _write_job(name: str, job: jobs.AnyJob, *, need: int, memory: int) -> Job:
    file = Path(job.directory) / jobs.JOB_FILE
    file.write_bytes(msgspec.json.encode(job))
    return Job(name=name, arguments=jobs.WORKER, need=need, given=jobs.line(file, memory))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refusal:
    """A variant that is not kept; `failed` when it could not even be made."""

    rejected: Rejected
    failed: bool


def _measured(run: _Run, draft: Draft, source: Path, facts: Facts, made: _Made) -> PackagedVariant | _Refusal:
    """Measure what was made, with nothing else at work, and put it into the package."""
    spec, verdict = made.spec, made.verdict
    if verdict.outcome != "kept":
        return _refuse(run, made)
    file = jobs.file_name(run.wanted.name, spec.name)
    blob = draft.take(made.directory / verdict.file, file)
    try:
        costs = _costs(run, made, draft.directory / file, _conditions(run, source, facts, spec))
    except StorageFullError:
        raise
    except SkerryError as error:
        draft.remove(file)
        return _refuse(run, made, reason=error.sentence)
    assert verdict.metric is not None
    assert verdict.error is not None
    form, precision = jobs.parse_name(spec.name)
    needs = Requirements(
        engine=jobs.ENGINES[form],
        engine_min_version=verdict.engine_min_version,
        precision=precision,
        memory_bytes=costs.peak_memory_bytes,
    )
    variant = Variant(
        name=spec.name,
        format=form,
        precision=precision,
        recipe=verdict.recipe,
        needs=needs,
        blob=blob,
        metric=verdict.metric,
        metric_interval=verdict.interval,
        metric_drop=verdict.drop,
        error=verdict.error,
        profile=costs,
        operators=verdict.operators,
        details=verdict.details,
    )
    _tell_done(run.tell, facts, variant, file)
    return PackagedVariant(variant=variant, file=file)


def _conditions(run: _Run, source: Path, facts: Facts, spec: VariantSpec) -> profile.Conditions:
    return profile.Conditions(
        engine=jobs.ENGINES[jobs.parse_name(spec.name)[0]],
        signature=facts.signature,
        signature_file=source / jobs.SIGNATURE_FILE,
        samples_file=source / jobs.MEASURED_FILE,
        runs=run.wanted.runs,
    )


def _costs(run: _Run, made: _Made, model: Path, given: profile.Conditions) -> Profile:
    own = keys.of_profile(made.key, model, runs=given.runs, machine=profile.machine())
    if found := run.cache.find("profile", own):
        return msgspec.json.decode((found / "profile.json").read_bytes(), type=Profile)
    run.tell("variant.measuring", variant=made.spec.name)
    costs = profile.measure(model, given)
    directory = run.cache.work()
    (directory / "profile.json").write_bytes(msgspec.json.encode(costs, order="sorted"))
    run.cache.keep("profile", own, directory)
    return costs


def _tell_done(tell: Progress, facts: Facts, variant: Variant, file: str) -> None:
    tell(
        "variant.done",
        variant=variant.name,
        precision=variant.precision,
        recipe=variant.recipe,
        file=file,
        size=variant.blob.size,
        metric_name=facts.metric,
        metric=variant.metric,
        metric_drop=variant.metric_drop,
        latency_p50_ms=variant.profile.latency_p50_ms,
        latency_p95_ms=variant.profile.latency_p95_ms,
        peak_memory_bytes=variant.profile.peak_memory_bytes,
    )


def _refuse(run: _Run, made: _Made, *, reason: str = "") -> _Refusal:
    """Tell why a variant is not kept: what its worker says, or `reason` when it was made but cannot be measured."""
    name, metric = made.spec.name, None if reason else made.verdict.metric
    failed = bool(reason) or made.verdict.outcome == "failed"
    reason = reason or made.verdict.reason
    run.tell("variant.rejected", variant=name, reason=reason, metric=metric, failed=failed)
    return _Refusal(rejected=Rejected(name=name, reason=reason, metric=metric), failed=failed)


def _card(
    wanted: Optimization,
    facts: Facts,
    *,
    golden: Golden,
    kept: Sequence[PackagedVariant],
    rejected: Sequence[Rejected],
) -> EvaluationCard:
    return EvaluationCard(
        model=wanted.name,
        version=wanted.version,
        signature=facts.signature,
        evaluation=Evaluation(
            metric=facts.metric,
            higher_is_better=facts.higher_is_better,
            baseline=facts.baseline,
            baseline_interval=facts.interval,
            samples=facts.samples,
            allowed_drop=wanted.allowed_drop,
        ),
        golden=golden,
        variants=list(kept),
        rejected=list(rejected),
        provenance=Provenance(
            source_kind=facts.kind,
            source_digests=facts.digests,
            tools=dict(keys.tools()),
            seed=wanted.seed,
        ),
    )


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
