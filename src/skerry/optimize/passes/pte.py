"""ExecuTorch programs from modules: exported, quantised by PT2E, lowered to XNNPACK.

Lives here: making the files; `executorch` has the table of recipes. Must not live here: running them (`skerry.serve`).
"""

from __future__ import annotations

import re
from typing import Any

import torch

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import module as modules
from skerry.optimize.passes.material import Material
from skerry.optimize.quiet import quiet

with quiet():  # its modules warn when they are imported
    from executorch.backends.xnnpack.partition import xnnpack_partitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e import quantize_pt2e

_OPERATOR = re.compile(r"\b(?:aten|torch\._ops|prims|torchvision)[\w.:]*\.[\w.]+")


def plain(material: Material) -> None:
    """Write the program in float32. Raises InvalidError, UnsupportedError."""
    _write(material, modules.program(material.load(), material.inputs_sample))


def quantised(material: Material, *, per_channel: bool) -> None:
    """Write the program in int8, ranges observed on calibration inputs. Raises InvalidError, UnsupportedError."""
    wanted = material.options.per_channel
    _write(material, _quantised(material, per_channel=per_channel if wanted is None else wanted))


def _quantised(material: Material, *, per_channel: bool) -> Any:
    exported = modules.program(material.load(), material.inputs_sample)
    samples = min(material.options.calibration_samples, *map(len, material.calibration.values()))
    with quiet(), torch.no_grad():
        config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=per_channel)
        quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
        for layer in material.options.keep_layers:
            quantizer.set_module_name(f"module.{layer}", None)
        observed = quantize_pt2e.prepare_pt2e(exported.module(), quantizer)
        for index in range(samples):
            observed(*modules.tensors(material.calibration, index, 1))
        converted = quantize_pt2e.convert_pt2e(observed)
        if not any("quantize_per" in str(node.target) for node in converted.graph.nodes):
            raise InvalidError("has no layer that can be int8", element="model", hint="leave executorch-int8 out")
        return torch.export.export(converted, modules.tensors(material.inputs_sample, 0, 1))


def _write(material: Material, exported: Any) -> None:
    try:
        with quiet():
            edge = to_edge_transform_and_lower(exported, partitioner=[xnnpack_partitioner.XnnpackPartitioner()])
            delegated, left = _operators(edge.exported_program().graph_module)
            made = edge.to_executorch()
    except SkerryError:
        raise
    except Exception as error:  # the compiler's exceptions have no common type
        raise _unsupported(error) from error
    _check_kernels(made)
    material.detail["xnnpack-parts"] = str(delegated)
    if left:
        material.detail["portable-operators"] = ", ".join(left)
    material.out.write_bytes(made.buffer)


def _operators(graph_module: Any) -> tuple[int, list[str]]:
    """Return how many parts XNNPACK runs, and the operators that are left to the slow portable kernels."""
    calls = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]
    delegated = sum("executorch_call_delegate" in call for call in calls)
    left = {call for call in calls if "executorch_call_delegate" not in call and "getitem" not in call}
    return delegated, sorted(left)


def _check_kernels(made: Any) -> None:
    """Refuse a program with an operator for which the runtime has no kernel: it would fail on the device."""
    known = set(Runtime.get().operator_registry.operator_names)
    plan = made.executorch_program.execution_plan[0]
    for operator in plan.operators:
        name = f"{operator.name}.{operator.overload}" if operator.overload else operator.name
        if name not in known:
            raise UnsupportedError(
                "has no kernel in the ExecuTorch runtime", element=f"operator {name}", hint="take another format"
            )


def _unsupported(error: Exception) -> SkerryError:
    text = str(error)
    found = _OPERATOR.search(text)
    return UnsupportedError(
        f"cannot be lowered to ExecuTorch ({first_line(error)})",
        element=f"operator {found.group(0)}" if found else "model",
        hint="take another format, or replace the operator in forward()",
    )
