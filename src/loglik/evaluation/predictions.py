"""Predictive distributions of targets given inputs: means, quantiles and probabilities, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.density import Density, HasMarginals
from loglik.evaluation.scores import evaluating
from loglik.memory import Pieces

__all__ = ["INTERVAL", "Prediction", "TargetValues", "predict_rows", "target_scores", "target_values"]

INTERVAL = (0.05, 0.95)  # the quantiles of the 90 % interval
DRAWS = 200  # for each row
MAX_DRAWS = 2**13  # of a split that is scored by draws, which take a solver's steps in some families
BATCH = 512


@dataclass(frozen=True)
class Prediction:
    """The distribution of each target for N rows; NaN in columns of codes.

    Attributes:
        mean, median, std: of the numbers.
        quantiles: at the requested levels.
        probabilities: of the codes, by the number of their column.
    """

    mean: Float[Tensor, "N D"]
    median: Float[Tensor, "N D"]
    std: Float[Tensor, "N D"]
    quantiles: Float[Tensor, "N Q D"]
    probabilities: dict[int, Float[Tensor, "N C"]]

    @staticmethod
    def join(parts: Sequence[Prediction]) -> Prediction:
        """Return the predictions of all rows, one part after another."""
        p = {d: torch.cat([part.probabilities[d] for part in parts]) for d in parts[0].probabilities}
        mean, median, std, quantiles = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "median", "std", "quantiles")
        )
        return Prediction(mean, median, std, quantiles, p)


def predict_rows(
    density: Density, spec: DataSpec, inputs: Any, *, levels: Sequence[float] = INTERVAL, seed: int = 0
) -> Prediction:
    """Return the predictive distributions of rows of inputs (N, I).

    They are exact where a density has `HasMarginals`, as `mixture` has, else those of 200 draws for each row.
    """
    return Prediction.join([found for _, found in _batches(density, spec, inputs, levels, seed)])


def _batches(
    density: Density, spec: DataSpec, inputs: Any, levels: Sequence[float], seed: int, draws: int = DRAWS
) -> Iterator[tuple[slice, Prediction]]:
    def compute(rows: slice) -> tuple[slice, Prediction]:
        context = inputs[rows].to(density.device)
        if isinstance(density, HasMarginals):
            return rows, _exact(density, context, levels)
        torch.manual_seed((seed * 1_000_003 + rows.start) % 2**63)
        return rows, _summary(_draw(density, context, draws), spec, levels)

    with evaluating(density, seed):
        pieces = Pieces(compute, density.device)
        for start in range(0, len(inputs), BATCH):
            yield from pieces(slice(start, min(len(inputs), start + BATCH)))


def _exact(density: HasMarginals, context: Tensor, levels: Sequence[float]) -> Prediction:
    n = len(context)
    quantiles = density.marginal_quantiles(n, [0.5, *levels], context).cpu()
    mean, std = (moment.cpu() for moment in density.marginal_moments(n, context))
    p = {d: q.cpu() for d, q in density.marginal_probabilities(n, context).items()}
    return Prediction(mean, quantiles[:, 0], std, quantiles[:, 1:], p)


def _draw(density: Density, context: Tensor, draws: int) -> Float[Tensor, "B S D"]:
    if isinstance(density, HasMarginals):
        return density.sample_each(len(context), draws, context).double().cpu()
    n = len(context) * draws
    drawn = density.sample(n, context.repeat_interleave(draws, 0) if density.conditional else None)
    return drawn.view(len(context), draws, -1).double().cpu()


def _summary(drawn: Float[Tensor, "B S D"], spec: DataSpec, levels: Sequence[float]) -> Prediction:
    codes = {d: len(column.categories) for d, column in enumerate(spec.columns) if column.categories}
    p = {
        d: torch.nn.functional.one_hot(drawn[..., d].long().clamp(0, count - 1), count).double().mean(1)
        for d, count in codes.items()
    }
    drawn[..., list(codes)] = torch.nan
    quantiles = drawn.quantile(torch.tensor([0.5, *levels], dtype=drawn.dtype), dim=1).movedim(0, 1)
    return Prediction(drawn.mean(1), quantiles[:, 0], drawn.std(1), quantiles[:, 1:], p)


@dataclass(frozen=True)
class TargetValues:
    """Targets and their predictive distributions.

    Attributes:
        true: the targets.
        prediction: their distributions, with the 5 % and 95 % quantiles.
        crps: the continuous ranked probability score of each number; NaN for codes.
        below, at_most: the predicted probabilities of a lower value than the target, and of one at most as high; they
            differ by the mass of an integer.
    """

    true: Float[Tensor, "N D"]
    prediction: Prediction
    crps: Float[Tensor, "N D"]
    below: Float[Tensor, "N D"]
    at_most: Float[Tensor, "N D"]


def target_values(density: Density, split: Split, spec: DataSpec, *, seed: int = 0) -> TargetValues:
    """Return a split's targets and predictions; evenly spaced rows of a large split where they are drawn."""
    draws = DRAWS
    if not isinstance(density, HasMarginals):
        draws = DRAWS // 2
        split = split.evenly(MAX_DRAWS // draws)
    assert split.y is not None
    true, parts, crps, ends = split.x[:].double(), [], [], []
    for rows, found in _batches(density, spec, split.y, INTERVAL, seed, draws):
        context, y = split.y[rows].to(density.device), true[rows]
        drawn = _draw(density, context, draws)
        parts.append(found)
        crps.append(_crps(drawn, y))
        ends.append(_ends(density, drawn, y, context, spec))
    below, at_most = (torch.cat(end) for end in zip(*ends, strict=True))
    return TargetValues(true, Prediction.join(parts), torch.cat(crps), below, at_most)


def _crps(drawn: Float[Tensor, "B S D"], true: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    r"""Return $\mathbb E|X - y| - \tfrac12 \mathbb E|X - X'|$ from S draws, without bias.

    Reference: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 21.
    """
    ordered, s = drawn.sort(dim=1).values, drawn.shape[1]
    rank = 2 * torch.arange(1, s + 1, dtype=drawn.dtype)[:, None] - s - 1
    return (drawn - true[:, None]).abs().mean(1) - (rank * ordered).sum(1) / (s * (s - 1))


def _ends(
    density: Density, drawn: Tensor, true: Tensor, context: Tensor, spec: DataSpec
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    if isinstance(density, HasMarginals):
        step = torch.tensor([float(column.type == "integer") for column in spec.columns], dtype=true.dtype)
        below, at_most = (density.marginal_cdf(y.to(context.device), context).cpu() for y in (true - step, true))
        return below, at_most
    return (drawn < true[:, None]).double().mean(1), (drawn <= true[:, None]).double().mean(1)


def _inside(values: TargetValues, d: int) -> Float[Tensor, " N"]:
    """Return whether each target lies between the 5 % and 95 % levels; the part of its mass for an integer."""
    low, high = values.below[:, d], values.at_most[:, d]
    mass = high - low
    part = (high.clamp_max(INTERVAL[1]) - low.clamp_min(INTERVAL[0])).clamp_min(0) / mass.clamp_min(1e-12)
    return torch.where(mass > 1e-12, part, ((low >= INTERVAL[0]) & (low <= INTERVAL[1])).double())


def target_scores(values: TargetValues, spec: DataSpec) -> dict[str, dict[str, float]]:
    """Return each target's scores by its name.

    Of numbers: `rmse` of the mean, `mae` of the median, `crps`, and `coverage` of the 90 % interval between the 5 % and
    95 % quantiles, in which an integer counts by the part of its mass that lies between these levels: it is 90 % if the
    distribution is right. Of codes: `accuracy`.
    """
    scores: dict[str, dict[str, float]] = {}
    p = values.prediction
    for d, column in enumerate(spec.columns):
        y = values.true[:, d]
        if column.categories:
            scores[column.name] = {"accuracy": (p.probabilities[d].argmax(1) == y).double().mean().item()}
            continue
        scores[column.name] = {
            "rmse": (p.mean[:, d] - y).square().mean().sqrt().item(),
            "mae": (p.median[:, d] - y).abs().mean().item(),
            "crps": values.crps[:, d].mean().item(),
            "coverage": _inside(values, d).mean().item(),
        }
    return scores
