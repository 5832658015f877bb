"""Missing values: drawn from a density given the rest of each row.

The method depends on the density. One with a `fill` of its own fills by it: independent columns, an any-order density
and a mixture from their exact conditionals, an `Imputed` of an exact or importance weighted density by its imputer. A
VAE draws latents and values in turn (`Latents.fill`). A diffusion denoises the missing values beside the known ones
(`Diffusion.inpaint`). Where `log_prob` is exact, or the logarithm of an importance weight, proposals of a fitted
mixture are weighted and moved (`complete`), as under the conditions of `sample_given`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from loglik.checks import data_checked
from loglik.conditioning import complete
from loglik.data.decode import write_table
from loglik.data.incomplete import Incomplete
from loglik.data.spec import DataSpec
from loglik.density import Density, evaluation_mode
from loglik.diffusion import Diffusion
from loglik.evaluation.scores import evaluating
from loglik.flows import Flow
from loglik.memory import Pieces
from loglik.missing import Imputed
from loglik.runs import Run
from loglik.tasks.latents import ELEMENTWISE, Latents
from loglik.transforms import PartialOut

__all__ = ["fill", "fill_table", "quick_inpainting"]

BLOCK = 4096  # rows of a table that are filled and written together
PIECE = 1024  # rows in one call of a density's own fill
QUICK_STEPS, QUICK_REPEATS = 25, 3  # where rows are drawn under conditions
REPEATS = 20  # of each step of a diffusion: with more repeats the missing values agree better with the known ones


@runtime_checkable
class Fills(Protocol):
    """A density that fills missing values itself."""

    def fill(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return x with NaN replaced by draws from p(missing | observed)."""
        ...


@torch.no_grad()
def fill(
    density: Density, x: Shaped[Tensor, "B D"], missing: Bool[Tensor, "B D"], spec: DataSpec | None = None
) -> Shaped[Tensor, "B D"]:
    """Draw the missing values of rows from p(missing | observed), with torch's global generator.

    Args:
        density: over rows, not conditional: independent, a VAE, a diffusion, a flow or an autoregressive density. A VAE
            or a diffusion may stand behind transforms of each column by itself.
        x: rows, on any device; the values at missing places are ignored.
        missing: true where a value is missing.
        spec: of the rows, for the kinds of the columns; found from samples of the density if None.

    Returns the filled rows, on the device of x.

    Raises ValueError for a density that cannot fill missing values.
    """
    if density.event != "x" or density.conditional or x.dim() != 2:
        raise ValueError("missing values are filled in rows (B, D), by a density p(row)")
    density.check(x.masked_fill(missing, 0))
    with evaluation_mode(density), data_checked():
        return _fill(density, x.to(density.device), missing.to(density.device), spec).to(x)


def _fill(density: Density, x: Tensor, missing: Tensor, spec: DataSpec | None) -> Tensor:
    """Fill by the method that fits the density."""
    if isinstance(density, Imputed) and not density.importance_weighted:
        density = density.density  # whose own method beats weights that are no importance weights
    if isinstance(density, Fills):
        return torch.where(missing, _in_pieces(density, x.masked_fill(missing, torch.nan)), x)
    if Latents.has(density):
        return Latents(density).fill(x, missing)
    x = x.masked_fill(missing, 0)
    if _denoises(density):
        return _denoised(density, x, missing)
    if not density.importance_weighted:
        base = density.base if isinstance(density, Flow) else density
        raise ValueError(
            f"a {type(base).__name__.lower()} does not fill missing values behind these transforms: its log_prob is "
            "not the log of an importance weight"
        )
    return _weighted(density, x, missing, spec)


def _in_pieces(density: Fills, x: Tensor) -> Tensor:
    """Fill a few rows at a time: a density may draw many candidates of each."""
    return torch.cat([density.fill(rows).to(x.dtype) for rows in torch.split(x, PIECE)])


def quick_inpainting(density: Density) -> Callable[[Tensor], Tensor] | None:
    """Return what fills NaN by a diffusion in few noise levels; None for a density that is none."""
    if density.conditional or not _denoises(density):
        return None

    def inpaint(x: Tensor) -> Tensor:
        return _denoised(density, x.nan_to_num(nan=0.0), x.isnan(), steps=QUICK_STEPS, repeats=QUICK_REPEATS)

    return inpaint


def _denoises(density: Density) -> bool:
    """Whether a density is a diffusion, behind transforms of each column by itself if any."""
    transforms, base = (density.transforms, density.base) if isinstance(density, Flow) else ((), density)
    return isinstance(base, Diffusion) and all(isinstance(transform, ELEMENTWISE) for transform in transforms)


def _denoised(
    density: Density, x: Tensor, missing: Tensor, *, steps: int | None = None, repeats: int = REPEATS
) -> Tensor:
    """Fill by a diffusion, in the space behind the transforms."""
    flow = density if isinstance(density, Flow) else None
    diffusion = density if flow is None else flow.base
    assert isinstance(diffusion, Diffusion)
    z = x if flow is None else flow.encode(x)[0]
    z = diffusion.inpaint(z, ~missing.view(z.shape), steps=steps, repeats=repeats)
    drawn = z if flow is None else flow.decode(z)
    return torch.where(missing, drawn.to(x.dtype), x)


def _weighted(density: Density, x: Tensor, missing: Tensor, spec: DataSpec | None) -> Tensor:
    """Fill by weights of proposals, and agree with columns that others determine."""
    discrete, categories = (None, None) if spec is None else (spec.discrete_dims, spec.categories)
    x, adjust = x.masked_fill(missing, torch.nan), _adjustment(density)
    filled = complete(density, x, discrete=discrete, categories=categories, adjust=adjust)
    return torch.where(missing, filled.to(x.dtype), x)


def _adjustment(density: Density) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what makes columns that others determine agree with them; None if the density knows of none.

    Where two such columns are both missing, redrawing could change neither of the two.
    """
    transforms = list(density.transforms) if isinstance(density, Flow) else []
    for at, transform in enumerate(transforms):
        if isinstance(transform, PartialOut):
            before = Flow(transforms[:at], density)  # for its transforms alone

            def adjust(filled: Tensor, missing: Tensor, by: PartialOut = transform, before: Flow = before) -> Tensor:
                z = before.encode(filled)[0]
                return torch.where(missing, before.decode(by.complete(z, missing, z)).to(filled.dtype), filled)

            return adjust
    return None


def fill_table(run: Run, table: Path, out: Path, *, seed: int = 0) -> int:
    """Fill a table's missing values with draws given the rest of each row, write it, and return their number.

    Args:
        run: a run of a table.
        table: the file with missing values.
        out: the file to write, in the format of its suffix.
        seed: of the draws.

    Blocks of 4,096 rows are filled and written one after the other, so that memory does not grow with the table; a
    table of at most 256 MiB is read whole. Each block has a seed of its own. A block that does not fit in memory is
    halved, and so are all later ones; this changes the draws.

    Raises ValueError where the run's data are not a table, or its density is a classifier, conditional, or cannot fill.
    """
    density = run.density
    if density.event != "x":
        raise ValueError("fill needs a density p(row), and this is a classifier, p(label | row): use another family")
    if run.spec.kind != "table":
        raise ValueError(f"fill needs a run of a table, and this run's data are {run.spec.describe()}")
    if density.conditional:
        raise ValueError("fill needs a density p(row), and this is p(row | label): train one without conditional=True")
    incomplete, counts = Incomplete(table, run.spec), [0]
    texts = out.suffix.lower() in (".csv", ".tsv")
    write_table(_filled_blocks(run, incomplete, seed, counts, texts), out)
    return sum(counts)


def _filled_blocks(
    run: Run, incomplete: Incomplete, seed: int, counts: list[int], texts: bool
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a table, filled; the number of values that each block fills is appended to `counts`."""
    density = run.density
    pieces = Pieces(lambda piece: _filled(density, x, missing, first, piece, seed, run.spec), density.device)
    for first, frame, x, missing in incomplete.blocks(BLOCK):  # noqa: B007 (pieces uses it)
        counts.append(int(missing[:, incomplete.gaps].sum()))
        for start in range(0, len(x), BLOCK):
            for piece, filled in pieces(slice(start, min(len(x), start + BLOCK))):
                yield incomplete.filled(frame[piece], filled, missing[piece], texts=texts)


def _filled(
    density: Density, x: Tensor, missing: Tensor, first: int, piece: slice, seed: int, spec: DataSpec
) -> tuple[slice, Shaped[Tensor, "B D"]]:
    """Return a piece of a block that begins at row `first` of the table, and its rows, filled."""
    rows, at = missing[piece].any(1).nonzero().flatten() + piece.start, first + piece.start
    filled = x[piece].clone()
    if len(rows):
        with evaluating(density, seed if at == 0 else (seed * 1_000_003 + at) % 2**63):
            filled[rows - piece.start] = fill(density, x[rows], missing[rows], spec).to(x.dtype)
    return piece, filled
