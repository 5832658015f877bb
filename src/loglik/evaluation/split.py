"""What a density scores on a split, in nats, bits/dim and standard errors."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loglik.classification.calibration import confusion_matrix, reliability, wilson_interval
from loglik.data.dataset import Split
from loglik.data.limits import some
from loglik.data.spec import DataSpec
from loglik.density import Bound, Density, evaluation_mode
from loglik.draws import sum_terms
from loglik.evaluation.incomplete import scorable
from loglik.evaluation.predictions import target_scores, target_values
from loglik.evaluation.result import Result, bits_per_dim
from loglik.evaluation.rows import RowScores
from loglik.evaluation.scores import (
    arguments,
    default_samples,
    evaluating,
    labels_in_turn,
    log_prob_terms,
    log_probs,
    mean_and_stderr,
    unseen_error,
)
from loglik.evaluation.text import StreamScores, perplexity, stream_scores
from loglik.memory import Pieces

__all__ = ["SOLVED_ROWS", "baseline_scores", "evaluate_split"]

RATE_DRAWS = 16  # samples drawn to measure the rate of sampling
MANY_TOKENS = 100  # whose mean score says something of the tokenizer
SOLVED_ROWS = 64  # rows on which the error of a solver is measured


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
        model: the name in the result.
        samples: Monte Carlo samples per example where `log_prob` is a bound; chosen by the split's size if None.
        seed: of the Monte Carlo noise.
        train_seconds, steps: the duration of the training, for the result.
        baseline: another density's `baseline_scores` of the same split, from which gains are counted.
        rows: this density's `row_scores` of the split, if they exist already; the result then has no terms.

    Raises ValueError where the split is empty.
    """
    if len(split) == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    _check_classes(density, spec)
    own, (density, gaps) = density, scorable(density, split, spec)
    samples = default_samples(density, len(split), samples)
    scored: dict[str, Any]
    if split.stream is not None:
        assert not isinstance(baseline, Tensor)
        scored = _score_stream(density, split, spec, baseline)
    else:
        assert not isinstance(baseline, StreamScores)
        if rows is not None:
            samples = round(rows.draws.double().mean().item())
        scored = _score_examples(density, split, spec, samples, seed, baseline, rows)
    if density.discrete and scored["n"] > 1:
        scored["stderr"] = max(scored["stderr"] or 0.0, unseen_error(scored["nats"], scored["n"])) or None
    if spec.inputs:
        scored["targets"] = target_scores(target_values(density, split, spec, seed=seed), spec)
    if density.event == "y":
        scored |= _classification(density, split)
    return Result(
        model=model,
        bound=density.bound.value,
        event=density.event,
        unit=split.unit,
        samples=samples,
        params=sum(p.numel() for p in own.parameters() if p.requires_grad),
        train_seconds=train_seconds,
        steps=steps,
        samples_per_second=None
        if spec.tokenizer and spec.tokenizer.elsewhere
        else _sampling_rate(density, split, spec, seed),
        incomplete=gaps.rows,
        nats_per_cell=scored["nats"] * len(split) / gaps.cells if gaps.rows and density.event == "x" else None,
        notes=(*getattr(own, "notes", ()), *gaps.lines(spec), *scored.pop("notes", ())),
        **scored,
    )


def _check_classes(density: Density, spec: DataSpec) -> None:
    """Raise ValueError where a classifier from elsewhere has other class names than the data, or another order."""
    names = getattr(density, "class_names", ())
    numbers = tuple(map(str, range(len(names))))  # labels that are the numbers of the model's outputs
    if names and spec.classes and spec.classes not in (names, numbers):
        raise ValueError(
            f"the model's classes are {some(names)} and the data's {some(spec.classes)}: give the adapter spec=, that "
            "of the data, which puts them in order"
        )


def baseline_scores(density: Density, split: Split, spec: DataSpec) -> Tensor | StreamScores:
    """Return a density's scores of a split, from which others' gains are counted."""
    if split.stream is not None:
        return stream_scores(density, split.stream, spec, split.units_per_example)
    return log_probs(scorable(density, split, spec)[0], split)


def _score_stream(density: Density, split: Split, spec: DataSpec, baseline: StreamScores | None) -> dict[str, Any]:
    assert split.stream is not None
    scores = stream_scores(density, split.stream, spec, split.units_per_example)
    nats, stderr = scores.per_token()
    gain, gain_stderr = (None, None) if baseline is None else scores.gain(baseline)
    notes = []
    if (
        spec.tokenizer is not None
        and spec.tokenizer.elsewhere
        and nats < -math.log(spec.tokenizer.size)
        and len(split.stream) >= MANY_TOKENS
    ):
        notes.append("tokens at random would score better: the tokenizer may be another model's")
    return {
        "nats": nats,
        "stderr": stderr,
        "gain": gain,
        "gain_stderr": gain_stderr,
        "n": int(scores.tokens.sum()),
        "bits_per_dim": bits_per_dim(nats, 1),
        "bits_per_byte": scores.bits_per_byte(),
        "perplexity": perplexity(nats),
        "notes": notes,
    }


def _score_examples(
    density: Density,
    split: Split,
    spec: DataSpec,
    samples: int,
    seed: int,
    baseline: Tensor | None,
    rows: RowScores | None,
) -> dict[str, Any]:
    terms: dict[str, Tensor] = {}
    if rows is not None:
        scores = rows.nats
    else:
        if density.bound is not Bound.EXACT:
            terms = log_prob_terms(density, split, samples=samples, seed=seed)
        # terms sum to log_prob: no second pass, unless a draw's weight of 0 made one NaN
        if not terms or not (scores := sum_terms(terms)).isfinite().all():
            scores = log_probs(density, split, samples=samples, seed=seed)
    nats, stderr = mean_and_stderr(scores)
    zeros = int(scores.isneginf().sum())
    gain, gain_stderr = (None, None)
    if baseline is not None and density.event == "x":
        gain, gain_stderr = mean_and_stderr(scores - baseline)
    discrete = all(spec.discrete_dims) and density.discrete and density.event == "x"
    bits = bits_per_dim(nats, spec.dims) if discrete else None
    return {
        "nats": nats,
        "stderr": stderr,
        "gain": gain,
        "gain_stderr": gain_stderr,
        "n": len(split),
        "bits_per_dim": bits,
        "bits_per_byte": _bits_per_byte(density, scores, split, spec)
        if spec.kind == "text" and density.event == "x"
        else None,
        "notes": []
        if zeros == 0
        else [f"{zeros:,} of {len(split):,} examples have probability 0, so the mean is -inf"],
        "terms": {name: values.mean().item() for name, values in terms.items()},
        "numerical_error": _numerical_error(density, split, seed),
    }


def _bits_per_byte(density: Density, scores: Tensor, split: Split, spec: DataSpec) -> float | None:
    """Return -nats / (bytes · ln 2) of texts; None for texts that may be cut."""
    if not spec.padded:
        return bits_per_dim(scores.mean().item(), spec.dims)
    if spec.tokenizer is None or not spec.tokenizer.elsewhere:
        return None
    lengths = torch.from_numpy(np.append(spec.tokenizer.lengths, 0))
    first = int(not getattr(density, "scores_first", True))
    added = 0 if first else spec.tokenizer.added  # to the first token
    parts = [part[:, first:].long() for part in split.tensor().split(2**12)]
    size = sum(int((lengths[part].sum(1) - added).clamp_min(0).sum()) for part in parts)
    if size == 0:
        return None
    return -scores.sum().item() / (size * math.log(2))


def _classification(density: Density, split: Split) -> dict[str, Any]:
    labels = split.labels()
    assert labels is not None
    probabilities: Any = density.probabilities
    pieces = Pieces(lambda rows: probabilities(split.x[rows].to(density.device)), density.device)
    with evaluation_mode(density):
        blocks = [slice(start, min(len(split), start + 1024)) for start in range(0, len(split), 1024)]
        p = torch.cat([part for block in blocks for part in pieces(block)]).cpu()
    matrix, table = confusion_matrix(p, labels), reliability(p, labels)
    correct = int(matrix.diag().sum())
    return {
        "accuracy": correct / len(p),
        "accuracy_interval": wilson_interval(correct, len(p)),
        "calibration_error": table.error,
        "calibration_interval": table.error_interval,
        "confusion": matrix.tolist(),
    }


def _numerical_error(density: Density, split: Split, seed: int) -> float | None:
    """Return the mean error of the solver over the first `SOLVED_ROWS` rows of the split; None without a solver."""
    event, context = arguments(density, *split.first(SOLVED_ROWS))
    with evaluating(density, seed):
        error = density.numerical_error(event, context)
    return None if error is None else error.double().mean().item()


def _sampling_rate(density: Density, split: Split, spec: DataSpec, seed: int) -> float:
    device = density.device
    n = min(RATE_DRAWS, len(split)) if density.event == "y" or spec.inputs else RATE_DRAWS
    context = None
    if density.event == "y":
        context = split.first(n)[0].to(device)
    elif density.conditional and spec.inputs:
        context = arguments(density, *split.first(n))[1]
    elif density.conditional:
        context = labels_in_turn(spec, n, device)
    with evaluating(density, seed):
        start = time.perf_counter()
        density.sample(n, context).cpu()
    return n / (time.perf_counter() - start)
