"""The schedule of a list of β, as DDPM's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.schedule import NoiseSchedule

__all__ = ["Discrete", "ddpm_betas"]


def ddpm_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> list[float]:
    """DDPM's list: β from 0.0001 to 0.02, evenly spaced. Source: Ho et al. 2020, section 4."""
    return torch.linspace(first, last, steps, dtype=torch.float64).tolist()


class Discrete(NoiseSchedule):
    r"""$\bar\alpha_i = \prod_{j=1}^i (1 - \beta_j)$ at $t_i = (i - 1)/(T - 1)$, i = 1 ... T, as DDPM has it.

    Between its grid times $-\log\bar\alpha$ is linear, so β(t) of the SDE is constant there,
    $-(T-1) \log(1 - \beta_i)$. `chain(T)` is the list itself.

    Args:
        betas: β₁ ... β_T, each between 0 and 1.
    """

    grid: Tensor

    def __init__(self, betas: Sequence[float]) -> None:
        super().__init__()
        values = torch.tensor(list(betas), dtype=torch.float64)
        if len(values) < 2:
            raise ValueError(f"a list of β needs at least 2, got {len(values)}")
        self.steps = len(values)
        wrong = (~((values > 0) & (values < 1))).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"every β must lie between 0 and 1, or the log-SNR does not fall: got β_{i + 1} = {values[i]:g}"
            )
        self.register_buffer("grid", -torch.log1p(-values).cumsum(0), persistent=False)  # -log ᾱ

    def integral(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        last = len(self.grid) - 1
        place = t.to(self.grid.dtype).clamp(0, 1) * last
        left = place.floor().clamp(max=last - 1).long()
        return torch.lerp(self.grid[left], self.grid[left + 1], place - left).to(t.dtype)

    def logsnr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return -torch.log(torch.expm1(self.integral(t)))

    def time(self, logsnr: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        last = len(self.grid) - 1
        integral = torch.nn.functional.softplus(-logsnr.to(self.grid.dtype)).clamp(self.grid[0], self.grid[-1])
        left = (torch.searchsorted(self.grid, integral.contiguous(), right=True) - 1).clamp(0, last - 1)
        gap = self.grid[left + 1] - self.grid[left]
        return ((left + (integral - self.grid[left]) / gap) / last).to(logsnr.dtype)

    def beta(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        last = len(self.grid) - 1
        left = (t.to(self.grid.dtype).clamp(0, 1) * last).floor().clamp(max=last - 1).long()
        return (last * (self.grid[left + 1] - self.grid[left])).to(t.dtype)
