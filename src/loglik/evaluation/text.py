r"""The log-likelihood of a long text under a density over T tokens, with overlapping windows.

$\log p(x_{1:N}) = \sum_i \log p(x_i \mid x_{i-c_i}, \dots, x_{i-1})$: a window begins every $\lfloor T/2 \rfloor$
tokens and adds the tokens that no window before it contains. So every token after the first half window has at least
half a window of context, $c_i \ge T/2$. The sum is exact for the density over texts that forgets all earlier tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from loglik.checks import data_checked
from loglik.data.spec import DataSpec
from loglik.data.windows import Stream, Windows, rolling
from loglik.density import Density, evaluation_mode
from loglik.evaluation.scores import ROUNDING, mean_and_stderr

__all__ = ["StreamScores", "perplexity", "stream_scores"]

BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class StreamScores:
    """The nats of consecutive stretches of a text, and their numbers of tokens and bytes."""

    nats: Float64[Tensor, " M"]
    tokens: Float64[Tensor, " M"]
    bytes: Float64[Tensor, " M"]

    def per_token(self) -> tuple[float, float | None]:
        """Return the mean log p of a token, and its standard error over stretches."""
        return _ratio(self.nats, self.tokens)

    def bits_per_byte(self) -> float:
        """Return -nats / (bytes · ln 2)."""
        return -self.nats.sum().item() / (self.bytes.sum().item() * math.log(2))

    def gain(self, baseline: StreamScores) -> tuple[float, float | None]:
        """Return nats per token over another density's scores of the same stretches, and the paired standard error."""
        return _ratio(self.nats - baseline.nats, self.tokens)


def perplexity(nats: float) -> float:
    r"""Return $e^{-\text{nats}}$, the number of equally likely tokens that would be as hard to guess.

    >>> perplexity(-1000.0)
    inf
    """
    return math.exp(-nats) if nats > -700 else math.inf


@torch.no_grad()
def stream_scores(density: Density, stream: Stream, spec: DataSpec, length: int | None = None) -> StreamScores:
    """Score a text, one stretch for each window of `length` tokens, T if None; the text has at least as many.

    Windows of a density without `token_log_probs` stand side by side, and the tokens after the last full window are
    left out. A density with `window_log_probs`, a language model from elsewhere, is given the token before each window,
    and has a stride of its own.
    """
    device, length = density.device, length or spec.dims
    nats, tokens, sizes = [], [], []
    table, added = (None, 0) if spec.tokenizer is None else (spec.tokenizer.lengths, spec.tokenizer.added)
    model: Any = density
    given, score = getattr(model, "window_log_probs", None), getattr(model, "token_log_probs", None)
    with evaluation_mode(density):
        for starts, first in _batches(len(stream), length, getattr(model, "stride", None), overlap=score is not None):
            x = Windows(stream, length, 1)[starts]
            fresh = torch.arange(length) >= first[:, None]  # tokens that no earlier window has scored
            density.check(x)
            with data_checked():
                if given is not None:
                    before = Windows(stream, 1, 1)[(starts - 1).clamp_min(0)][:, 0].long().masked_fill(starts == 0, -1)
                    if not model.scores_first:
                        fresh[starts == 0, 0] = False
                    nats.append((given(x.to(device), before.to(device)).double() * fresh.to(device)).sum(1))
                elif score is None:
                    nats.append(density.log_prob(x.to(device)).double())
                else:
                    nats.append((score(x.to(device)).double() * fresh.to(device)).sum(1))
            tokens.append(fresh.sum(1).double())
            lengths = np.ones(x.shape) if table is None else table[x.numpy()]
            if added and stream.start == 0:  # to the first token
                lengths[starts.numpy() == 0, 0] -= added
            sizes.append((torch.from_numpy(lengths) * fresh).sum(1).double())
    if not sum(part.sum() for part in tokens):
        raise ValueError(
            "the text has one token, and the first is not scored: pass prefix=TOKEN, what stands before it"
        )
    return StreamScores(torch.cat(nats).cpu(), torch.cat(tokens), torch.cat(sizes))


def _batches(n: int, length: int, stride: int | None, *, overlap: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the positions at which windows begin, and the first position in each that is scored."""
    if overlap:
        starts, firsts = rolling(n, length, min(stride or max(1, length // 2), length))
    else:
        starts = torch.arange(0, n - length + 1, length)
        firsts = torch.zeros_like(starts)
    batch = max(1, BATCH_TOKENS // length)
    yield from zip(starts.split(batch), firsts.split(batch), strict=True)


def _ratio(sums: Tensor, counts: Tensor) -> tuple[float, float | None]:
    r"""Return $\sum_m s_m / \sum_m n_m$ and its standard error, from the spread of $s_m - \text{ratio} \cdot n_m$."""
    ratio = sums.sum().item() / counts.sum().item()
    _, error = mean_and_stderr(sums - ratio * counts)
    error = None if error is None else error / counts.mean().item()
    return ratio, None if error is None or error <= ROUNDING * abs(ratio) else error
