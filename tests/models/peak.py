"""Makes ONNX variants of MobileNetV2 in this process and prints what that took, as one JSON line.

`python tests/models/peak.py GRAPH OUT RECIPE...`: the graph's variants by those recipes of `skerry.optimize.passes`,
named `<precision>/<recipe>`. The peak is VmHWM, of this process alone and from its start.
"""

import json
import sys
from pathlib import Path

from tests.models import mobilenet_v2

from skerry.optimize import evaluate, graph
from skerry.optimize.passes import Material, recipes
from skerry.optimize.recipe import SensitivitySpec, VariantOptions

SAMPLES = 16
ALL_INT8 = "int8/static-qdq-per-channel"
SHARE = 0.9
"""What the search may lose, of what all layers in int8 lose."""


def main() -> None:
    source, out, *wanted = sys.argv[1:]
    raw = Path(source).read_bytes()
    images = {"input": mobilenet_v2.samples(SAMPLES)}
    expected = evaluate.Runner(raw).predict(images)

    def error(file: Path) -> float:
        return 1 - evaluate.numerical_error(evaluate.Runner(file.read_bytes()).predict(images), expected).cosine

    made: dict[str, dict] = {}
    for name in wanted:
        precision, _, recipe = name.partition("/")
        options = VariantOptions(recipe=recipe, sensitivity=SensitivitySpec(most_layers=8, samples=2))
        material = Material(
            load=lambda: raw,
            inputs_sample=images,
            calibration=images,
            signature=graph.signature(graph.parse(raw)),
            out=Path(out) / f"{precision}-{recipe}.onnx",
            options=options,
            drop=error,
            allowed_drop=SHARE * made.get(ALL_INT8, {}).get("error", 0),
        )
        (chosen,) = recipes("onnx", precision, options)
        chosen.build(material)
        made[name] = {"size": material.out.stat().st_size, "error": error(material.out), **material.detail}
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"peak": peak, "made": made}))


if __name__ == "__main__":
    main()
