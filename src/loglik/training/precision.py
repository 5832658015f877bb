"""The precisions that a device multiplies fast in."""

from __future__ import annotations

import torch

from loglik.cpu.choices import choices

__all__ = ["multiplies_bfloat16"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies faster in bfloat16 than in float32, because it has instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and choices().bfloat16
