r"""Language models from elsewhere as densities over texts: $\log p(x) = \sum_t \log p(x_t \mid c, x_{<t})$ in nats.

The context c of a text's first token is a token such as that of the beginning of a text. The model reads at most L
tokens, its window. A longer text is read in windows that begin every `stride` tokens, and each token is scored in the
first window that has it, given the window's tokens before it and the one before the window. With stride = L, windows
stand side by side and one more ends with the text, as in EleutherAI's lm-evaluation-harness (`loglikelihood_rolling`).
With a shorter stride each token is given at least L - stride + 1 tokens. K tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loglik.autoregressive.generation import Choice, check_prompt, generate
from loglik.checks import check_levels
from loglik.data.spec import DataSpec
from loglik.data.windows import rolling
from loglik.density import Density, evaluation_mode

__all__ = ["LanguageModel", "read_tokens"]

MAX_LOGITS = 2**26  # computed at once


class LanguageModel(Density):
    r"""A causal language model: $p(x) = \prod_t p(x_t \mid c, x_{<t})$ over token ids 0 ... K-1.

    Args:
        model: called with `input_ids` (B, L), returns logits (B, L, K).
        spec: of text with the model's tokenizer; `padded` for one text a row, which ends in tokens K.
        window: L, the most tokens that the model reads at once.
        stride: how far apart windows of a longer text begin, at most L.
        prefix: c, the token before a text; None leaves each text's first token out of its score.
        notes: what is said beside its numbers.

    Raises ValueError for a window or stride below 1, and a stride above the window.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: DataSpec,
        *,
        window: int,
        stride: int | None = None,
        prefix: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        stride = window if stride is None else stride
        if not 1 <= stride <= window:
            raise ValueError(f"stride must be from 1 to the window of {window} tokens, got {stride}")
        assert spec.tokenizer is not None
        self.network, self.data_spec, self.notes = model, spec, notes
        self.window, self.stride, self.prefix = window, stride, prefix
        self.levels = spec.tokenizer.size
        self.event_shape, self.discrete = spec.event_shape, True

    @property
    def scores_first(self) -> bool:
        """Whether a text's first token has a probability."""
        return self.prefix is not None

    def check(self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None) -> None:
        check_levels(x, self.levels + self.data_spec.padded, "tokens")

    def log_prob(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None, *, samples: int = 1
    ) -> Float[Tensor, " B"]:
        return self.token_log_probs(x).sum(1)

    def token_log_probs(
        self, x: Shaped[Tensor, "B T"], context: Shaped[Tensor, "B ..."] | None = None
    ) -> Float[Tensor, "B T"]:
        """Return log p(x_t | x_<t) of each token of whole texts, in nats; 0 of padding and of an unscored token."""
        self.check(x)
        x = x.long()
        if x.shape[1] <= self.window:
            return self.window_log_probs(x, x.new_full((len(x),), -1))
        lengths = (x < self.levels).sum(1).tolist()
        return torch.stack([F.pad(self._roll(row[:n]), (0, len(row) - n)) for row, n in zip(x, lengths, strict=True)])

    def text_log_probs(self, texts: Sequence[str]) -> list[Float[Tensor, " N"]]:
        """Return log p of each token of each text, in nats. Each text is scored by itself, whatever its length."""
        tokenizer = self.data_spec.tokenizer
        assert tokenizer is not None
        found = []
        with evaluation_mode(self), torch.no_grad():
            for number, text in enumerate(texts, 1):
                tokens = tokenizer.encode(text.encode(), lambda at, number=number: f"text {number}, byte {at}")  # type: ignore[misc]
                found.append(self.token_log_probs(torch.from_numpy(tokens).to(self.device)[None])[0])
        return found

    def window_log_probs(self, x: Shaped[Tensor, "B T"], before: Int64[Tensor, " B"]) -> Float[Tensor, "B T"]:
        """Return log p of each token of windows, at most L long, of longer texts.

        Args:
            x: the windows.
            before: the token before each; -1 where the text begins.
        """
        x, begins = x.long(), before < 0
        if self.prefix is None and begins.any():
            own = F.pad(self._next(x[:, :-1], x[:, 1:]), (1, 0))
            if begins.all():
                return own
            return torch.where(begins[:, None], own, self.window_log_probs(x, before.clamp_min(0)))
        first = before.masked_fill(begins, self.prefix or 0)
        return self._next(torch.cat([first[:, None], x], 1)[:, :-1], x)

    def _roll(self, tokens: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return log p of each token of a text of any length."""
        if len(tokens) <= self.window:
            return self.window_log_probs(tokens[None], tokens.new_full((1,), -1))[0]
        starts, firsts = (part.to(tokens.device) for part in rolling(len(tokens), self.window, self.stride))
        before = torch.where(starts == 0, -1, tokens[(starts - 1).clamp_min(0)])
        scores = self.window_log_probs(tokens.unfold(0, self.window, 1)[starts], before)
        return scores[torch.arange(self.window, device=tokens.device) >= firsts[:, None]]

    def _next(self, inputs: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Return log p of each target given the inputs up to its position; 0 where a target is padding."""
        real = targets < self.levels
        inputs, targets = inputs.clamp_max(self.levels - 1), targets.masked_fill(~real, 0)
        rows = max(1, MAX_LOGITS // max(1, inputs.shape[1] * self.levels))
        pairs = zip(inputs.split(rows), targets.split(rows), strict=True) if inputs.numel() else ()
        found = [-F.cross_entropy(self._logits(i).transpose(1, 2), t, reduction="none") for i, t in pairs]
        return torch.cat(found) * real if found else targets * 1.0

    def _logits(self, inputs: Int64[Tensor, "B T"]) -> Float[Tensor, "B T K"]:
        return _at_least_float32(read_tokens(self.network, inputs, use_cache=False).logits)

    def sample(self, n: int, context: Shaped[Tensor, "n ..."] | None = None) -> Int64[Tensor, "n T"]:
        return self.generate(n)

    @torch.no_grad()
    def generate(
        self,
        n: int,
        *,
        prompt: Int64[Tensor, "..."] | None = None,
        length: int | None = None,
        context: None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        stream: Callable[[Int64[Tensor, " n"]], object] | None = None,
    ) -> Int64[Tensor, "n total"]:
        """Return a prompt continued by `length` tokens, (n, P + length); arguments as of `Autoregressive.generate`.

        Raises ValueError where there is no prompt and no token to begin with.
        """
        rows = check_prompt(prompt, n, self.window, self.levels, self.device)
        length = max(0, self.event_shape[0] - rows.shape[1]) if length is None else length
        if length < 0:
            raise ValueError(f"length must be at least 0, got {length}")
        if self.prefix is None and rows.shape[1] == 0:
            raise ValueError("this model has no token to begin a text with: give a prompt, or prefix=TOKEN")
        begin = rows.new_full((n, 1), self.prefix) if self.prefix is not None else rows[:, :0]
        cache, read = None, rows[:, :0]
        known = inspect.signature(self.network.forward).parameters
        name = "cache" if "cache" in known else "past_key_values"  # by the version of transformers

        def next_logits(tokens: Int64[Tensor, "n L"], fresh: bool) -> Float[Tensor, "n K"]:
            nonlocal cache, begin, read
            if fresh:  # the first window begins with the text
                tokens, begin, cache = torch.cat([begin, tokens], 1), begin[:, :0], None
            read = tokens if fresh else torch.cat([read, tokens], 1)
            out = read_tokens(self.network, read if cache is None else tokens, use_cache=True, **{name: cache})
            cache = getattr(out, name, None)  # of a recurrent model there is none
            return _at_least_float32(out.logits[:, -1])

        choice = Choice(temperature=temperature, top_k=top_k, top_p=top_p)
        return generate(next_logits, rows, length, window=self.window, choice=choice, stop=stop, stream=stream)


def read_tokens(model: nn.Module, inputs: Int64[Tensor, "B T"], **kwargs: Any) -> Any:
    """Return a model's output for token ids that have no padding."""
    mask = None if kwargs.get("use_cache") else torch.ones_like(inputs)
    return model(input_ids=inputs, attention_mask=mask, **kwargs)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
