r"""Blame: which columns of a row are unlikely given the others.

A column's blame is $-\log p(x_d \mid x_{-d})$ less its mean over normal rows, in nats. How the conditional is computed
depends on the density:

- the kernel density has it exactly (`KernelDensity.column_log_probs`), and so has an any-order one (`AnyOrder.column`);
- an exact density that marginalises, as a mixture: $\log p(x) - \log p(x_{-d})$, of the observed values;
- an autoregressive density has it exactly given the values before only;
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

from loglik.autoregressive import AnyOrder, Autoregressive
from loglik.baselines import Independent
from loglik.data.dataset import Data, Split
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density
from loglik.evaluation.scores import evaluating, log_probs
from loglik.runs import Run
from loglik.tasks.kernel import KernelDensity, place_of, reference_rows

__all__ = ["Blame", "blame_of", "conditional_log_probs", "without_each"]

GRID = 192  # values of a column
MAX_DIMS = 64  # of a row, for a grid in each dimension
MAX_USUAL = 256  # rows whose mean is a column's usual blame; 8x fewer where each needs grids
MAX_WORK = 2**30  # kernels of columns for the usual blame

Columns = Callable[[Split, Int64[Tensor, " B"]], Float64[Tensor, "B D"]]  # each value's log p given the others


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
    columns: Columns
    usual: Float64[Tensor, " D"]

    def name(self, split: Split, rows: Int64[Tensor, " B"], count: int) -> list[str]:
        """Return for each row the columns with the largest blame above 0, as `age +8.1, income +2.0`."""
        excess = (self.usual - _of_observed(self.columns, split, rows)).nan_to_num(0.0)
        best = excess.topk(min(count, excess.shape[1]), 1)
        return [
            ", ".join(f"{self.names[d]} {value:+.1f}" for value, d in zip(values, at, strict=True) if value > 0.05)
            for values, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @classmethod
    def by_kernel(
        cls,
        kernel: KernelDensity,
        spec: DataSpec,
        x: Shaped[Tensor, "M D"],
        place: Int64[Tensor, " N"] | None = None,
        why: str = "",
    ) -> Blame:
        """Return the blame of a kernel density.

        Args:
            kernel: the density.
            spec: of its rows.
            x: its rows.
            place: where the rows to blame are among them, -1 for those that are not; None if none is.
            why: it takes the place of the run's density.
        """

        def columns(split: Split, rows: Tensor) -> Tensor:
            own = None if place is None else place[rows]
            return kernel.column_log_probs(split.batch(rows)[0].flatten(1), own=own)

        some = torch.arange(min(len(x), MAX_USUAL, max(16, MAX_WORK // (len(x) * x.shape[1]))))
        usual = kernel.column_log_probs(x[some], own=some).masked_fill(x[some].isnan(), torch.nan).nanmean(0)
        how = f"each column given the others, by the kernel density of the run's rows{why and f' ({why})'}"
        return cls(how, _names(spec), columns, usual)


def _of_observed(columns: Columns, split: Split, rows: Int64[Tensor, " B"]) -> Float64[Tensor, "B D"]:
    """Return each value's log p given the others, NaN of a missing value."""
    missing = split.batch(rows)[0].flatten(1).isnan()
    return columns(split, rows).masked_fill(missing, torch.nan)


def blame_of(run: Run, reference: Data, held: list[Split], *, own: bool = False) -> Blame:
    """Return the blame of a run's density.

    Args:
        run: the run.
        reference: its data.
        held: its validation and test splits, without empty ones.
        own: whether the rows to blame are all of its rows, in their order.
    """
    density, spec = run.density, run.spec
    plain = density.event == "x" and not density.conditional

    def by(how: str, columns: Columns, most: int = MAX_USUAL) -> Blame:
        usual = _of_observed(columns, held[0], torch.arange(min(len(held[0]), most))).nanmean(0)
        return Blame(how, _names(spec), columns, usual)

    if density.marginalises and density.bound is Bound.EXACT and spec.columns:
        return by("each column given the others, by the run's density", without_each(density, spec))
    if plain and isinstance(density, (Autoregressive, Independent)):
        given = "the others" if isinstance(density, Independent) else "those before"
        return by(f"each column given {given}, by the run's density", _tokens(density))
    exact = plain and density.bound is Bound.EXACT and spec.kind in ("table", "array")
    split = reference.split("all")
    at, some = reference_rows(split)
    if exact and spec.dims <= MAX_DIMS and not some.isnan().any():

        def grids(split: Split, rows: Tensor) -> Tensor:
            return conditional_log_probs(density, split.batch(rows)[0], some, spec)

        return by("each column given the others, by the run's density on a grid", grids, MAX_USUAL // 8)
    why = "that of the run is a bound, which has no terms for columns"
    if density.bound is Bound.EXACT:
        why = "that of the run has none that are quick to compute"
    kernel = KernelDensity(some, spec.categories)
    return Blame.by_kernel(kernel, spec, some, place_of(at, len(split)) if own else None, why)


def _tokens(density: Autoregressive | Independent) -> Columns:
    def columns(split: Split, rows: Tensor) -> Tensor:
        with evaluating(density, 0) as device:
            parts = [split.batch(rows[at : at + 256])[0].to(device) for at in range(0, len(rows), 256)]
            return torch.cat([density.token_log_probs(part).flatten(1).double().cpu() for part in parts])

    return columns


def without_each(density: Density, spec: DataSpec) -> Columns:
    r"""Return $\log p(x_d \mid x_{-d})$ of each value by a density that marginalises; 0 of a missing value.

    An unseen category has the log of its column's `novelty`.
    """
    codes = torch.tensor(spec.categories)
    novelty = torch.tensor([column.novelty or torch.nan for column in spec.columns]).double().log()

    def columns(split: Split, rows: Tensor) -> Tensor:
        x, y = split.batch(rows)
        new = (codes > 0) & (x == codes)
        x = x.masked_fill(new, torch.nan)
        if isinstance(density, AnyOrder):
            with evaluating(density, 0) as device:
                values, context = x.to(device), None if y is None else y.to(device)
                log_p = torch.stack(
                    [
                        density.column(values, d, context).log_prob(values[:, d].nan_to_num(0.0))
                        for d in range(x.shape[1])
                    ],
                    1,
                )
            found = log_p.double().cpu().masked_fill(x.isnan(), 0.0)
        else:
            whole = log_probs(density, Split(x, y))
            column = torch.arange(x.shape[1])
            rest = [log_probs(density, Split(x.masked_fill(column == d, torch.nan), y)) for d in column.tolist()]
            found = whole[:, None] - torch.stack(rest, 1)
        return torch.where(new, novelty, found)

    return columns


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
