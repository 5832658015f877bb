r"""Blame: which columns of a row are unlikely given the others.

A column's blame is $-\log p(x_d \mid x_{-d})$ less its mean over normal rows, in nats. How the conditional is computed
depends on the density:

- the kernel density has it exactly (`KernelDensity.column_log_probs`);
- independent columns have it exactly, and so has an autoregressive density given the values before only;
- another exact density of a table or of an array: $\log p(x) - \log \int p(x_{-d}, v)\, dv$, by the trapezoidal rule
  over `GRID` values of the column, its quantiles and a range around them, and the row's own value;
- a bound or an estimate: the kernel density of the run's rows instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from loglik.autoregressive import Autoregressive
from loglik.baselines import Independent
from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating, log_probs
from loglik.runs import Run
from loglik.tasks.kernel import KernelDensity, place_of, reference_rows

__all__ = ["Blame", "blame_of", "conditional_log_probs"]

GRID = 192  # values of a column
MAX_DIMS = 64  # of a row, for a grid in each dimension
MAX_USUAL = 256  # rows whose mean is a column's usual blame; an eighth of them where each needs grids


@dataclass(frozen=True)
class Blame:
    """Names the columns that make rows unlikely.

    Attributes:
        how: one phrase for people.
        names: of the dimensions.
        columns: returns each value's log p given the others, of rows of a split.
        usual: the mean of the same over normal rows.
    """

    how: str
    names: list[str]
    columns: Callable[[Split, Int64[Tensor, " B"]], Float64[Tensor, "B D"]]
    usual: Float64[Tensor, " D"]

    def name(self, split: Split, rows: Int64[Tensor, " B"], count: int) -> list[str]:
        """Return for each row the columns with the largest blame above 0, as `age +8.1, income +2.0`."""
        excess = self.usual - self.columns(split, rows)
        best = excess.topk(min(count, excess.shape[1]), 1)
        return [
            ", ".join(f"{self.names[d]} {value:+.1f}" for value, d in zip(values, at, strict=True) if value > 0.05)
            for values, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @classmethod
    def by_kernel(
        cls, kernel: KernelDensity, spec: DataSpec, x: Shaped[Tensor, "M D"], place: Int64[Tensor, " N"] | None = None
    ) -> Blame:
        """Return the blame of a kernel density.

        Args:
            kernel: the density.
            spec: of its rows.
            x: its rows.
            place: where the rows to blame are among them, -1 for those that are not; None if none is.
        """

        def columns(split: Split, rows: Tensor) -> Tensor:
            own = None if place is None else place[rows]
            return kernel.column_log_probs(split.batch(rows)[0].flatten(1), own=own)

        some = torch.arange(min(len(x), MAX_USUAL))
        usual = kernel.column_log_probs(x[some], own=some).mean(0)
        return cls(
            "each column given the others, by the kernel density of the run's rows", _names(spec), columns, usual
        )


def blame_of(run: Run, reference: Data, held: list[Split], *, own: bool = False) -> Blame:
    """Return the blame of a run's density.

    Args:
        run: the run.
        reference: its data.
        held: its validation and test splits, without empty ones.
        own: whether the rows to blame are all of its rows, in their order.
    """
    density, names = run.density, _names(run.spec)
    plain = density.event == "x" and not density.conditional
    if plain and isinstance(density, (Autoregressive, Independent)):
        given = "the others" if isinstance(density, Independent) else "those before"

        def tokens(split: Split, rows: Tensor) -> Tensor:
            with evaluating(density, 0) as device:
                parts = [split.batch(rows[at : at + 256])[0].to(device) for at in range(0, len(rows), 256)]
                return torch.cat([density.token_log_probs(part).flatten(1).double().cpu() for part in parts])

        usual = tokens(held[0], torch.arange(min(len(held[0]), MAX_USUAL))).mean(0)
        return Blame(f"each column given {given}, by the run's density", names, tokens, usual)
    exact = plain and density.bound is Bound.EXACT and run.spec.kind in ("table", "array")
    split = reference.split("all")
    at, some = reference_rows(split)
    if exact and run.spec.dims <= MAX_DIMS:

        def grids(split: Split, rows: Tensor) -> Tensor:
            return conditional_log_probs(density, split.batch(rows)[0], some, run.spec)

        usual = grids(held[0], torch.arange(min(len(held[0]), MAX_USUAL // 8))).mean(0)
        return Blame("each column given the others, by the run's density on a grid", names, grids, usual)
    return Blame.by_kernel(
        KernelDensity(some, run.spec.categories), run.spec, some, place_of(at, len(split)) if own else None
    )


def conditional_log_probs(
    density: Density, x: Shaped[Tensor, "B D"], rows: Shaped[Tensor, "N D"], spec: DataSpec
) -> Float64[Tensor, "B D"]:
    r"""Return $\log p(x_d \mid x_{-d})$ of each value, by the trapezoidal rule over the values that a column can have.

    Args:
        density: an exact density of rows, not conditional.
        x: rows.
        rows: rows of the same data, whose columns give the grids.
        spec: of the rows.
    """
    shape, x, rows = x.shape, x.flatten(1), rows.flatten(1)
    whole = log_probs(density, Split(x.view(shape)))
    result = torch.empty(x.shape, dtype=torch.float64)
    for d, (count, discrete) in enumerate(zip(spec.categories, spec.discrete_dims, strict=True)):
        values, log_width = _grid(rows[:, d], x[:, d], count or spec.levels or 0, discrete)
        replaced = x.repeat_interleave(values.shape[1], 0)
        replaced[:, d] = values.flatten().to(x.dtype)
        log_p = log_probs(density, Split(replaced.view(-1, *shape[1:]))).view(values.shape)
        result[:, d] = whole - (log_p + log_width).logsumexp(1)
    return result


def _grid(
    column: Shaped[Tensor, " N"], own: Shaped[Tensor, " B"], codes: int, discrete: bool
) -> tuple[Float64[Tensor, "B K"], Float64[Tensor, "B K"]]:
    """Return the values of a column's grid for each row, ascending, and the logarithms of their widths."""
    low, high = column.min().double(), column.max().double()
    if codes and codes <= GRID:
        values = torch.arange(codes, dtype=torch.float64).repeat(len(own), 1)
        return values, torch.zeros_like(values)
    quantiles = column.double().quantile(torch.linspace(0, 1, GRID // 2, dtype=torch.float64))
    margin = 0.0 if codes else 0.25 * (high - low)
    even = low - margin + (high - low + 2 * margin) * torch.linspace(0, 1, GRID // 2, dtype=torch.float64)
    values = torch.cat([quantiles, even])
    if discrete:
        values = values.round()
    values = torch.cat([values.repeat(len(own), 1), own.double()[:, None]], 1).sort(1).values
    gaps = values.diff(dim=1) / 2  # repeated values have gaps of 0
    width = torch.nn.functional.pad(gaps, (1, 0)) + torch.nn.functional.pad(gaps, (0, 1))
    if discrete:  # the first and the last integer have a whole width, half of it outside
        width[:, 0] += 0.5
        width[:, -1] += 0.5
    return values, width.log()


def _names(spec: DataSpec) -> list[str]:
    if spec.columns:
        return [column.name for column in spec.columns]
    word = {"text": "token ", "image": "value ", "array": "value "}.get(spec.kind, "")
    places = torch.cartesian_prod(*map(torch.arange, spec.event_shape)).view(spec.dims, -1)
    return [word + " ".join(map(str, place)) for place in places.tolist()]
