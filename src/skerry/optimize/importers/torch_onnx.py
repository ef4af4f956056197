"""From torch to ONNX: the ways that torch's exporters know, tried in order, and the check that they kept the model.

Exporters write paths of this machine into the graph; `graph.serialise` strips them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from skerry.api.errors import InvalidError, SkerryError
from skerry.optimize import evaluate, graph
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers.tensors import Reference, first

_SAME = 0.999
"""Cosine that an exported graph must reach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the graph shall look like."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    examples: tuple[torch.Tensor, ...]
    """One tensor per input, two samples each."""
    opset: int


Way = Callable[[torch.nn.Module, Wanted], bytes]


def export(module: torch.nn.Module, wanted: Wanted, ways: Sequence[Way], reference: Reference, inputs: Inputs) -> bytes:
    """Return the first graph that does what the reference does on these samples. Raises InvalidError."""
    reasons = []
    for way in ways:
        try:
            exported = way(module, wanted)
            check(exported, reference, inputs)
        except SkerryError as error:
            reasons.append(error.sentence)
        except Exception as error:  # noqa: BLE001 - exporters raise whatever the model's own code makes them raise
            raise_if_starved(error)
            reasons.append(first_line(error))
        else:
            return exported
    raise InvalidError(
        f"cannot be exported to ONNX: {'; '.join(dict.fromkeys(reasons))}",
        element="model",
        hint="keep Python control flow that depends on tensor values or on the batch size out of forward()",
    )


def check(exported: bytes, reference: Reference, inputs: Inputs) -> None:
    """Refuse a graph that does something else than the model, also for other batch sizes than the traced one."""
    runner = evaluate.Runner(exported)
    for size in (1, 3):
        batch = first(inputs, size)
        expected = list(reference.predict(batch).values())
        error = evaluate.numerical_error(runner.predict(batch), expected)
        if error.cosine < _SAME:
            raise InvalidError(f"the exported graph differs from the model (cosine {error.cosine:.4f}, batch {size})")


def by_trace(module: torch.nn.Module, wanted: Wanted) -> bytes:
    """Export by tracing, where tracing has nothing to warn of: many times faster than by torch.export.

    The tracer warns wherever Python code takes a value or a size out of a tensor, which would make the graph one of
    these samples alone. Raises InvalidError then.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exported = _traced(module, wanted)
    doubts = [one for one in warned if not issubclass(one.category, DeprecationWarning)]
    if doubts:
        raise InvalidError(f"the tracer warns: {first_line(Warning(doubts[0].message))}")
    return exported


def by_program(module: torch.nn.Module, wanted: Wanted) -> bytes:
    """Export by torch.export, torch's recommended way."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            module,
            wanted.examples,
            dynamo=True,
            verbose=False,
            input_names=wanted.inputs,
            output_names=wanted.outputs,
            opset_version=wanted.opset,
            dynamic_shapes=tuple({0: batch} for _ in wanted.inputs),
            external_data=False,
        )
    if program is None:
        raise InvalidError("torch.onnx.export gave nothing")
    return graph.serialise(graph.parse(program.model_proto.SerializeToString()))


def by_script(module: torch.nn.Module, wanted: Wanted) -> bytes:
    """Export by tracing, torch's older way, which takes some models that torch.export does not, and TorchScript."""
    with warnings.catch_warnings(action="ignore"):
        return _traced(module, wanted)


def _traced(module: torch.nn.Module, wanted: Wanted) -> bytes:
    target = io.BytesIO()
    torch.onnx.export(
        module,
        wanted.examples,
        target,  # type: ignore[arg-type]
        dynamo=False,
        # the module is in evaluation; told so, the exporter would fuse and fold weights under names of its own
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        verbose=False,
        input_names=wanted.inputs,
        output_names=wanted.outputs,
        opset_version=wanted.opset,
        dynamic_axes={name: {0: "batch"} for name in (*wanted.inputs, *wanted.outputs)},
    )
    return graph.serialise(graph.parse(target.getvalue()))
