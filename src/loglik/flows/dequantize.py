"""Variational dequantization: learned noise turns integers into real numbers (Ho et al. 2019, "Flow++")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from loglik.transforms.dequantize import Dequantize
from loglik.transforms.transform import Transform

__all__ = ["VariationalDequantize"]


class VariationalDequantize(Dequantize):
    r"""Dequantize by $v = x + u$ with $u \sim q(u \mid x)$ on $[0, 1)^D$, learned together with the flow.

    $\log P(x) \ge \mathbb E_q[\log p_v(v) - \log q(v \mid x)]$, and each draw is an importance weight for P(x). The
    noise is uniform on $[-1, 1]^m$, then transformed within that cube. Transforms that start as the identity start at
    uniform dequantization. The cells of known end levels extend to infinity, as in `Dequantize`.

    Args:
        noise: transforms of $[-1, 1]^m$ onto itself (splines with `interval=1`) for the m integer dimensions; their
            context is the output of `network`.
        network: from x as real numbers (B, ...) to a context (B, E).
        levels, discrete, categories: as in `Dequantize`.

    Reference: Ho et al. 2019, section 3.1.
    """

    columnwise = False  # the noise reads the whole row
    integers: Tensor

    def __init__(
        self,
        noise: Sequence[Transform],
        network: nn.Module,
        *,
        levels: int | None = None,
        discrete: Sequence[bool] | None = None,
        categories: Sequence[int] | None = None,
    ) -> None:
        super().__init__(levels, discrete, categories)
        self.noise: Sequence[Transform] = nn.ModuleList(noise)  # type: ignore[assignment]
        self.network = network
        where = torch.empty(0, dtype=torch.long) if self.mask is None else self.mask.nonzero().squeeze(1)
        self.register_buffer("integers", where, persistent=False)

    def initialise(self, x: Shaped[Tensor, "N ..."]) -> None:
        initialise = getattr(self.network, "initialise", None)
        if callable(initialise):
            initialise(x)

    def encode(
        self, x: Shaped[Tensor, "B ..."], context: Shaped[Tensor, "B ..."] | None = None
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, " B"]]:
        v = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        read = self.network(v)
        flat = v.flatten(1)
        numbers = len(self.integers) or flat.shape[1]
        u = 2 * torch.rand(len(x), numbers, dtype=v.dtype, device=v.device) - 1
        log_det = torch.zeros(len(x), dtype=v.dtype, device=v.device)
        for transform in self.noise:
            u, more = transform.encode(u, read)
            log_det = log_det + more
        u = ((u + 1) / 2).clamp(0, 1 - 2**-24)
        if self.mask is not None:
            u = torch.zeros_like(flat).index_add(1, self.integers, u)
        v, slopes = self._to_cell(v, u.view(v.shape))
        return v, log_det if slopes is None else log_det + slopes.flatten(1).sum(1)
