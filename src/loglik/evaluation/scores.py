"""Log-probabilities of a whole split, the same on one rank as on many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from loglik.data.dataset import Split
from loglik.density import Bound, Density
from loglik.networks.memory import keep_freed_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["arguments", "default_samples", "log_probs", "mean_and_stderr", "replicates"]


def arguments(density: Density, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The event and the context of a batch: (y, x) for p(y | x), (x, y) for p(x | y), (x, None) for p(x)."""
    if density.event == "y" or density.conditional:
        if y is None:
            raise ValueError("this density needs labels: class folders, or --label COLUMN for a table")
        return (y, x) if density.event == "y" else (x, y)
    return x, None


def default_samples(density: Density, n: int, asked: int | None = None) -> int:
    """Monte Carlo samples per example: 1 where the number is exact, else those asked for, else 4 to 32, fewer for a
    larger split."""
    if density.bound is Bound.EXACT:
        return 1
    return max(4, min(32, 2**16 // max(n, 1))) if asked is None else asked


@torch.no_grad()
def log_probs(
    density: Density,
    split: Split,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
) -> Float64[Tensor, " N"]:
    """Log p of every example of a split, in nats, in the split's order.

    Each batch draws its noise from a seed of its own, and ranks take batches in turn, so R ranks return what one
    does; the one collective call comes after the last batch. The global generator is left as it was.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    rows = torch.arange(len(split))
    scores = replicates(density, split, rows, samples=samples, seed=seed, batch_size=batch_size, rank=rank, world=world)
    if fabric and world > 1:
        scores = fabric.all_reduce(scores, reduce_op="sum")  # type: ignore[assignment]
    return scores.cpu()


@torch.no_grad()
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
    """Log p of rows of a split, each as often as it is listed, on the density's device; 0 for other ranks' batches."""
    keep_freed_memory()
    batch_size = batch_size or max(1, min(256, 2**18 // math.prod(split.x.shape[1:])))
    device = next((t.device for t in (*density.parameters(), *density.buffers())), torch.device("cpu"))
    scores = torch.zeros(len(rows), dtype=torch.float64, device=device)
    was_training = density.training
    density.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number in range(rank, math.ceil(len(rows) / batch_size), world):
            places = slice(number * batch_size, (number + 1) * batch_size)
            some = rows[places]
            torch.manual_seed((seed * 1_000_003 + number) % 2**63)
            y = None if split.y is None else split.y[some].to(device)
            event, context = arguments(density, split.x[some].to(device), y)
            scores[places] = density.log_prob(event, context, samples=samples).double()
    density.train(was_training)
    return scores


def mean_and_stderr(scores: Float64[Tensor, " N"]) -> tuple[float, float | None]:
    r"""The mean and its standard error $\sqrt{\tfrac{1}{N(N-1)} \sum_i (l_i - \bar l)^2}$; None for one example."""
    mean = scores.mean().item()
    return mean, scores.std().item() / math.sqrt(len(scores)) if len(scores) > 1 else None
