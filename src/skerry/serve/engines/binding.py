"""Which tensor of a file is which of the signature's, and whether they agree: to be known before a server is ready.

Lives here: names, positions, datatypes, shapes. Must not live here: an engine's own types; its module translates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import TensorSpec

if TYPE_CHECKING:
    from skerry.serve.engines import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """One tensor as the model file describes it."""

    name: str = ""
    """Empty where the file has no names."""
    datatype: str
    """The protocol's name for it, or the engine's where the protocol has none; empty where the file does not say."""
    shape: Sequence[int] | None
    """-1 where any size is taken; None where the file does not say."""


def bind(
    kind: Literal["input", "output"],
    found: Sequence[FileTensor],
    specs: Sequence[TensorSpec],
    file: Path,
    *,
    named: bool = False,
) -> Sequence[int]:
    """Return, for each tensor of the signature, its place in the file.

    By name where the file has all of the names, by position where it has none of them and names bind nobody (`named`
    says that they do in this format). Raises InvalidError.
    """
    names = [tensor.name for tensor in found]
    missing = [spec.name for spec in specs if spec.name not in names]
    if not missing:
        places = [names.index(spec.name) for spec in specs]
    elif named or len(missing) < len(specs):
        raise InvalidError(f'has no {kind} "{missing[0]}", but {sorted(names)}', element=str(file))
    else:
        places = list(range(len(specs)))
    extra = sorted(names[place] for place in set(range(len(names))) - set(places))
    if len(found) < len(specs) or (extra and (kind == "input" or missing)):
        _wrong_number(kind, names, extra, specs, file)
    for spec, place in zip(specs, places, strict=True):
        agree(kind, found[place], spec, file)
    return places


def agree(kind: str, tensor: FileTensor, spec: TensorSpec, file: Path) -> None:
    """Hold one tensor against the signature's; -1 on either side fits any size. Raises InvalidError."""
    if tensor.datatype and tensor.datatype != spec.datatype:
        raise InvalidError(
            f'{kind} "{spec.name}" is {tensor.datatype}, the signature says {spec.datatype}', element=str(file)
        )
    if tensor.shape is None:
        return
    fits = len(tensor.shape) == len(spec.shape) and all(
        mine == wanted or -1 in (mine, wanted) for mine, wanted in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidError(
            f'{kind} "{spec.name}" has shape {list(tensor.shape)}, the signature says {spec.shape}', element=str(file)
        )


def accept(array: Array, shape: Sequence[int], spec: TensorSpec) -> None:
    """Hold an array against the file's shape, which may take less than the signature says. Raises InvalidError.

    The batch, where the signature leaves it open, is not looked at: see `batches`.
    """
    batch = [-1] if spec.shape[:1] == [-1] else shape[:1]
    wanted, given = [*batch, *shape[1:]], list(array.shape)
    if len(given) != len(wanted) or any(a not in (b, -1) for a, b in zip(wanted, given, strict=True)):
        raise InvalidError(f"has shape {given}, this file takes {wanted}", element=f'input "{spec.name}"')


def _wrong_number(
    kind: str, names: Sequence[str], extra: Sequence[str], specs: Sequence[TensorSpec], file: Path
) -> NoReturn:
    if kind == "input" and any(extra):
        raise InvalidError(f"takes inputs the signature does not have: {list(extra)}", element=str(file))
    wanted = [spec.name for spec in specs]
    raise InvalidError(f"has {len(names)} {kind}s, the signature says {len(specs)}: {wanted}", element=str(file))
