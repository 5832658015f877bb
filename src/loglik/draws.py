"""Monte Carlo draws of a bound, combined into one number or into terms for each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.explicit_noise import is_explicit

__all__ = ["draw_terms", "draw_weights", "expand_context", "sum_terms"]


def expand_context(context: Tensor | None, samples: int) -> Tensor | None:
    """Repeat each of a context's B rows for S samples: (B·S, ...), with the samples of a row side by side."""
    return None if context is None else context.repeat_interleave(samples, 0)


def sum_terms(terms: dict[str, Float[Tensor, " B"]]) -> Float[Tensor, " B"]:
    """Return the sum of named terms; there is at least one."""
    first, *rest = terms.values()
    return sum(rest, first)


def draw_weights(
    log_weight: Callable[[Tensor, Tensor | None], Float[Tensor, " BS"]],
    x: Shaped[Tensor, "B ..."],
    context: Tensor | None,
    samples: int,
    *,
    importance_weighted: bool,
    at_once: int,
) -> Float[Tensor, " B"]:
    r"""Combine S draws of a bound into one number per example.

    Importance weights combine as $\log \tfrac1S \sum_s w_s$ (Burda et al. 2016, eq. 8), which rises with S
    towards $\log p(x)$; other bounds combine as $\tfrac1S \sum_s \log w_s$, which only reduces the variance.
    At most `at_once` rows are evaluated in one call, with the samples of an example side by side.
    """
    _check_samples(samples)
    if samples == 1:
        return log_weight(x, context)
    draws = _repeated(x, context, samples, at_once=at_once)
    stacked = torch.cat([log_weight(rows, contexts).reshape(len(x), s) for s, rows, contexts in draws], 1)
    return _combined(stacked, importance_weighted)


def draw_terms(
    terms: Callable[[Tensor, Tensor | None], dict[str, Float[Tensor, "BS ..."]]],
    x: Shaped[Tensor, "B ..."],
    context: Tensor | None,
    samples: int,
    *,
    importance_weighted: bool,
    at_once: int,
) -> dict[str, Float[Tensor, "B ..."]]:
    r"""Average the terms of S draws of a bound, and add a term for the gain of combining the draws.

    With $\log w_s = \sum_j t_{sj}$, the terms $\tfrac1S \sum_s t_{sj}$ sum to the ELBO's estimate
    $\tfrac1S \sum_s \log w_s$. Importance weights give $\log \tfrac1S \sum_s w_s$, which is larger by Jensen's
    inequality; the difference is the term `tightening (K = S)`. So the terms sum to what `draw_weights` returns
    for the same draws. A term may have more axes, such as the dimensions of an event, over which it is summed.

    Reference: Burda et al. 2016, "Importance weighted autoencoders", theorem 1.
    """
    _check_samples(samples)
    if samples == 1:
        return terms(x, context)
    chunks = [
        {name: term.reshape(len(x), s, *term.shape[1:]) for name, term in terms(rows, contexts).items()}
        for s, rows, contexts in _repeated(x, context, samples, at_once=at_once)
    ]
    # float64: a draw of small weight is large in every term, and its rounding would remain in their sum
    draws = {name: torch.cat([chunk[name] for chunk in chunks], 1).double() for name in chunks[0]}
    means = {name: draw.mean(1) for name, draw in draws.items()}
    if importance_weighted:
        log_weights = torch.stack([draw.reshape(len(x), samples, -1).sum(2) for draw in draws.values()]).sum(0)
        means[f"tightening (K = {samples})"] = _combined(log_weights, True) - log_weights.mean(1)
    return means


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")


def _repeated(
    x: Tensor, context: Tensor | None, samples: int, *, at_once: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield (s, rows, contexts) until there are S draws: each row s times, at most `at_once` rows together."""
    chunk = samples if is_explicit() else max(1, at_once // max(len(x), 1))
    for start in range(0, samples, chunk):
        s = min(chunk, samples - start)
        yield s, x.repeat_interleave(s, 0), expand_context(context, s)


def _combined(log_weights: Float[Tensor, "B S"], importance_weighted: bool) -> Float[Tensor, " B"]:
    if importance_weighted:
        return log_weights.logsumexp(1) - math.log(log_weights.shape[1])
    return log_weights.mean(1)
