"""Which segments make a delta small: weights against those of the same name, the rest against its neighbours. Pure.

What lies between two tensors (names, shapes, the graph) is compared with what lies between theirs in the old file. Of
each block the shortest way is taken: copied, as a difference, or as new bytes. Both contents may be maps of files;
memory is a small multiple of `core.delta.MAX_BLOCK_BYTES`. Must not live here: the format (`core.delta`), how files are
read for their weights (`core.weights`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skerry.core import delta
from skerry.core.weights import Content, Tensor

_POOR = 0.9
"""A difference that is not shorter than this share of its content is compared with the content itself."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes of the new blob and what to compare them with."""

    offset: int
    length: int
    old_offset: int
    old_length: int
    width: int = 1
    signed: bool = False


def encode(
    header: delta.Header, old: Content, new: Content, old_layout: Sequence[Tensor], new_layout: Sequence[Tensor]
) -> Iterator[bytes]:
    """Give a delta's bytes, in order. The layouts are in the order of their place; empty ones are allowed."""
    yield delta.encode_header(header)
    copied = (0, 0)  # an offset and a length not yet written: neighbours become one segment
    for run in _runs(len(old), len(new), old_layout, new_layout):
        for segment in _segments(run, old, new):
            if isinstance(segment, bytes):
                yield from _flushed(copied)
                copied = (0, 0)
                yield segment
            elif copied[1] and copied[0] + copied[1] == segment[0]:
                copied = (copied[0], copied[1] + segment[1])
            else:
                yield from _flushed(copied)
                copied = segment
    yield from _flushed(copied)
    yield delta.encode_end()


def _flushed(copied: tuple[int, int]) -> Iterator[bytes]:
    if copied[1]:
        yield delta.encode_copy(*copied)


def _runs(old_size: int, new_size: int, old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[_Run]:
    """Cut the new blob into its tensors and what lies between them."""
    ends = [0, *(one.offset + one.length for one in old)]
    before = {one: (end, one.offset) for end, one in zip(ends, old, strict=False)}
    twins = _twins(old, new)
    at = 0
    for tensor in new:
        twin = twins.get(tensor)
        gap = before[twin] if twin is not None else (0, 0)
        yield _Run(at, tensor.offset - at, gap[0], gap[1] - gap[0])
        if twin is None:
            yield _Run(tensor.offset, tensor.length, 0, 0)
        else:
            yield _Run(tensor.offset, tensor.length, twin.offset, twin.length, tensor.width, tensor.signed)
        at = tensor.offset + tensor.length
    old_at = old[-1].offset + old[-1].length if old and new else 0
    width = 4 if not new and old_size == new_size and new_size % 4 == 0 else 1
    yield _Run(at, new_size - at, old_at, old_size - old_at, width)


def _twins(old: Sequence[Tensor], new: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Find the old tensor of each new one: of its name, else, of those without a namesake, the next of its kind."""
    named = {(one.name, one.length, one.width): one for one in old}
    found = {one: named[key] for one in new if (key := (one.name, one.length, one.width)) in named}
    taken = set(found.values())
    rest: dict[tuple[int, int], list[Tensor]] = {}
    for one in reversed(old):
        if one not in taken:
            rest.setdefault((one.length, one.width), []).append(one)
    for one in new:
        alike = rest.get((one.length, one.width))
        if one not in found and alike:
            found[one] = alike.pop()
    return found


def _segments(run: _Run, old: Content, new: Content) -> Iterator[bytes | tuple[int, int]]:
    """Give a run's segments; one that copies as its old offset and length."""
    if run.length == run.old_length:
        yield from _beside(run, old, new)
        return
    # Two runs of different lengths: what is alike at both ends, and what is not between.
    head = _alike(old, run.old_offset, new, run.offset, min(run.length, run.old_length))
    most = min(run.length, run.old_length) - head
    tail = _alike_backwards(old, run.old_offset + run.old_length, new, run.offset + run.length, most)
    if head:
        yield run.old_offset, head
    for at in range(run.offset + head, run.offset + run.length - tail, delta.MAX_BLOCK_BYTES):
        yield delta.encode_data(new[at : min(at + delta.MAX_BLOCK_BYTES, run.offset + run.length - tail)])
    if tail:
        yield run.old_offset + run.old_length - tail, tail


def _beside(run: _Run, old: Content, new: Content) -> Iterator[bytes | tuple[int, int]]:
    for start in range(0, run.length, delta.MAX_BLOCK_BYTES):
        length = min(delta.MAX_BLOCK_BYTES, run.length - start)
        offset = run.old_offset + start
        one, other = old[offset : offset + length], new[run.offset + start : run.offset + start + length]
        if one == other:
            yield offset, length
            continue
        width = run.width if length % run.width == 0 else 1
        best = delta.encode_diff(offset, one, other, width, signed=run.signed)
        if len(best) > _POOR * length:
            best = min(best, delta.encode_data(other), key=len)
        yield best


def _alike(old: Content, old_at: int, new: Content, new_at: int, most: int) -> int:
    """Return how many bytes are the same from there on."""
    low, high = 0, most
    while low < high:
        middle = min((low + high + 1) // 2, low + delta.MAX_BLOCK_BYTES)
        if old[old_at + low : old_at + middle] == new[new_at + low : new_at + middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _alike_backwards(old: Content, old_end: int, new: Content, new_end: int, most: int) -> int:
    """Return how many bytes are the same up to there."""
    low, high = 0, most
    while low < high:
        middle = min((low + high + 1) // 2, low + delta.MAX_BLOCK_BYTES)
        if old[old_end - middle : old_end - low] == new[new_end - middle : new_end - low]:
            low = middle
        else:
            high = middle - 1
    return low
