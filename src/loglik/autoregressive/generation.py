r"""Generation token by token: the distribution of the next token, and the window that the network reads.

n sequences, K tokens of the vocabulary, T positions of the window, P tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from loglik.checks import check_levels

__all__ = ["Choice", "check_prompt", "generate"]

STEPS_BETWEEN_STOP_CHECKS = 16  # of generation on a GPU, which waits for the answer

NextLogits = Callable[[Int64[Tensor, "n L"], bool], Float[Tensor, "n K"]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    r"""How a token is drawn from the logits $l$.

    Attributes:
        temperature: τ, of the distribution $\text{softmax}(l / \tau)$; 0 selects the most probable token.
        top_k: restrict the draw to the k most probable tokens; None for all.
        top_p: restrict the draw, after `top_k`, to the smallest set of tokens whose total probability is at least
            `top_p` (Holtzman et al. 2020); None for all.

    Raises:
        ValueError: a negative or infinite temperature; top_k below 1; top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0, got {self.temperature:g}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p:g}")

    def draw(self, logits: Float[Tensor, "n K"]) -> Int64[Tensor, " n"]:
        """Return one token for each row."""
        if self.temperature == 0 or self.top_k == 1:
            return logits.argmax(-1)
        # exponential race: argmin of clocks with rates p_k is k with probability p_k; clocks of 0 are excluded
        clocks = torch.empty_like(logits).exponential_().clamp_min_(torch.finfo(logits.dtype).tiny)
        return (self.probabilities(logits) / clocks).argmax(-1)

    def probabilities(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Return the distribution of the token, for a temperature above 0."""
        if self.temperature != 1:
            # with a maximum of 0, a small temperature cannot make logits infinite
            logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, tokens = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, tokens, values)
        if self.top_p is not None and self.top_p < 1:
            p, tokens = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
            excluded = p.cumsum(-1) - p >= self.top_p  # more probable tokens already have a total of top_p
            logits = logits.masked_fill(torch.zeros_like(excluded).scatter(-1, tokens, excluded), -torch.inf)
        return logits.softmax(-1)


def check_prompt(prompt: Tensor | None, n: int, window: int, levels: int, device: torch.device) -> Int64[Tensor, "n P"]:
    """Return the prompt as n rows.

    Raises:
        ValueError: no integers, another shape, more tokens than the window, or tokens outside the vocabulary.
    """
    if prompt is None:
        return torch.empty(n, 0, dtype=torch.long, device=device)
    if prompt.is_floating_point() or prompt.dim() not in (1, 2) or (prompt.dim() == 2 and len(prompt) != n):
        raise ValueError(
            f"a prompt must be integers of shape (P,) or ({n}, P), got {prompt.dtype} of {tuple(prompt.shape)}"
        )
    rows = prompt.to(device, torch.long).expand(n, -1)
    if rows.shape[1] > window:
        raise ValueError(f"a prompt can have at most the {window} tokens of the window, got {rows.shape[1]}")
    check_levels(rows, levels, "a prompt")
    return rows


def generate(
    next_logits: NextLogits,
    prompt: Int64[Tensor, "n P"],
    length: int,
    *,
    window: int,
    choice: Choice,
    stop: int | None = None,
    stream: Callable[[Int64[Tensor, " n"]], object] | None = None,
) -> Int64[Tensor, "n total"]:
    """Return the prompt and `length` tokens after it.

    Args:
        next_logits: called as `next_logits(tokens, fresh)` with the tokens that the network has not read yet, returns
            the logits of the next token; with `fresh`, the network first drops the tokens that it has read.
        prompt: P tokens for each sequence.
        length: number of tokens to generate.
        window: T; when the window is full, its second half becomes the start of the text.
        choice: how tokens are drawn.
        stop, stream: see `Autoregressive.generate`.
    """
    n, start = prompt.shape
    tokens = torch.cat([prompt, prompt.new_empty(n, length)], dim=1)
    done = torch.zeros(n, dtype=torch.bool, device=prompt.device)
    first = 0  # start of the window; the network has read its tokens up to `seen`
    seen = 0
    for t in range(start, start + length):
        full = t - first == window
        if full:
            first = seen = t - window // 2
        token = choice.draw(next_logits(tokens[:, seen:t], full or t == start))
        if stop is not None:
            token = torch.where(done, stop, token)
        tokens[:, t] = token
        seen = t
        if stream is not None:
            stream(token)
        if stop is not None:
            done |= token == stop
            due = tokens.device.type == "cpu" or (t + 1 - start) % STEPS_BETWEEN_STOP_CHECKS == 0
            if due and done.all():
                tokens[:, t + 1 :] = stop
                break
    return tokens
