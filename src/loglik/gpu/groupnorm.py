r"""Group norm, scale and shift, and SiLU on a GPU: one Triton kernel, and one for the gradient.

$y = \text{SiLU}(a \hat x + c)$ as in `loglik.cpu.groupnorm`. Under autocast torch's group norm copies images to float32
and to another order of memory; these kernels read and write channels-last memory in the precision of x, twice and
once. B batch, C channels, H W image.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loglik.cpu.groupnorm import group_norm_silu as by_operations
from loglik.cpu.groupnorm import plain_group_norm_silu
from loglik.cpu.private import is_observed
from loglik.gpu.launch import jit, tl, triton, works

__all__ = ["group_norm_silu"]

CHANNELS = 64  # that one program computes, rounded to whole groups
ELEMENTS = 4096  # that it holds at a time
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm_silu(
    x: Shaped[Tensor, "B C H W"], scale: Float[Tensor, "B C"], shift: Float[Tensor, "B C"], groups: int, eps: float
) -> Shaped[Tensor, "B C H W"]:
    """Return SiLU(scale · group_norm(x) + shift), with a scale and a shift for each example and channel."""
    if torch.compiler.is_compiling() or not _fits(x, scale, shift):
        return by_operations(x, scale, shift, groups, eps)
    return _GroupNormSiLU.apply(x, scale, shift, groups, eps)


def _fits(x: Tensor, scale: Tensor, shift: Tensor) -> bool:
    types = x.dtype in TYPES and scale.dtype == shift.dtype == torch.float32
    return types and works("groupnorm", x.device, _attempt) and not is_observed()


def _attempt(device: torch.device) -> None:
    x, one = torch.zeros(1, 4, 2, 2, device=device), torch.ones(1, 4, device=device)
    _, mean, rstd = forward(x, one, one, 2, 1e-5)
    backward(x, one, one, mean, rstd, x, 2)


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        y, mean, rstd = forward(x, scale, shift, groups, eps)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is itself differentiated
            y = plain_group_norm_silu(x, scale, shift, ctx.groups, ctx.eps)
            return *torch.autograd.grad(y, (x, scale, shift), grad_y, create_graph=True), None, None
        return *backward(x, scale, shift, mean, rstd, grad_y, ctx.groups), None, None


def forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and μ and 1/√(v + ε) for each channel (B, C)."""
    x = x.contiguous(memory_format=torch.channels_last)
    y, mean = torch.empty_like(x), x.new_empty(x.shape[:2], dtype=torch.float32)
    rstd = torch.empty_like(mean)
    _launch(_forward_kernel, x, groups, scale.contiguous(), shift.contiguous(), y, mean, rstd, eps)
    return y, mean, rstd


def backward(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, grad_y: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by x, scale and shift from that by y."""
    x, grad_y = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad_y))
    grad_x, grad_scale, grad_shift = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    scale, shift = scale.contiguous(), shift.contiguous()
    _launch(_backward_kernel, x, groups, scale, shift, mean, rstd, grad_y, grad_x, grad_scale, grad_shift)
    return grad_x, grad_scale, grad_shift


def _launch(kernel: Any, x: Tensor, groups: int, *others: Any) -> None:
    if not x.numel():
        return
    batch, channels, height, width = x.shape
    size = channels // groups
    chunk = size * max(1, min(groups, CHANNELS // size))
    block = triton.next_power_of_2(chunk)
    rows = max(1, ELEMENTS // block)
    with torch.cuda.device_of(x):
        grid = (batch, triton.cdiv(channels, chunk))
        kernel[grid](x, *others, channels, height * width, size, chunk, block, rows, num_warps=8)


# ---- the kernels; a program computes a chunk of whole groups of one example, channels fastest in memory


def _group_mean(sums, group, positions, SIZE: tl.constexpr, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each channel the mean over its group, from the sums over each channel's positions; 0 beyond the chunk."""
    if CHUNK == SIZE:
        total = tl.zeros_like(sums) + tl.sum(sums, 0)
    else:
        total = tl.sum(tl.where(group[:, None] == group[None, :], sums[None, :], 0.0), 1)
    return total / (SIZE * positions)


def _forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, shift_ptr, y_ptr, mean_ptr, rstd_ptr, eps, channels, positions,
    SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    example, inner = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    c = tl.program_id(1) * CHUNK + inner
    valid = (inner < CHUNK) & (c < channels)
    start, vector = example * positions * channels, example * channels + c
    sums, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, positions, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < positions)[:, None] & valid[None, :]
        x = tl.load(x_ptr + start + row[:, None] * channels + c[None, :], mask, other=0.0).to(tl.float32)
        sums += tl.sum(x, 0)
        squares += tl.sum(x * x, 0)
    mean = _group_mean(sums, inner // SIZE, positions, SIZE, CHUNK)
    variance = _group_mean(squares, inner // SIZE, positions, SIZE, CHUNK) - mean * mean
    rstd = 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    factor = tl.load(scale_ptr + vector, valid, other=0.0) * rstd
    offset = tl.load(shift_ptr + vector, valid, other=0.0) - factor * mean
    tl.store(mean_ptr + vector, mean, valid)
    tl.store(rstd_ptr + vector, rstd, valid)
    for first in range(0, positions, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < positions)[:, None] & valid[None, :]
        place = start + row[:, None] * channels + c[None, :]
        u = tl.load(x_ptr + place, mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
        tl.store(y_ptr + place, (u / (1 + tl.exp(-u))).to(y_ptr.dtype.element_ty), mask)


def _grad_u(x, grad_y, factor, offset):  # type: ignore[no-untyped-def]
    """The gradient by u = a x̂ + c, from that by SiLU(u)."""
    u = x * factor[None, :] + offset[None, :]
    sigmoid = 1 / (1 + tl.exp(-u))
    return grad_y * sigmoid * (1 + u * (1 - sigmoid))


def _backward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, grad_y_ptr, grad_x_ptr, grad_scale_ptr, grad_shift_ptr,
    channels, positions, SIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    example, inner = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    c = tl.program_id(1) * CHUNK + inner
    valid = (inner < CHUNK) & (c < channels)
    start, vector = example * positions * channels, example * channels + c
    scale, mean = tl.load(scale_ptr + vector, valid, other=0.0), tl.load(mean_ptr + vector, valid, other=0.0)
    rstd = tl.load(rstd_ptr + vector, valid, other=0.0)
    factor = scale * rstd
    offset = tl.load(shift_ptr + vector, valid, other=0.0) - factor * mean
    grad_shift, grad_scale = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, positions, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < positions)[:, None] & valid[None, :]
        place = start + row[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + place, mask, other=0.0).to(tl.float32)
        grad_u = _grad_u(x, tl.load(grad_y_ptr + place, mask, other=0.0).to(tl.float32), factor, offset)
        grad_shift += tl.sum(grad_u, 0)
        grad_scale += tl.sum(grad_u * (x - mean[None, :]) * rstd[None, :], 0)
    tl.store(grad_shift_ptr + vector, grad_shift, valid)
    tl.store(grad_scale_ptr + vector, grad_scale, valid)
    # ∂x = r (a ∂u - E[a ∂u] - x̂ E[a ∂u x̂]), with r = 1/√(v + ε) and means E over a group
    mean_grad = _group_mean(scale * grad_shift, inner // SIZE, positions, SIZE, CHUNK) * rstd
    mean_grad_x = _group_mean(scale * grad_scale, inner // SIZE, positions, SIZE, CHUNK) * rstd * rstd
    for first in range(0, positions, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < positions)[:, None] & valid[None, :]
        place = start + row[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + place, mask, other=0.0).to(tl.float32)
        grad_u = _grad_u(x, tl.load(grad_y_ptr + place, mask, other=0.0).to(tl.float32), factor, offset)
        grad_x = factor[None, :] * grad_u - mean_grad[None, :] - (x - mean[None, :]) * mean_grad_x[None, :]
        tl.store(grad_x_ptr + place, grad_x.to(grad_x_ptr.dtype.element_ty), mask)


_group_mean, _grad_u, _forward_kernel, _backward_kernel = jit(_group_mean, _grad_u, _forward_kernel, _backward_kernel)
