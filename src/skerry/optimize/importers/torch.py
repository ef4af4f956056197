"""PyTorch: a builder function and its weights, run by torch, exported to ONNX.

The builder's file is code that the user named, and is run. The weights are data, and nothing in them is ever run.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, TooLargeError
from skerry.optimize import evaluate, graph
from skerry.optimize.dataset import Array
from skerry.optimize.foreign import first_line

BATCH = 256
MAX_BUILDER_BYTES = 4 * 1024**2
INPUT = "input"
OPSET = 20
"""What torch's exporter recommends and ONNX Runtime 1.18 already runs."""

_BUILDER_HINT = "name a Python file and a function in it that returns the torch.nn.Module, as in model.py:build_model"
_WEIGHTS_HINT = "save them with torch.save(model.state_dict(), path)"


class TorchSource:
    """A PyTorch module in evaluation mode with its trained weights."""

    kind: Literal["pytorch"] = "pytorch"

    def __init__(self, module: torch.nn.Module, digests: Mapping[str, str]) -> None:
        self.digests = digests
        self._module = module.eval().requires_grad_(requires_grad=False)

    def predict(self, samples: Array) -> list[Array]:
        """Run samples [n, ...] in batches; return every output [n, ...]. Raises InvalidError."""
        parts = []
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            outputs = list(_flatten(self._run(batch)).values())
            for output in outputs:
                if output.ndim < 1 or len(output) != len(batch):
                    raise InvalidError(
                        f"gives an output of shape {list(output.shape)} for {len(batch)} samples",
                        element="model",
                        hint="every output needs one entry per sample, samples outermost",
                    )
            parts.append([_to_numpy(output) for output in outputs])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def export(self, samples: Array) -> bytes:
        """Return a serialised ONNX graph with a free batch size, checked against torch. Raises InvalidError."""
        example = np.resize(
            samples[:2], (2, *samples.shape[1:])
        )  # of a batch of one, torch.export would make a constant
        names = list(_flatten(self._run(example)))
        reasons = []
        for way in (_export_program, _export_script):
            try:
                exported = way(self._module, torch.from_numpy(example), names)
                _check_export(exported, self, samples)
            except SkerryError as error:
                reasons.append(error.sentence)
            except Exception as error:  # noqa: BLE001 - exporters raise whatever the model's own code makes them raise
                reasons.append(first_line(error))
            else:
                return exported
        raise InvalidError(
            f"cannot be exported to ONNX: {'; '.join(dict.fromkeys(reasons))}",
            element="model",
            hint="keep Python control flow that depends on tensor values or on the batch size out of forward()",
        )

    def _run(self, batch: Array) -> Any:
        try:
            with torch.no_grad():
                return self._module(torch.from_numpy(np.ascontiguousarray(batch)))
        except Exception as error:
            raise InvalidError(
                f"cannot take {batch.dtype.name} inputs of shape [batch, {', '.join(map(str, batch.shape[1:]))}] "
                f"({first_line(error)})",
                element="model",
                hint="compare the samples in the data with what forward() expects",
            ) from error


def load(builder: str, weights: Path, *, seed: int) -> TorchSource:
    """Build the module that `file.py:function` describes and load its weights.

    Raises NotFoundError, InvalidError, TooLargeError; the element says which of the two files is meant.
    """
    file, _, function = builder.rpartition(":")
    if not file or not function.isidentifier():
        raise InvalidError("is not a builder", element=builder, hint=_BUILDER_HINT)
    path = Path(os.path.abspath(file))  # as it stands in tracebacks
    code = _read(path, MAX_BUILDER_BYTES, hint=_BUILDER_HINT)
    content = _read(weights, graph.MAX_BYTES, hint=_WEIGHTS_HINT)
    torch.manual_seed(seed)
    module = _build(path, function)
    _load_weights(module, content, name=weights.name, builder=function)
    return TorchSource(module, {path.name: sha256(code).hexdigest(), weights.name: sha256(content).hexdigest()})


def _read(path: Path, most: int, *, hint: str) -> bytes:
    if not path.is_file():
        raise NotFoundError("no such file", element=str(path), hint=hint)
    if path.stat().st_size > most:
        raise TooLargeError(f"{path.stat().st_size} bytes are more than {most}", element=path.name)
    return path.read_bytes()


def _build(path: Path, function: str) -> torch.nn.Module:
    element = f"{path.name}:{function}"
    with _imports_beside(path):
        namespace = _import_file(path)
        build = getattr(namespace, function, None)
        if not callable(build):
            offered = [n for n, v in vars(namespace).items() if inspect.isfunction(v) and not n.startswith("_")]
            hint = f"functions in it: {', '.join(offered[:8])}" if offered else _BUILDER_HINT
            raise InvalidError(f"there is no function {function} in the file", element=element, hint=hint)
        module = _call(build, path, element)
    if not isinstance(module, torch.nn.Module):
        hint = "return the model itself; the weights are loaded afterwards"
        raise InvalidError(f"returned {type(module).__name__}, not a torch.nn.Module", element=element, hint=hint)
    return module


@contextmanager
def _imports_beside(path: Path) -> Iterator[None]:
    """Let the builder import the files beside it, as it could if it were run as a script."""
    directory, cached = str(path.resolve().parent), sys.dont_write_bytecode
    sys.path.insert(0, directory)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = cached
        sys.path.remove(directory)


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("skerry_builder", path)
    if spec is None or spec.loader is None:
        raise InvalidError("is not a Python file", element=path.name, hint=_BUILDER_HINT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _call(lambda: spec.loader.exec_module(module), path, path.name)  # type: ignore[union-attr]
    return module


def _call(code: Callable[[], Any], path: Path, element: str) -> Any:
    try:
        return code()
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f" at line {lines[-1]}" if lines else ""
        raise InvalidError(
            f"failed with {type(error).__name__}{at}: {first_line(error)}", element=element, hint="mend the builder"
        ) from error


def _load_weights(module: torch.nn.Module, content: bytes, *, name: str, builder: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = "holds more than tensors, or is no PyTorch file; code in it is never run"
        raise InvalidError(cause, element=name, hint=_WEIGHTS_HINT) from error
    except Exception as error:  # torch.load has no documented set of exceptions for what is no weights file
        raise InvalidError(
            f"cannot be read as weights ({first_line(error)})", element=name, hint=_WEIGHTS_HINT
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidError("is not a state dict (tensor name -> tensor)", element=name, hint=_WEIGHTS_HINT)
    misfits = _misfits(module.state_dict(), state)
    if misfits:
        raise InvalidError(
            f"the weights do not fit the model: {misfits}", element=name, hint=f"train what {builder} returns"
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidError(f"the weights do not fit the model: {first_line(error)}", element=name) from error
    not_finite = [key for key, parameter in module.named_parameters() if not parameter.isfinite().all()]
    if not_finite:
        raise InvalidError(f"{_some(not_finite)} holds NaN or infinite values", element=name, hint="train it again")


def _misfits(wanted: Mapping[str, Any], given: Mapping[str, torch.Tensor]) -> str:
    missing = [key for key in wanted if key not in given]
    unknown = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {list(given[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and isinstance(tensor, torch.Tensor) and given[key].shape != tensor.shape
    ]
    found = [
        f"missing {_some(missing)}" if missing else "",
        f"unknown {_some(unknown)}" if unknown else "",
        _some(shapes) if shapes else "",
    ]
    return "; ".join(filter(None, found))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name)[:80] for name in names[:3]) + more


def _flatten(output: Any) -> dict[str, torch.Tensor]:
    """Return the outputs by name, in order: a tensor, a tuple or list of tensors, or a dict of tensors."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    named: dict[str, Any] = {}
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif isinstance(output, (tuple, list)):
        named = {f"output_{index}": value for index, value in enumerate(output)}
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise InvalidError(
            f"gives {type(output).__name__} as its output",
            element="model",
            hint="return a tensor, or a tuple or dict of tensors",
        )
    return named


def _to_numpy(output: torch.Tensor) -> Array:
    try:
        return output.numpy()
    except (TypeError, RuntimeError) as error:
        hint = "return dense tensors on the CPU, float32 or integers"
        raise InvalidError(
            f"gives outputs that numpy cannot hold ({output.dtype})", element="model", hint=hint
        ) from error


def _export_program(module: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> bytes:
    """Export by torch.export, torch's recommended way."""
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
    if program is None:
        raise InvalidError("torch.onnx.export gave nothing")
    return graph.serialise(graph.parse(program.model_proto.SerializeToString()))


def _export_script(module: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> bytes:
    """Export by tracing, torch's older way, which takes some models that torch.export does not."""
    target = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module,
            (example,),
            target,  # type: ignore[arg-type]
            dynamo=False,
            verbose=False,
            input_names=[INPUT],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *outputs)},
        )
    return graph.serialise(graph.parse(target.getvalue()))


def _check_export(exported: bytes, source: TorchSource, samples: Array) -> None:
    """Refuse a graph that does something else than the module, also for other batch sizes than the traced one."""
    runner = evaluate.Runner(exported)
    for size in (1, 3):
        batch = np.resize(samples[:size], (size, *samples.shape[1:]))
        error = evaluate.numerical_error(runner.predict(batch), source.predict(batch))
        if error.cosine < 0.999:
            raise InvalidError(f"the exported graph differs from the model (cosine {error.cosine:.4f}, batch {size})")
