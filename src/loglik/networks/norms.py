r"""Layer norm, batch norm and RMS norm: torch's modules by name, and their formulas.

Each subtracts a mean, divides by a standard deviation and applies a learned scale γ and shift β; they differ in the
axes over which the moments are computed. B batch, E features, C channels, ε a small constant against division by zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RMSNorm", "batch_norm_formula", "layer_norm_formula", "make_norm", "rms_norm_formula"]

EPSILON = 1e-5  # torch's default for layer norm and batch norm


def make_norm(kind: str, features: int, *, bias: bool = True, image: bool = False) -> nn.Module:
    """Return the module that normalises `features` features, or channels of an image.

    Args:
        kind: `layer`, `batch` or `rms`.
        features: E or C.
        bias: whether layer norm has a shift β; batch norm always has one, RMS norm never.
        image: whether batch norm reads images (B, C, H, W), with one mean and one variance per channel.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "layer":
        return nn.LayerNorm(features, bias=bias)
    if kind == "batch":
        return nn.BatchNorm2d(features) if image else nn.BatchNorm1d(features)
    if kind == "rms":
        return RMSNorm(features)
    raise ValueError(f"unknown norm {kind!r}: use layer, batch or rms")


class RMSNorm(nn.RMSNorm):
    """torch's RMS norm, computed in the precision of its weight; under autocast torch's own warns and is slower."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def layer_norm_formula(
    h: Float[Tensor, "*B E"], scale: Float[Tensor, " E"], shift: Float[Tensor, " E"], epsilon: float = EPSILON
) -> Float[Tensor, "*B E"]:
    r"""Return $\gamma \odot (h - \mu) / \sqrt{v + \varepsilon} + \beta$, with moments over the features.

    The mean μ and variance v are those of the E features of one example, or of one position of a sequence:
    $\mu = \tfrac1E \sum_e h_e$ and $v = \tfrac1E \sum_e (h_e - \mu)^2$. They do not depend on the batch.

    Reference: Ba et al. 2016, "Layer normalization".
    """
    mean = h.mean(-1, keepdim=True)
    variance = (h - mean).square().mean(-1, keepdim=True)
    return scale * (h - mean) / (variance + epsilon).sqrt() + shift


def batch_norm_formula(
    h: Float[Tensor, "B C *N"],
    scale: Float[Tensor, " C"],
    shift: Float[Tensor, " C"],
    epsilon: float = EPSILON,
    *,
    moments: tuple[Float[Tensor, " C"], Float[Tensor, " C"]] | None = None,
) -> Float[Tensor, "B C *N"]:
    r"""Return $\gamma_c (h - \mu_c) / \sqrt{v_c + \varepsilon} + \beta_c$, with moments over the batch.

    The mean μ and variance v of a feature or channel c are those over the examples of the batch and, for images, the
    positions. In evaluation, `moments` are their moving averages from training:
    $\bar\mu \leftarrow 0.9\,\bar\mu + 0.1\,\mu$, and the same for the unbiased variance.

    Args:
        h: vectors (B, C) or images (B, C, H, W).
        moments: μ and v; those of the batch if None.

    Reference: Ioffe and Szegedy 2015, "Batch normalization", algorithm 1.
    """
    axes = [axis for axis in range(h.dim()) if axis != 1]
    mean, variance = (h.mean(axes), h.var(axes, correction=0)) if moments is None else moments
    mean, variance, scale, shift = (v.view(-1, *[1] * (h.dim() - 2)) for v in (mean, variance, scale, shift))
    return scale * (h - mean) / (variance + epsilon).sqrt() + shift


def rms_norm_formula(
    h: Float[Tensor, "*B E"], scale: Float[Tensor, " E"], epsilon: float | None = None
) -> Float[Tensor, "*B E"]:
    r"""Return $\gamma \odot h / \sqrt{\tfrac1E \sum_e h_e^2 + \varepsilon}$: no mean, no shift.

    `epsilon` is the machine precision of h if None, as in torch.

    Reference: Zhang and Sennrich 2019, "Root mean square layer normalization".
    """
    epsilon = torch.finfo(h.dtype).eps if epsilon is None else epsilon
    return scale * h / (h.square().mean(-1, keepdim=True) + epsilon).sqrt()
