"""ExecuTorch programs in its own runtime, with XNNPACK: what succeeded PyTorch Mobile.

Lives here: programs, their sizes, ExecuTorch's types and errors. Must not live here: the wire, or making programs.

The runtime's extension module is imported by itself: the package's public door (`executorch.runtime`) also imports the
compiler, which costs ten seconds and 140 MiB and runs nothing. A program has no names, and says of each tensor its
largest size, not whether smaller ones will do: that is tried out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve.engines.batches import Batches, fixed_batch
from skerry.serve.engines.binding import FileTensor, accept, bind
from skerry.serve.engines.torch_arrays import to_arrays, to_torch, translated
from skerry.serve.tensors import zeros

if TYPE_CHECKING:
    from skerry.serve.engines import Array, Engine

log = logging.getLogger(__name__)

_METHOD = "forward"
# executorch/runtime/core/portable_type/scalar_type.h
_DATATYPES = {
    0: "UINT8",
    1: "INT8",
    2: "INT16",
    3: "INT32",
    4: "INT64",
    5: "FP16",
    6: "FP32",
    7: "FP64",
    11: "BOOL",
    27: "UINT16",
    28: "UINT32",
    29: "UINT64",
}
_ERROR = re.compile(r"error:? 0x:?([0-9a-f]+)", re.IGNORECASE)
# executorch/runtime/core/error.h
_CAUSES = {
    0x10: "it cannot do what was asked of it",
    0x12: "an argument has a size or type that the program does not take",
    0x14: "it needs an operator that is not in this build of ExecuTorch",
    0x20: "a backend that it needs is not in this build of ExecuTorch",
    0x22: "it cannot be read",
    0x23: "it is no ExecuTorch program, is cut short, or was made for another version",
    0x24: "the data beside the program is missing or wrong",
    0x30: "a delegate refuses it",
}
_NO_MEMORY = (0x21, 0x25, 0x31)


class ExecutorchEngine:
    """Loads `.pte` files into ExecuTorch's runtime."""

    platform = "pytorch_executorch"

    def __init__(self) -> None:
        self._runtime: Any = _runtime()
        self.version = importlib.metadata.version("executorch")

    def load(self, file: Path, signature: ModelSignature, *, threads: int) -> ExecutorchModel:
        """Load a program's method `forward`; `threads` holds for the process.

        Raises InvalidError, NotFoundError, UnavailableError.
        """
        if not file.is_file():
            raise NotFoundError("no such file", element=str(file))
        runtime = self._runtime
        torch.set_num_threads(threads)
        if runtime._threadpool_get_thread_count() != threads:  # noqa: SLF001 (all that the module offers)
            runtime._unsafe_reset_threadpool(threads)  # noqa: SLF001 (nothing runs yet)
        try:
            program = runtime._load_program(  # noqa: SLF001
                str(file),
                enable_etdump=False,
                debug_buffer_size=0,
                program_verification=runtime.Verification.InternalConsistency,
                data_path=None,
            )
            names = [program.get_method_name(number) for number in range(program.num_methods())]
            if _METHOD not in names:
                raise InvalidError(f"has no method {_METHOD}, but {names}", element=str(file))
            described = program.method_meta(_METHOD)
            method = program.load_method(_METHOD)
        except MemoryError as error:
            raise UnavailableError("not enough memory to load it", element=str(file)) from error
        except RuntimeError as error:
            raise _translated(error, str(file), "is not a program that ExecuTorch can load") from error
        return ExecutorchModel(program, method, described, signature, file)


class ExecutorchModel:
    """One method of one program."""

    def __init__(self, program: Any, method: Any, described: Any, signature: ModelSignature, file: Path) -> None:
        takes = [_tensor(described.input_tensor_meta, number, file) for number in range(described.num_inputs())]
        gives = [_tensor(described.output_tensor_meta, number, file) for number in range(described.num_outputs())]
        bind("input", [_open(one, spec) for one, spec in _pairs(takes, signature.inputs)], signature.inputs, file)
        bind("output", [_open(one, spec) for one, spec in _pairs(gives, signature.outputs)], signature.outputs, file)
        self._program = program
        self._method = method
        self._signature = signature
        self._shapes = [list(one.shape or []) for one in takes]
        try:
            self._batches = fixed_batch(signature, self._shapes)
        except InvalidError as error:
            raise InvalidError(error.cause, element=str(file)) from error
        if self._batches is not None and self._batches.size > 1 and self._takes_one():
            self._batches = Batches(size=self._batches.size, exact=False)

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run it. Raises InvalidError, UnavailableError, SkerryError."""
        specs = self._signature.outputs
        arrays = [inputs[spec.name] for spec in self._signature.inputs]
        if self._batches is None:
            found = self._run(arrays)
        else:
            found = self._batches.run(arrays, self._signature.inputs, specs, self._run)
        named = dict(zip([spec.name for spec in specs], found, strict=True))
        return [named[name] for name in outputs]

    def unload(self) -> None:
        """Free the method, then its program."""
        self._method = None
        self._program = None

    def _run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        method = self._method
        if method is None:
            raise UnavailableError("the model is unloaded")
        for array, shape, spec in zip(arrays, self._shapes, self._signature.inputs, strict=True):
            accept(array, shape, spec)
        tensors = [to_torch(array, spec.name) for array, spec in zip(arrays, self._signature.inputs, strict=True)]
        try:
            with torch.inference_mode():
                found = method(tensors)
        except MemoryError as error:
            raise UnavailableError("not enough memory for this request", hint="send a smaller batch") from error
        except RuntimeError as error:
            raise _translated(error, "", "the model failed on this input") from error
        return to_arrays(found, self._signature.outputs)

    def _takes_one(self) -> bool:
        """Whether a program whose batch may be larger runs with one sample: its file does not tell."""
        specs = self._signature.inputs
        sizes = [[1 if size == -1 else size for size in spec.shape] for spec in specs]
        for size, largest in zip(sizes, self._shapes, strict=True):
            size[1:] = largest[1:]
        try:
            self._run([zeros(spec.datatype, size) for spec, size in zip(specs, sizes, strict=True)])
        except SkerryError:
            return False
        return True


def engine() -> Engine:
    """Return this engine."""
    return ExecutorchEngine()


def _runtime() -> Any:
    """Return the extension module; by the long way round where a release keeps it elsewhere."""
    try:
        return importlib.import_module("executorch.extension.pybindings._C")
    except ModuleNotFoundError:
        return importlib.import_module("executorch.extension.pybindings.portable_lib")


def _tensor(describe: Any, number: int, file: Path) -> FileTensor:
    try:
        found = describe(number)
    except (RuntimeError, IndexError) as error:
        raise InvalidError(f"argument or result {number} is no tensor", element=str(file)) from error
    return FileTensor(datatype=_DATATYPES.get(found.dtype(), f"type {found.dtype()}"), shape=list(found.sizes()))


def _pairs(tensors: Sequence[FileTensor], specs: Sequence[TensorSpec]) -> list[tuple[FileTensor, TensorSpec | None]]:
    return [(one, specs[number] if number < len(specs) else None) for number, one in enumerate(tensors)]


def _open(tensor: FileTensor, spec: TensorSpec | None) -> FileTensor:
    """Leave open what the signature leaves open: a program tells the largest sizes."""
    if spec is None or tensor.shape is None or len(tensor.shape) != len(spec.shape):
        return tensor
    shape = [-1 if wanted == -1 else size for size, wanted in zip(tensor.shape, spec.shape, strict=True)]
    return FileTensor(datatype=tensor.datatype, shape=shape)


def _code(error: RuntimeError) -> int:
    found = _ERROR.search(str(error))
    return int(found.group(1), 16) if found else -1


def _translated(error: RuntimeError, element: str, cause: str) -> SkerryError:
    code = _code(error)
    if code in _NO_MEMORY:
        return UnavailableError("not enough memory", element=element)
    if code in _CAUSES:
        return InvalidError(f"{cause} ({_CAUSES[code]}, error 0x{code:x})", element=element)
    return translated(error, element, cause)
