r"""The DDPM chain: its noise levels, its transitions, its posterior, and the terms of its bound.

With $\beta_t \in (0, 1)$, $\alpha_t = 1 - \beta_t$, $\bar\alpha_t = \prod_{s \le t} \alpha_s$ and the data $x_0$:

- forward, $q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{\alpha_t}\, x_{t-1}, \beta_t I)$: `transition`;
- in one step, $q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0, (1 - \bar\alpha_t) I)$: `schedule.add_noise`;
- the posterior $q(x_{t-1} \mid x_t, x_0)$, a Gaussian: `posterior`;
- the model, $p_\theta(x_{t-1} \mid x_t) = q(x_{t-1} \mid x_t, x_0 = \hat x(x_t))$ and $p(x_T) = \mathcal N(0, I)$.

The bound is $-\log p_\theta(x_0) \le L_0 + \sum_{t=2}^T L_{t-1} + L_T$:

- $L_T = \mathrm{KL}(q(x_T \mid x_0) \,\|\, p(x_T))$: `prior_term` returns $-L_T$;
- $L_{t-1} = \mathbb E_q\, \mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t))$:
  `posterior_kl_weight`;
- $L_0 = -\mathbb E_q \log p_\theta(x_0 \mid x_1)$, which depends on the kind of data:
  `reconstruction.Reconstruction.expected` returns $-L_0$.

The code states each formula in the log-SNR $\lambda_t = \log(\bar\alpha_t / (1 - \bar\alpha_t))$, which keeps its
precision where there is little noise. In the rest of the package `alpha` and `sigma` are $\sqrt{\bar\alpha_t}$ and
$\sqrt{1 - \bar\alpha_t}$.

Reference: Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 2-7; Kingma et al. 2021, "Variational
diffusion models", appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loglik.diffusion.schedule import NoiseSchedule, alpha, sigma

__all__ = ["Chain", "Discrete", "ddpm_betas", "posterior", "posterior_kl_weight", "prior_term", "transition"]


@dataclass(frozen=True)
class Chain:
    """T noise levels, the level with the least noise first.

    Attributes:
        times: t of each level in the schedule's continuous time.
        logsnr: λ of each level.
    """

    times: Float[Tensor, " T"]
    logsnr: Float[Tensor, " T"]

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int, like: Float[Tensor, "..."] | None = None) -> Chain:
        """Return a schedule's chain of T levels, evenly spaced in time from t = 0 to 1.

        Args:
            steps: T.
            like: a tensor with the device and dtype of the result.

        Raises ValueError for fewer than 2 steps.
        """
        if steps < 2:
            raise ValueError(f"a chain has at least 2 steps, got {steps}")
        like = torch.empty(()) if like is None else like
        times = torch.linspace(0, 1, steps, device=like.device, dtype=like.dtype)
        return cls(times, schedule.logsnr(times))

    @property
    def alpha_bar(self) -> Float[Tensor, " T"]:
        r"""$\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$."""
        return torch.sigmoid(self.logsnr)

    @property
    def betas(self) -> Float[Tensor, " T"]:
        r"""$\beta_t = 1 - \bar\alpha_t / \bar\alpha_{t-1}$, with $\bar\alpha_0 = 1$."""
        log_alpha = F.logsigmoid(self.logsnr)
        return -torch.expm1(torch.cat([log_alpha[:1], log_alpha.diff()]))


def transition(
    x_s: Float[Tensor, "B ..."], logsnr_s: Float[Tensor, "..."], logsnr_t: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "..."]]:
    r"""Return the mean and standard deviation of $q(x_t \mid x_s)$, from a noise level s to a higher one t.

    It is $\mathcal N\left(\sqrt{\bar\alpha_t / \bar\alpha_s}\; x_s, (1 - \bar\alpha_t / \bar\alpha_s) I\right)$. For
    s = t - 1 it is $\mathcal N(\sqrt{1 - \beta_t}\, x_{t-1}, \beta_t I)$ (Ho et al. 2020, eq. 2).
    """
    ratio = alpha(logsnr_t) / alpha(logsnr_s)
    return ratio * x_s, (1 - ratio.square()).sqrt()


def posterior(
    x_t: Float[Tensor, "B ..."],
    x_0: Float[Tensor, "B ..."],
    logsnr_t: Float[Tensor, "..."],
    logsnr_s: Float[Tensor, "..."],
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "..."]]:
    r"""Return the mean and standard deviation of $q(x_s \mid x_t, x_0)$, at a noise level s below t.

    With $c = 1 - e^{\lambda_t - \lambda_s}$, the mean is
    $\sqrt{\bar\alpha_s / \bar\alpha_t}\,(1 - c)\,x_t + \sqrt{\bar\alpha_s}\, c\,x_0$ and the variance
    $(1 - \bar\alpha_s)\, c$. For s = t - 1 these are
    $\frac{\sqrt{\alpha_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\,x_t +
    \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\,x_0$ and
    $\frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\,\beta_t$.

    Reference: Ho et al. 2020, eq. 6-7; Kingma et al. 2021, appendix A.2.
    """
    c = -torch.expm1(logsnr_t - logsnr_s)
    mean = alpha(logsnr_s) * ((1 - c) * x_t / alpha(logsnr_t) + c * x_0)
    return mean, sigma(logsnr_s) * c.sqrt()


def posterior_kl_weight(logsnr_s: Float[Tensor, "..."], logsnr_t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Return the weight $e^{\lambda_s - \lambda_t} - 1$ of the noise's error in $L_{t-1}$, with s = t - 1.

    $q(x_s \mid x_t, x_0)$ and $p_\theta(x_s \mid x_t)$ have the same variance and differ in $x_0$ and
    $\hat x(x_t)$, so
    $L_{t-1} = \tfrac12 (e^{\lambda_{t-1} - \lambda_t} - 1)\, \mathbb E \lVert \epsilon - \hat\epsilon(x_t) \rVert^2
    = \tfrac12 \left(\frac{\bar\alpha_{t-1}}{1 - \bar\alpha_{t-1}} \cdot \frac{1 - \bar\alpha_t}{\bar\alpha_t} -
    1\right) \mathbb E \lVert \epsilon - \hat\epsilon(x_t) \rVert^2$.

    Reference: Kingma et al. 2021, eq. 14.
    """
    return torch.expm1(logsnr_s - logsnr_t)


def prior_term(x_0: Float[Tensor, "B ..."], low: Float[Tensor, ""]) -> Float[Tensor, " B"]:
    r"""Return $-L_T = -\mathrm{KL}(q(x_T \mid x_0) \,\|\, \mathcal N(0, I))$ of each example.

    $L_T = \tfrac12 \left[\bar\alpha_T \lVert x_0 \rVert^2 + D (\sigma_T^2 - 1 - \log \sigma_T^2)\right]$ with
    $\sigma_T^2 = 1 - \bar\alpha_T$.

    Args:
        x_0: data.
        low: $\lambda_T$, the schedule's lowest log-SNR.
    """
    flat, alpha_bar = x_0.flatten(1), torch.sigmoid(low)
    gap = alpha_bar + F.logsigmoid(-low)  # 1 - σ² + log σ²
    return 0.5 * flat.shape[1] * gap - 0.5 * alpha_bar * flat.square().sum(1)


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
        position = t.to(self.grid.dtype).clamp(0, 1) * last
        left = position.floor().clamp(max=last - 1).long()
        return torch.lerp(self.grid[left], self.grid[left + 1], position - left).to(t.dtype)

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
