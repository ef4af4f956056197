"""What the factory makes of the digits example and how long that takes: size, accuracy, latency, memory per variant.

Trains once (or takes --trained DIR from an earlier run), then runs the factory as users do, as a process, --rounds
times. The table shows the median of each figure over the rounds and, for latency and memory, its range.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from skerry.api.kinds.variants import Variant
from skerry.api.quantity import human_bytes
from skerry.cli import examples
from skerry.core import card as cards

VARIANTS = (
    *("fp32", "fp16", "int8", "int8-dynamic", "int4", "tflite-fp32", "tflite-fp16", "tflite-int8-dynamic"),
    *("tflite-int8", "executorch-fp32", "executorch-int8", "torchscript-fp32", "torchscript-int8-dynamic"),
)
EXAMPLE = Path(examples.__file__).parent / "digits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1000, help="measured runs per variant")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="by commas; default all formats")
    parser.add_argument("--trained", type=Path, help="a directory with weights.pt and data.npz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.trained or Path(temporary)
        if options.trained is None:
            seconds = timed([str(EXAMPLE / "train.py"), "--out", str(directory)])
            print(f"trained in {seconds:.1f} s")
        made, walls = [], []
        for index in range(options.rounds):
            out = Path(temporary) / f"package-{index}"
            walls.append(timed(factory(directory, out, options.runs, options.variants)))
            made.append(cards.decode((out / cards.CARD_FILE).read_bytes()))
    print_table(made)
    print(f"whole run, imports included: {median(walls):.1f} s ({min(walls):.1f} to {max(walls):.1f})")
    print(f"machine: {made[0].variants[0].variant.profile.machine}; {options.rounds} rounds of {options.runs} runs")


def factory(trained: Path, out: Path, runs: int, variants: str) -> list[str]:
    return [
        *("-m", "skerry.optimize", "--torch", f"{EXAMPLE}/model.py:build_model"),
        *("--weights", f"{trained}/weights.pt", "--data", f"{trained}/data.npz", "--name", "digits"),
        *("--model-version", "v1", "--out", str(out), "--runs", str(runs), "--progress", "json"),
        *("--variants", variants, "--no-cache"),
    ]


def timed(arguments: list[str]) -> float:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-B", *arguments], check=False, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 3):  # 3: a format whose libraries are not installed is missing
        raise SystemExit(f"{' '.join(arguments[:2])} ended with code {done.returncode}")
    return time.monotonic() - start


def median(values: list[float]) -> float:
    return statistics.median(values)


def print_table(made: list[cards.EvaluationCard]) -> None:
    print("| variant | recipe | size | accuracy | drop | p50 ms | p95 ms | peak memory MiB | max error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for position, packaged in enumerate(made[0].variants):
        rounds = [card.variants[position].variant for card in made]
        first = packaged.variant
        cells = [
            first.name,
            first.recipe,
            human_bytes(first.blob.size),
            f"{first.metric:.4f}",
            f"{first.metric_drop:+.4f}",
            spread(rounds, lambda v: v.profile.latency_p50_ms, 3),
            spread(rounds, lambda v: v.profile.latency_p95_ms, 3),
            spread(rounds, lambda v: v.profile.peak_memory_bytes / 2**20, 1),
            f"{first.error.max_abs:.1e}",
        ]
        print(f"| {' | '.join(cells)} |")
    for rejected in made[0].rejected:
        print(f"rejected {rejected.name}: {rejected.reason}")


def spread(rounds: list[Variant], figure: Callable[[Variant], float], digits: int) -> str:
    values = [figure(variant) for variant in rounds]
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
