"""Text that goes on from a prompt: the words of a user as tokens, and tokens as text while they are drawn."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from loglik.data.spec import DataSpec
from loglik.data.tokenizers import Tokenizer
from loglik.density import Density
from loglik.report.samples import evaluating, labels_of

__all__ = ["continue_text"]

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}


def continue_text(
    density: Density,
    spec: DataSpec,
    *,
    prompt: str = "",
    n: int = 1,
    length: int | None = None,
    stop: str | None = None,
    seed: int = 0,
    label: str | None = None,
    say: Callable[[str], object] | None = None,
    **choice: Any,
) -> list[str]:
    """n texts that begin with a prompt, each with `length` tokens more, by default as many as a window holds.

    Args:
        stop: a text of one token, with which a sample ends; `\\n`, `\\t` and `\\r` may be written with a backslash.
        label: the class, where the density is p(text | class).
        say: called with each piece of the first text as soon as it is drawn.
        **choice: `temperature`, `top_k`, `top_p`, as `Autoregressive.generate` takes them.

    Raises ValueError where the density does not write text, where the prompt holds what it does not know or is longer
    than its window, and for choices out of range.
    """
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
    end = None if stop is None else _stop(tokenizer, ESCAPES.get(stop, stop))
    if density.conditional and label is None:
        raise ValueError(f"give label=, one of the classes {', '.join(spec.classes)}")
    context = labels_of(density, spec, n, label)
    spoken = _Spoken(tokenizer, say)
    spoken.add(prompt)
    with evaluating(density, seed) as device:
        tokens = generate(
            n,
            prompt=start.to(device),
            length=spec.dims if length is None else length,
            context=None if context is None else context.to(device),
            stop=end,
            stream=spoken if say is not None else None,
            **choice,
        ).cpu()
    return [prompt + _text(tokenizer, row[len(start) :].tolist(), end) for row in tokens]


class _Spoken:
    """Says a text piece by piece; bytes wait until they are a whole character."""

    def __init__(self, tokenizer: Tokenizer, say: Callable[[str], object] | None) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, text: str) -> None:
        if self.say is not None and text:
            self.say(text)

    def __call__(self, tokens: Int64[Tensor, " n"]) -> None:
        self.add(self.decoder.decode(self.tokenizer.decode(t for t in tokens[:1].tolist() if t < self.tokenizer.size)))


def _encode(tokenizer: Tokenizer, text: str, what: str) -> Int64[Tensor, " P"]:
    return torch.from_numpy(tokenizer.encode(text.encode(errors="surrogateescape"), lambda at: f"{what}, byte {at}"))


def _stop(tokenizer: Tokenizer, text: str) -> int:
    tokens = _encode(tokenizer, text, "stop")
    if len(tokens) != 1:
        raise ValueError(f"stop must be one token of the model ({tokenizer.kind}), and {text!r} is {len(tokens)}")
    return int(tokens[0])


def _text(tokenizer: Tokenizer, tokens: list[int], stop: int | None) -> str:
    if stop in tokens:
        tokens = tokens[: tokens.index(stop) + 1]
    return tokenizer.decode(t for t in tokens if t < tokenizer.size).decode(errors="replace")
