"""The noise of a part of a batch is its slice of the whole batch's noise.

Several processes, or several backward passes of one step, each compute the loss of a part of the batch. Their
gradients average to that of the whole batch if each part has the noise that its rows would have in the whole batch, and
if statistics of a batch are those of the whole. Without an active `BatchParts` everything here is the plain operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["BatchParts", "draw_rows", "is_first_part", "mean_over_ranks", "same_part", "shared_noise", "whole_batch"]

SIZED = (torch.rand, torch.randn, torch.randint, torch.normal)
LIKE = (torch.rand_like, torch.randn_like, torch.randint_like)
IN_PLACE = tuple(
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "exponential_", "bernoulli_", "random_", "log_normal_", "cauchy_", "geometric_")
)
OF_TENSORS = (torch.bernoulli, torch.multinomial, torch.normal, Tensor.bernoulli, Tensor.multinomial)
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)

_active: BatchParts | None = None


class BatchParts(TorchFunctionMode):
    """Within `part(k)`, draw each random tensor for the whole batch, and return the rows of this part.

    A random tensor belongs to the batch if its leading dimension is a multiple of the part's number of examples. The
    generator must be seeded alike before each part.

    Args:
        ranks: the number of processes, each with its own parts.
        rank: the number of this process.
        parts: the number of parts in this process.
        gather: from a tensor of this process to those of all processes, stacked.
    """

    def __init__(self, ranks: int, rank: int, parts: int, gather: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ranks, self.rank, self.parts, self.gather = ranks, rank, parts, gather
        self.number, self.size, self.paused = 0, 1, False
        self._collected: dict[Any, list[tuple[Tensor, ...]]] = {}

    @contextmanager
    def part(self, number: int, size: int) -> Iterator[None]:
        """Compute part `number` of this process, which has `size` examples."""
        global _active
        self.number, self.size = number, size
        before, _active = _active, self
        try:
            with self:
                yield
        finally:
            _active = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func in LIKE and self._is_batch(args[0].shape):
            return self._rows(func(self._empty(args[0]), *args[1:], **kwargs))
        if func in IN_PLACE and self._is_batch(args[0].shape):
            return args[0].copy_(self._rows(func(self._empty(args[0]), *map(self._tiled, args[1:]), **kwargs)))
        if func in OF_TENSORS and isinstance(args[0], Tensor) and self._is_batch(args[0].shape):
            return self._rows(func(*map(self._tiled, args), **{k: self._tiled(v) for k, v in kwargs.items()}))
        if func in SIZED:
            return self._sized(func, args, kwargs)
        if func in DROPOUTS and self._is_batch(args[0].shape):
            return self._dropout(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _is_batch(self, shape: torch.Size) -> bool:
        return len(shape) > 0 and shape[0] > 0 and shape[0] % self.size == 0

    def _rows(self, whole: Tensor) -> Tensor:
        rows = len(whole) // (self.ranks * self.parts)
        return whole.narrow(0, (self.rank * self.parts + self.number) * rows, rows)

    def _tiled(self, value: Any) -> Any:
        """Repeat a tensor with a row for each of the part's, to the size of the whole batch."""
        if isinstance(value, Tensor) and self._is_batch(value.shape):
            return value.repeat(self.ranks * self.parts, *[1] * (value.dim() - 1))
        return value

    def _empty(self, x: Tensor) -> Tensor:
        """Return an empty tensor of the whole batch, in x's order of memory, in which the generator fills it."""
        shape = (len(x) * self.ranks * self.parts, *x.shape[1:])
        order = torch.empty_like(x, device="meta").stride()  # also of an expanded tensor
        strides, step = [0] * x.dim(), 1
        for dim in sorted(range(x.dim()), key=lambda d: (order[d], -d)):
            strides[dim] = step
            step *= shape[dim]
        return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)

    def _sized(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Draw a tensor whose size is an argument."""
        sizes = kwargs.get("size")
        position = next((i for i, a in enumerate(args) if isinstance(a, (tuple, list, torch.Size))), None)
        if sizes is None:
            sizes = args if position is None else args[position]
        if not all(isinstance(n, int) for n in sizes) or not self._is_batch(torch.Size(sizes)):
            return func(*args, **kwargs)
        whole = (sizes[0] * self.ranks * self.parts, *sizes[1:])
        if "size" in kwargs:
            kwargs = {**kwargs, "size": whole}
        else:
            args = whole if position is None else (*args[:position], whole, *args[position + 1 :])
        return self._rows(func(*args, **kwargs))

    def _dropout(self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        mask = self._rows(func(self._empty(x).fill_(1.0), p, True))
        return x.mul_(mask) if inplace else x * mask

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend with dropped weights, whose mask torch's own kernels would draw for the part alone."""
        options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
        if dropout_p == 0:
            return F.scaled_dot_product_attention(q, k, v, **options, enable_gqa=enable_gqa)
        if enable_gqa:
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if attn_mask is not None:
            bias = (
                attn_mask
                if attn_mask.dtype != torch.bool
                else torch.zeros_like(scores).masked_fill(~attn_mask, -math.inf)
            )
            scores = scores + bias
        return self._dropout(F.dropout, scores.softmax(-1), dropout_p) @ v

    def collect(self, key: Any, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Keep the tensors of a part; return those of the whole batch at the last part, before it None."""
        if self.number == 0:
            self._collected[key] = []
        self._collected[key].append(tensors)
        if self.number < self.parts - 1:
            return None
        own = [torch.cat(every) for every in zip(*self._collected.pop(key), strict=True)]
        return tuple(self.gather(value).flatten(0, 1) if self.ranks > 1 else value for value in own)


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Shaped[Tensor, "rows ..."]:
    """Return `draw(rows)`, for draws that depend on each other; for a part of a batch, its rows of the whole draw."""
    mode = _active
    if mode is None or mode.paused:
        return draw(rows)
    with shared_noise():
        return mode._rows(draw(rows * mode.ranks * mode.parts))


@contextmanager
def shared_noise() -> Iterator[None]:
    """Draw within as in the whole batch: all parts draw alike, whatever the shape."""
    mode = _active
    before = mode is not None and mode.paused
    if mode is not None:
        mode.paused = True
    try:
        yield
    finally:
        if mode is not None:
            mode.paused = before


def whole_batch(key: Any, *tensors: Shaped[Tensor, "B ..."]) -> tuple[Shaped[Tensor, "N ..."], ...] | None:
    """Return tensors with a row for each example as those of the whole batch, without gradients.

    They are for statistics that a loss updates. Returns None for all parts of a batch but the last of a process.

    Args:
        key: tells one such call in a loss from the others.
    """
    tensors = tuple(tensor.detach() for tensor in tensors)
    return tensors if _active is None else _active.collect(key, tensors)


def mean_over_ranks(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the mean of a part's statistic over the processes, without a gradient."""
    value = value.detach()
    return value if _active is None or _active.ranks == 1 else _active.gather(value).mean(0)


def same_part() -> AbstractContextManager[None]:
    """Return a context in which the backward pass, where no mode is active, computes again what is computed now."""
    return nullcontext() if _active is None or _active.paused else _active.part(_active.number, _active.size)


def is_first_part() -> bool:
    """Return whether a loss is that of a whole batch or of its first part in this process."""
    return _active is None or _active.number == 0
