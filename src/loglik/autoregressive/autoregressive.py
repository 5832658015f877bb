"""Autoregressive: the product of the conditional probabilities of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from loglik import graphs
from loglik.autoregressive.generation import Choice, check_prompt, generate
from loglik.checks import check_labels, check_levels
from loglik.cpu.threads import threads_for
from loglik.density import Density, embed, initialise_context
from loglik.networks.attention import KeyValueCache
from loglik.networks.linear import Linear
from loglik.networks.positions import sinusoids

__all__ = ["Autoregressive"]

MANY_LEVELS = 1024  # from which each position computes the logits of its own levels only


class Autoregressive(Density):
    r"""The density $p(x) = \prod_t p(x_t \mid x_{<t})$ over the T integers 0 ... K-1 of an event, in row-major order.

    A causal network reads the sequence shifted by one, so that its features at position t depend only on $x_{<t}$. A
    linear head computes the K logits. Log-probabilities are exact.

    Args:
        network: from embeddings (B, T, E) to features (B, T, E), causal, with `width` E and a `cache`, such as
            `CausalTransformer`.
        event_shape: of the data, T integers in total.
        levels: K.
        context: a network from a context to a vector (B, E), which is added to the first position; None for p(x).
        dropout: the fraction of embeddings dropped in training.
        positions: `learned` or `sinusoidal`, added to the embeddings; `none` for a network with rotary positions.
        shared: whether all positions start from one distribution, as for windows of text, which start anywhere.
        allowed: which of the K levels each position can have; all if None.

    Each level has a learned embedding, which is not tied to the head.

    Raises:
        ValueError: unknown positions; in `initialise`, values outside 0 ... K-1.
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
        self.tokens = nn.Embedding(levels, width) if self.length > 1 else None  # a single value is never an input
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
        self.ranges = [] if allowed is None or levels < MANY_LEVELS else _ranges(allowed)
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def output_layers(self) -> tuple[nn.Module, ...]:
        """Return the head, whose rows are the levels."""
        return (self.head,)

    def logits(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T K"]:
        """Return the logits of p(x_t = k | x_<t) for all positions in one pass."""
        return self.head(self._features(x, context)) + self.offset

    def _features(self, x: Shaped[Tensor, "B ..."], context: Tensor | None) -> Float[Tensor, "B T E"]:
        h = self._embed(x.flatten(1)[:, :-1].long(), context) + self.positions
        features: Tensor = self.network(self.dropout(h))
        return features

    def token_log_probs(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T"]:
        """Return log p(x_t | x_<t) of each token, in nats."""
        self.check(x, context)
        if self.ranges:
            return self._token_log_probs_in_ranges(x, context)
        nll = F.cross_entropy(self.logits(x, context).flatten(0, 1), x.flatten().long(), reduction="none")
        return -nll.view(len(x), self.length)

    def _token_log_probs_in_ranges(self, x: Shaped[Tensor, "B ..."], context: Tensor | None) -> Float[Tensor, "B T"]:
        """Return the same with T softmaxes over the levels of one position each, not over all K."""
        features, tokens, found = self._features(x, context), x.flatten(1).long(), []
        for t, (start, stop) in enumerate(self.ranges):
            logits = F.linear(features[:, t], self.head.weight[start:stop], self.head.bias[start:stop])
            logits = logits + self.offset[t, start:stop]
            own = tokens[:, t] - start
            inside = (own >= 0) & (own < stop - start)
            nll = F.cross_entropy(logits, own.clamp(0, stop - start - 1), reduction="none")
            found.append((-nll).masked_fill(~inside, -torch.inf))
        return torch.stack(found, dim=1)

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
    ) -> Int64[Tensor, "n total"]:
        """Return a prompt continued by `length` tokens, (n, P + length), generated with a cache of keys and values.

        Args:
            n: number of sequences.
            prompt: P tokens, at most T, of shape (P,) for all sequences or (n, P); None for no prompt.
            length: number of tokens to generate; the rest of the window of T tokens if None. When the window is full,
                generation continues with its second half as the start of the text.
            context: as for `sample`.
            temperature, top_k, top_p: see `Choice`; temperature 0 selects the most probable token.
            stop: a token that ends a sequence, whose later tokens are then also `stop`. Generation ends when all
                sequences have ended.
            stream: called with each new token (n,) of the sequences, as soon as it is drawn.

        Raises:
            ValueError: a prompt longer than T, or with values outside 0 ... K-1; a negative length; see `Choice`.
        """
        rows = check_prompt(prompt, n, self.length, self.levels, self.start.device)
        length = self.length - rows.shape[1] if length is None else length
        if length < 0:
            raise ValueError(f"length must be at least 0, got {length}")
        cache = self.network.cache(n, self.length)  # type: ignore[operator]

        def next_logits(tokens: Int64[Tensor, "n L"], fresh: bool) -> Float[Tensor, "n K"]:
            if fresh:
                cache.clear()
            h = self._embed(tokens, context) if fresh else self._look_up(tokens)
            past = cache.length
            features = self.network(h + self.positions[past : past + h.shape[1]], cache)[:, -1]
            return self.head(features) + self.offset[-1 if len(self.offset) == 1 else cache.length - 1]

        def step(token: Int64[Tensor, " n"], position: Int64[Tensor, "1"]) -> Float[Tensor, "n K"]:
            cache.position = position
            h = self._look_up(token.unsqueeze(1)) + self.positions.index_select(0, position)
            features = self.network(h, cache)[:, -1]
            offset = self.offset[-1] if len(self.offset) == 1 else self.offset.index_select(0, position)
            cache.position = None
            return self.head(features) + offset

        graph = graphs.Graphed(step)  # of this call, since the graph writes to the cache

        def next_logits_by_graph(tokens: Int64[Tensor, "n L"], fresh: bool) -> Float[Tensor, "n K"]:
            if fresh:
                return next_logits(tokens, fresh)
            position = torch.full((1,), cache.length, device=tokens.device)
            cache.length += 1
            return graph(tokens[:, 0], position)

        by_graph = graphs.can_capture(self.start.device) and isinstance(cache, KeyValueCache) and not self.training
        choice = Choice(temperature=temperature, top_k=top_k, top_p=top_p)
        with threads_for(2 * n * max(p.numel() for p in self.network.parameters())):
            steps = next_logits_by_graph if by_graph else next_logits
            return generate(steps, rows, length, window=self.length, choice=choice, stop=stop, stream=stream)

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_levels(x, self.levels)
        self.check_context(context)

    def check_context(self, context: Shaped[Tensor, "B ..."] | None) -> None:
        check_labels(self.context, context)

    @torch.no_grad()
    def initialise(self, x: Shaped[Tensor, "N ..."], context: Shaped[Tensor, "N ..."] | None = None) -> None:
        """Set the initial logits to log-frequencies at each position, or over all positions if `shared`."""
        self.check(x, context)
        initialise_context(self.context, context)
        allowed = self.offset > -torch.inf
        counts = torch.zeros_like(self.offset)
        rows = x[: 2**14].flatten(1).long().T.reshape(len(counts), -1)
        counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
        counts = (counts + 0.5).masked_fill(~allowed, 0.0)
        self.offset.copy_(counts.log() - counts.sum(1, keepdim=True).log())

    def _embed(self, tokens: Int64[Tensor, "n L"], context: Tensor | None) -> Float[Tensor, "n L2 E"]:
        """Return the network's input: the start vector plus the context, then the tokens' embeddings."""
        start, vector = self.start.expand(len(tokens), 1, -1), embed(self.context, context)
        start = start if vector is None else start + vector.unsqueeze(1)
        return start if self.tokens is None else torch.cat([start, self._look_up(tokens)], dim=1)

    def _look_up(self, tokens: Int64[Tensor, "n L"]) -> Float[Tensor, "n L E"]:
        assert self.tokens is not None
        return self.tokens(tokens)


def _ranges(allowed: Bool[Tensor, "T K"]) -> list[tuple[int, int]]:
    """Return the levels of each position as start and stop; nothing unless each position has one range of levels."""
    if allowed.is_meta:
        return []
    found = []
    for row in allowed:
        levels = row.nonzero().flatten()
        if len(levels) == 0 or int(levels[-1] - levels[0]) + 1 != len(levels):
            return []
        found.append((int(levels[0]), int(levels[-1]) + 1))
    return found
