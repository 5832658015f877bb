"""Log-probabilities of all examples of a split, the same on one rank as on many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from loglik.checks import data_checked
from loglik.cpu.allocator import keep_freed_memory
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.data.store import Rows
from loglik.data.windows import Windows
from loglik.density import Bound, Density, evaluation_mode
from loglik.devices import fork_generators
from loglik.memory import Pieces

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "arguments",
    "check_split",
    "default_samples",
    "evaluating",
    "labels_in_turn",
    "log_prob_terms",
    "log_probs",
    "mean_and_stderr",
    "replicates",
    "unseen_error",
]

Scores = TypeVar("Scores")
ROUNDING = 2.0**-23  # of float32, in which densities compute
MAX_CHECKED_VALUES = 2**22  # that are read from a split at once


@contextmanager
def evaluating(density: Density, seed: int) -> Iterator[torch.device]:
    """Evaluate a density without gradients, with random numbers from a seed; yield its device.

    Restores the mode and the random state at the end.
    """
    device = density.device
    with evaluation_mode(density), torch.no_grad(), fork_generators(device):
        torch.manual_seed(seed)
        yield device


def arguments(
    density: Density, x: Shaped[Tensor, "B ..."], y: Shaped[Tensor, "B ..."] | None
) -> tuple[Shaped[Tensor, "B ..."], Shaped[Tensor, "B ..."] | None]:
    """Return the event and the context of a batch, on the density's device.

    They are (y, x) for p(y | x), (x, y) for p(x | y), and (x, None) for p(x).

    Raises ValueError where the density needs labels and y is None.
    """
    device = density.device
    return _arguments(density, x.to(device), None if y is None else y.to(device))


def _arguments(density: Density, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the event and the context of a batch, where they are."""
    if density.event == "y" or density.conditional:
        if y is None:
            raise ValueError('this density needs labels: class folders, label="COLUMN" for a table, or a pair (x, y)')
        return (y, x) if density.event == "y" else (x, y)
    return x, None


def check_split(density: Density, split: Split) -> None:
    """Raise ValueError for levels, codes and labels of a split that the density is not defined on.

    One pass over the split where it is stored; afterwards, use it within `data_checked`.
    """
    parts: list[tuple[Tensor | Rows | Windows, Tensor | Rows | None]] = [(split.x, split.y)]
    if split.stream is not None:  # each token once: windows side by side, and the one that ends the text
        stream, length = split.stream, split.units_per_example
        last = stream.cut(len(stream) - length, len(stream))
        parts = [(Windows(part, length, length), None) for part in (stream, last)]
    for x, y in parts:
        size = max(1, MAX_CHECKED_VALUES // math.prod(x.shape[1:]))
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            density.check(*_arguments(density, x[part], None if y is None else y[part]))


def labels_in_turn(spec: DataSpec, n: int, device: torch.device | str = "cpu") -> Int64[Tensor, " n"]:
    """Return labels 0, 1, ..., C-1, 0, 1, ... as the context of n samples of a conditional density."""
    return torch.arange(n, device=device) % len(spec.classes)


def default_samples(density: Density, n: int, requested: int | None = None) -> int:
    """Return the number of Monte Carlo samples per example.

    It is 1 where the number is exact, else the requested number, else 4 to 32, fewer for a larger split.
    """
    if density.bound is Bound.EXACT:
        return 1
    return max(4, min(32, 2**16 // max(n, 1))) if requested is None else requested


def log_probs(
    density: Density,
    split: Split,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
) -> Float64[Tensor, " N"]:
    """Return log p of every example of a split, in nats, in the split's order.

    Each batch has a seed of its own, and ranks score batches in turn, so R ranks return what one rank returns. The only
    collective call comes after the last batch. The global generator is restored.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    rows = torch.arange(len(split))
    scores = replicates(density, split, rows, samples=samples, seed=seed, batch_size=batch_size, rank=rank, world=world)
    if fabric and world > 1:
        scores = fabric.all_reduce(scores, reduce_op="sum")  # type: ignore[assignment]
    return scores.cpu()


@torch.no_grad()
def log_prob_terms(
    density: Density, split: Split, *, samples: int = 1, seed: int = 0
) -> dict[str, Float64[Tensor, " N"]]:
    """Return the terms of a bound for every example of a split, in nats; empty where it has one term only.

    The noise is that of `log_probs` with the same samples and seed, so the terms sum to its result.
    """
    terms: dict[str, Tensor] = {}

    def score(event: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        return density.terms(event, context, samples=samples)

    for part, found in _scored(density, split, torch.arange(len(split)), seed, score):
        for name, values in found.items():
            scores = terms.setdefault(name, torch.zeros(len(split), dtype=torch.float64, device=values.device))
            scores[part] = values.double()
    return {name: scores.cpu() for name, scores in terms.items()}


def replicates(
    density: Density,
    split: Split,
    rows: Int64[Tensor, " N"],
    *,
    samples: int,
    seed: int,
    batch_size: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Float64[Tensor, " N"]:
    """Return log p of each listed row of a split, on the density's device; 0 for the batches of other ranks.

    A row may be listed several times.
    """
    scores = torch.zeros(len(rows), dtype=torch.float64, device=density.device)

    def score(event: Tensor, context: Tensor | None) -> Tensor:
        return density.log_prob(event, context, samples=samples)

    for part, values in _scored(density, split, rows, seed, score, batch_size, rank=rank, world=world):
        scores[part] = values.double()
    return scores


def _scored(
    density: Density,
    split: Split,
    rows: Int64[Tensor, " N"],
    seed: int,
    score: Callable[[Tensor, Tensor | None], Scores],
    batch_size: int | None = None,
    *,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[slice, Scores]]:
    """Yield the slice of the rows and the score of each batch of a rank, in evaluation mode.

    Seeds each batch by its number, and checks it where the split is stored, so that the density need not. A batch that
    does not fit in memory is halved, and so are all later ones; each piece after the first has a seed of its own.
    """
    keep_freed_memory()
    batch_size = batch_size or max(1, min(256, 2**18 // math.prod(split.x.shape[1:])))

    def compute(part: slice) -> tuple[slice, Scores]:
        number, offset = divmod(part.start, batch_size)
        batch = split.batch(rows[part])
        density.check(*_arguments(density, *batch))
        torch.manual_seed((seed * 1_000_003 + number + offset * 7_777_777) % 2**63)
        with data_checked():
            return part, score(*arguments(density, *batch))

    pieces = Pieces(compute, density.device)
    with evaluating(density, seed):
        for number in range(rank, math.ceil(len(rows) / batch_size), world):
            yield from pieces(slice(number * batch_size, min(len(rows), (number + 1) * batch_size)))


def mean_and_stderr(scores: Float64[Tensor, " N"]) -> tuple[float, float | None]:
    r"""Return the mean and its standard error $\sqrt{\tfrac{1}{N(N-1)} \sum_i (l_i - \bar l)^2}$.

    The error is None for one example, and where all scores are equal to rounding: such scores do not show the spread of
    other examples, and 0 would claim that there is no spread.
    """
    mean, largest = scores.mean().item(), scores.abs().max().item()
    if not math.isfinite(mean):
        return mean, None
    spread = scores.std().item() if len(scores) > 1 else 0.0
    return mean, None if spread <= ROUNDING * largest else spread / math.sqrt(len(scores))


def unseen_error(nats: float, n: int) -> float:
    r"""Return the error in nats of a mean log-probability through outcomes that n examples did not show.

    The usual standard error vanishes where n outcomes are all predicted with probability near 1. Yet n correct
    predictions do not show that no other outcome occurs. By one standard error (z = 1) of Wilson's interval for 0 of n,
    other outcomes may have the probability $\tfrac{z^2}{n + z^2} = \tfrac1{n+1}$ (at 95 %, z = 1.96, about 3 / n: the
    rule of three). The model gives all other outcomes together $1 - p$, where $\log p$ is the mean $\bar l$, so each
    would score at least $\bar l - \log(1 - p)$ less:

    $\tfrac1{n+1} \max(0, \bar l - \log(1 - e^{\bar l}))$, with $1 - p \ge 2^{-24}$, below which float32 rounds p to 1.

    It is a lower bound of the error, for use where the usual error is smaller; for $p \le \tfrac12$ it is 0.

    Args:
        nats: the mean log-probability, of a mass function.
        n: the number of examples.

    Reference: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Hanley and
    Lippman-Hand 1983, "If nothing goes wrong, is everything all right?".

    >>> round(unseen_error(-0.01, 16), 2), unseen_error(-80.0, 16)
    (0.27, 0.0)
    """
    nats = min(nats, 0.0)  # a mass may round to a little more than 1
    rest = max(-math.expm1(nats), 2.0**-24)
    return max(0.0, nats - math.log(rest)) / (n + 1)
