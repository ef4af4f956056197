"""TorchScript files: PyTorch Mobile's format, run by torch, exported by tracing.

TorchScript is a language of its own that knows no Python, but a few of its operators touch files; a program that names
them is refused before it is loaded. A `.pt` that is a pickle instead is refused by what it would import.
"""

from __future__ import annotations

import ast
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
from skerry.optimize.importers.archives import Archive
from skerry.optimize.importers.torch import TorchSource
from skerry.optimize.recipe import SourceSpec

MAX_CODE_BYTES = 64 * 1024**2
_HINT = "save it with torch.jit.save(torch.jit.script(model), path)"
_CODE = re.compile(r"code/.+\.py", re.IGNORECASE | re.DOTALL)
"""Without regard to case, as torch looks them up."""
_OUTSIDE = {"save", "from_file", "load", "load_tensor", "hub", "rpc_sync", "rpc_async", "rpc_remote"}
_SPELLED = re.compile(rf"\.\s*({'|'.join(sorted(_OUTSIDE, key=len, reverse=True))})\s*\(")


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
        with Archive(content, name, hint=_HINT) as archive:
            sources = {inner: size for inner, size in archive.sizes.items() if _CODE.fullmatch(inner)}
            if sum(sources.values()) > MAX_CODE_BYTES:
                raise TooLargeError(f"holds more than {MAX_CODE_BYTES} bytes of code", element=name)
            texts = [archive.read(inner).decode(errors="replace") for inner in sources]
            whole = len(archive.roots) == 1 and "constants.pkl" in archive.sizes
    except SkerryError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise _not_torchscript(content, name) from error
    if not texts or not whole:
        raise _not_torchscript(content, name)
    for text in texts:
        _check_text(text, name)


def _check_text(text: str, name: str) -> None:
    """Refuse a program that names an operator that reaches outside, in whatever way. Raises SkerryError.

    TorchScript's syntax is Python's; names can be aliases and arguments of getattr, so no name of these may occur.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        cause = f"holds a program that cannot be looked through ({first_line(error)}); it was not run"
        raise ForbiddenError(cause, element=name, hint=_HINT) from error
    spelled = {found[1] for found in _SPELLED.finditer(text)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            spelled.add(node.attr)
        elif isinstance(node, ast.Call):
            spelled |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
    if found := sorted(spelled & _OUTSIDE):
        raise ForbiddenError(
            f"the program uses the operator {found[0]}, which reaches outside of it; it was not run",
            element=name,
            hint="export the model without it; a method of that name has to be renamed",
        )


def _not_torchscript(content: bytes, name: str) -> SkerryError:
    if found := pickles.found_in(content):
        cause = f"is a pickle, which is a program{found}, and no TorchScript; it was not run"
        return ForbiddenError(cause, element=name, hint=_HINT)
    return InvalidError("is no TorchScript file", element=name, hint=f"{_HINT}; a state dict goes with its builder")


def _parameters(module: Any) -> list[str]:
    arguments = module.forward.schema.arguments[1:]
    return [argument.name for argument in arguments if not argument.has_default_value()]
