"""What users pass to a density, as tensors of its dtype on its device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["as_tensor", "floating_tensor"]


def floating_tensor(module: nn.Module) -> Tensor | None:
    """Return the module's first floating-point parameter, or else buffer; its dtype and device are the module's.

    The place is remembered, since a search takes as long as a small network's layer.
    """
    tensor: Tensor
    try:
        owner, name = module.__dict__["_floating_at"]
        tensor = getattr(owner, name)
        return tensor
    except (KeyError, AttributeError):
        pass
    for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
        for owner in module.modules():
            for name, tensor in tensors(owner, recurse=False):
                if tensor.is_floating_point():
                    module.__dict__["_floating_at"] = owner, name
                    return tensor
    return None


def as_tensor(value: Any, like: Tensor | None, *, real: bool = False, label: bool = False) -> Tensor:
    """Return a user's array, list or tensor as a tensor for a density whose floating-point tensors are like `like`.

    Args:
        value: numbers of any type.
        like: gives dtype and device; torch's default dtype on the CPU if None.
        real: p is a density, so integers become real numbers.
        label: the values are classes, so booleans become integers.

    Half precision stays as it is, since it comes from autocast. Raises ValueError for what are not numbers.
    """
    if isinstance(value, Tensor):
        x = value
        if like is not None and x.dtype is like.dtype and x.device == like.device:
            return x
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"expected numbers, got an array of type {array.dtype}: pass each example as numbers")
        kept = array.dtype in (np.uint8, np.bool_)
        x = torch.tensor(array if kept else array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    dtype, own = x.dtype, torch.get_default_dtype() if like is None else like.dtype
    if x.is_floating_point():
        if {dtype, own} == {torch.float32, torch.float64}:
            dtype = own
    elif real:
        dtype = own
    elif label or dtype not in (torch.uint8, torch.int64):
        dtype = torch.uint8 if dtype is torch.bool and not label else torch.int64
    return x.to(x.device if like is None else like.device, dtype)
