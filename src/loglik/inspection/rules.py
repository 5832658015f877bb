"""Tables from PyTorch's operations to their rules on bounds; see `bounds`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loglik.inspection.bounds import Bounds
from loglik.inspection.mixing_rules import (
    Known,
    attention,
    batch_norm,
    constant,
    embedding,
    group_norm,
    layer_norm,
    matmul,
    reduce,
    softmax,
)
from loglik.inspection.window_rules import adaptive_pool, convolution, pool, upsample

__all__ = ["CUTS", "MOVES", "POINTWISE", "REPEATABLE", "RULES"]

aten = torch.ops.aten

# operations that only move elements
MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.expand, aten.slice,
    aten.select, aten.unsqueeze, aten.squeeze, aten.cat, aten.stack, aten.split, aten.split_with_sizes, aten.unbind,
    aten.chunk, aten.roll, aten.flip, aten.constant_pad_nd, aten.index_select, aten.alias, aten.detach, aten.repeat,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.unfold, aten.narrow, aten.diagonal,
    aten._reshape_alias, aten.index, aten.reflection_pad2d, aten.replication_pad2d,
}  # fmt: skip
# moves after which the formula does not hold, unless they keep all elements
CUTS = {
    aten.slice, aten.select, aten.constant_pad_nd, aten.index_select, aten.index, aten.narrow, aten.unfold,
    aten.roll, aten.flip, aten.reflection_pad2d, aten.replication_pad2d,
}  # fmt: skip
# a view of bounds that are expanded in memory has to be a copy
REPEATABLE: dict[Any, Any] = {
    aten.view: torch.reshape,
    aten._unsafe_view: torch.reshape,
    aten._reshape_alias: lambda x, s, _: x.reshape(s),
}
POINTWISE = {
    aten._to_copy,
    aten.clone,
    aten.contiguous,
    aten.native_dropout,
    aten.bernoulli,
    aten.copy_,
    aten.lift_fresh,
}
RULES: dict[Any, Callable[[Known, Any, Any, Tensor], Bounds | None]] = {
    aten.zeros_like: constant,
    aten.ones_like: constant,
    aten.full_like: constant,
    aten.empty_like: constant,
    aten.new_zeros: constant,
    aten.new_ones: constant,
    aten.new_full: constant,
    aten.new_empty: constant,
    aten.convolution: convolution,
    aten._convolution: convolution,
    aten.mkldnn_convolution: convolution,
    aten.max_pool2d_with_indices: pool,
    aten.max_pool3d_with_indices: pool,
    aten.max_pool1d: pool,
    aten.max_pool2d: pool,
    aten.avg_pool2d: pool,
    aten.avg_pool3d: pool,
    aten._adaptive_avg_pool2d: adaptive_pool,
    aten._adaptive_avg_pool3d: adaptive_pool,
    aten.upsample_nearest1d: upsample,
    aten.upsample_nearest2d: upsample,
    aten.upsample_nearest3d: upsample,
    aten.mean: reduce,
    aten.sum: reduce,
    aten.amax: reduce,
    aten.amin: reduce,
    aten.var_mean: reduce,
    aten._softmax: softmax,
    aten._log_softmax: softmax,
    aten._safe_softmax: softmax,
    aten.native_layer_norm: layer_norm,
    aten.native_group_norm: group_norm,
    aten.native_batch_norm: batch_norm,
    aten._native_batch_norm_legit_no_training: batch_norm,
    aten.cudnn_batch_norm: batch_norm,
    aten.embedding: embedding,
    aten.mm: matmul,
    aten.addmm: matmul,
    aten.bmm: matmul,
    aten.baddbmm: matmul,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention: attention,
    aten._scaled_dot_product_efficient_attention: attention,
}
