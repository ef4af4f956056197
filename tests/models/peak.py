"""Makes variants of MobileNetV2 in this process and prints what that took, as one JSON line.

`python tests/models/peak.py GRAPH OUT RECIPE...`: variants by those recipes of `skerry.optimize.passes`, named
`<precision>/<recipe>` for ONNX, `<format>/<precision>/<recipe>` for the others. They start from the graph, or from the
module where they want that. The peak is VmHWM, of this process alone and from its start.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.models import mobilenet_v2

from skerry.api.kinds.variants import Format
from skerry.optimize import evaluate, graph, jobs
from skerry.optimize.arrays import Array
from skerry.optimize.passes import Material, recipes
from skerry.optimize.recipe import SensitivitySpec, VariantOptions
from skerry.serve import engines

SAMPLES = 16
FEW = 4
"""Samples for the formats whose calibration is slow."""
ALL_INT8 = "int8/static-qdq-per-channel"
SHARE = 0.9
"""What the search may lose, of what all layers in int8 lose."""


def main() -> None:
    source, out, *wanted = sys.argv[1:]
    raw = Path(source).read_bytes()
    images = {"input": mobilenet_v2.samples(SAMPLES)}
    expected = evaluate.Runner(raw).predict(images)

    signature = graph.signature(graph.parse(raw))
    made: dict[str, dict] = {}
    for name in wanted:
        kind, precision, recipe = name.split("/") if name.count("/") == 2 else ("onnx", *name.split("/"))
        form, _ = jobs.parse_name(f"{kind}-{precision}")
        options = VariantOptions(
            recipe=recipe,
            sensitivity=SensitivitySpec(most_layers=8, samples=2),
            calibration_samples=SAMPLES if form == "onnx" else FEW,
        )

        def error(file: Path, form: Format = form) -> float:
            answers: Sequence[Array]
            if form == "onnx":
                answers = evaluate.Runner(file.read_bytes()).predict(images)
            else:
                model = engines.open_engine(jobs.ENGINES[form]).load(file, signature, threads=1)
                answers = model.infer({"input": images["input"][:FEW]}, ["output"])
            return 1 - evaluate.numerical_error(answers, [expected[0][: len(answers[0])]]).cosine

        (chosen,) = recipes(form, precision, options)
        material = Material(
            load=(lambda: raw) if chosen.form == "onnx" else mobilenet_v2.build_model,
            inputs_sample=images,
            calibration=images,
            signature=signature,
            out=Path(out) / f"{precision}-{recipe}{jobs.SUFFIXES[form]}",
            options=options,
            drop=error,
            allowed_drop=SHARE * made.get(ALL_INT8, {}).get("error", 0),
        )
        chosen.build(material)
        made[name] = {"size": material.out.stat().st_size, "error": error(material.out), **material.detail}
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"peak": peak, "made": made}))


if __name__ == "__main__":
    main()
