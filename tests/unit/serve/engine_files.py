"""The same small models as files of every engine, made from the same numbers, so that one reference holds for all.

`dense`: x [n, 8] -> scores [n, 4], relu(x W + b). `pair`: a, b [n, 3] -> total [n, 3], dot [n]. TensorFlow Lite files
are written with the schema that comes with LiteRT; ExecuTorch's compiler runs in a process of its own (it imports for
ten seconds, with warnings).
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry.api.kinds.tensors import ModelSignature, TensorSpec

ENGINES = {"onnxruntime": ".onnx", "litert": ".tflite", "executorch": ".pte", "torchscript": ".pt"}
MODULES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert",
    "executorch": "executorch",
    "torchscript": "torch",
}
_random = np.random.default_rng(7)
WEIGHT = _random.standard_normal((8, 4)).astype(np.float32)
BIAS = _random.standard_normal(4).astype(np.float32)


def fp32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=list(shape))


DENSE = ModelSignature(inputs=[fp32("x", -1, 8)], outputs=[fp32("scores", -1, 4)])
PAIR = ModelSignature(inputs=[fp32("a", -1, 3), fp32("b", -1, 3)], outputs=[fp32("total", -1, 3), fp32("dot", -1)])


def dense(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"scores": np.maximum(inputs["x"] @ WEIGHT + BIAS, 0)}


def pair(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"total": inputs["a"] + inputs["b"], "dot": (inputs["a"] * inputs["b"]).sum(axis=1)}


def samples(signature: ModelSignature, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {spec.name: random.standard_normal([count, *spec.shape[1:]]).astype(np.float32) for spec in signature.inputs}


# --- ONNX ---------------------------------------------------------------------------------------------------------


def onnx_dense(path: Path, batch: int = -1) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("Relu", ["y"], ["scores"]),
    ]
    weights = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")]
    return _save_onnx(path, nodes, DENSE, weights, batch)


def onnx_pair(path: Path, batch: int = -1) -> Path:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Mul", ["a", "b"], ["m"]),
        helper.make_node("ReduceSum", ["m", "axis"], ["dot"], keepdims=0),
    ]
    return _save_onnx(path, nodes, PAIR, [numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")], batch)


def _save_onnx(path: Path, nodes: Any, signature: ModelSignature, weights: Any, batch: int) -> Path:
    def described(spec: TensorSpec) -> onnx.ValueInfoProto:
        first = "n" if batch == -1 else batch
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, [first, *spec.shape[1:]])

    inputs, outputs = map(described, signature.inputs), map(described, signature.outputs)
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


# --- TensorFlow Lite ------------------------------------------------------------------------------------------------


class TfliteFile:
    """Builds a file, tensor by tensor, operator by operator."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.model.subgraphs = [self.graph]

    def tensor(self, name: str, shape: Sequence[int], data: np.ndarray | None = None) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, [abs(size) for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        integers = data is not None and data.dtype == np.int32
        tensor.type = self.schema.TensorType.INT32 if integers else self.schema.TensorType.FLOAT32
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), dtype=np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, name: str, inputs: Sequence[int], output: int, **options: object) -> None:
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, name)
        code.version = 1
        self.model.operatorCodes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), [output]
        if options:
            kind = str(options.pop("kind"))
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self.schema, f"{kind}T")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def save(self, path: Path, inputs: Mapping[str, int], outputs: Mapping[str, int], *, named: bool = True) -> Path:
        import flatbuffers

        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        if named:
            signature = self.schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = "serving_default", 0
            signature.inputs, signature.outputs = (
                [self._named(name, index) for name, index in side.items()] for side in (inputs, outputs)
            )
            self.model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path

    def _named(self, name: str, index: int) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        return entry


def tflite_dense(path: Path, batch: int = -1, *, named: bool = True, hard_coded: bool = False) -> Path:
    """`hard_coded` puts a reshape to one sample before it, as some converters do: open by its word only."""
    file = TfliteFile()
    x = given = file.tensor("first", [batch, 8])
    if hard_coded:
        x = file.tensor("reshaped", [1, 8])
        file.operator("RESHAPE", [given, file.tensor("to", [2], np.array([1, 8], dtype=np.int32))], x)
    scores = file.tensor("last", [batch, 4])
    weights = [file.tensor("w", [4, 8], np.ascontiguousarray(WEIGHT.T)), file.tensor("b", [4], BIAS)]
    activation = file.schema.ActivationFunctionType.RELU
    file.operator(
        "FULLY_CONNECTED", [x, *weights], scores, kind="FullyConnectedOptions", fusedActivationFunction=activation
    )
    return file.save(path, {"x": given}, {"scores": scores}, named=named)


def tflite_pair(path: Path, batch: int = -1, *, named: bool = True) -> Path:
    """Its outputs lie the other way round in the file, as TensorFlow's converter leaves them."""
    file = TfliteFile()
    a, b = file.tensor("first", [batch, 3]), file.tensor("second", [batch, 3])
    total, product, dot = file.tensor("sum", [batch, 3]), file.tensor("m", [batch, 3]), file.tensor("dots", [batch])
    file.operator("ADD", [a, b], total, kind="AddOptions")
    file.operator("MUL", [a, b], product, kind="MulOptions")
    axis = file.tensor("axis", [1], np.array([1], dtype=np.int32))
    file.operator("SUM", [product, axis], dot, kind="ReducerOptions", keepDims=False)
    return file.save(path, {"a": a, "b": b}, {"dot": dot, "total": total}, named=named)


# --- PyTorch --------------------------------------------------------------------------------------------------------


def torchscript_dense(path: Path) -> Path:
    import torch

    weight, bias = torch.from_numpy(WEIGHT), torch.from_numpy(BIAS)

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.nn.functional.linear(x, self.weight.T, self.bias))  # type: ignore[arg-type]

    return _traced(Dense().eval(), (torch.zeros(2, 8),), path)


def torchscript_pair(path: Path) -> Path:
    import torch

    class Pair(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            return a + b, (a * b).sum(1)

    return _traced(Pair().eval(), (torch.zeros(2, 3), torch.zeros(2, 3)), path)


def _traced(module: Any, arguments: tuple[Any, ...], path: Path) -> Path:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as a whole
        torch.jit.trace(module, arguments).save(str(path))
    return path


def executorch_files(directory: Path) -> Path:
    """Make `dense1.pte` and `dense4.pte` (fixed batches), `dense.pte` (up to 6) and `pair.pte` (up to 5)."""
    np.savez(directory / "numbers.npz", weight=WEIGHT, bias=BIAS)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, str(directory)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


_COMPILE = """
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

directory = Path(sys.argv[1])
numbers = np.load(directory / "numbers.npz")


class Dense(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)
        self.linear.weight.data = torch.from_numpy(np.ascontiguousarray(numbers["weight"].T))
        self.linear.bias.data = torch.from_numpy(numbers["bias"])

    def forward(self, x):
        return torch.relu(self.linear(x))


class Pair(torch.nn.Module):
    def forward(self, a, b):
        return a + b, (a * b).sum(1)


def save(name, module, arguments, most=None):
    shapes = None if most is None else tuple({0: torch.export.Dim("n", min=1, max=most)} for _ in arguments)
    program = torch.export.export(module.eval(), arguments, dynamic_shapes=shapes)
    made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (directory / name).write_bytes(made.buffer)


save("dense1.pte", Dense(), (torch.zeros(1, 8),))
save("dense4.pte", Dense(), (torch.zeros(4, 8),))
save("dense.pte", Dense(), (torch.zeros(2, 8),), most=6)
save("pair.pte", Pair(), (torch.zeros(2, 3), torch.zeros(2, 3)), most=5)
"""


def make(engine: str, directory: Path) -> Mapping[str, Path]:
    """Make the engine's files: `dense`, `pair` (any batch), `dense4` (a fixed batch; TorchScript fixes none)."""
    if engine == "executorch":
        executorch_files(directory)
        return {name: directory / f"{name}.pte" for name in ("dense", "dense1", "dense4", "pair")}
    if engine == "torchscript":
        return {"dense": torchscript_dense(directory / "dense.pt"), "pair": torchscript_pair(directory / "pair.pt")}
    first, second = (onnx_dense, onnx_pair) if engine == "onnxruntime" else (tflite_dense, tflite_pair)
    suffix = ENGINES[engine]
    return {
        "dense": first(directory / f"dense{suffix}"),
        "dense1": first(directory / f"dense1{suffix}", 1),
        "dense4": first(directory / f"dense4{suffix}", 4),
        "pair": second(directory / f"pair{suffix}"),
    }


@functools.cache
def files(engine: str, directory: Path) -> Mapping[str, Path]:
    """`make`, once for a directory."""
    directory.mkdir(exist_ok=True)
    return make(engine, directory)
