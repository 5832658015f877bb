r"""Values that a column repeats, as prices in whole dollars, weights in hundredths, zeros, or a code such as 9999.

`Bins` gives each of them a probability of its own within its bin, so that samples repeat what the data repeat. The
other values of a bin share a uniform rest.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["MAX_VALUES", "Repeated", "edges_between", "repeated_values"]

MAX_VALUES = 1024  # of a column
LATTICE = 4  # rows for each distinct value from which a column is on a lattice
ATOM = 0.01  # share of the rows of a value that is repeated, in other columns
RESOLUTION = 1e-6  # smallest cell, as a part of the column's range


@dataclass(frozen=True)
class Repeated:
    """The values that a column repeats, and how they lie.

    Attributes:
        values: all distinct values, ascending.
        counts: how often each of them is there.
        kept: the indices of those that are repeated.
        cell: the width about a repeated value of real numbers whose density is its probability over the width; 1 for
            integers.
    """

    values: Float[Tensor, " U"]
    counts: Int64[Tensor, " U"]
    kept: Int64[Tensor, " R"]
    cell: float


def repeated_values(column: Float[Tensor, " N"], *, integer: bool) -> Repeated | None:
    """Return the values that a column repeats; None if it repeats none.

    If there are four rows or more for each distinct value, they are all values that occur twice or more; else those of
    1 % of the rows.
    """
    values, counts = column.unique(return_counts=True)
    lattice = len(values) * LATTICE <= len(column)
    often = counts >= (2 if lattice else max(2 * LATTICE, ATOM * len(column)))
    if not often.any() or len(values) < 2:
        return None
    if int(often.sum()) > MAX_VALUES:
        often &= counts >= counts.sort(descending=True).values[MAX_VALUES - 1]
    kept = often.nonzero().squeeze(1)[:MAX_VALUES]
    if integer:
        return Repeated(values, counts, kept, 1.0)
    gaps = values.diff()
    beside = torch.cat([gaps[kept[kept < len(gaps)]], gaps[kept[kept > 0] - 1]])
    floor = max(RESOLUTION * float(values[-1] - values[0]), 1e-6 * float(values.abs().max()))
    cell = max(float(beside.min()), floor)
    apart = torch.cat([values[kept].diff() >= 0.99 * cell, torch.ones(1, dtype=torch.bool, device=kept.device)])
    return Repeated(values, counts, kept[apart], 0.99 * cell)  # float32 has 0.29 and 0.3 a little closer than 0.01


def edges_between(found: Repeated, bins: int, share: float, *, integer: bool) -> Float[Tensor, " edges"]:
    """Return the edges of bins of distinct values: the heaviest bin is halved, until there are enough.

    A frequent value so gets a bin of its own. The fraction `share` at each end is left to the tails where there are
    more distinct values than bins; empty bins follow the last one where there are fewer.
    """
    total: list[int] = torch.cat([torch.zeros_like(found.counts[:1]), found.counts.cumsum(0)]).tolist()
    count, kept = len(found.values), set(found.kept.tolist())
    values: list[float] = found.values.tolist()
    first, end = 0, count
    if count > bins:
        ends = torch.tensor([share * total[-1], (1 - share) * total[-1]], dtype=torch.float64)
        low, high = torch.searchsorted(torch.tensor(total[1:], dtype=torch.float64), ends, right=True).tolist()
        first, end = int(low), min(int(high) + 1, count)
    heap = [(total[first] - total[end], first, end)]
    whole: list[tuple[int, int]] = []
    while heap and len(heap) + len(whole) < bins:
        _, i, j = heapq.heappop(heap)
        if j - i == 1:
            whole.append((i, j))
            continue
        middle = (total[i] + total[j]) / 2
        at = bisect_left(total, middle, i + 1, j - 1)
        at -= at - 1 > i and middle - total[at - 1] < total[at] - middle
        for a, b in ((i, at), (at, j)):
            heapq.heappush(heap, (total[a] - total[b], a, b))
    starts = sorted(i for _, i, _ in heap) + [i for i, _ in whole]
    edges = [_before(values, i, kept, found.cell, integer) for i in sorted(starts)]
    edges.append(values[end - 1] + (1 if integer else found.cell / 2) if end == count else
                 _before(values, end, kept, found.cell, integer))  # fmt: skip
    while len(edges) <= bins:
        edges.append(edges[-1] + found.cell)
    return torch.tensor(edges, dtype=torch.float64, device=found.values.device)


def _before(values: list[float], i: int, kept: set[int], cell: float, integer: bool) -> float:
    """Return the edge below the i-th value, and above the value before it."""
    if integer:
        return values[i]
    edge = values[i] - cell / 2 if i in kept else values[i]
    return max(edge, values[i - 1] + cell / 2) if i and i - 1 in kept else edge
