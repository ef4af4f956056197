"""`skerry model ...`: make variants of a trained model, push them to the hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api import quantity
from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.meta import ObjectMeta
from skerry.cli import options, output
from skerry.core import card as cards
from skerry.drivers.client.registry import push_package

app = typer.Typer(help="Trained models: optimise them into variants, push them.", no_args_is_help=True)


@app.command()
def optimize(
    torch: Annotated[str, typer.Option(help="path.py:function that builds the torch.nn.Module.")],
    weights: Annotated[Path, typer.Option(help="Its state_dict, saved with torch.save.")],
    data: Annotated[Path, typer.Option(help=".npz with test, calibration and golden samples; see docs/factory.md.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    model_version: Annotated[str, typer.Option(help="The model's version, as in v1.")],
    out: Annotated[Path, typer.Option(help="Directory for the package.")],
    variants: Annotated[str, typer.Option(help="Precisions to make, by commas.")] = "fp32,fp16,int8",
    allowed_drop: Annotated[float, typer.Option(min=0, max=1, help="Accuracy a variant may lose.")] = 0.01,
    metric: Annotated[str, typer.Option(help="accuracy or f1-macro.")] = "accuracy",
    golden: Annotated[int, typer.Option(min=1, help="Golden samples to ship.")] = 64,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs per variant.")] = 200,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Turn a PyTorch model into ONNX variants, each evaluated on the test set and profiled."""
    command = [
        sys.executable,
        "-m",
        "skerry.optimize",
        "--torch",
        torch,
        "--weights",
        str(weights),
        "--data",
        str(data),
    ]
    command += ["--name", name, "--model-version", model_version, "--out", str(out), "--variants", variants]
    command += ["--allowed-drop", str(allowed_drop), "--seed", str(seed), "--progress", "json"]
    command += ["--metric", metric, "--golden", str(golden), "--runs", str(runs)]
    code = _run_factory(command)
    card = _read_card(out)
    print_card(card)
    if code != 0:
        raise UnsupportedError(
            "some of the wanted variants could not be made; the others are in the package", element=str(out)
        )


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
    """Print a card's table of variants, then what was rejected and why."""
    metric = card.evaluation.metric
    rows = [
        (
            v.name,
            quantity.human_bytes(v.blob.size),
            f"{v.metric:.4f}",
            f"{round(-v.metric_drop, 4) or 0.0:+.4f}",
            f"{v.profile.latency_p50_ms:.3f} ms",
            f"{v.profile.latency_p95_ms:.3f} ms",
            quantity.human_bytes(v.profile.peak_memory_bytes),
            f"{v.error.max_abs:.2g}",
            v.recipe,
        )
        for v in (packaged.variant for packaged in card.variants)
    ]
    output.print_table(
        ("VARIANT", "SIZE", metric.upper(), "CHANGE", "P50", "P95", "PEAK MEMORY", "MAX ERROR", "RECIPE"), rows
    )
    for rejected in card.rejected:
        output.say(f"rejected {rejected.name}: {rejected.reason}")
    output.say(
        f"{card.model} {card.version}: source {metric} {card.evaluation.baseline:.4f} on {card.evaluation.samples} "
        f"test samples, {card.golden.samples} golden samples"
    )


def _run_factory(command: list[str]) -> int:
    """Run the factory as a process, showing what it is at; returns 0, or 3 when the package is partial.

    Raises the factory's own sentence as a SkerryError otherwise.
    """
    sentence = ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with output.err.status("starting the factory") as status:
        for line in process.stdout:
            event = _parse_event(line)
            if event.get("event") == "error":
                sentence = str(event.get("sentence", ""))
            elif "variant" in event:
                status.update(f"{event['variant']}: {str(event.get('event', '')).partition('.')[2]}")
    code = process.wait()
    if code not in (0, 3):
        raise SkerryError(sentence or f"the factory ended with code {code}")
    return code


def _parse_event(line: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _read_card(package: Path) -> cards.EvaluationCard:
    path = package / cards.CARD_FILE
    try:
        return cards.decode(path.read_bytes())
    except OSError as error:
        raise InvalidError(
            error.strerror or str(error), element=str(path), hint="make a package with `skerry model optimize`"
        ) from None
