"""TorchScript files: PyTorch Mobile's format, run by torch, exported by tracing.

TorchScript is a language of its own that knows no Python, but a few of its operators touch files; a program that uses
them is refused before it is loaded. A `.pt` that is a pickle instead is refused by what it would import.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from skerry.api.errors import ForbiddenError, InvalidError, SkerryError, TooLargeError
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers import files, pickles, torch_onnx
from skerry.optimize.importers.torch import TorchSource
from skerry.optimize.recipe import SourceSpec

MAX_CODE_BYTES = 64 * 1024**2
_HINT = "save it with torch.jit.save(torch.jit.script(model), path)"
_CODE = re.compile(r"^[^/]+/code/.+\.py$")
_FILES = re.compile(r"\b(?:torch|ops\.aten|aten)\.(save|from_file|load|hub\w*)\s*\(")


def open_source(spec: SourceSpec, *, seed: int) -> TorchSource:
    """Read a TorchScript file; see `importers.open_source`."""
    path = Path(spec.path)
    content = files.read(path, hint=_HINT)
    _check_program(content, path.name)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecated, and still what these files are
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location="cpu"
            )
            module.eval()
    except Exception as error:  # torch has no common exception type
        raise_if_starved(error)
        raise InvalidError(
            f"cannot be loaded as TorchScript ({first_line(error)})", element=path.name, hint=_HINT
        ) from error
    names = _parameters(module)
    return TorchSource(
        module,
        kind="torchscript",
        forms=frozenset({"torchscript", "onnx"}),
        digests={path.name: sha256(content).hexdigest()},
        names=names if len(names) > 1 else [],
        ways=(torch_onnx.by_script,),
    )


def _check_program(content: bytes, name: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sources = [info for info in archive.infolist() if _CODE.match(info.filename)]
            if sum(info.file_size for info in sources) > MAX_CODE_BYTES:
                raise TooLargeError(f"holds more than {MAX_CODE_BYTES} bytes of code", element=name)
            code = {info.filename: archive.read(info).decode(errors="replace") for info in sources}
            members = {member.partition("/")[2] for member in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise _not_torchscript(content, name) from error
    if not code or "constants.pkl" not in members:
        raise _not_torchscript(content, name)
    for text in code.values():
        if found := _FILES.search(text):
            raise ForbiddenError(
                f"the program uses the operator aten::{found[1]}, which touches files; it was not run",
                element=name,
                hint="export the model without it",
            )


def _not_torchscript(content: bytes, name: str) -> SkerryError:
    if found := pickles.found_in(content):
        cause = f"is a pickle, which is a program{found}, and no TorchScript; it was not run"
        return ForbiddenError(cause, element=name, hint=_HINT)
    return InvalidError("is no TorchScript file", element=name, hint=f"{_HINT}; a state dict goes with its builder")


def _parameters(module: Any) -> list[str]:
    arguments = module.forward.schema.arguments[1:]
    return [argument.name for argument in arguments if not argument.has_default_value()]
