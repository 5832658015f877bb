r"""Soft bounds of log-scales: near the identity about 0, and within ±b whatever a network returns.

Flows use `soft_bound`, whose slope falls slowly, and observation models `tanh_bound`, which is closer to the identity.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["inverse_soft_bound", "inverse_tanh_bound", "soft_bound", "tanh_bound"]


def soft_bound(raw: Tensor, bound: float) -> Tensor:
    r"""Return $r / (1 + \lvert r \rvert / b)$, which is within ±b."""
    return raw / (1 + raw.abs() / bound)


def inverse_soft_bound(value: Tensor, bound: float) -> Tensor:
    r"""Return $s / (1 - \lvert s \rvert / b)$, the r whose `soft_bound` is s, for $\lvert s \rvert < b$."""
    return value / (1 - value.abs() / bound)


def tanh_bound(raw: Tensor, bound: float = 6.0) -> Tensor:
    r"""Return $b \tanh(r / b)$, which is within ±b."""
    return bound * (raw / bound).tanh()


def inverse_tanh_bound(value: Tensor, bound: float = 6.0) -> Tensor:
    r"""Return $b \operatorname{artanh}(s / b)$, the r whose `tanh_bound` is s, with s clamped to ±(b - 0.1)."""
    return bound * (value.clamp(0.1 - bound, bound - 0.1) / bound).atanh()
