"""Text that continues a prompt: the prompt as tokens, and tokens as text while they are drawn."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from loglik.data.tokenizers import Tokenizer
from loglik.evaluation.scores import evaluating
from loglik.runs import Run
from loglik.tasks.sample import labels_of

__all__ = ["continue_text"]

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def continue_text(
    run: Run,
    prompt: str = "",
    *,
    n: int = 1,
    length: int | None = None,
    stop: str | None = None,
    label: str | None = None,
    seed: int = 0,
    on_text: Callable[[str], object] | None = None,
    **choice: Any,
) -> list[str]:
    """Return n texts that begin with a prompt.

    Args:
        run: a run of an autoregressive density of text.
        prompt: the beginning of each text.
        n: the number of texts.
        length: the number of tokens to add to each; by default the tokens in a window.
        stop: a text of one token that ends a sample; `\\n`, `\\t` and `\\r` may be written with a backslash.
        label: the class, where the density is p(text | class).
        seed: of the samples.
        on_text: called with each piece of the first text as soon as it is drawn.
        **choice: `temperature`, `top_k` and `top_p`, as in `Autoregressive.generate`.

    Raises ValueError where the density does not write text, where the prompt has characters that the tokenizer does not
    know or is longer than the window, and for options out of range.
    """
    density, spec = run.density, run.spec
    generate: Any = getattr(density, "generate", None)
    tokenizer = spec.tokenizer
    if generate is None or tokenizer is None:
        raise ValueError("a prompt is for an autoregressive density of text; sample this run without one")
    start = _encode(tokenizer, prompt, "the prompt")
    if len(start) > spec.dims:
        raise ValueError(
            f"the prompt has {len(start)} tokens ({tokenizer.kind}), and the model's context is {spec.dims}: give a "
            "shorter prompt, or train with a longer window=N"
        )
    end = None if stop is None else _stop_token(tokenizer, ESCAPES.get(stop, stop))
    if density.conditional and label is None:
        raise ValueError(f"give label=, one of the classes {', '.join(spec.classes)}")
    context = labels_of(density, spec, n, label)
    stream = None
    if on_text is not None:
        stream = _Stream(tokenizer, on_text)
        stream.add(prompt)
    with evaluating(density, seed) as device:
        tokens = generate(
            n,
            prompt=start.to(device),
            length=spec.dims if length is None else length,
            context=None if context is None else context.to(device),
            stop=end,
            stream=stream,
            **choice,
        ).cpu()
    return [prompt + _text(tokenizer, row[len(start) :].tolist(), end) for row in tokens]


class _Stream:
    """Passes a text on piece by piece; bytes wait until they form a character."""

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], object]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, text: str) -> None:
        if text:
            self.on_text(text)

    def __call__(self, tokens: Int64[Tensor, " n"]) -> None:
        self.add(self.decoder.decode(self.tokenizer.decode(t for t in tokens[:1].tolist() if t < self.tokenizer.size)))


def _encode(tokenizer: Tokenizer, text: str, name: str) -> Int64[Tensor, " P"]:
    return torch.from_numpy(tokenizer.encode(text.encode(errors="surrogateescape"), lambda at: f"{name}, byte {at}"))


def _stop_token(tokenizer: Tokenizer, text: str) -> int:
    tokens = _encode(tokenizer, text, "stop")
    if len(tokens) != 1:
        raise ValueError(f"stop must be one token of the model ({tokenizer.kind}), and {text!r} is {len(tokens)}")
    return int(tokens[0])


def _text(tokenizer: Tokenizer, tokens: list[int], stop: int | None) -> str:
    if stop in tokens:
        tokens = tokens[: tokens.index(stop) + 1]
    return tokenizer.decode(t for t in tokens if t < tokenizer.size).decode(errors="replace")
