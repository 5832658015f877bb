"""What a density scores on a split, in nats, bits/dim and standard errors."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from loglik.classification.calibration import confusion_matrix, reliability, wilson_interval
from loglik.data.dataset import Split
from loglik.data.spec import DataSpec
from loglik.data.windows import Windows
from loglik.density import Bound, Density, sum_terms
from loglik.evaluation.result import Result
from loglik.evaluation.rows import RowScores
from loglik.evaluation.scores import (
    arguments,
    default_samples,
    evaluating,
    log_prob_terms,
    log_probs,
    mean_and_stderr,
    unseen_error,
)
from loglik.evaluation.text import StreamScores, perplexity, stream_scores

__all__ = ["bits_per_dim", "evaluate_split", "labels_in_turn"]

RATE_DRAWS = 16  # samples drawn to measure the rate of sampling
SOLVED = 64  # rows on which the error of a solver is measured


def bits_per_dim(nats: float, dims: int) -> float:
    """-nats / (dims · ln 2).

    >>> round(bits_per_dim(-math.log(2) * 10, dims=5), 6)
    2.0
    """
    return -nats / (dims * math.log(2)) + 0.0  # no negative zero


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
    """Score a density on a split; a text with overlapping windows, in nats per token.

    Args:
        baseline: another density's scores of the same split, to be gained upon.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        seed: of the Monte Carlo noise.
        rows: this density's `row_scores` of the split, if they are there already; they have no terms.

    Raises ValueError where the split is empty.
    """
    if len(split) == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    samples = default_samples(density, len(split), samples)
    labels = density.event == "y"
    of_text: dict[str, Any] = {}
    terms: dict[str, Tensor] = {}
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
        if rows is not None:
            scores, samples = rows.nats, round(rows.draws.double().mean().item())
        else:
            if density.bound is not Bound.EXACT:
                terms = log_prob_terms(density, split, samples=samples, seed=seed)
            # terms sum to log_prob: no second pass, unless a draw's weight of 0 made one NaN
            if not terms or not (scores := sum_terms(terms)).isfinite().all():
                scores = log_probs(density, split, samples=samples, seed=seed)
        nats, stderr = mean_and_stderr(scores)
        if isinstance(baseline, Tensor) and not labels:
            gain, gain_stderr = mean_and_stderr(scores - baseline)
        discrete = all(spec.discrete_dims) and density.discrete and not labels
        bits = bits_per_dim(nats, spec.dims) if discrete else None
        of_text = {"bits_per_byte": bits if spec.kind == "text" and not spec.padded else None}
        n = len(split)
    if density.discrete and n > 1:
        stderr = max(stderr or 0.0, unseen_error(nats, n)) or None
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
        terms={name: values.mean().item() for name, values in terms.items()},
        numerical_error=None if isinstance(split.x, Windows) else _numerical_error(density, split, seed),
        **judged,
        **of_text,
    )


def _classification(density: Density, split: Split) -> dict[str, Any]:
    assert split.y is not None
    rows = torch.cat(
        [
            density.probabilities(x.to(density.device)).cpu()  # type: ignore[operator]
            for x in split.tensor().split(1024)
        ]
    )
    matrix, table = confusion_matrix(rows, split.y), reliability(rows, split.y)
    right = int(matrix.diag().sum())
    return {
        "accuracy": right / len(rows),
        "accuracy_interval": wilson_interval(right, len(rows)),
        "calibration_error": table.error,
        "calibration_interval": table.error_interval,
        "confusion": matrix.tolist(),
    }


def _numerical_error(density: Density, split: Split, seed: int) -> float | None:
    """Average the solver's error over the first `SOLVED` rows of the split."""
    event, context = arguments(density, split.x[:SOLVED], None if split.y is None else split.y[:SOLVED])
    with evaluating(density, seed):
        error = density.numerical_error(event, context)
    return None if error is None else error.double().mean().item()


def _sampling_rate(density: Density, split: Split, spec: DataSpec, seed: int) -> float:
    device = density.device
    n = min(RATE_DRAWS, len(split)) if density.event == "y" else RATE_DRAWS
    context = None
    if density.event == "y":
        context = split.x[:n].to(device)
    elif density.conditional:
        context = labels_in_turn(spec, n, device)
    with evaluating(density, seed):
        start = time.perf_counter()
        density.sample(n, context).cpu()
    return n / (time.perf_counter() - start)
