"""`skerry model ...`: make variants of a trained model; the verbs that move them are in `model_registry`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from skerry.api.errors import UnsupportedError
from skerry.cli import factory, importing, model_registry, output, package, signing, toolchain, verifying

app = typer.Typer(
    help="Trained models: optimise them into variants, move them between registries.", no_args_is_help=True
)
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
    attempt: Annotated[str | None, typer.Option(help="Kubernetes: any new word makes all anew.")] = None,
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
    code, made = factory.run(arguments)
    package.print_card(package.read_card(made))
    if code != factory.DONE:
        output.print_error(
            UnsupportedError(
                "some of the wanted variants could not be made; the others are in the package", element=str(made)
            )
        )
        raise typer.Exit(code)


for _name, _verb in (
    ("import", importing.import_model),
    ("push", model_registry.push),
    ("pull", model_registry.pull),
    ("list", model_registry.list_models),
    ("inspect", model_registry.inspect),
    ("tag", model_registry.tag),
    ("copy", model_registry.copy),
    ("rm", model_registry.remove),
    ("keygen", signing.keygen),
    ("sign", signing.sign),
    ("verify", verifying.verify),
):
    app.command(_name)(_verb)


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
