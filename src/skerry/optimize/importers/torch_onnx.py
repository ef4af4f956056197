"""From torch to ONNX: the ways that torch's exporters know, tried in order, and the check that they kept the model.

Exporters write paths of this machine into the graph; `graph.serialise` strips them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skerry.api.errors import InvalidError, SkerryError
from skerry.optimize import evaluate, graph
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers.tensors import Reference, first

_RELATIVE = 0.01
"""Largest difference of a number, in largest numbers of that output, that rounding may make."""
_FLIPPED = 0.02
"""Share of samples whose whole numbers or truth values rounding may have turned over."""
_TINY = 1e-6
_LOOKS = frozenset({"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::allclose"})
"""Operators by which Python code looks at a tensor's values; of some the tracer says nothing."""


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
    """Refuse a graph that does something else than the model: on any of these samples, each output by itself.

    In batches of one, of three and of all, because the traced batch was of two.
    """
    runner = evaluate.Runner(exported)
    bound = reference.bound(inputs)
    count = len(next(iter(bound.values())))
    for size in dict.fromkeys((count, 3, 1)):
        parts = []
        for start in range(0, count, size):
            batch = first({name: samples[start : start + size] for name, samples in bound.items()}, size)
            outputs, expected = runner.predict(batch, batch=None), list(reference.predict(batch).values())
            evaluate.numerical_error(outputs, expected)  # shapes, and whether it is finite
            parts.append((outputs, expected))
        pairs = (zip(*group, strict=True) for group in zip(*(zip(*part, strict=True) for part in parts), strict=True))
        for index, pair in enumerate(pairs):
            ours, theirs = (np.concatenate(arrays) for arrays in pair)
            if said := _difference(ours, theirs):
                raise InvalidError(f"the exported graph differs from the model (output {index}, batch {size}: {said})")


def _difference(ours: Array, theirs: Array) -> str:
    """Return in what way an output is another one than rounding explains."""
    if theirs.dtype.kind != "f":
        flipped = float((ours != theirs).reshape(len(theirs), -1).any(axis=1).mean())
        return f"other values for {flipped:.0%} of the samples" if flipped > _FLIPPED else ""
    distance = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0))
    largest = max(float(np.abs(theirs).max(initial=0.0)), _TINY)
    return f"by {distance / largest:.2%} of its largest value" if distance > _RELATIVE * largest else ""


class _Looks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators by which the model's Python code looks at values, whatever becomes of warnings."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator as it is."""
        if func.name() in _LOOKS:
            self.found.add(func.name())
        return func(*args, **(kwargs or {}))


def by_trace(module: torch.nn.Module, wanted: Wanted) -> bytes:
    """Export by tracing, where tracing has nothing to warn of: many times faster than by torch.export.

    The tracer warns wherever Python code takes a value or a size out of a tensor, which would make the graph one of
    these samples alone. The model's code may suppress that, and of some operators the tracer says nothing, so the
    module is also run once with all operators watched. Raises InvalidError for both.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exported = _traced(module, wanted)
    doubts = [one for one in warned if not issubclass(one.category, DeprecationWarning)]
    if doubts:
        raise InvalidError(f"the tracer warns: {first_line(Warning(doubts[0].message))}")
    with _Looks() as looks, torch.no_grad(), warnings.catch_warnings(action="ignore"):
        module(*(example.clone() for example in wanted.examples))
    if looks.found:
        raise InvalidError(f"Python code looks at values, by {', '.join(sorted(looks.found))}")
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
