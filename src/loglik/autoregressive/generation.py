r"""Generation token by token: what a next token is drawn from, and the window of tokens that the network sees.

n sequences, K tokens of the vocabulary, T positions of the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Choice", "check_prompt", "generate"]

Next = Callable[[Int64[Tensor, "n L"], bool], Float[Tensor, "n K"]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    r"""How a token is drawn from the logits $l$ of the next one.

    Attributes:
        temperature: tokens are drawn from $\text{softmax}(l / \tau)$; at 0 the likeliest is taken.
        top_k: among the k likeliest only.
        top_p: among the fewest that hold this much of the probability (Holtzman et al. 2020); after `top_k`.
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
        """One token for each row."""
        if self.temperature == 0 or self.top_k == 1:
            return logits.argmax(-1)
        # An exponential race: the first of clocks with rates p is k with probability p_k. No clock stops at 0.
        clocks = torch.empty_like(logits).exponential_().clamp_min_(torch.finfo(logits.dtype).tiny)
        return (self.probabilities(logits) / clocks).argmax(-1)

    def probabilities(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """What the tokens are drawn from, at a temperature above 0."""
        if self.temperature != 1:
            # the largest at 0, so that a small temperature cannot make it infinite
            logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, places = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter(-1, places, values)
        if self.top_p is not None and self.top_p < 1:
            p, places = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
            beyond = p.cumsum(-1) - p >= self.top_p  # what is likelier holds enough already
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), -torch.inf)
        return logits.softmax(-1)


def check_prompt(prompt: Tensor | None, n: int, window: int, levels: int, device: torch.device) -> Int64[Tensor, "n P"]:
    """The prompt as n rows; ValueError where it is no integer of the vocabulary, or longer than the window."""
    if prompt is None:
        return torch.empty(n, 0, dtype=torch.long, device=device)
    if prompt.is_floating_point() or prompt.dim() not in (1, 2) or (prompt.dim() == 2 and len(prompt) != n):
        raise ValueError(f"a prompt is integers of shape (P,) or ({n}, P), got {prompt.dtype} of {tuple(prompt.shape)}")
    rows = prompt.to(device, torch.long).expand(n, -1)
    if rows.shape[1] > window:
        raise ValueError(f"a prompt can have at most the {window} tokens of the window, got {rows.shape[1]}")
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < levels:
        raise ValueError(f"a prompt's tokens must be 0 ... {levels - 1}, got {int(rows.min())} ... {int(rows.max())}")
    return rows


def generate(
    following: Next,
    prompt: Int64[Tensor, "n P"],
    length: int,
    *,
    window: int,
    choice: Choice,
    stop: int | None = None,
    stream: Callable[[Int64[Tensor, " n"]], object] | None = None,
) -> Int64[Tensor, "n all"]:
    """The prompt and `length` tokens after it.

    `following(tokens, fresh)` takes the tokens that the network has not seen yet, after forgetting those before where
    `fresh`, and gives the logits of the next. Where the window is full, its latter half is kept.
    """
    n, start = prompt.shape
    tokens = torch.cat([prompt, prompt.new_empty(n, length)], dim=1)
    done = torch.zeros(n, dtype=torch.bool, device=prompt.device)
    first = 0  # of the window, whose tokens up to `seen` the network has
    seen = 0
    for t in range(start, start + length):
        full = t - first == window
        if full:
            first = seen = t - window // 2
        token = choice.draw(following(tokens[:, seen:t], full or t == start))
        if stop is not None:
            token = torch.where(done, stop, token)
        tokens[:, t] = token
        seen = t
        if stream is not None:
            stream(token)
        if stop is not None:
            done |= token == stop
            if done.all():
                tokens[:, t + 1 :] = stop
                break
    return tokens
