"""The precisions that a device multiplies fast in."""

from __future__ import annotations

import torch

__all__ = ["multiplies_bfloat16"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions that multiply in bfloat16, so that bfloat16 is not emulated.

    A CPU must have the instructions, and torch must be allowed to use them. False if this torch cannot tell.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16", False))
