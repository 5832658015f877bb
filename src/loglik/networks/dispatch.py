"""Where operations of our own may stand in for torch's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["is_plain"]


def is_plain(x: Tensor) -> bool:
    """Whether x is float32 on a CPU, and no counter of operations or transform of functions looks on: what they
    see stays torch's own.
    """
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and (
            torch.compiler.is_compiling()
            or not (is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active())
        )
    )
