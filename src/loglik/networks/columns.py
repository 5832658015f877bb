"""A table's columns of every type as features: numbers, codes and missing values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.networks.mlp import MLP

__all__ = ["ColumnFeatures", "InputNetwork"]

MAX_ONE_HOT = 32  # categories; more are embedded
MAX_EMBEDDING = 16
SOFT_LIMIT = 4.0  # standardised numbers saturate beyond: an outlier of an input must not drive every output


class ColumnFeatures(nn.Module):
    r"""Encode each row's numbers and codes as features of order one.

    A number x gives its standardised value, by the median and the 5 % and 95 % quantiles of the training rows, and a
    piecewise-linear encoding over the bins $[b_{t-1}, b_t]$ between T + 1 quantiles,
    $e_t = \min(1, \max(0, (x - b_{t-1}) / (b_t - b_{t-1})))$; a network without it learns sharp functions of a
    number slowly. A code gives a one-hot vector, or a learned embedding if there are more than 32. A missing value,
    NaN, gives zeros and a flag; a code that is not among the categories gives zeros.

    Args:
        categories: for each column, its number of codes; 0 for numbers.
        missing: for each column, whether it may have NaN. None: no column has.
        bins: T.

    Reference: Gorishniy et al. 2022, "On embeddings for numerical features in tabular deep learning", eq. 1.
    """

    numbers: Tensor
    flagged: Tensor
    center: Tensor
    scale: Tensor
    edges: Tensor
    slopes: Tensor

    def __init__(self, categories: Sequence[int], missing: Sequence[bool] | None = None, *, bins: int = 16) -> None:
        super().__init__()
        self.categories = list(categories)
        numbers = [d for d, count in enumerate(categories) if count == 0]
        flagged = [d for d, may in enumerate(missing or ()) if may]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long), persistent=False)
        self.register_buffer("flagged", torch.tensor(flagged, dtype=torch.long), persistent=False)
        self.register_buffer("center", torch.zeros(len(numbers)))
        self.register_buffer("scale", torch.ones(len(numbers)))
        self.register_buffer("edges", torch.zeros(len(numbers), bins))
        self.register_buffer("slopes", torch.zeros(len(numbers), bins))
        self.embeddings = nn.ModuleDict(
            {
                str(d): nn.Embedding(count + 1, min(MAX_EMBEDDING, round(2 * count**0.25) + 2), padding_idx=count)
                for d, count in enumerate(categories)
                if count > MAX_ONE_HOT
            }
        )
        embedded = sum(table.embedding_dim for table in self.embeddings.values())  # type: ignore[misc]
        one_hot = sum(count for count in categories if count <= MAX_ONE_HOT)
        self.outputs = len(numbers) * (1 + bins) + len(flagged) + embedded + one_hot

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N D"]) -> None:
        """Set the medians, the scales and the bins' edges from training rows."""
        bins = self.edges.shape[1]
        levels = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        for i, d in enumerate(self.numbers.tolist()):
            values = x[:, d].detach().cpu().double()
            values = values[~values.isnan()].sort().values
            if len(values) == 0:
                continue
            distinct = values.unique()
            spread = values[-1 - int(0.05 * (len(values) - 1))] - values[int(0.05 * (len(values) - 1))]
            spread = spread / 3.29 if spread > 0 else values.std(correction=0)
            self.center[i] = values[(len(values) - 1) // 2]
            self.scale[i] = spread if spread > 0 else 1.0
            edges = distinct
            if len(distinct) > bins + 1:
                edges = values[(levels * (len(values) - 1)).round().long()].unique()
            count = len(edges) - 1
            self.edges[i], self.slopes[i] = 0.0, 0.0
            if count > 0:
                self.edges[i, :count] = edges[:-1].to(self.edges)
                self.slopes[i, :count] = edges.diff().clamp_min(1e-30).reciprocal().clamp_max(1e30).to(self.edges)

    def forward(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        if x.dim() < 2 or math.prod(x.shape[1:]) != len(self.categories):
            raise ValueError(f"expected rows of {len(self.categories)} columns, got the shape {tuple(x.shape)}")
        rows = x.flatten(1)
        numbers = rows[:, self.numbers].to(self.center.dtype)
        known = ~numbers.isnan()
        numbers = torch.where(known, numbers, self.center)
        z = SOFT_LIMIT * torch.tanh((numbers - self.center) / (SOFT_LIMIT * self.scale))
        pieces = ((numbers[..., None] - self.edges) * self.slopes).clamp(0, 1) * known[..., None]
        parts = [z, pieces.flatten(1), rows[:, self.flagged].isnan().to(z.dtype)]
        for d, count in enumerate(self.categories):
            if count == 0:
                continue
            code = rows[:, d].nan_to_num(nan=count).long().clamp(0, count)
            if count > MAX_ONE_HOT:
                parts.append(self.embeddings[str(d)](code))
            else:
                parts.append(F.one_hot(code, count + 1)[:, :count].to(z.dtype))
        return torch.cat(parts, dim=1)


class InputNetwork(nn.Module):
    """Features of a row's columns, and an MLP of one hidden layer from these to a vector.

    Args:
        features: of the columns.
        outputs: the width of the vector.
        dropout: the fraction of the hidden units that are dropped in training.
    """

    def __init__(self, features: ColumnFeatures, outputs: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = features
        self.network = MLP(features.outputs, outputs, (2 * outputs,), dropout=dropout)

    def initialise(self, x: Shaped[Tensor, "N D"]) -> None:
        """Set the features' scales and bins from training rows."""
        self.features.initialise(x)

    def forward(self, x: Shaped[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        vector: Tensor = self.network(self.features(x))
        return vector
