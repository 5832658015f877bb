"""Conditions on columns: samples of a run's density that meet them, and log p of some columns given others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from loglik.conditioning import Condition, Draws, HasConditionals, Marginals, NoRows, draw_given
from loglik.data.limits import quote, some
from loglik.data.spec import DataSpec
from loglik.data.targets import whole_table
from loglik.density import Bound, Density
from loglik.evaluation.incomplete import unseen
from loglik.evaluation.scores import arguments, evaluating, mean_and_stderr
from loglik.missing import Imputed
from loglik.runs import Run
from loglik.tasks.condition_text import Given, column_of, conditions_of, number_text
from loglik.tasks.fill import quick_inpainting

__all__ = ["GivenSamples", "GivenScore", "evaluate_given", "log_prob_given", "sample_given"]

FEW = 100  # effective rows, or draws of a row, below which there is a warning
ROWS = 1024  # rows that are scored together
DRAWS = 256  # of the missing columns of each row


@dataclass(frozen=True)
class GivenSamples:
    """Samples under conditions, and what they are worth.

    Attributes:
        draws: the rows, their effective number, how they were drawn, and the log-probability of the conditions.
        weighted: what the weights of importance sampling are: `exact`, unbiased (`lower`) or an `estimate`.
    """

    draws: Draws
    weighted: Bound

    @property
    def x(self) -> Shaped[Tensor, "n D"]:
        """The rows."""
        return self.draws.x

    def describe(self) -> list[str]:
        """Return lines for the terminal: how the rows were drawn, and a warning where they are worth few."""
        draws, n = self.draws, len(self.draws.x)
        way = {
            "exact": "exact draws from the density's conditionals",
            "rejection": f"the first {n:,} of {draws.proposals:,} samples to meet the conditions: exact draws",
            "importance": f"importance resampling of {draws.proposals:,} proposals, effective sample size "
            f"{draws.effective:,.0f} of {n:,}",
            "inpainting": "approximate draws: the conditioned columns of a fitted mixture, the others by RePaint",
        }[draws.method]
        if draws.method == "rejection" and draws.effective < n:
            way = f"{draws.effective:,.0f} of {draws.proposals:,} samples meet the conditions, and are repeated"
        lines = [f"conditions: {way}"]
        if draws.method == "importance" and self.weighted is Bound.ESTIMATE:
            lines.append("approximate: the weights are a bound or an estimate of p, which is not unbiased")
        if draws.effective < min(FEW, n / 2):
            lines.append(
                f"warning: these {n:,} rows are worth about {max(1, round(draws.effective)):,}: widen the conditions, "
                "or fit a model with exact conditionals, such as autoregressive:any-order"
            )
        return lines


@dataclass(frozen=True)
class GivenScore:
    """The mean of log p(some columns | others) over rows, in nats.

    Attributes:
        nats, stderr: the mean and its standard error.
        n: the number of rows.
        of, given: the columns.
        bound: `exact`, or `estimate`: the difference of two estimates of marginals.
        effective: the smallest effective number of draws of a marginal; None where none was drawn.
    """

    nats: float
    stderr: float | None
    n: int
    of: tuple[str, ...]
    given: tuple[str, ...]
    bound: str
    effective: float | None

    def describe(self) -> list[str]:
        """Return lines for the terminal."""
        error = "" if self.stderr is None else f" ± {self.stderr:.3f}"
        name = f"log p({', '.join(self.of)}{' | ' if self.given else ''}{', '.join(self.given)})"
        lines = [f"{self.n:,} rows: {name} = {self.nats:.3f}{error} nats per row ({self.bound})"]
        if self.effective is not None and self.effective < FEW / 10:
            lines.append(
                f"warning: the marginal of a row has as few as {self.effective:.1f} effective draws: pass more samples"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**self.__dict__, "of": list(self.of), "given": list(self.given)}


def sample_given(run: Run, n: int, given: Given, *, seed: int = 0, label: str | None = None) -> GivenSamples:
    """Draw n samples of a run's density that meet conditions on columns, on the CPU.

    Args:
        run: of a table.
        n: the number of samples.
        given: as of `conditions_of`.
        seed: of the samples.
        label: the class, of a conditional density.

    Of targets given inputs, the conditions give each input a value, and the samples are of the targets.

    Raises ValueError where a condition does not fit the table, and where no row meets the conditions.
    """
    density, spec = run.density, run.spec
    _check_rows(density)
    if isinstance(density, Imputed):
        density = density.density  # whose samples and complete rows are the same
    conditions, inputs = _conditions(given, spec)
    context = _label(density, spec, label) if inputs is None else inputs
    with evaluating(density, seed) as device:
        try:
            draws = draw_given(
                density,
                conditions,
                n,
                discrete=spec.discrete_dims,
                categories=spec.categories,
                context=None if context is None else context.to(device),
                fill=quick_inpainting(density),
            )
        except NoRows as error:
            raise ValueError(_nowhere(error, conditions, spec)) from None
    weighted = Bound.ESTIMATE if not density.importance_weighted else density.bound
    on_cpu = Draws(draws.x.cpu(), draws.effective, draws.method, draws.proposals, draws.log_mass)
    return GivenSamples(on_cpu, weighted)


def log_prob_given(
    run: Run,
    rows: Shaped[Tensor, "B D"],
    *,
    given: Sequence[str],
    of: Sequence[str] | None = None,
    samples: int = DRAWS,
    seed: int = 0,
) -> Float64[Tensor, " B"]:
    """Return log p(some columns | others) of each row in nats, exactly or as the difference of two marginals.

    A missing value or an unseen category in a row is left out, of the scored columns and of the given ones.

    Args:
        run: of a table.
        rows: in the units of the data, as of `Data`.
        given: the names of the columns to condition on; empty for the marginal of the others.
        of: the names of the columns to score; all others if None.
        samples: draws of the columns that are in neither, for each row, where the density does not marginalise.
        seed: of the draws.

    Raises ValueError for unknown columns, and columns that are in both lists.
    """
    return _scored(run, rows, _names(run, given, of), samples, seed)[0]


def evaluate_given(
    run: Run,
    data: Any = None,
    *,
    given: Sequence[str],
    of: Sequence[str] | None = None,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> GivenScore:
    """Score log p(some columns | others) on data; arguments as of `evaluate` and `log_prob_given`."""
    names = _names(run, given, of)
    part = run.data_for(data).split(split or ("test" if data is None else "all"))
    if len(part) == 0:
        raise ValueError('the split is empty: use split="validation", or pass data')
    scores, effective = [], []
    for start in range(0, len(part), ROWS):
        x, _ = arguments(run.density, *part.batch(torch.arange(start, min(len(part), start + ROWS))))
        nats, draws = _scored(run, x, names, samples or DRAWS, seed + start)
        scores.append(nats.cpu())
        effective.append(draws)
    mean, stderr = mean_and_stderr(torch.cat(scores))
    fewest = min(effective)
    exact = run.density.bound is Bound.EXACT and math.isinf(fewest)
    found = None if math.isinf(fewest) else fewest
    return GivenScore(mean, stderr, len(part), names[0], names[1], "exact" if exact else "estimate", found)


def _scored(
    run: Run, x: Shaped[Tensor, "B D"], names: tuple[tuple[str, ...], tuple[str, ...]], samples: int, seed: int
) -> tuple[Float64[Tensor, " B"], float]:
    """Return log p(of, given) - log p(given) of rows, and the fewest effective draws of a marginal."""
    density, spec = run.density, run.spec
    _check_rows(density)
    if density.conditional:
        raise ValueError("log p of columns given others needs p(row), and this is p(row | label or inputs)")
    of, given = ([[c.name for c in spec.columns].index(name) for name in part] for part in names)
    with evaluating(density, seed) as device:
        x = x.to(device)
        x = x.masked_fill(unseen(x, spec.columns), torch.nan)
        density.check(x if density.marginalises else x.nan_to_num(nan=0.0))
        if isinstance(density, HasConditionals):
            asked = torch.zeros(x.shape[1], dtype=torch.bool, device=device).index_fill(0, torch.tensor(of), True)
            known = torch.zeros_like(asked).index_fill(0, torch.tensor(given, dtype=torch.long), True)
            part = x.masked_fill(~(asked | known), torch.nan)
            return density.conditional_log_prob(part, known).double(), math.inf
        marginals: Marginals | None = None
        total, fewest = torch.zeros(len(x), dtype=torch.float64, device=device), math.inf
        for sign, kept in ((1, [*of, *given]), (-1, given)):
            if not kept:
                continue
            part = torch.full_like(x, torch.nan) if len(kept) < x.shape[1] else x
            part[:, kept] = x[:, kept]
            if density.marginalises or not part.isnan().any():
                draws = 1 if density.bound is Bound.EXACT else 32
                total += sign * density.log_prob(part, samples=draws).double()
                continue
            marginals = marginals or Marginals(density, discrete=spec.discrete_dims, categories=spec.categories)
            marginal = marginals(part, samples)
            total += sign * marginal.log_prob
            fewest = min(fewest, marginal.effective.min().item())
    return total, fewest


def _names(run: Run, given: Sequence[str], of: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns to score and those to condition on."""
    spec = run.spec
    given = tuple(column_of(name, spec).name for name in given)
    scored = (
        [c.name for c in spec.columns if c.name not in given] if of is None else [column_of(n, spec).name for n in of]
    )
    if both := [name for name in scored if name in given]:
        raise ValueError(f"column {quote(both[0])} is both scored and given: name it once")
    if not scored:
        raise ValueError("all columns are given: at least one must be left to score")
    return tuple(scored), given


def _check_rows(density: Density) -> None:
    if density.event != "x":
        raise ValueError(
            "conditions need a density p(row), and this is a classifier, p(label | row): use another family"
        )


def _conditions(given: Given, spec: DataSpec) -> tuple[list[Condition], Float[Tensor, "1 I"] | None]:
    """Return the conditions on the event, and the row of inputs of targets given inputs."""
    if not spec.inputs:
        return conditions_of(given, spec), None
    count = len(spec.inputs)
    conditions = conditions_of(given, whole_table(spec))
    row = torch.full((1, count), torch.nan)
    for condition in conditions:
        if condition.column < count:
            name = quote(spec.inputs[condition.column].name)
            if not condition.is_value:
                raise ValueError(f"column {name} is an input of this run: give it one value, not a range or a choice")
            row[0, condition.column] = condition.intervals[0][0]
    absent = [c.name for c, empty in zip(spec.inputs, row[0].isnan().tolist(), strict=True) if empty and not c.missing]
    if absent:
        raise ValueError(f"this run is p(targets | inputs): give each input a value; without one are {some(absent)}")
    own = [replace(c, column=c.column - count) for c in conditions if c.column >= count]
    return own, row


def _label(density: Density, spec: DataSpec, label: str | None) -> Int64[Tensor, " 1"] | None:
    """Return the label of all rows; None for a density that is not conditional."""
    if not density.conditional:
        if label is not None:
            raise ValueError("this density is not conditional: train one with conditional=True to draw from a label")
        return None
    if label is None:
        raise ValueError(f'this density is p(row | label): pass label="{spec.classes[0]}" too; {some(spec.classes)}')
    if label not in spec.classes:
        raise ValueError(f"no class {label!r}: the classes are {', '.join(spec.classes)}")
    return torch.tensor([spec.classes.index(label)])


def _nowhere(error: NoRows, conditions: Sequence[Condition], spec: DataSpec) -> str:
    """Return the line that says which values the conditioned columns have."""
    spans = []
    for condition in conditions:
        column, (low, high) = spec.columns[condition.column], error.seen[condition.column]
        if not column.categories:
            spans.append(f"{quote(column.name)} from {number_text(column, low)} to {number_text(column, high)}")
    together = "no row meets the conditions, by the model: their probability is below 1 in 1,000,000,000"
    return f"{together}; samples have {', '.join(spans)}" if spans else together
