"""Every engine in the real server, over real HTTP: what it answers is what the engine answers in process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.integration.serving import WAIT_SECONDS, Served, fails, serving
from tests.unit.serve import engine_files as made

from skerry.api.kinds.tensors import ModelSignature
from skerry.serve import engines


@pytest.fixture(scope="module", params=made.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(made.MODULES[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def files(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return made.files(engine, tmp_path_factory.getbasetemp() / f"engine-{engine}")


def options(directory: Path, engine: str, file: Path, signature: ModelSignature) -> list[str]:
    (directory / "signature.json").write_bytes(msgspec.json.encode(signature))
    return ["--engine", engine, "--file", str(file)]


def tensor(name: str, array: np.ndarray, **more: object) -> dict[str, object]:
    return {"name": name, "datatype": "FP32", "shape": list(array.shape), **more}


def ask_json(served: Served, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    answer = served.infer(inputs=[tensor(name, a, data=a.ravel().tolist()) for name, a in inputs.items()])
    assert answer.status == 200, answer.body
    return {
        one["name"]: np.array(one["data"], dtype=np.float32).reshape(one["shape"]) for one in answer.json["outputs"]
    }


def ask_binary(served: Served, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    head = json.dumps(
        {
            "inputs": [tensor(n, a, parameters={"binary_data_size": a.nbytes}) for n, a in inputs.items()],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = head + b"".join(array.tobytes() for array in inputs.values())
    answer = served.ask("POST", "/v2/models/digits/infer", body, Inference_Header_Content_Length=str(len(head)))
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    found, rest = {}, answer.body[length:]
    for one in json.loads(answer.body[:length])["outputs"]:
        size = one["parameters"]["binary_data_size"]
        found[one["name"]], rest = np.frombuffer(rest[:size], dtype=np.float32).reshape(one["shape"]), rest[size:]
    assert rest == b""
    return found


class Client(threading.Thread):
    """Asks again and again, until the server has gone."""

    def __init__(self, served: Served, seed: int) -> None:
        super().__init__()
        self.served, self.seed = served, seed
        self.answers: list[tuple[Mapping[str, np.ndarray], dict[str, np.ndarray]]] = []
        self.start()

    def run(self) -> None:
        while True:
            inputs = made.samples(made.DENSE, 1 + len(self.answers) % 5, seed=self.seed * 1000 + len(self.answers))
            try:
                self.answers.append((inputs, ask_json(self.served, inputs)))
            except OSError:  # refused, or closed before it was received; half an answer would be another error
                return


def test_the_served_answer_is_the_one_in_process(engine: str, files: Mapping[str, Path], tmp_path: Path) -> None:
    for name, signature, reference in (("dense", made.DENSE, made.dense), ("pair", made.PAIR, made.pair)):
        model = engines.open_engine(engine).load(files[name], signature, threads=1)
        outputs = [spec.name for spec in signature.outputs]
        with serving(tmp_path, *options(tmp_path, engine, files[name], signature)) as served:
            for count in (1, 7):
                inputs = made.samples(signature, count, seed=count)
                expected = dict(zip(outputs, model.infer(inputs, outputs), strict=True))
                binary, plain = ask_binary(served, inputs), ask_json(served, inputs)
                assert list(binary) == list(plain) == outputs
                for output in outputs:
                    np.testing.assert_array_equal(binary[output], expected[output])
                    np.testing.assert_array_equal(plain[output], expected[output])
                    np.testing.assert_allclose(plain[output], reference(inputs)[output], rtol=1e-5, atol=1e-5)


def test_a_file_with_a_fixed_batch_serves_any_and_what_does_not_fit_is_a_clear_400(
    engine: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    if "dense4" not in files:
        pytest.skip("TorchScript fixes no batch")
    with serving(tmp_path, *options(tmp_path, engine, files["dense4"], made.DENSE)) as served:
        assert served.ask("GET", "/v2/models/digits").json["inputs"][0]["shape"] == [-1, 8]
        for count in (1, 4, 9):
            inputs = made.samples(made.DENSE, count)
            np.testing.assert_allclose(
                ask_binary(served, inputs)["scores"], made.dense(inputs)["scores"], rtol=1e-5, atol=1e-5
            )
        for wrong, words in [
            (tensor("x", np.zeros((1, 9)), data=[0.0] * 9), "has shape [1, 9], the model takes [-1, 8]"),
            ({**tensor("x", np.zeros((1, 8)), data=[0] * 8), "datatype": "INT64"}, "has datatype INT64, the model"),
        ]:
            answer = served.infer(inputs=[wrong])
            assert answer.status == 400
            assert words in answer.json["error"]


def test_many_clients_at_once_each_get_their_own_answers_until_the_end(
    engine: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    with serving(tmp_path, *options(tmp_path, engine, files["dense"], made.DENSE)) as served:
        clients = [Client(served, seed) for seed in range(4)]
        served.until(lambda: all(len(client.answers) >= 20 for client in clients))
        served.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(WAIT_SECONDS)
        assert served.process.wait(WAIT_SECONDS) == 0, "what was under way was answered"
        answered = sum(len(client.answers) for client in clients)
    for client in clients:
        for inputs, found in client.answers:
            np.testing.assert_allclose(found["scores"], made.dense(inputs)["scores"], rtol=1e-5, atol=1e-5)
    assert answered >= 80


def test_a_damaged_file_and_a_wrong_signature_end_it_with_one_sentence(
    engine: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "damaged").write_bytes(b"\x00garbage" * 99)
    said = fails(tmp_path, *options(tmp_path, engine, tmp_path / "damaged", made.DENSE))
    assert "damaged: is not a" in said
    said = fails(tmp_path, *options(tmp_path, engine, files["dense"], made.PAIR))
    assert str(files["dense"]) in said


def test_a_busy_torchscript_model_blocks_no_health(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch

    class Slow(torch.nn.Module):
        def forward(self, times: torch.Tensor) -> torch.Tensor:
            w = torch.eye(128)
            for _ in range(int(times)):
                w = w @ w
            return w.max()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Slow()).save(str(tmp_path / "slow.pt"))
    signature = msgspec.convert(
        {
            "inputs": [{"name": "times", "datatype": "INT64", "shape": [1]}],
            "outputs": [{"name": "largest", "datatype": "FP32", "shape": []}],
        },
        ModelSignature,
    )
    with (
        serving(tmp_path, *options(tmp_path, "torchscript", tmp_path / "slow.pt", signature)) as served,
        served.asked_for_ever(),
    ):
        served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 1)
        assert served.ask("GET", "/v2/health/ready").status == 200
        assert served.metric("skerry_serve_requests_in_flight") == 1


def test_the_executorch_server_does_not_import_the_compiler(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    code = (
        "import sys\n"
        "from skerry.serve import engines\n"
        "engines.open_engine('executorch')\n"
        "assert 'executorch.exir' not in sys.modules and 'torchao' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_SECONDS * 4)


# --- once -----------------------------------------------------------------------------------------------------------


def once(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--signature", str(directory / "signature.json"), "--outputs", str(directory / "out.npz")]
    argv = [sys.executable, "-m", "skerry.serve.once", *fixed, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_SECONDS * 4, check=False)


def asked(directory: Path, engine: str, file: Path, signature: ModelSignature, *more: str) -> Any:
    (directory / "signature.json").write_bytes(msgspec.json.encode(signature))
    arguments = ["--engine", engine, "--model", str(file), "--inputs", str(directory / "in.npz")]
    return once(directory, *arguments, *more)


@pytest.mark.parametrize("name", ["pair", "dense4"])
def test_once_answers_every_sample_and_says_what_it_cost(
    engine: str, files: Mapping[str, Path], tmp_path: Path, name: str
) -> None:
    if name not in files:
        pytest.skip("TorchScript fixes no batch")
    signature, reference = (made.PAIR, made.pair) if name == "pair" else (made.DENSE, made.dense)
    inputs = made.samples(signature, 131)
    np.savez(tmp_path / "in.npz", **inputs)
    done = asked(tmp_path, engine, files[name], signature, "--runs", "25", "--warm-up", "2")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert found.files == [spec.name for spec in signature.outputs]
        for output, expected in reference(inputs).items():
            np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-5)
    [line] = done.stdout.splitlines()
    costs = json.loads(line)
    assert costs["runs"] == 25
    assert 0 < costs["latencyP50Ms"] <= costs["latencyP95Ms"]
    assert 10_000_000 < costs["peakMemoryBytes"] < 2_000_000_000
    assert costs["loadSeconds"] > 0
    assert costs["engineVersion"] == engines.open_engine(engine).version


def test_once_without_runs_measures_nothing(tmp_path: Path) -> None:
    file = made.onnx_dense(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", **made.samples(made.DENSE, 3))
    costs = json.loads(asked(tmp_path, "onnxruntime", file, made.DENSE).stdout)
    assert (costs["runs"], costs["latencyP50Ms"], costs["latencyP95Ms"]) == (0, None, None)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.zeros((2, 8), dtype=np.float32)}, 'the model also needs "x"'),
        ({"x": np.zeros((2, 9), dtype=np.float32)}, 'input "x": has shape [2, 9], the model takes [-1, 8]'),
        ({"x": np.zeros((2, 8))}, 'input "x": has datatype FP64, the model takes FP32'),
        ({"x": np.zeros((0, 8), dtype=np.float32)}, 'input "x": 0 samples do not make a batch'),
        ({"x": np.zeros((2, 8), dtype=complex)}, 'input "x": the protocol has no datatype for complex128'),
        ({"x": np.array([{"a": 1}], dtype=object)}, "in.npz: is not an .npz file of plain arrays"),
    ],
)
def test_once_says_what_is_wrong_with_the_samples(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    file = made.onnx_dense(tmp_path / "m.onnx")
    np.savez(tmp_path / "in.npz", **arrays)
    done = asked(tmp_path, "onnxruntime", file, made.DENSE)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_once_says_what_is_not_there(tmp_path: Path) -> None:
    file = made.onnx_dense(tmp_path / "m.onnx")
    assert "in.npz: cannot be read: No such file" in asked(tmp_path, "onnxruntime", file, made.DENSE).stderr
    (tmp_path / "in.npz").write_bytes(b"nonsense")
    assert "in.npz: is not an .npz file" in asked(tmp_path, "onnxruntime", file, made.DENSE).stderr
    assert "none: no such file" in asked(tmp_path, "onnxruntime", tmp_path / "none", made.DENSE).stderr


def test_once_keeps_names_that_numpy_has_uses_for(tmp_path: Path) -> None:
    file = made.onnx_dense(tmp_path / "m.onnx")
    import onnx

    model = onnx.load(file)
    for node in model.graph.node:
        node.output[:] = ["a/file" if name == "scores" else name for name in node.output]
    model.graph.output[0].name = "a/file"
    onnx.save(model, file)
    signature = ModelSignature(inputs=made.DENSE.inputs, outputs=[made.fp32("a/file", -1, 4)])
    inputs = made.samples(made.DENSE, 2)
    np.savez(tmp_path / "in.npz", **inputs)
    assert asked(tmp_path, "onnxruntime", file, signature).returncode == 0
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["a/file"], made.dense(inputs)["scores"], rtol=1e-5, atol=1e-5)
