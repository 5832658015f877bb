"""Linear maps of many vectors that are fast on processors of every make.

torch's convolutions are oneDNN's (on one thread from 16 images on), which use all of a processor's vector units; its
float32 products are MKL's, which do so on Intel's only, and elsewhere are half as fast. So a large product is taken for
a convolution of kernel 1: M vectors of E numbers are images (16, E, M/128, 8) in channels-last order, which is the same
memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

__all__ = ["Linear", "outputs_first"]

IMAGES, SIDE = 16, 8  # that the vectors are taken for: so many images, this many vectors wide
FEWEST = 128  # vectors from which on the choice of kernel counts


class Linear(nn.Linear):
    """`nn.Linear`, by a convolution of kernel 1 where many float32 vectors are mapped on a processor."""

    def forward(self, x: Shaped[Tensor, "*B E"]) -> Shaped[Tensor, "*B F"]:
        vectors = x.numel() // x.shape[-1]
        if not _convolves(x) or vectors < FEWEST or vectors % (IMAGES * SIDE) or not x.is_contiguous():
            return F.linear(x, self.weight, self.bias)
        y = F.conv2d(_images(x.view(vectors, -1), SIDE), self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


def outputs_first(
    h: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "O B"]:
    """W hᵀ + b: `F.linear` with its result in memory outputs first. Here the rows of W are a convolution's vectors."""
    kind = h.device.type
    if torch.is_autocast_enabled(kind):
        h, weight, bias = (part.to(torch.get_autocast_dtype(kind)) for part in (h, weight, bias))
    if not _convolves(h) or len(weight) * len(h) < FEWEST**2 // 4 or len(weight) < IMAGES:
        return _plain(h, weight, bias)
    return _OutputsFirst.apply(h, weight, bias)


def _plain(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias.unsqueeze(1), weight, h.T)


class _OutputsFirst(torch.autograd.Function):
    """`_plain` by convolutions, forwards and backwards, which copy neither the result nor its gradient."""

    @staticmethod
    def forward(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = F.pad(weight, (0, 0, 0, -len(weight) % IMAGES))
        return _by_rows(rows, h)[: len(weight)].add_(bias.unsqueeze(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for
            return torch.func.vjp(_plain, h, weight, bias)[1](to_y)
        to_y, rest = to_y.contiguous(), len(weight) % IMAGES
        even = len(weight) - rest
        to_weight = torch.cat([_by_rows(to_y[:even], h.T.contiguous()), to_y[even:] @ h])
        images = _images(weight.contiguous()[:even]), _images(to_y[:even])  # Yᵀ W is a kernel's gradient
        to_h = conv2d_weight(images[0], (*h.shape, 1, 1), images[1]).view(h.shape)
        return to_h.addmm_(to_y[even:].T, weight[even:]), to_weight, to_y.sum(1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(_plain, in_dims)(*inputs), 0


def _by_rows(rows: Float[Tensor, "P E"], kernel: Float[Tensor, "F E"]) -> Float[Tensor, "P F"]:
    y = F.conv2d(_images(rows), kernel[:, :, None, None])
    return y.permute(0, 2, 3, 1).reshape(len(rows), len(kernel))


def _images(vectors: Float[Tensor, "M E"], side: int = 1) -> Float[Tensor, "16 E Q S"]:
    return vectors.view(IMAGES, -1, side, vectors.shape[1]).permute(0, 3, 1, 2)


def _convolves(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
