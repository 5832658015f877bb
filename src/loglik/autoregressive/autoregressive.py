"""Autoregressive: the product of each token's probability given those before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loglik.density import Density, check_levels, embed

__all__ = ["Autoregressive"]


class Autoregressive(Density):
    r"""$p(x) = \prod_t p(x_t \mid x_{<t})$ over the T numbers of an event in row-major order, each 0 ... K-1.

    A causal network reads the sequence shifted by one, so that its features at position t see $x_{<t}$ only; a
    linear head gives the K logits. Exact.

    Args:
        network: from embeddings (B, T, E) to features (B, T, E), causal, with `width` E and a `cache`, such as
            `CausalTransformer`.
        event_shape: of the data, T numbers in all.
        levels: K.
        context: a network from a context to E numbers, which are added to the first position; None for p(x).
        dropout: on the embeddings, in training.

    Each position has a learned embedding, and so has each token (tied to nothing). `initialise` raises ValueError
    where the data hold other than 0 ... K-1.
    """

    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        levels: int,
        *,
        context: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.context = network, context
        self.event_shape = tuple(event_shape)
        self.length = math.prod(event_shape)
        self.levels = levels
        self.discrete = True
        self.conditional = context is not None
        width: int = network.width  # type: ignore[assignment]
        self.tokens = nn.Embedding(levels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(self.length, width))
        self.start = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, levels)
        self.register_buffer("offset", torch.zeros(self.length, levels))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T K"]:
        """Unnormalised log p(x_t = k | x_<t) for every position at once."""
        tokens = x.flatten(1)[:, :-1].long()
        h = torch.cat([self._first(len(x), context), self.tokens(tokens)], dim=1) + self.positions
        return self.head(self.network(self.dropout(h))) + self.offset

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        check_levels(x, self.levels)
        logits = self.logits(x, context)
        targets = x.flatten(1).long()
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return -nll.view(len(x), -1).sum(1)

    @torch.no_grad()
    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        cache = self.network.cache(n, self.length)  # type: ignore[operator]
        h = self._first(n, context)
        drawn: list[Int64[Tensor, " n"]] = []
        for t in range(self.length):
            features = self.network(h + self.positions[t], cache)[:, -1]
            probabilities = (self.head(features) + self.offset[t]).softmax(-1)
            drawn.append(torch.multinomial(probabilities, 1).squeeze(1))
            h = self.tokens(drawn[-1]).unsqueeze(1)
        x = torch.stack(drawn, dim=1).view(n, *self.event_shape)
        return x.to(torch.uint8) if self.levels <= 256 else x

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Start from each position's own log-probabilities."""
        check_levels(x, self.levels)
        counts = torch.zeros_like(self.offset)
        rows = x[: 2**14].flatten(1).long().T
        counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
        self.offset.copy_((counts + 0.5).log() - math.log(rows.shape[1] + 0.5 * self.levels))

    def _first(self, n: int, context: Tensor | None) -> Float[Tensor, "n 1 E"]:
        start = self.start.expand(n, 1, -1)
        vector = embed(self.context, context)
        return start if vector is None else start + vector.unsqueeze(1)
