"""Autoregressive: the product of each token's probability given those before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from loglik.autoregressive.generation import Choice, check_prompt, generate
from loglik.cpu.threads import threads_for
from loglik.density import Density, check_levels, embed
from loglik.networks.linear import Linear
from loglik.networks.positions import sinusoids

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
        positions: `learned` or `sinusoidal`, added to the embeddings; `none` where the network has its own (rotary).
        shared: start from one distribution for all positions, for text, whose positions have no meaning of their own.
        allowed: which of the K levels each position can take; all by default.

    Each token has a learned embedding (tied to nothing). `initialise` raises ValueError where the data hold other
    than 0 ... K-1.
    """

    offset: Tensor
    positions: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        levels: int,
        *,
        context: nn.Module | None = None,
        dropout: float = 0.0,
        positions: str = "learned",
        shared: bool = False,
        allowed: Bool[Tensor, "T K"] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.context = network, context
        self.event_shape = tuple(event_shape)
        self.length = math.prod(event_shape)
        self.levels = levels
        self.discrete = True
        self.conditional = context is not None
        width: int = network.width  # type: ignore[assignment]
        self.tokens = nn.Embedding(levels, width) if self.length > 1 else None  # a single number is never read
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(self.length, width))
        elif positions in ("sinusoidal", "none"):
            table = sinusoids(self.length, width) if positions == "sinusoidal" else torch.zeros(self.length, width)
            self.register_buffer("positions", table, persistent=False)
        else:
            raise ValueError(f"unknown positions {positions!r}: use learned, sinusoidal or none")
        self.start = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.head = Linear(width, levels)
        start = torch.zeros(1 if shared else self.length, levels)
        self.register_buffer("offset", start if allowed is None else start.masked_fill(~allowed, -torch.inf))
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T K"]:
        """Unnormalised log p(x_t = k | x_<t) for every position at once."""
        h = self._embed(x.flatten(1)[:, :-1].long(), context) + self.positions
        return self.head(self.network(self.dropout(h))) + self.offset

    def token_log_probs(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T"]:
        """Log p(x_t | x_<t) of every token, in nats."""
        check_levels(x, self.levels)
        nll = F.cross_entropy(self.logits(x, context).flatten(0, 1), x.flatten().long(), reduction="none")
        return -nll.view(len(x), self.length)

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        return self.token_log_probs(x, context).sum(1)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Shaped[Tensor, "n ..."]:
        x = self.generate(n, context=context).view(n, *self.event_shape)
        return x.to(torch.uint8) if self.levels <= 256 else x

    @torch.no_grad()
    def generate(
        self,
        n: int,
        *,
        prompt: Int64[Tensor, "..."] | None = None,
        length: int | None = None,
        context: Shaped[Tensor, "n ..."] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        stream: Callable[[Int64[Tensor, " n"]], object] | None = None,
    ) -> Int64[Tensor, "n all"]:
        """Continue a prompt by `length` tokens, with a cache of keys and values; gives both, (n, P + length).

        Args:
            n: how many sequences.
            prompt: P tokens, (P,) for all or (n, P), at most the T of the window; none by default.
            length: how many tokens to draw; by default what is left of the window. Beyond the window its latter half
                is kept, and the network goes on as if the text began there.
            context: as `sample` takes it.
            temperature, top_k, top_p: see `Choice`; temperature 0 takes the likeliest token.
            stop: a token after which a sequence is filled with it; all being there, generation ends.
            stream: called with each new token of the n sequences, as soon as it is drawn.

        Raises ValueError for a prompt that is too long or holds other than 0 ... K-1.
        """
        rows = check_prompt(prompt, n, self.length, self.levels, self.start.device)
        length = self.length - rows.shape[1] if length is None else length
        if length < 0:
            raise ValueError(f"length must be at least 0, got {length}")
        cache = self.network.cache(n, self.length)  # type: ignore[operator]

        def following(tokens: Int64[Tensor, "n L"], fresh: bool) -> Float[Tensor, "n K"]:
            if fresh:
                cache.clear()
            h = self._embed(tokens, context) if fresh else self._look_up(tokens)
            past = cache.length
            features = self.network(h + self.positions[past : past + h.shape[1]], cache)[:, -1]
            return self.head(features) + self.offset[-1 if len(self.offset) == 1 else cache.length - 1]

        choice = Choice(temperature=temperature, top_k=top_k, top_p=top_p)
        with threads_for(2 * n * sum(p.numel() for p in self.network.parameters())):
            return generate(following, rows, length, window=self.length, choice=choice, stop=stop, stream=stream)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Start from each position's own log-probabilities, or from those of all together where `shared`."""
        check_levels(x, self.levels)
        allowed = self.offset > -torch.inf
        counts = torch.zeros_like(self.offset)
        rows = x[: 2**14].flatten(1).long().T.reshape(len(counts), -1)
        counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
        counts = (counts + 0.5).masked_fill(~allowed, 0.0)
        self.offset.copy_(counts.log() - counts.sum(1, keepdim=True).log())

    def _embed(self, tokens: Int64[Tensor, "n L"], context: Tensor | None) -> Float[Tensor, "n more E"]:
        """What the network reads first: the start, with what the context says, and the tokens after it."""
        start, vector = self.start.expand(len(tokens), 1, -1), embed(self.context, context)
        start = start if vector is None else start + vector.unsqueeze(1)
        return start if self.tokens is None else torch.cat([start, self._look_up(tokens)], dim=1)

    def _look_up(self, tokens: Int64[Tensor, "n L"]) -> Float[Tensor, "n L E"]:
        assert self.tokens is not None
        return self.tokens(tokens)
