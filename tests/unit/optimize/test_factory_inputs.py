"""What is sent to the Jobs: a graph's weights and a function's neighbours too; all of it makes the run's name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper

from skerry.api.errors import InvalidError, NotFoundError
from skerry.optimize import inputs, kubernetes, request
from skerry.optimize.kubernetes import Cluster
from skerry.optimize.recipe import Optimization

PLACE = Cluster(repository="registry.example/models/digits", image="registry.example/skerry:1.0")


@pytest.fixture
def wanted(tmp_path: Path) -> Optimization:
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    weights = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "parts").mkdir()
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="parts/w.bin", size_threshold=0)
    for name in ("data.npz", "metric.py", "shares.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    recipe = {
        "name": "small",
        "version": "v1",
        "source": {"path": "m.onnx"},
        "data": {"path": "data.npz"},
        "out": "package",
        "metric": "metric.py:score",
    }
    (tmp_path / "optimize.yaml").write_text(yaml.safe_dump(recipe))
    return request.read(tmp_path / "optimize.yaml", {})


def test_weights_and_neighbours_are_sent(wanted: Optimization) -> None:
    assert set(inputs.files(wanted)) == {"m.onnx", "parts/w.bin", "data.npz", "metric.py", "shares.py"}
    plain = inputs.localised(wanted)
    assert (plain["source"]["path"], plain["metric"]) == ("m.onnx", "metric.py:score")


@pytest.mark.parametrize("name", ["shares.py", "parts/w.bin", "metric.py", "data.npz"])
def test_a_change_in_any_of_them_is_another_run(name: str, wanted: Optimization, tmp_path: Path) -> None:
    before = kubernetes.run_name(wanted, PLACE)
    assert kubernetes.run_name(wanted, PLACE) == before
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert kubernetes.run_name(wanted, PLACE) != before


def test_weights_that_are_not_there_are_named(wanted: Optimization, tmp_path: Path) -> None:
    (tmp_path / "parts" / "w.bin").unlink()
    with pytest.raises(NotFoundError, match=r"parts/w\.bin: no such file; m\.onnx keeps weights there"):
        inputs.files(wanted)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_weights_elsewhere_are_not_sent(location: str, wanted: Optimization, tmp_path: Path) -> None:
    model = onnx.load_model(tmp_path / "m.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidError, match="outside of its directory"):
        inputs.files(wanted)


def test_what_is_no_graph_is_said(wanted: Optimization, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(InvalidError, match=r"m\.onnx: is no ONNX file"):
        inputs.files(wanted)
