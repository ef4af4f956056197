"""TorchScript files from modules: traced or compiled, frozen, without what is only there for debugging.

Lives here: making the files; `torchscript` has the table of recipes. Must not live here: running them (`skerry.serve`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import _C

from skerry.api.errors import InvalidError
from skerry.optimize.passes import module as modules
from skerry.optimize.passes.material import Material
from skerry.optimize.quiet import quiet

_CHECKED_BATCHES = (1, 3)
_TRACED_BATCH = 2
_TOLERANCE = 1e-3
_UNWANTED_ENDS = (".debug_pkl",)
_UNWANTED_STARTS = ("traced_inputs", ".data/", "version", "byteorder")
"""Source positions with this machine's paths, the samples of the trace, and what the writer itself adds."""
_DYNAMIC: set[type[torch.nn.Module]] = {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU}


def traced(material: Material) -> None:
    """Write a recording of one run. Raises InvalidError when other batch sizes come out differently."""
    _save(material, _trace(modules.prepared(material.load()), material))


def lite(material: Material) -> None:
    """Write a recording with the bytecode of PyTorch Mobile's lite interpreter. Raises InvalidError."""
    recorded = _trace(modules.prepared(material.load()), material)
    with quiet():
        material.out.write_bytes(_cleaned(recorded._save_to_buffer_for_lite_interpreter()))  # noqa: SLF001


def scripted(material: Material) -> None:
    """Write forward() compiled, control flow included. Raises InvalidError when its outputs have names."""
    module = material.load().eval().requires_grad_(requires_grad=False)
    with quiet(), torch.no_grad():
        made = torch.jit.freeze(torch.jit.script(module))
        if isinstance(made(*modules.tensors(material.inputs_sample, 0, 1)), Mapping):
            raise InvalidError("gives a dict, which a compiled model keeps", element="model", hint="return a tuple")
        _check(made, module, material)
    _save(material, made)


def dynamic(material: Material) -> None:
    """Write a recording with 8-bit weights in linear and recurrent layers. Raises InvalidError without such a layer."""
    module = modules.prepared(material.load())
    if not any(type(part) in _DYNAMIC for part in module.modules()):
        raise InvalidError(
            "has no linear or recurrent layer, the only ones whose weights TorchScript keeps in 8 bits",
            element="model",
            hint="leave torchscript-int8-dynamic out, or take tflite-int8 or executorch-int8",
        )
    with quiet():
        quantised = torch.ao.quantization.quantize_dynamic(module, _DYNAMIC, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    _save(material, _trace(quantised, material, freeze=False))


def _trace(module: torch.nn.Module, material: Material, *, freeze: bool = True) -> Any:
    example = modules.tensors(material.inputs_sample, 0, _TRACED_BATCH)
    with quiet(), torch.no_grad():
        recorded: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        if freeze:
            recorded = torch.jit.freeze(recorded)
        _check(recorded, module, material)
    return recorded


def _check(made: Any, module: torch.nn.Module, material: Material) -> None:
    """Refuse what does something else than the module for other batches than the recorded one."""
    for batch in _CHECKED_BATCHES:
        inputs = modules.tensors(material.inputs_sample, 1, batch)
        ours, theirs = _flat(made(*inputs)), _flat(modules.Positional(module)(*inputs))
        same = len(ours) == len(theirs) and all(
            a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=_TOLERANCE, atol=_TOLERANCE)
            for a, b in zip(ours, theirs, strict=True)
        )
        if not same:
            raise InvalidError(
                f"the recorded graph gives something else than the model for {batch} samples",
                element="model",
                hint=modules.CONTROL_FLOW,
            )


def _flat(outputs: Any) -> Sequence[Any]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _save(material: Material, made: Any) -> None:
    target = io.BytesIO()
    with quiet():
        torch.jit.save(made, target)
    material.out.write_bytes(_cleaned(target.getvalue()))


def _cleaned(archive: bytes) -> bytes:
    """Return the archive without what is only there for debugging, in the alignment that torch wants."""
    reader = _C.PyTorchFileReader(io.BytesIO(archive))
    records = reader.get_all_records()
    target = io.BytesIO()
    writer = _C.PyTorchFileWriter(target)
    for record in records:
        if not (record.endswith(_UNWANTED_ENDS) or record.startswith(_UNWANTED_STARTS)):
            content = reader.get_record(record)
            writer.write_record(record, content, len(content))
    if "byteorder" in records:
        writer.write_record("byteorder", reader.get_record("byteorder"), len(reader.get_record("byteorder")))
    writer.write_end_of_file()
    return target.getvalue()
