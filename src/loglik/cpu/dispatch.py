"""The tensors for which a fast path may replace torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

from loglik.cpu import private

__all__ = ["is_plain"]


def is_plain(x: Tensor) -> bool:
    """Return whether x is float32 on a CPU, and nothing observes the operations on it.

    A counter of operations or a transform of functions has rules for torch's own operations only, and an exported
    program has no others.
    """
    return (
        not torch.compiler.is_exporting()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and (torch.compiler.is_compiling() or not private.is_observed())
    )
