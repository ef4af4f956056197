"""`skerry model ...`: make variants of a trained model, push them to the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api import quantity
from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.variants import Variant
from skerry.api.meta import ObjectMeta
from skerry.cli import factory, options, output, toolchain
from skerry.core import card as cards
from skerry.core import pareto
from skerry.drivers.client.registry import push_package

app = typer.Typer(help="Trained models: optimise them into variants, push them.", no_args_is_help=True)
app.add_typer(toolchain.app, name="toolchain")


@app.command()
def optimize(
    file: Annotated[Path | None, typer.Option("--file", "-f", help="optimize.yaml; options override it.")] = None,
    torch: Annotated[str | None, typer.Option(help="path.py:function that builds the torch.nn.Module.")] = None,
    source: Annotated[str | None, typer.Option(help="Any other trained model: ONNX, Keras, TFLite ...")] = None,
    kind: Annotated[str | None, typer.Option(help="What the source is, where its name does not tell.")] = None,
    weights: Annotated[str | None, typer.Option(help="The module's state_dict, saved with torch.save.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run code in the model's own file.")] = False,
    data: Annotated[str | None, typer.Option(help="Test, calibration, golden samples; see docs/factory.md.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    model_version: Annotated[str | None, typer.Option(help="The model's version, as in v1.")] = None,
    out: Annotated[str | None, typer.Option(help="Directory for the package.")] = None,
    variants: Annotated[str | None, typer.Option(help="By commas: fp32 (ONNX), tflite-int8 ...")] = None,
    allowed_drop: Annotated[float | None, typer.Option(help="How much worse the metric may be.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, top-5, f1-macro, iou, mae, mse, FILE.py:FUNCTION.")
    ] = None,
    golden: Annotated[int | None, typer.Option(help="Golden samples to ship.")] = None,
    runs: Annotated[int | None, typer.Option(help="Timed runs per variant.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Put pareto.png into the package.")] = False,
    memory: Annotated[str | None, typer.Option(help="For all processes together, as in 4Gi.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Variants made at the same time, at most.")] = None,
    timeout: Annotated[int | None, typer.Option(help="Seconds for one variant, at most.")] = None,
    cache: Annotated[str | None, typer.Option(help="Where finished steps are kept.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Make everything anew, keep nothing.")] = False,
    on: Annotated[str | None, typer.Option(help="kubernetes: make each variant in a Job of its own.")] = None,
    repository: Annotated[str | None, typer.Option(help="Kubernetes: in an OCI registry, for what Jobs give.")] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: image with skerry and its extras.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes: where the Jobs run.")] = None,
    registry_secret: Annotated[str | None, typer.Option(help="Kubernetes: Secret for the repository.")] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="Kubernetes: the registry speaks HTTP.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Kubernetes: print the manifests only.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of optimize.yaml.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say what can be made here, and what is missing.")] = False,
) -> None:
    """Turn a trained model into variants for each engine, every one evaluated on the test set and profiled."""
    if schema:
        sys.stdout.write(factory.ask(["--schema"]).decode())
        return
    if list_:
        print_capabilities(msgspec.json.decode(factory.ask(["--list"])))
        return
    given = {name.rstrip("_").replace("_", "-"): value for name, value in locals().items()}
    arguments = factory.arguments({f"--{name}": value for name, value in given.items()})
    if dry_run:
        sys.stdout.write(factory.ask(arguments).decode())
        return
    code, package = factory.run(arguments)
    print_card(_read_card(package))
    if code != factory.DONE:
        output.print_error(
            UnsupportedError(
                "some of the wanted variants could not be made; the others are in the package", element=str(package)
            )
        )
        raise typer.Exit(code)


@app.command()
def push(
    package: Annotated[Path, typer.Argument(help="A directory made by `skerry model optimize`.")],
    namespace: options.Namespace = "",
    kubeconfig: options.Kubeconfig = None,
) -> None:
    """Put a package into the hub's registry and create its ModelVersion."""
    card = _read_card(package)
    with options.connect(kubeconfig, namespace) as client:
        repository = f"{client.namespace}/{card.model}"
        with output.err.status(f"pushing {repository}:{card.version}") as status:
            done: dict[str, int] = {}

            def progress(name: str, count: int) -> None:
                done[name] = done.get(name, 0) + count
                status.update(f"pushing {repository}:{card.version}: {name} {quantity.human_bytes(done[name])}")

            pushed = push_package(client.http, repository, package, card, progress)
        wanted = ModelVersion(
            metadata=ObjectMeta(name=f"{card.model}-{card.version}", labels={"skerry.dev/model": card.model}),
            spec=ModelVersionSpec(
                model=card.model,
                version=card.version,
                artifact=Artifact(repository=repository, digest=pushed.index),
                signature=card.signature,
                evaluation=card.evaluation,
                golden=card.golden,
                rejected=card.rejected,
            ),
        )
        outcome = client.apply(msgspec.to_builtins(wanted))
    output.say(
        f"{repository}:{card.version}@{pushed.index[:19]} pushed, {quantity.human_bytes(pushed.sent)} sent, "
        f"{quantity.human_bytes(pushed.skipped)} already there"
    )
    output.say(f"modelversion/{wanted.metadata.name} {outcome}")


@app.command("list")
def list_models(namespace: options.Namespace = "", kubeconfig: options.Kubeconfig = None) -> None:
    """List the model versions the hub knows."""
    from skerry.cli.get import show  # noqa: PLC0415

    show("models", namespace=namespace, kubeconfig=kubeconfig)


@app.command()
def inspect(package: Annotated[Path, typer.Argument(help="A directory made by `skerry model optimize`.")]) -> None:
    """Show a package's variants as the factory measured them."""
    print_card(_read_card(package))


def print_card(card: cards.EvaluationCard) -> None:
    """Print a card's table of variants, those on the Pareto front marked, then what was rejected and why."""
    metric = card.evaluation.metric
    variants = [packaged.variant for packaged in card.variants]
    front = pareto.front(variants)
    rows = [
        (
            v.name,
            quantity.human_bytes(v.blob.size),
            f"{v.metric:.4f}",
            _interval(v),
            f"{round(v.metric - card.evaluation.baseline, 4) or 0.0:+.4f}",
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
    output.say(
        f"{card.model} {card.version}: source {metric} {card.evaluation.baseline:.4f} on {card.evaluation.samples} "
        f"test samples, {card.golden.samples} golden samples; * = no other variant is both better and faster"
    )


def print_capabilities(found: dict[str, Any]) -> None:
    """Print what the factory says it can do here."""
    sources = [
        (one["kind"], "missing" if one["missing"] else "ready", one["files"], _lacking(one)) for one in found["sources"]
    ]
    output.print_table(("SOURCE", "STATUS", "FILES", "MISSING"), sources)
    output.say("")
    variants = [
        (
            one["variant"],
            "ready" if one["recipes"] else "missing",
            one["engine"],
            ", ".join(one["sources"]),
            ", ".join(one["recipes"]),
            _lacking(one),
        )
        for one in found["variants"]
    ]
    output.print_table(("VARIANT", "STATUS", "ENGINE", "MADE FROM", "RECIPES", "MISSING"), variants)


def _lacking(line: dict[str, Any]) -> str:
    return f"{', '.join(line['missing'])} ({line['install']})" if line["missing"] else "-"


def _interval(variant: Variant) -> str:
    found = variant.metric_interval
    return f"{found.low:.4f}-{found.high:.4f}" if found is not None else ""


def _read_card(package: Path) -> cards.EvaluationCard:
    path = package / cards.CARD_FILE
    try:
        return cards.decode(path.read_bytes())
    except OSError as error:
        raise InvalidError(
            error.strerror or str(error), element=str(path), hint="make a package with `skerry model optimize`"
        ) from None
