r"""How probable a category is that the training data did not have.

By Good and Turing it is the share of the rows whose category occurs once, $n_1 / N$; with half a row more,
$\epsilon = (n_1 + \tfrac12) / (N + 1)$, which is neither 0 nor 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from loglik.data.dataset import Data
from loglik.data.spec import Column

__all__ = ["with_novelty"]

BLOCK_VALUES = 2**22  # that are read from a split at once


def with_novelty(data: Data) -> Data:
    """Return data whose spec says, of each categorical column, how probable a new category is.

    It counts the training split, in one pass where it is stored.

    Reference: Good 1953, "The population frequencies of species and the estimation of population parameters".
    """
    columns = [d for d, column in enumerate(data.spec.columns) if column.type == "categorical"]
    if not columns:
        return data
    counts = {d: torch.zeros(len(data.spec.columns[d].categories), dtype=torch.int64) for d in columns}
    size = max(1, BLOCK_VALUES // len(data.spec.columns))
    for start in range(0, len(data.train), size):
        x = data.train.x[start : start + size]
        for d, count in counts.items():
            codes = x[:, d][~x[:, d].isnan()].long().cpu()
            count += torch.bincount(codes[codes < len(count)], minlength=len(count))
    own = [_with_count(column, counts.get(d)) for d, column in enumerate(data.spec.columns)]
    return replace(data, spec=replace(data.spec, columns=tuple(own)))


def _with_count(column: Column, counts: Tensor | None) -> Column:
    if counts is None:
        return column
    novelty = (int((counts == 1).sum()) + 0.5) / (int(counts.sum()) + 1)
    return replace(column, novelty=min(novelty, 0.5))
