"""Missing values: the gaps of rows drawn from a density given the rest of each row.

How depends on what the density is. Of independent columns a sample is a draw; a VAE draws latents and values in turn
(`Latents.fill`); a diffusion denoises the gaps beside what is known (`Diffusion.inpaint`); and where `log_prob` is
exact, or the logarithm of an importance weight, it says which of several candidates for a gap are likely.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from loglik.baselines import Independent
from loglik.data.tables import decode_column, load_incomplete
from loglik.density import Density
from loglik.diffusion import Diffusion
from loglik.evaluation.scores import evaluating
from loglik.flows import Flow
from loglik.latents import EACH_ALONE, Latents
from loglik.runs import Run
from loglik.transforms import PartialOut

__all__ = ["fill", "fill_table"]

AT_ONCE = 2**14  # rows whose log-probabilities are evaluated in one call
REPEATS = 20  # of each step of a diffusion: the more, the better the gaps agree with the rest


@torch.no_grad()
def fill(density: Density, x: Shaped[Tensor, "B D"], missing: Bool[Tensor, "B D"]) -> Shaped[Tensor, "B D"]:
    """Draw the missing values of rows from p(missing | observed), with torch's global generator.

    Args:
        density: over rows, not conditional: independent, a VAE, a diffusion, a flow or an autoregressive density; a
            VAE or a diffusion may stand behind transforms of each column alone.
        x: rows; what stands where values are missing does not matter.
        missing: true where a value is missing.

    Rows may be on any device, and are filled on the density's; the filled ones are on the device of x.
    Raises ValueError for densities that this cannot be done for.
    """
    if density.event != "x" or density.conditional or x.dim() != 2:
        raise ValueError("missing values are filled in rows (B, D), by a density p(row)")
    training = density.training
    density.eval()
    try:
        return _fill(density, x.to(density.device), missing.to(density.device)).to(x.device)
    finally:
        density.train(training)


def _fill(density: Density, x: Tensor, missing: Tensor) -> Tensor:
    """The way that fits the density."""
    transforms, base = (density.transforms, density.base) if isinstance(density, Flow) else ((), density)
    if isinstance(density, Independent):
        return torch.where(missing, density.sample(len(x)).to(x.dtype), x)
    if Latents.has(density):
        return Latents(density).fill(x, missing)
    x = x.masked_fill(missing, 0)
    if isinstance(base, Diffusion) and all(isinstance(transform, EACH_ALONE) for transform in transforms):
        return _denoised(density, base, x, missing)
    if not density.importance_weighted:
        raise ValueError(
            f"a {type(base).__name__.lower()} does not fill gaps behind these transforms: its log_prob is no "
            "importance weight"
        )
    return _weighted(density, x, missing)


def _denoised(density: Density, diffusion: Diffusion, x: Tensor, missing: Tensor) -> Tensor:
    """By a diffusion, in the variable that the transforms before it give."""
    flow = density if isinstance(density, Flow) else None
    z = x if flow is None else flow.encode(x)[0]
    z = diffusion.inpaint(z, ~missing.view(z.shape), repeats=REPEATS)
    drawn = z if flow is None else flow.decode(z)
    return torch.where(missing, drawn.to(x.dtype), x)


def _weighted(density: Density, x: Tensor, missing: Tensor, sweeps: int = 20, draws: int = 31) -> Tensor:
    r"""Gibbs sampling, a column at a time: the value there is competes with `draws` candidates from the column's
    marginal q, each taken in proportion to $p(\text{row}) / q(\text{value})$, which leaves the conditional as it is
    (iterated sampling importance resampling; Andrieu et al. 2010). q is counted on samples of the density.

    Exact as sweeps grow where `log_prob` is.
    """
    known = density.sample(4096).to(x.dtype)
    whole = (known == known.round()).all(0)
    low = torch.where(whole, known.amin(0).double(), -torch.inf)
    high = torch.where(whole, known.amax(0).double(), torch.inf)
    marginals = Independent((x.shape[1],), whole.tolist()).to(x.device)
    marginals.initialise(known)
    drawn = known[torch.randint(len(known), (len(x),), device=x.device)]
    filled = torch.where(missing, _start(density, x, missing, drawn), x)
    for _ in range(sweeps):
        for d in missing.any(0).nonzero().flatten().tolist():
            for rows in missing[:, d].nonzero().flatten().split(AT_ONCE // (draws + 1)):
                each = filled[rows].repeat(draws + 1, 1)
                fresh = marginals.sample(draws * len(rows))[:, d].to(x.dtype)
                each[len(rows) :, d] = fresh.clamp(low[d], high[d]).to(x.dtype)  # a code has only so many values
                log_weight = density.log_prob(each).double() - marginals.token_log_probs(each)[:, d]
                log_weight[len(rows) :][(fresh < low[d]) | (fresh > high[d])] = -torch.inf
                chosen = log_weight.view(draws + 1, -1).T.softmax(1).multinomial(1).squeeze(1)
                filled[rows, d] = each[:, d].view(draws + 1, -1)[chosen, torch.arange(len(rows), device=x.device)]
    return filled


def _start(density: Density, x: Tensor, missing: Tensor, sample: Tensor) -> Tensor:
    """A sample, with what the rest of a row determines put right: of two such columns, both missing, Gibbs sampling
    would move neither.
    """
    transforms = list(density.transforms) if isinstance(density, Flow) else []
    for at, transform in enumerate(transforms):
        if isinstance(transform, PartialOut):
            before = Flow(transforms[:at], density)  # for its transforms alone
            completed = transform.complete(before.encode(x)[0], missing, before.encode(sample)[0])
            return before.decode(completed).to(x.dtype)
    return sample


def fill_table(run: Run, table: Path, out: Path, *, seed: int = 0) -> int:
    """Write a table whose missing values are drawn from a run's density given the rest of the row; gives how many.

    Raises ValueError where the run is none of a table, is given the label, or cannot fill.
    """
    density = run.density
    if density.event != "x":
        raise ValueError("fill takes a density p(row), and this is a classifier, p(label | row): use another family")
    if run.spec.kind != "table":
        raise ValueError(f"fill takes tables, and this run's data are {run.spec.describe()}")
    if density.conditional:
        raise ValueError("fill takes a density p(row), and this is p(row | label): train one without conditional=True")
    frame, x, missing = load_incomplete(table, run.spec)
    rows = missing.any(1)
    filled = x.clone()
    if rows.any():
        with evaluating(density, seed):
            filled[rows] = fill(density, x[rows], missing[rows]).to(x.dtype)
    columns = []
    for d, column in enumerate(run.spec.columns):
        gone = missing[:, d]
        if gone.any():
            columns.append(decode_column(frame[column.name], column, filled[:, d], gone))
    out.parent.mkdir(parents=True, exist_ok=True)
    frame.with_columns(columns).write_csv(out)
    return int(missing.sum())
