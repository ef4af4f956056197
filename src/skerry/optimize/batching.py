"""The batch dimension of ONNX graphs: what a file fixes, and freeing it where the graph allows.

Lives here: shapes of inputs and outputs. Must not live here: running graphs; whoever frees a batch runs the result and
compares.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import ModelSignature

BATCH = "batch"


def fixed_batch(signature: ModelSignature, *, element: str) -> int | None:
    """Return the batch size that all inputs of a file fix, None if it is free. Raises InvalidError without a batch."""
    sizes = set()
    for spec in signature.inputs:
        if not spec.shape:
            raise InvalidError(
                f"input {spec.name} has no dimensions, so that it cannot hold samples", element=element, hint=_HINT
            )
        sizes.add(spec.shape[0])
    if len(sizes) > 1:
        raise InvalidError(
            f"inputs disagree about the batch ({', '.join(f'{s.name} {s.shape}' for s in signature.inputs)})",
            element=element,
            hint=_HINT,
        )
    size = sizes.pop() if sizes else -1
    return None if size < 1 else size


def with_signature(model: onnx.ModelProto, signature: ModelSignature) -> onnx.ModelProto:
    """Return the graph with inputs and outputs of exactly these shapes; the first dimension is called `batch`."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    wanted = {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}
    for value in (*made.graph.input, *made.graph.output):
        if value.name in wanted:
            before = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
            shape = wanted[value.name]
            del value.type.tensor_type.shape.dim[:]
            for axis, size in enumerate(shape):
                dim = value.type.tensor_type.shape.dim.add()
                if size >= 0:
                    dim.dim_value = size
                elif axis == 0:
                    dim.dim_param = BATCH
                else:
                    known = before[axis] if axis < len(before) else ""
                    dim.dim_param = known if known and known != BATCH else f"{value.name}_{axis}"
    return made


def free(model: onnx.ModelProto, fixed: int) -> onnx.ModelProto:
    """Return the graph with a free first dimension of inputs and outputs; inner shapes are left to the engine."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    for value in (*made.graph.input, *made.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == fixed:
            dims[0].dim_param = BATCH
    return made


def free_with_reshapes(model: onnx.ModelProto, fixed: int) -> onnx.ModelProto:
    """Free the batch as `free` does, and where a Reshape writes the batch as a number, let it keep its input's."""
    made = free(model, fixed)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in made.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for index, node in enumerate(made.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim == 1 and len(shape) and shape[0] == fixed and 0 not in shape:
            shape[0] = 0
            name = f"skerry_shape_{index}"
            made.graph.initializer.append(numpy_helper.from_array(np.asarray(shape, dtype=np.int64), name))
            node.input[1] = name
    return made


_HINT = "export it with the samples along the first dimension of every input"
