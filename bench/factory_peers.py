"""Wall time and peak memory of making one int8 ONNX variant: this factory and Microsoft Olive, with the same model.

The digits example is trained once (or --trained DIR names an earlier training). Both tools then get the same weights,
the same 512 calibration samples and the same test set, export to ONNX, quantise statically (QDQ, per channel, 7-bit
weights, min-max) and judge the result, each as one command in processes of its own, --rounds times, nothing kept
between rounds. Twice: from the PyTorch module, and from its ONNX export. Both files are then judged by the same lines.

Memory is the largest sum over a command's processes of their proportional set sizes (PSS), sampled.

The peer needs an environment of its own; --peer names its interpreter:

    python -m venv peer && peer/bin/pip install olive-ai==0.13.0 requests torch==2.13.0 onnxruntime==1.32.0 onnxscript

(`requests` is undeclared there, and its evaluator fails unless its type is given.) Its telemetry is turned off, unless
--telemetry leaves it as it comes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from skerry.cli import examples
from skerry.core import card as cards

EXAMPLE = Path(examples.__file__).parent / "digits"
PACKAGES = ("olive-ai", "torch", "onnx", "onnxruntime")
SAMPLED = 0.05
LIMIT = 280
SCRIPT = """
import sys
import numpy, torch
from olive.data.registry import Registry

def load_model(model_path=None):
    sys.path.insert(0, {example!r})
    import model
    module = model.build_model()
    module.load_state_dict(torch.load({weights!r}, weights_only=True))
    return module.eval()

class Samples(torch.utils.data.Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        return {{"input": self.inputs[index]}}, self.labels[index]

DATA = numpy.load({data!r})

@Registry.register_dataset("digits_test")
def digits_test(**_):
    return Samples(DATA["test_x"], DATA["test_y"])

@Registry.register_dataset("digits_calibration")
def digits_calibration(**_):
    inputs = DATA["calibration_x"][:512]
    return Samples(inputs, numpy.zeros(len(inputs), numpy.int64))

@Registry.register_post_process("digits_class")
def digits_class(output, **_):
    return (output["output"] if isinstance(output, dict) else output).argmax(1)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="the Python of an environment with olive-ai")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--telemetry", action="store_true", help="leave the peer's telemetry as it comes: on")
    parser.add_argument("--trained", type=Path, help="a directory with weights.pt and data.npz")
    options = parser.parse_args()
    versions = peer_versions(options.peer)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        trained = (options.trained or scratch).absolute()
        if options.trained is None:
            train = [sys.executable, "-B", str(EXAMPLE / "train.py"), "--out", str(scratch)]
            subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
        exported = export(trained, scratch)
        print("| from | tool | wall s | peak memory MiB | accuracy | size KiB |\n|---|---|---|---|---|---|")
        for origin, source in (("PyTorch", None), ("ONNX", exported)):
            given = {"scratch": scratch, "trained": trained, "source": source}
            walls = {"skerry": rounds("skerry", origin, options.rounds, **given)}
            if versions is not None:
                own = {"peer": options.peer, "telemetry": options.telemetry}
                walls["olive"] = rounds("olive", origin, options.rounds, **given, **own)
                print(f"from {origin}: olive / skerry = {walls['olive'] / walls['skerry']:.2f}")
    if versions is None:
        print(f"Olive was not measured: {'no --peer given' if options.peer is None else f'{options.peer} has none'}")
    else:
        print(f"peer: {', '.join(f'{name} {version}' for name, version in versions.items())}; {options.rounds} rounds")


def peer_versions(peer: Path | None) -> Mapping[str, str] | None:
    """Return the versions in the peer's environment, None without one."""
    if peer is None or not peer.is_file():
        return None
    asked = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {PACKAGES}}}))"
    done = subprocess.run([peer, "-c", asked], capture_output=True, text=True, env=clean(), check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def export(trained: Path, scratch: Path) -> Path:
    """Return the ONNX file that both tools start from in the second comparison: our fp32 variant."""
    run(ours(trained, scratch / "export", None, "fp32"), scratch)
    return next((scratch / "export").glob("*.onnx"))


def rounds(
    tool: str,
    origin: str,
    count: int,
    *,
    scratch: Path,
    trained: Path,
    source: Path | None,
    peer: Path | None = None,
    telemetry: bool = False,
) -> float:
    """Run one tool, print its row, return its median wall time."""
    walls, peaks = [], []
    for _ in range(count):
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = ours(trained, out, source, "int8") if peer is None else theirs(trained, scratch, out, source, peer)
        if telemetry and peer is not None:
            command = [word for word in command if word != "--disable_telemetry"]
        wall, peak = run(command, scratch, telemetry=telemetry)
        walls.append(wall)
        peaks.append(peak / 2**20)
    (made,) = out.glob("*.onnx")
    if tool == "skerry":
        (variant,) = cards.decode((out / cards.CARD_FILE).read_bytes()).variants
        assert variant.variant.recipe == "static-qdq-per-channel", variant.variant.recipe
    cells = (
        *(origin, tool, spread(walls, 2), spread(peaks, 0)),
        *(f"{accuracy(made, trained):.4f}", f"{made.stat().st_size / 1024:.0f}"),
    )
    print(f"| {' | '.join(cells)} |", flush=True)
    return statistics.median(walls)


def ours(trained: Path, out: Path, source: Path | None, precision: str) -> Sequence[str]:
    """Return our command: it also measures latency and memory of the variant in the server that devices run."""
    model = ["--source", str(source)]
    if source is None:
        model = ["--torch", f"{EXAMPLE}/model.py:build_model", "--weights", f"{trained}/weights.pt"]
    return [
        *(sys.executable, "-B", "-m", "skerry.optimize", *model, "--data", f"{trained}/data.npz", "--name", "digits"),
        *("--model-version", "v1", "--out", str(out), "--variants", precision, "--no-cache", "--progress", "json"),
    ]


def theirs(trained: Path, scratch: Path, out: Path, source: Path | None, peer: Path) -> Sequence[str]:
    """Return the peer's command, with its workflow written for it."""
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    script = scratch / "peer.py"
    weights, data = f"{trained}/weights.pt", f"{trained}/data.npz"
    script.write_text(SCRIPT.format(example=str(EXAMPLE), weights=weights, data=data))
    (scratch / "workflow.json").write_text(json.dumps(workflow(script, scratch, out, source)))
    return [str(peer), "-m", "olive", "run", "--config", str(scratch / "workflow.json"), "--disable_telemetry"]


def workflow(script: Path, scratch: Path, out: Path, source: Path | None) -> Mapping[str, object]:
    tensors = {
        "input_names": ["input"],
        "input_shapes": [[2, 1, 8, 8]],
        "input_types": ["float32"],
        "output_names": ["output"],
        "dynamic_axes": {"input": {"0": "batch"}, "output": {"0": "batch"}},
    }
    model: dict[str, object] = {"type": "ONNXModel", "model_path": str(source)}
    if source is None:
        model = {"type": "PyTorchModel", "model_loader": "load_model", "model_script": str(script)}
        model["io_config"] = tensors
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    loaded = {"user_script": str(script)}
    test = {"name": "test", **loaded, "load_dataset_config": {"type": "digits_test"}}
    test |= {"post_process_data_config": {"type": "digits_class"}, "dataloader_config": {"batch_size": 64}}
    calibration = {"name": "calibration", **loaded, "load_dataset_config": {"type": "digits_calibration"}}
    calibration |= {"dataloader_config": {"batch_size": 32}}
    score = {"name": "accuracy_score", "priority": 1, "metric_config": {"task": "multiclass", "num_classes": 10}}
    accuracy_metric = {"name": "accuracy", "type": "accuracy", "data_config": "test", "sub_types": [score]}
    average = [{"name": "avg", "priority": 2}]
    latency = {"name": "latency", "type": "latency", "data_config": "test", "sub_types": average}
    quantise: dict[str, object] = {
        "type": "OnnxStaticQuantization",
        "data_config": "calibration",
        "quant_format": "QDQ",
    }
    quantise |= {"per_channel": True, "reduce_range": True, "activation_type": "uint8", "precision": "int8"}
    convert = {} if source else {"conversion": {"type": "OnnxConversion", "target_opset": 20}}
    return {
        "input_model": model,
        "systems": {"local": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [test, calibration],
        "evaluators": {"judge": {"type": "OnnxEvaluator", "metrics": [accuracy_metric, latency]}},
        "passes": {**convert, "quantisation": quantise},
        "host": "local",
        "target": "local",
        "evaluator": "judge",
        "evaluate_input_model": False,
        "cache_dir": str(scratch / "cache"),
        "output_dir": str(out),
        "log_severity_level": 2,
    }


def run(command: Sequence[str], scratch: Path, *, telemetry: bool = False) -> tuple[float, int]:
    """Run a command; return its wall time, seconds, and the peak memory of all its processes, bytes."""
    own = "skerry.optimize" in command
    with (scratch / "said").open("wb") as said:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=None if own else clean(telemetry=telemetry))
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(SAMPLED):
                peak = max(peak, memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            code = process.wait(LIMIT)
        finally:
            process.kill()
            ended.set()
            watcher.join()
        wall = time.monotonic() - start
    if code != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {code}:\n{(scratch / 'said').read_text()[-3000:]}")
    return wall, peak


def memory(pid: int) -> int:
    """Return the proportional set size of a process and all below it, bytes."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def clean(*, telemetry: bool = False) -> Mapping[str, str]:
    """Return the environment without what is ours, and with the peer's telemetry off unless it is wanted.

    Its own switch still sends one message, and retries for seconds where there is no network; `CI` stops that too.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if telemetry:
        return {name: value for name, value in own.items() if name != "CI"}
    return {**own, "OLIVE_DISABLE_TELEMETRY": "1", "CI": "true"}


def accuracy(model: Path, trained: Path) -> float:
    """Judge a file with ONNX Runtime on the test set."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(trained / "data.npz", allow_pickle=False) as data:
        scores = session.run(None, {session.get_inputs()[0].name: data["test_x"]})[0]
        return float((scores.argmax(axis=1) == data["test_y"]).mean())


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
