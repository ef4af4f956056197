"""The spread of requests over devices: the error rate in which none weighs too much, kept up to date. Pure.

The bound on a device's weight follows the median, so that every change may move it: what is needed are sums on both
sides of any bound, which blocks of a sorted list give. Must not live here: the formula (`core.baking`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from skerry.core import baking

_BLOCK = 512


class Spread:
    """Requests and errors of many devices, of which the weighted error rate is asked for: O(sqrt n) each."""

    __slots__ = ("_blocks", "_sums")

    def __init__(self) -> None:
        self._blocks: list[list[tuple[int, int]]] = []
        """(requests, errors), sorted."""
        self._sums: list[list[int]] = []
        """Of each block: requests, errors, shares."""

    def add(self, requests: int, errors: int) -> None:
        """Put one device's numbers in."""
        pair = (requests, errors)
        if not self._blocks:
            self._blocks, self._sums = [[]], [[0, 0, 0]]
        place = self._find(pair)
        block = self._blocks[place]
        insort(block, pair)
        self._count(place, pair, 1)
        if len(block) > 2 * _BLOCK:
            self._blocks[place : place + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._sums[place : place + 1] = [_sum(block[:_BLOCK]), _sum(block[_BLOCK:])]

    def remove(self, requests: int, errors: int) -> None:
        """Take one device's numbers out, which were put in before."""
        pair = (requests, errors)
        place = self._find(pair)
        block = self._blocks[place]
        del block[bisect_left(block, pair)]
        self._count(place, pair, -1)
        if not block:
            del self._blocks[place], self._sums[place]

    def rate(self) -> float:
        """Return the share of failed requests, as `baking.rate_of`; 0 when there are no numbers."""
        total = sum(map(len, self._blocks))
        if not total:
            return 0.0
        bound = baking.bound_of(self._at((total - 1) // 2), self._at(total // 2))
        requests = errors = above = shares = 0
        for block, sums in zip(self._blocks, self._sums, strict=True):
            if block[-1][0] <= bound:
                requests, errors = requests + sums[0], errors + sums[1]
            elif block[0][0] > bound:
                above, shares = above + len(block), shares + sums[2]
            else:
                edge = bisect_left(block, (bound + 1, -1))
                lower, upper = _sum(block[:edge]), _sum(block[edge:])
                requests, errors = requests + lower[0], errors + lower[1]
                above, shares = above + len(block) - edge, shares + upper[2]
        return baking.rate_of(bound, requests=requests, errors=errors, above=above, shares=shares)

    def _find(self, pair: tuple[int, int]) -> int:
        """The first block whose last pair is not before this one; the last block when there is none."""
        return min(
            bisect_left(self._blocks, pair, key=lambda block: block[-1] if block else pair), len(self._blocks) - 1
        )

    def _at(self, place: int) -> int:
        """The requests of the device at that place in their order."""
        for block in self._blocks:
            if place < len(block):
                return block[place][0]
            place -= len(block)
        raise IndexError(place)

    def _count(self, place: int, pair: tuple[int, int], sign: int) -> None:
        sums = self._sums[place]
        sums[0] += sign * pair[0]
        sums[1] += sign * pair[1]
        sums[2] += sign * baking.share_of(*pair)


def _sum(block: Sequence[tuple[int, int]]) -> list[int]:
    return [sum(r for r, _ in block), sum(e for _, e in block), sum(baking.share_of(r, e) for r, e in block)]
