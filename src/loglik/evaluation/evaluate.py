"""What a density scores on a split, in nats, bits/dim and standard errors."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from loglik.classification.calibration import calibration_error, confusion_matrix
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.data.windows import Windows
from loglik.density import Density
from loglik.evaluation.result import Result
from loglik.evaluation.rows import RowScores
from loglik.evaluation.scores import arguments, default_samples, log_probs, mean_and_stderr
from loglik.evaluation.text import StreamScores, perplexity, stream_scores

__all__ = ["bits_per_dim", "evaluate_split", "labels_in_turn"]

RATE_DRAWS = 16  # samples drawn to measure the rate of sampling
MAX_TERMS = 32  # draws of each term


def bits_per_dim(nats: float, dims: int) -> float:
    """-nats / (dims · ln 2).

    >>> round(bits_per_dim(-math.log(2) * 10, dims=5), 6)
    2.0
    """
    return -nats / (dims * math.log(2))


def labels_in_turn(spec: DataSpec, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Labels 0, 1, ..., C-1, 0, 1, ... as the context of n samples of a conditional density."""
    return torch.arange(n, device=device) % len(spec.classes)


@torch.no_grad()
def evaluate_split(
    density: Density,
    split: Split,
    spec: DataSpec,
    *,
    model: str,
    samples: int | None = None,
    seed: int = 0,
    train_seconds: float = 0.0,
    steps: int = 0,
    baseline: Tensor | StreamScores | None = None,
    rows: RowScores | None = None,
) -> Result:
    """Score a density on a split; a text with overlapping windows, in nats a token.

    Args:
        baseline: another density's scores of the same split, to be gained upon.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        seed: of the Monte Carlo noise.
        rows: this density's `row_scores` of the split, where they are there already.

    Raises ValueError where the split is empty.
    """
    if len(split) == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    samples = default_samples(density, len(split), samples)
    labels = density.event == "y"
    of_text: dict[str, Any] = {}
    gain: float | None = None
    gain_stderr: float | None = None
    if isinstance(split.x, Windows):
        stretches = stream_scores(density, split.x.stream, spec)
        nats, stderr = stretches.per_token()
        if isinstance(baseline, StreamScores):
            gain, gain_stderr = stretches.gain(baseline)
        bits: float | None = bits_per_dim(nats, 1)
        of_text = {"unit": "token", "perplexity": perplexity(nats), "bits_per_byte": stretches.bits_per_byte()}
        n = int(stretches.tokens.sum())
    else:
        if rows is None:
            scores = log_probs(density, split, samples=samples, seed=seed)
        else:
            scores, samples = rows.nats, round(rows.draws.double().mean().item())
        nats, stderr = mean_and_stderr(scores)
        if isinstance(baseline, Tensor) and not labels:
            gain, gain_stderr = mean_and_stderr(scores - baseline)
        discrete = all(spec.discrete_dims) and density.discrete and not labels
        bits = bits_per_dim(nats, spec.dims) if discrete else None
        of_text = {"bits_per_byte": bits if spec.kind == "text" and not spec.padded else None}
        n = len(split)
    density.eval()
    judged = _classification(density, split) if labels else {}
    return Result(
        model=model,
        bound=density.bound.value,
        nats=nats,
        bits_per_dim=bits,
        stderr=stderr,
        gain=gain,
        gain_stderr=gain_stderr,
        n=n,
        event=density.event,
        samples=samples,
        params=sum(p.numel() for p in density.parameters() if p.requires_grad),
        train_seconds=train_seconds,
        steps=steps,
        samples_per_second=_sampling_rate(density, split, spec, seed),
        terms=_terms(density, split, min(samples, MAX_TERMS), seed),
        numerical_error=None if isinstance(split.x, Windows) else _numerical_error(density, split, seed),
        **judged,
        **of_text,
    )


def _device(density: Density) -> torch.device:
    return next((t.device for t in (*density.parameters(), *density.buffers())), torch.device("cpu"))


def _classification(density: Density, split: Split) -> dict[str, Any]:
    device = _device(density)
    assert split.y is not None
    rows = torch.cat(
        [
            density.probabilities(x.to(device)).cpu()  # type: ignore[operator]
            for x in split.tensor().split(1024)
        ]
    )
    matrix = confusion_matrix(rows, split.y)
    return {
        "accuracy": matrix.diag().sum().item() / len(rows),
        "calibration_error": calibration_error(rows, split.y),
        "confusion": matrix.tolist(),
    }


def _terms(density: Density, split: Split, samples: int, seed: int, most: int = 1024) -> dict[str, float]:
    """Each named term of a bound, averaged over (at most `most` examples of) the split."""
    device = _device(density)
    x = split.x[:most].to(device)
    y = None if split.y is None else split.y[:most].to(device)
    totals: dict[str, float] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(samples):
            for name, value in density.terms(*arguments(density, x, y)).items():
                totals[name] = totals.get(name, 0.0) + value.double().mean().item() / samples
    return totals


def _numerical_error(density: Density, split: Split, seed: int, most: int = 64) -> float | None:
    """Averaged over (at most `most` examples of) the split."""
    device = _device(density)
    y = None if split.y is None else split.y[:most].to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        error = density.numerical_error(*arguments(density, split.x[:most].to(device), y))
    return None if error is None else error.double().mean().item()


def _sampling_rate(density: Density, split: Split, spec: DataSpec, seed: int) -> float:
    device = _device(density)
    n = min(RATE_DRAWS, len(split)) if density.event == "y" else RATE_DRAWS
    context = None
    if density.event == "y":
        context = split.x[:n].to(device)
    elif density.conditional:
        context = labels_in_turn(spec, n, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        start = time.perf_counter()
        density.sample(n, context).cpu()
    return n / (time.perf_counter() - start)
