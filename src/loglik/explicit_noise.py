r"""Noise as an argument: a density's draws are taken from tensors, so that the density is a function of them.

Within `ExplicitNoise` a random operation takes its numbers from two tensors with a row for each example: uniform
numbers in [0, 1), and standard normal ones. Other distributions are made from uniform numbers $u$: an exponential
one is $-\log(1 - u)$, an integer is $\lfloor u n \rfloor$, and a category is the inverse of its cumulative
distribution. No draw is shared between rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ExplicitNoise", "NoiseDraw", "is_explicit"]

Kind = Literal["normal", "uniform"]

KINDS: dict[Any, Kind] = {
    torch.randn: "normal",
    torch.randn_like: "normal",
    torch.rand: "uniform",
    torch.rand_like: "uniform",
}
LIKE = (torch.randn_like, torch.rand_like)
MIN_EXPONENTIAL = 2.0**-25  # below what a float32 u above 0 gives, so that u = 0 is no exception
UNSUPPORTED = (
    torch.normal, torch.bernoulli, torch.randperm, torch.randint_like, Tensor.normal_, Tensor.uniform_, Tensor.random_,
    Tensor.bernoulli_, Tensor.multinomial,
)  # fmt: skip

_active: list[ExplicitNoise] = []


def is_explicit() -> bool:
    """Return whether draws are taken from tensors, so that each row must have draws of its own."""
    return bool(_active)


@dataclass(frozen=True)
class NoiseDraw:
    """One random tensor: its kind, and its shape, of which `dim` has `repeats` entries for each row."""

    kind: Kind
    shape: tuple[Any, ...]  # integers, or the symbols of a traced program
    dim: int = 0
    repeats: int = 1

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of the numbers of a row."""
        return (*self.shape[: self.dim], self.repeats, *self.shape[self.dim + 1 :])

    @staticmethod
    def between(first: NoiseDraw, second: NoiseDraw, rows: tuple[int, int]) -> NoiseDraw:
        """Return a draw whose shape is known for two numbers of rows, with the dimension that depends on them.

        Raises ValueError if there is not exactly one, which is a multiple of the number of rows.
        """
        differing = [d for d, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]
        if len(differing) == 1:
            (dim,) = differing
            repeats = first.shape[dim] // rows[0]
            if (first.shape[dim], second.shape[dim]) == (repeats * rows[0], repeats * rows[1]):
                return NoiseDraw(first.kind, first.shape, dim, repeats)
        raise ValueError(f"a draw of shape {first.shape} for {rows[0]} rows does not belong to single rows")


class ExplicitNoise(TorchFunctionMode):
    """Take each draw from the next columns of the given noise, or, without any, record the draws.

    Args:
        given: (B, M) numbers of each kind.
        plan: the draws in their order, as `NoiseDraw.between` found them.
    """

    def __init__(
        self, given: Mapping[Kind, Float[Tensor, "B M"]] | None = None, plan: Sequence[NoiseDraw] | None = None
    ) -> None:
        super().__init__()
        self.given, self.plan = given, plan
        self.drawn: list[NoiseDraw] = []
        self.used: dict[Kind, int] = {"normal": 0, "uniform": 0}

    def __enter__(self) -> ExplicitNoise:
        _active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _active.remove(self)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LIKE:
            return self._take(KINDS[func], args[0].shape).to(kwargs.get("dtype") or args[0].dtype)
        if func in KINDS:
            size = kwargs.get("size") or (args[0] if isinstance(args[0], (tuple, list)) else args)
            return self._take(KINDS[func], size).to(kwargs.get("dtype") or torch.get_default_dtype())
        if func is Tensor.exponential_:
            u = self._take("uniform", args[0].shape).to(args[0].dtype)
            return -torch.log1p(-u.clamp_min(MIN_EXPONENTIAL))
        if func is torch.randint:
            low, high, size = args if len(args) == 3 else (0, *args)
            return (low + (self._take("uniform", size) * (high - low)).floor()).long()
        if func is torch.multinomial:
            return self._categories(*args, **kwargs)
        if func in UNSUPPORTED:
            raise ValueError(f"{func.__name__} is a random operation that cannot take its noise from an input")
        return func(*args, **kwargs)

    def _categories(self, weights: Tensor, count: int, replacement: bool = False) -> Tensor:
        if count > 1 and not replacement:
            raise ValueError("draws without replacement cannot take their noise from an input")
        u = self._take("uniform", (*weights.shape[:-1], count))
        cdf = weights.cumsum(-1)
        return (u.unsqueeze(-1) * cdf[..., None, -1:] >= cdf[..., None, :-1]).sum(-1)

    def _take(self, kind: Kind, shape: Sequence[Any]) -> Tensor:
        self.drawn.append(NoiseDraw(kind, tuple(shape)))
        if self.given is None or self.plan is None:
            return torch.rand(tuple(shape)) if kind == "uniform" else torch.randn(tuple(shape))
        draw = self.plan[len(self.drawn) - 1]
        assert draw.kind == kind
        start, size = self.used[kind], math.prod(draw.rest)
        self.used[kind] += size
        noise = self.given[kind][:, start : start + size].unflatten(1, draw.rest)
        return noise.movedim(0, draw.dim).flatten(draw.dim, draw.dim + 1)
