"""The inference server as the agent runs it: a real process, real models, real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.integration.serving import LISTENING, READY, WAIT_SECONDS, Answer, Served, command, fails, serving

from skerry.core.ports import Launch
from skerry.drivers.runtime.process import ProcessRuntime


def save(graph: onnx.GraphProto, directory: Path, inputs: list[Any], outputs: list[Any]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    (directory / "signature.json").write_text(
        json.dumps(
            {
                side: [{"name": n, "datatype": d, "shape": s} for n, d, s in tensors]
                for side, tensors in (("inputs", inputs), ("outputs", outputs))
            }
        )
    )
    return directory


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A directory with a model of one convolution and one dense layer."""
    random = np.random.default_rng(11)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "c", "b"], ["x"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Flatten", ["y"], ["z"]),
            helper.make_node("Gemm", ["z", "d", "e"], ["scores"]),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [weight("c", 4, 1, 3, 3), weight("b", 4), weight("d", 256, 10), weight("e", 10)],
    )
    return save(graph, tmp_path, [("image", "FP32", [-1, 1, 8, 8])], [("scores", "FP32", [-1, 10])])


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A directory with a model that multiplies matrices as often as its input says."""
    matrix = numpy_helper.from_array(np.eye(128, dtype=np.float32), "w")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["before", "w"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [128, 128]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [128, 128]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["times", "", "w"], ["product"], body=body),
            helper.make_node("ReduceMax", ["product"], ["largest"], keepdims=0),
        ],
        "slow",
        [helper.make_tensor_value_info("times", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("largest", TensorProto.FLOAT, [])],
        [matrix],
    )
    return save(graph, tmp_path, [("times", "INT64", [1])], [("largest", "FP32", [])])


IMAGE = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}


def test_the_whole_protocol(digits: Path) -> None:
    with serving(digits) as served:
        assert served.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
        for path, content in [
            ("/v2/health/live", {"live": True}),
            ("/v2/health/ready", {"ready": True}),
            ("/v2/models/digits/ready", {"name": "digits", "ready": True}),
            ("/v2/models/digits/versions/v1/ready", {"name": "digits", "ready": True}),
        ]:
            answer = served.ask("GET", path)
            assert (answer.status, answer.json) == (200, content)
        metadata = served.ask("GET", "/v2/models/digits").json
        assert metadata == served.ask("GET", "/v2/models/digits/versions/v1").json
        assert metadata == {
            "name": "digits",
            "versions": ["v1"],
            "platform": "onnx_onnxv1",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
        }
        answer = served.infer(id="42", inputs=[IMAGE])
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert {k: answer.json[k] for k in ("model_name", "model_version", "id")} == {
            "model_name": "digits",
            "model_version": "v1",
            "id": "42",
        }
        [output] = answer.json["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [1, 10])
        path = "/v2/models/digits/versions/v1/infer"
        assert served.ask("POST", path, json.dumps({"inputs": [IMAGE]}).encode()).json["outputs"] == [output]


def test_binary_tensors_give_what_json_gives(digits: Path) -> None:
    images = np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32)
    described = {"name": "image", "datatype": "FP32", "shape": [5, 1, 8, 8]}
    with serving(digits) as served:
        plain = served.infer(inputs=[{**described, "data": images.tolist()}]).json["outputs"][0]["data"]
        head = json.dumps(
            {
                "inputs": [{**described, "parameters": {"binary_data_size": images.nbytes}}],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        answer = served.ask(
            "POST",
            "/v2/models/digits/infer",
            head + images.tobytes(),
            Inference_Header_Content_Length=str(len(head)),
            Content_Type="application/octet-stream",
        )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.body[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 5 * 10 * 4}
    assert "data" not in output
    scores = np.frombuffer(answer.body[length:], dtype="<f4")
    np.testing.assert_array_equal(scores, np.array(plain, dtype=np.float32))


def test_errors_are_sentences_with_the_right_status(digits: Path) -> None:
    with serving(digits, "--max-body-bytes", "4096") as served:
        for method, path, body, status, words in [
            ("GET", "/nowhere", None, 404, "/nowhere: no such path"),
            ("GET", "/v2/models/other", None, 404, 'model "other": is not served here; this is digits'),
            ("POST", "/v2/models/other/infer", b"{}", 404, 'model "other"'),
            ("POST", "/v2/models/digits/versions/v2/infer", b"{}", 404, 'version "v2" of digits'),
            ("GET", "/v2/models/digits/infer", None, 405, "only POST"),
            ("POST", "/v2", b"{}", 405, "only GET, HEAD"),
            ("POST", "/v2/models/digits/infer", b"{", 400, "request: "),
            ("POST", "/v2/models/digits/infer", b"x" * 5000, 413, "the body exceeds 4096 bytes"),
        ]:
            answer = served.ask(method, path, body)
            assert answer.status == status, path
            assert words in answer.json["error"]
        answer = served.infer(inputs=[{**IMAGE, "shape": [1, 1, 8, 9]}])
        assert answer.status == 400
        assert 'input "image": has shape [1, 1, 8, 9], the model takes [-1, 1, 8, 8]' in answer.json["error"]
        gzipped = served.ask("POST", "/v2/models/digits/infer", b"x", Content_Encoding="gzip")
        assert gzipped.status == 415
        wrong = served.ask("POST", "/v2/models/digits/infer", b"{}", Inference_Header_Content_Length="x")
        assert "Inference-Header-Content-Length: is not a number of bytes" in wrong.json["error"]
        assert served.infer(inputs=[IMAGE]).status == 200
        for outcome, count in (("ok", 1), ("bad_request", 3), ("not_found", 2), ("failed", 0)):
            assert served.metric("skerry_serve_requests_total", outcome=outcome) == count
        assert served.metric("skerry_serve_model_load_seconds") > 0
        assert served.metric("skerry_serve_requests_in_flight") == 0


def test_what_the_model_fails_on_is_said_and_it_goes_on_serving(slow: Path) -> None:
    with serving(slow) as served:
        bad = served.infer(inputs=[{"name": "times", "datatype": "INT64", "shape": [1], "data": [2**63]}])
        assert bad.status == 400
        good = served.infer(inputs=[{"name": "times", "datatype": "INT64", "shape": [1], "data": [3]}])
        assert good.json["outputs"] == [{"name": "largest", "datatype": "FP32", "shape": [], "data": [1.0]}]


class Asking(threading.Thread):
    """Asks the slow model in the background."""

    def __init__(self, served: Served, times: int) -> None:
        super().__init__()
        self.served = served
        self.times = times
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        times = {"name": "times", "datatype": "INT64", "shape": [1], "data": [self.times]}
        self.answer = self.served.infer(inputs=[times])


LONG = 20_000
"""Products of 128 x 128 matrices: about a second."""


def test_a_busy_engine_blocks_neither_health_nor_a_clear_refusal(slow: Path) -> None:
    with serving(slow, "--max-queued", "1") as served, served.asked_for_ever(), served.asked_for_ever():
        served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 2)
        assert served.ask("GET", "/v2/health/live").status == 200
        assert served.ask("GET", "/v2/health/ready").status == 200
        refused = served.infer(inputs=[{"name": "times", "datatype": "INT64", "shape": [1], "data": [1]}])
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert "1 requests wait already; try again" in refused.json["error"]
        assert served.metric("skerry_serve_requests_total", outcome="unavailable") == 1


def test_a_request_whose_client_has_left_is_not_computed(slow: Path) -> None:
    with serving(slow) as served:
        first = Asking(served, LONG)
        served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 1)
        with served.asked_for_ever():
            served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 2)
        served.until(lambda: served.metric("skerry_serve_requests_total", outcome="cancelled") == 1)
        first.join(WAIT_SECONDS)
        served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 0)


def test_sigterm_answers_what_runs_and_exits_with_0(slow: Path) -> None:
    with serving(slow) as served:
        asking = Asking(served, LONG)
        served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(WAIT_SECONDS) == 0
        asking.join(WAIT_SECONDS)
        assert asking.answer is not None
        assert asking.answer.status == 200
        assert asking.answer.headers["connection"] == "close"
        assert "serve.stopped model=digits in_time=True" in served.log.read_text()


def test_the_grace_has_an_end(slow: Path) -> None:
    with serving(slow, "--grace-seconds", "0.05") as served:
        with served.asked_for_ever():
            served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 1)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(WAIT_SECONDS) == 1
        assert "in_time=False" in served.log.read_text()


def test_what_still_computes_for_nobody_does_not_hold_the_end_up(slow: Path) -> None:
    with serving(slow) as served:
        with served.asked_for_ever():
            served.until(lambda: served.metric("skerry_serve_requests_in_flight") == 1)
        served.until(lambda: served.metric("skerry_serve_requests_total", outcome="cancelled") == 1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(WAIT_SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once_also_with_open_connections(digits: Path, number: signal.Signals) -> None:
    with serving(digits) as served, socket.create_connection(("127.0.0.1", served.port)) as idle:
        idle.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(10) == b"HTTP/1.1 2"
        served.process.send_signal(number)
        assert served.process.wait(WAIT_SECONDS) == 0


SLOW_IMPORT = """
import os, sys, time
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.005)
sys.path.remove(os.path.dirname(os.path.dirname(__file__)))
del sys.modules["onnxruntime"]
import onnxruntime
"""


def test_it_is_live_before_it_is_ready_and_refuses_politely_meanwhile(digits: Path) -> None:
    (digits / "first" / "onnxruntime").mkdir(parents=True)
    (digits / "first" / "onnxruntime" / "__init__.py").write_text(SLOW_IMPORT)
    go = digits / "go"
    variables = {"PYTHONPATH": str(digits / "first"), "GO": str(go)}
    with serving(digits, variables=variables, pattern=LISTENING) as served:
        assert served.ask("GET", "/v2/health/live").json == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/digits/ready"):
            answer = served.ask("GET", path)
            assert (answer.status, answer.json["ready"]) == (503, False)
        early = served.infer(inputs=[IMAGE])
        assert early.status == 503
        assert early.headers["retry-after"] == "1"
        assert "digits: the model is being loaded" in early.json["error"]
        assert served.metric("skerry_serve_model_ready") == 0
        go.touch()
        served.logged(READY)
        assert served.ask("GET", "/v2/health/ready").status == 200
        assert served.infer(inputs=[IMAGE]).status == 200


def test_sigterm_while_it_loads_ends_it_with_0(digits: Path) -> None:
    (digits / "first" / "onnxruntime").mkdir(parents=True)
    (digits / "first" / "onnxruntime" / "__init__.py").write_text(SLOW_IMPORT)
    variables = {"PYTHONPATH": str(digits / "first"), "GO": str(digits / "never")}
    with serving(digits, variables=variables, pattern=LISTENING) as served:
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(WAIT_SECONDS) == 0


def test_the_engine_tells_nobody_what_runs_here(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = digits / "home"
    home.mkdir()
    with serving(digits, variables={"HOME": str(home)}) as server:
        opened = [os.readlink(path) for path in Path(f"/proc/{server.process.pid}/fd").iterdir()]
        assert not [name for name in opened if name.endswith(".db")], "what ONNX Runtime's telemetry waits in"
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("content", [b"", b"this is no model"])
def test_a_file_that_is_no_model(digits: Path, content: bytes) -> None:
    (digits / "model.onnx").write_bytes(content)
    assert "model.onnx: is not a model that ONNX Runtime can load" in fails(digits)


def test_what_is_not_there_or_not_right_is_said(digits: Path) -> None:
    (digits / "bad.json").write_text('{"inputs": [{"name": 5}]}')
    for arguments, words in [
        (["--file", str(digits / "none.onnx")], "none.onnx: no such file"),
        (["--signature", str(digits / "none.json")], "none.json: cannot be read: No such file"),
        (["--signature", str(digits / "bad.json")], "bad.json: is not a signature"),
        (["--host", "256.1.1.1"], "256.1.1.1:0: is not an address to listen on"),
        (["--version", ""], "--model, --version"),
    ]:
        assert words in fails(digits, *arguments)


def test_a_port_in_use(digits: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails(digits, "--port", str(port))
    assert said == (
        f"skerry serve: 127.0.0.1:{port}: cannot be listened on: Address already in use; choose another --port"
    )


def test_it_imports_little(digits: Path) -> None:
    code = "import sys, skerry.serve.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=WAIT_SECONDS, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.decode().split()}
    heavy = {"typer", "rich", "httpx", "cryptography", "starlette", "uvicorn", "numpy", "onnxruntime", "sqlalchemy"}
    assert not loaded & heavy
    assert not loaded & {"aiomqtt", "psutil", "yaml", "email", "unittest"}


async def test_the_process_runtime_runs_it_within_a_memory_limit(digits: Path) -> None:
    runtime = ProcessRuntime(digits / "runtime")
    launch = Launch(
        name="digits-a",
        argv=command(digits),
        directory=digits,
        environment={},
        log=digits / "serve.log",
        memory_limit_bytes=96 * 1024 * 1024,
    )
    instance = await runtime.start(launch)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (ready := READY.search(_read(launch.log))):
                assert await runtime.alive(instance), _read(launch.log)
                await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(ready.group(1)))
        writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await reader.read()).endswith(b'{"ready":true}')
        writer.close()
        await writer.wait_closed()
        assert 20_000_000 < await runtime.peak_memory(instance) < 200_000_000
        await runtime.stop(instance, grace_seconds=WAIT_SECONDS)
        assert "serve.stopped model=digits in_time=True" in _read(launch.log)
    finally:
        await runtime.stop(instance, grace_seconds=0)


def _read(path: Path) -> str:
    return path.read_text()
