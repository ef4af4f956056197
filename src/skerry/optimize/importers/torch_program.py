"""torch.export programs (`.pt2`), run by torch and exported by its recommended way.

The archive is looked through by `pt2` before torch loads it.
"""

from __future__ import annotations

import io
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from skerry.api.errors import InvalidError
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers import files, pt2, torch_onnx
from skerry.optimize.importers.torch import TorchSource
from skerry.optimize.recipe import SourceSpec


def open_source(spec: SourceSpec, *, seed: int) -> TorchSource:
    """Read a torch.export archive; see `importers.open_source`."""
    path = Path(spec.path)
    content = files.read(path, hint=pt2.HINT)
    pt2.check(content, path.name)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.load(io.BytesIO(content))
            module = program.module()
    except Exception as error:  # torch has no common exception type
        raise_if_starved(error)
        raise InvalidError(f"cannot be loaded ({first_line(error)})", element=path.name, hint=pt2.HINT) from error
    names, fixed = _inputs(program, path.name)
    return TorchSource(
        module,
        kind="torch-export",
        forms=frozenset({"torch", "onnx"}),
        digests={path.name: sha256(content).hexdigest()},
        names=names if len(names) > 1 else [],
        ways=(torch_onnx.by_program,),
        fixed_batch=fixed,
    )


def _inputs(program: Any, name: str) -> tuple[list[str], int | None]:
    wanted = list(program.graph_signature.user_inputs)
    shapes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    sizes = []
    for tensor in wanted:
        shape = getattr(shapes.get(tensor), "shape", None)
        if not shape:
            cause = f"input {tensor} is no tensor with samples along its first dimension"
            raise InvalidError(cause, element=name, hint=pt2.HINT)
        sizes.append(shape[0])
    fixed = next((size for size in sizes if isinstance(size, int)), None)
    return wanted, fixed
