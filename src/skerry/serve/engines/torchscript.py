"""TorchScript in PyTorch's interpreter, on the CPU: what PyTorch Mobile ran. Deprecated there, and still run here.

Lives here: loading, running. Must not live here: the wire, or reading anything but TorchScript: a pickle, which could
execute code of its own in Python, is refused unread.

A file names no shapes, no datatypes and no outputs: these are learned from a run on zeros.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.serve.engines.binding import FileTensor, bind
from skerry.serve.engines.torch_arrays import to_arrays, to_torch, translated
from skerry.serve.tensors import zeros

if TYPE_CHECKING:
    from skerry.serve.engines import Array, Engine

_CODE, _BYTECODE, _PICKLE = "constants.pkl", "bytecode.pkl", "data.pkl"


class TorchScriptEngine:
    """Loads `.pt` and `.ptl` files that hold TorchScript."""

    platform = "pytorch_torchscript"
    version: str = torch.__version__.partition("+")[0]

    def load(self, file: Path, signature: ModelSignature, *, threads: int) -> TorchScriptModel:
        """Load a model; `threads` holds for the process. Raises InvalidError, NotFoundError, UnavailableError."""
        if not file.is_file():
            raise NotFoundError("no such file", element=str(file))
        _refuse_pickles(file)
        torch.set_num_threads(threads)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # known, and told in the documentation
                module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
            module.eval()
        except MemoryError as error:
            raise UnavailableError("not enough memory to load it", element=str(file)) from error
        except Exception as error:
            raise translated(error, str(file), "is not a model that TorchScript can load") from error
        model = TorchScriptModel(module, signature, _places(module, signature, file))
        _try_out(model, signature, file)
        return model


class TorchScriptModel:
    """One module."""

    def __init__(self, module: torch.jit.ScriptModule, signature: ModelSignature, places: Sequence[int]) -> None:
        self._module: torch.jit.ScriptModule | None = module
        self._signature = signature
        self._order = [signature.inputs[place].name for place in places]

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run it. Raises InvalidError, UnavailableError, SkerryError."""
        module = self._module
        if module is None:
            raise UnavailableError("the model is unloaded")
        arguments = [to_torch(inputs[name], name) for name in self._order]
        try:
            with torch.inference_mode():
                found: Any = module(*arguments)
        except MemoryError as error:
            raise UnavailableError("not enough memory for this request", hint="send a smaller batch") from error
        except Exception as error:
            raise translated(error, "", "the model failed on this input") from error
        specs = self._signature.outputs
        arrays = dict(zip([spec.name for spec in specs], to_arrays(found, specs), strict=True))
        return [arrays[name] for name in outputs]

    def unload(self) -> None:
        """Free the module."""
        self._module = None


def engine() -> Engine:
    """Return this engine."""
    return TorchScriptEngine()


def _refuse_pickles(file: Path) -> None:
    """Say what a file that is no TorchScript is. Raises InvalidError."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except OSError as error:
        raise InvalidError(f"cannot be read ({error.strerror or error})", element=str(file)) from error
    except zipfile.BadZipFile as error:
        raise InvalidError(f"is not a TorchScript archive ({error})", element=str(file)) from error
    if _CODE in names:
        return
    if _BYTECODE in names:
        raise InvalidError(
            "holds bytecode for PyTorch Mobile only",
            element=str(file),
            hint="save it with its code beside the bytecode",
        )
    what = "a pickle of Python objects, not TorchScript" if _PICKLE in names else "no TorchScript archive"
    raise InvalidError(
        f"is {what}", element=str(file), hint="export the model: skerry model optimize makes torchscript-fp32"
    )


def _places(module: Any, signature: ModelSignature, file: Path) -> Sequence[int]:
    """Return for each argument of `forward` the place of its tensor in the signature. Raises InvalidError."""
    try:
        arguments = list(module.forward.schema.arguments)[1:]
    except (AttributeError, RuntimeError) as error:
        raise InvalidError("has no method forward", element=str(file)) from error
    needed = [one for one in arguments if not one.has_default_value()]
    found = arguments[: len(signature.inputs)] if len(needed) <= len(signature.inputs) else needed
    tensors = [FileTensor(name=one.name, datatype="", shape=None) for one in found]
    places = bind("input", tensors, signature.inputs, file)
    return sorted(range(len(places)), key=lambda place: places[place])


def _try_out(model: TorchScriptModel, signature: ModelSignature, file: Path) -> None:
    """Run it on zeros, as often as its interpreter takes to settle. Raises InvalidError when it breaks the signature.

    A model that fails on zeros is not refused: it may be right to.
    """
    inputs = {
        spec.name: zeros(spec.datatype, [1 if size == -1 else size for size in spec.shape]) for spec in signature.inputs
    }
    for _ in range(2):
        try:
            model.infer(inputs, [spec.name for spec in signature.outputs])
        except (InvalidError, UnavailableError, UnsupportedError):
            return
        except SkerryError as error:
            raise InvalidError(
                error.cause, element=f"{file}, {error.element}" if error.element else str(file)
            ) from error
